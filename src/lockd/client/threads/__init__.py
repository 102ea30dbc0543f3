"""What only the client for threads has: how a thread waits."""
