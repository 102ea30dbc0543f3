"""Memory and descriptors that outlive a process: the mechanism, not the content."""
