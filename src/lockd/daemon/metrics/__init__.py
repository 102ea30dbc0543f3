"""What it tells those who collect figures."""
