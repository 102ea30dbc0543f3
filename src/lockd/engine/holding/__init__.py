"""Who holds a resource, and which of its slots."""
