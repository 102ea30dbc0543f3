"""A command is stopped when its lock is lost, and never outlives it."""

import os
import signal

import pytest

from ctl.processes import LIMIT, Lockctl, line_of
from ctl.run.signalled import TELL_SIGNAL
from lockd import Client
from support.daemon_process import DaemonProcess

IGNORE_TERM = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", os.getpid(), sep="\\n", flush=True)
signal.pause()
"""


OBEY_TERM = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("ready", os.getpid(), sep="\\n", flush=True)
signal.sigwait([signal.SIGTERM])
print("stopped", flush=True)
"""


def test_lockctl_stops_and_continues_with_its_command(lockctl: Lockctl) -> None:
    process = lockctl.start("run", "-c", "echo ready; cat", "job", process_group=0)
    assert line_of(process) == "ready"
    process.send_signal(signal.SIGTSTP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    assert process.communicate("still here", LIMIT) == ("still here", "")
    assert process.returncode == 0


def test_broken_lock_stops_the_command_and_is_76(
    lockctl: Lockctl, client: Client
) -> None:
    process = lockctl.start_python("job", OBEY_TERM)
    (holder,) = client.query("job")["holders"]
    client.break_grant(holder["fencing_token"], "the disk is on fire")
    output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 76
    assert output.endswith("stopped\n")
    assert "the disk is on fire" in errors


def test_stop_of_the_daemon_stops_the_command_and_is_76(
    lockctl: Lockctl, lockd: DaemonProcess
) -> None:
    process = lockctl.start_python("job", OBEY_TERM)
    lockd.stop()
    output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 76
    assert output.endswith("stopped\n")
    assert "lost" in errors


def test_command_that_does_not_stop_is_killed_before_lockctl_ends(
    lockctl: Lockctl, lockd: DaemonProcess
) -> None:
    script = "import sys" + IGNORE_TERM
    process = lockctl.start_python("job", script, "--kill-after", "0.05")
    command = int(line_of(process))
    lockd.kill()
    assert process.wait(LIMIT) == 76
    with pytest.raises(ProcessLookupError):
        os.kill(command, 0)


def test_stop_signal_can_be_chosen(lockctl: Lockctl, lockd: DaemonProcess) -> None:
    process = lockctl.start_python("job", TELL_SIGNAL, "--signal", "USR2")
    lockd.stop()
    assert line_of(process) == "SIGUSR2"
    assert process.wait(LIMIT) == 76
