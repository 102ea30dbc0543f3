"""The commands that only ask."""
