"""Kinds of faults that come at random times, under load."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from torture.rounds import Faults, Kind
from torture.target import SERVICE


def none(faults: Faults, seconds: float) -> None:
    """Nothing at all: whatever is found is found wrongly."""
    time.sleep(seconds)


def kills(faults: Faults, seconds: float) -> None:
    """SIGKILL at random times, 2 to 20 a second, some in a row during recovery."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rate = faults.chance.choice((2, 3, 5, 20))
        for _ in range(faults.chance.choice((1, 1, 1, 3, 6))):
            _kill(faults)
            time.sleep(faults.chance.expovariate(rate))


def kills_apart(faults: Faults, seconds: float) -> None:
    """SIGKILL at random times, each after the daemon has served again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        _kill(faults)
        _wait_for_load(faults)
        time.sleep(faults.chance.random() * 0.2)


def _kill(faults: Faults) -> None:
    if faults.target.pid() is not None:
        faults.strike(faults.target.kill)


def _wait_for_load(faults: Faults) -> None:
    """Waits until somebody was granted something, 10 seconds at most."""
    granted, end = faults.board.total("grants"), time.monotonic() + 10
    while faults.board.total("grants") < granted + 20 and time.monotonic() < end:
        time.sleep(0.005)


def restarts(faults: Faults, seconds: float) -> None:
    """`systemctl restart`, again and again."""
    run = faults.target.machine.run
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        faults.strike(partial(run, "systemctl", "restart", SERVICE))
        _wait_for_load(faults)


def upgrades(faults: Faults, seconds: float) -> None:
    """SIGUSR1, with a SIGKILL somewhere into each second one."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        faults.strike(partial(faults.target.kill, signal.SIGUSR1))
        time.sleep(faults.chance.random() * 0.8)
        if faults.chance.random() < 0.5:
            _kill(faults)
            _wait_for_load(faults)


def reloads(faults: Faults, seconds: float) -> None:
    """A storm of daemon-reload, some daemon-reexec between, and kills meanwhile."""
    machine = faults.target.machine
    end = time.monotonic() + seconds

    def storm() -> None:
        while time.monotonic() < end:
            for _ in range(5):
                machine.run("systemctl", "daemon-reload")
            machine.run("systemctl", "daemon-reexec", check=False)

    with ThreadPoolExecutor(1) as pool:
        blowing = pool.submit(storm)
        while time.monotonic() < end:
            time.sleep(faults.chance.random())
            _kill(faults)
            # On a busy machine a start takes longer than the time between two kills.
            if faults.chance.random() < 0.25:
                _wait_for_load(faults)
        blowing.result()


def slow_manager(faults: Faults, seconds: float) -> None:
    """PID 1 stopped for seconds, under load; kills before it goes on and after."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        faults.strike(partial(os.kill, faults.target.first_pid, signal.SIGSTOP))
        try:
            _pause(faults, 0.5 + 2.5 * faults.chance.random())
            if faults.chance.random() < 0.5:
                _kill_while_stopped(faults)
                _pause(faults, faults.chance.random())
        finally:
            os.kill(faults.target.first_pid, signal.SIGCONT)
        _wait_for_load(faults)
        _kill(faults)
        _wait_for_load(faults)


def _kill_while_stopped(faults: Faults) -> None:
    if (pid := faults.target.pid()) is not None:
        faults.strike(partial(os.kill, pid, signal.SIGKILL))


def _pause(faults: Faults, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.1)
        faults.board.note_fault()


def hangs(faults: Faults, seconds: float) -> None:
    """SIGSTOP: the watchdog, which is set to a second for this, kills it."""
    faults.target.drop_in("[Service]\nWatchdogSec=1\n")
    faults.strike(faults.target.kill)
    _wait_for_load(faults)
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid = faults.target.wait_pid()
            faults.strike(partial(faults.target.kill, signal.SIGSTOP))
            while faults.target.pid() == pid:
                _pause(faults, 0.1)
            _wait_for_load(faults)
    finally:
        faults.target.drop_in("")
        faults.strike(faults.target.kill)


KINDS: Final[dict[str, Kind]] = {
    "nothing": none,
    "SIGKILL, some in a row": kills,
    "SIGKILL, one at a time": kills_apart,
    "systemctl restart": restarts,
    "live upgrades and SIGKILL": upgrades,
    "daemon-reload, -reexec, SIGKILL": reloads,
    "PID 1 stopped, SIGKILL": slow_manager,
    "watchdog": hangs,
}

WITHOUT_SYSTEMD: Final = (
    "nothing",
    "SIGKILL, some in a row",
    "SIGKILL, one at a time",
    "live upgrades and SIGKILL",
)
"""Those that do without systemd, and with `lockd keep` in its place."""

KILLING: Final = ("SIGKILL, some in a row", "SIGKILL, one at a time")
"""Those whose faults are SIGKILLs, and nothing else."""
