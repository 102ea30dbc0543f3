"""lockctl: the command line of lockd.

It uses the daemon through `lockd.client` only.
"""
