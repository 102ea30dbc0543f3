"""Requests: each becomes a command, which is carried out."""
