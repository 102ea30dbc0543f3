"""Where anchors are held: what makes a lock real outside the daemon.

A lockspace opens and closes anchors when it is told to; who may have them is decided
in `lockd.engine`, which this room does not know. Its methods block, and refuse by
raising a `RequestError`.
"""
