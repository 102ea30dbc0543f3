"""One conversation, its rights and its bounds."""
