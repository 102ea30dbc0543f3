"""Memory and descriptors that outlive a process: how, and not what."""
