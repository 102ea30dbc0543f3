"""The part of the client that waits as a task of trio or asyncio."""
