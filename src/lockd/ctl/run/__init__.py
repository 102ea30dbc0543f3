"""The commands that hold a lock while a command runs or a user waits."""
