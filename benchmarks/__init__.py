"""Measures lockd beside its peers: `make bench`, or `make bench BENCH="ROW..."`."""
