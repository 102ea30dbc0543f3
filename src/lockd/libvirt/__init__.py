"""virtlockd's tongue: libvirt's RPC as bytes, calls and errors. No I/O."""
