"""One client, several ways to wait: `blocking` for threads, `aio` for trio and asyncio.

`core` knows what was asked, what is held and what was lost; the shells only carry its
bytes and wait. Nothing here knows the engine or the daemon.
"""
