"""The command gets each signal once, sent to lockctl alone or to both."""

import os
import signal

import pytest

from ctl.processes import Lockctl, wait_for_exit
from ctl.run.signalled import Signalled, children_of


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "TERM", "USR1"])
@pytest.mark.parametrize("way", ["to_lockctl", "to_group", "to_each"])
def test_signal_reaches_the_command_once_wherever_it_is_sent(
    lockctl: Lockctl, way: str, name: str
) -> None:
    number = getattr(signal, f"SIG{name}")
    with Signalled(lockctl) as run:
        for _ in range(3):
            assert run.got_after(getattr(run, way), number) == [number]


@pytest.mark.parametrize("way", ["to_lockctl", "to_group"])
def test_command_in_a_group_of_its_own_gets_what_lockctl_gets(
    lockctl: Lockctl, way: str
) -> None:
    with Signalled(lockctl, "apart") as run:
        for _ in range(3):
            assert run.got_after(getattr(run, way), signal.SIGTERM) == [signal.SIGTERM]


def test_signals_are_passed_on_when_the_witness_is_gone(lockctl: Lockctl) -> None:
    with Signalled(lockctl) as run:
        (witness,) = set(children_of(run.lockctl.pid)) - {run.command}
        gone = os.pidfd_open(witness)
        os.kill(witness, signal.SIGKILL)
        wait_for_exit(gone)
        assert run.got_after(run.to_lockctl, signal.SIGTERM) == [signal.SIGTERM]


def test_witness_that_was_stopped_takes_no_signal_for_another(lockctl: Lockctl) -> None:
    with Signalled(lockctl) as run:
        (witness,) = set(children_of(run.lockctl.pid)) - {run.command}
        os.kill(witness, signal.SIGSTOP)
        assert run.got_after(run.to_lockctl, signal.SIGUSR1) == [signal.SIGUSR1]
        os.kill(witness, signal.SIGCONT)
        assert run.got_after(run.to_group, signal.SIGTERM) == [signal.SIGTERM]
        assert run.got_after(run.to_lockctl, signal.SIGTERM) == [signal.SIGTERM]
