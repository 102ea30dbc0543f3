"""Metrics, and how collectors get them."""
