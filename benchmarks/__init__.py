"""Measures lockd beside its peers: `make bench`, or `python -m benchmarks NAME...`."""
