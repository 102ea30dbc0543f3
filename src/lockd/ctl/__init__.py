"""lockctl: the command line of lockd. Knows the daemon only through `lockd.client`."""
