"""The Python client: `blocking` for threads, `aio` for trio and asyncio.

`core` holds the state of a conversation. The two shells carry its bytes and wait in
their own way. This room knows neither engine nor daemon.
"""
