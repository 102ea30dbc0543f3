"""Asks systemd about units, of the host's manager or the user's."""

import shutil
import subprocess
from typing import Final

from lockd.errors import NotFoundError, UnavailableError
from lockd.names import quoted

#: The commands that ask the managers.
_MANAGERS: Final = (["systemctl"], ["systemctl", "--user"])


def main_pid(unit: str) -> int:
    """Returns the pid of the main process of a unit.

    Raises:
        NotFoundError: it has none.
    """
    if shutil.which("systemctl") is None:
        raise NotFoundError(
            f"cannot look up unit {quoted(unit)}: systemctl is not installed"
        )
    for manager in _MANAGERS:
        match _property_of(manager, unit, "MainPID"):
            case [pid] if pid.isdecimal() and int(pid):
                return int(pid)
    raise NotFoundError(
        f"unit {quoted(unit)} has no main process: see `systemctl status {unit}`"
    )


def manager_of(pid: int, unit: str | None) -> tuple[list[str], list[str]]:
    """Returns the command of the manager that runs the daemon, and the units to stop.

    Raises:
        UnavailableError: no manager runs it.
    """
    for manager in _MANAGERS:
        if unit is not None and _property_of(manager, unit, "MainPID") == [str(pid)]:
            triggers = _property_of(manager, unit, "TriggeredBy")
            listening = [x for x in triggers if _is_active(manager, x)]
            # A listening socket would start the daemon for the next client.
            return manager, [unit, *listening]
    raise UnavailableError(
        f"systemd does not run lockd (pid {pid}): `kill {pid}` stops it, and all its "
        "locks are lost"
    )


def _is_active(manager: list[str], unit: str) -> bool:
    return _property_of(manager, unit, "ActiveState") == ["active"]


def _property_of(manager: list[str], unit: str, name: str) -> list[str]:
    """Returns the words of a property of a unit; none if systemctl does not run."""
    command = [*manager, "show", "--value", f"--property={name}", "--", unit]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return []
    return done.stdout.split()
