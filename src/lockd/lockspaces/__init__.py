"""Anchors: what makes a lock real outside the daemon.

A lockspace opens and closes anchors for its caller. `lockd.engine`, which this room
does not know, decides who gets them. The methods block, and raise a `RequestError` to
refuse.
"""
