"""The operating system: processes, sockets, logs, systemd."""
