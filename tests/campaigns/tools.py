"""What the campaigns share: a daemon without checks, a table of what was counted."""

import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.installed import LOCKD, as_installed

from support.daemon_process import DaemonProcess

KILL_GRACE = 0.1

CONFIG = f"""
admin_socket = "{{place}}/admin.sock"
kill_grace = {KILL_GRACE}
[limits]
locks_per_session = 100000
locks_per_user = 1000000
sessions_per_user = 4000
[lockspaces.files]
kind = "directory"
path = "{{place}}/locks"
[lockspaces.killed]
kind = "memory"
on_disconnect = "kill"
[lockspaces.killed-files]
kind = "directory"
path = "{{place}}/killed"
on_disconnect = "kill"
"""


@contextmanager
def daemon(config: str = CONFIG) -> Iterator[DaemonProcess]:
    """A daemon in a directory of its own, as installed, and without extra checks."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="lockd-campaign-", dir="/dev/shm") as place:
        for name in ("locks", "killed"):
            (Path(place) / name).mkdir(mode=0o755)
        Path(place).chmod(0o755)
        process = DaemonProcess(
            Path(place),
            config.format(place=place),
            checks=False,
            executed=True,
            program=as_installed(LOCKD, Path(place) / "lockd"),
        )
        try:
            # As in lockd.service.
            process.start(prefix=["nice", "-n", "-10"])
            yield process
        finally:
            process.close()


class Counts:
    """What was counted; some of it must be 0, or within a bound."""

    def __init__(self, title: str) -> None:
        print(f"\n{title}")
        self.failed = False

    def show(self, what: str, value: object, unit: str = "") -> None:
        print(f"  {what:<58} {value!s:>10} {unit}", flush=True)

    def must(self, what: str, value: float, most: float, unit: str = "") -> None:
        """Shows a figure that must not be greater than another."""
        met = value <= most
        self.failed |= not met
        shown = f"{value:.3f}" if isinstance(value, float) else str(value)
        verdict = "met" if met else "MISSED"
        print(f"  {what:<58} {shown:>10} {unit:<3} <= {most:<6g} {verdict}", flush=True)


def end(*found: Counts) -> None:
    """Ends with 1 if something was missed."""
    sys.exit(1 if any(counts.failed for counts in found) else 0)
