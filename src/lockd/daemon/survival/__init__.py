"""Survival: keeping the state of the daemon, and restoring it."""
