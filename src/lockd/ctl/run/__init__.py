"""A command, or a wait, under a lock."""
