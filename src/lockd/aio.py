"""The client for trio and asyncio programs; `connect` opens a session."""

from lockd.parts import part

with part("aio", "lockd.aio"):
    from lockd.client.aio import Client, Events, Grant, Lock, connect

__all__ = ["Client", "Events", "Grant", "Lock", "connect"]
