"""A request becomes a command, and is carried out."""
