"""Who waits for whom, and whether that would ever end."""
