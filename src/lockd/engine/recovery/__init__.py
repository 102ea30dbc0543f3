"""The engine as data, for a daemon that continues after another one."""
