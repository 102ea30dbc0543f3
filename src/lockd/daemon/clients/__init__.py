"""Clients: their connections, rights and limits."""
