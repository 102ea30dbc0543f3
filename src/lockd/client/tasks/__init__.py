"""What only the client for trio and asyncio has: how a task waits."""
