"""The commands that take locks away, or take them for others."""
