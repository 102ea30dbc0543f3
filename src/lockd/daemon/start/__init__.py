"""The start of a daemon: empty, after an upgrade, or after a crash."""
