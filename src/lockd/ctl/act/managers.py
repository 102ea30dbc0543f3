"""What the service managers say of a unit: systemd's for the host, and the user's."""

import subprocess
from typing import Final

#: The commands that speak to them.
MANAGERS: Final = (["systemctl"], ["systemctl", "--user"])


def property_of(manager: list[str], unit: str, name: str) -> list[str]:
    """Returns a property of a unit, word by word; nothing if it cannot be asked."""
    command = [*manager, "show", "--value", f"--property={name}", "--", unit]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return []
    return done.stdout.split()
