"""Counts, history, health and life: what has happened in the daemon."""
