"""libvirt's RPC as virtlockd speaks it: bytes, calls and errors. No I/O."""
