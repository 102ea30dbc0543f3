"""The part of the client that waits as a thread."""
