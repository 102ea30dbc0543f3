"""What a command leaves behind: it keeps the lock, and is stopped with it."""

import os
import select
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ctl.processes import LIMIT, Lockctl, Terminal, line_of, wait_for_exit
from ctl.processes import LOCKCTL as PROGRAM
from lockd import Client
from support.daemon_process import DaemonProcess

# Each way to start a process that outlives its parent. It says its pid, and then reads
# from a pipe that ends with this test: so it runs exactly as long as we want.
BACKGROUND = "cat <&3 >/dev/null & echo $!"
NEW_SESSION = "setsid sh -c 'echo $$; exec cat <&3 >/dev/null' & wait_for_it=1; sleep 0"
DOUBLE_FORK = "(sh -c 'echo $$; exec cat <&3 >/dev/null' &) ; :"
DAEMON = (
    f"{sys.executable} -c '"
    + """
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        os.closerange(0, 3)
        os.read(3, 1)
    os._exit(0)
os.wait()
'"""
)
WAYS = [BACKGROUND, NEW_SESSION, DOUBLE_FORK, DAEMON]

STUBBORN = "(trap '' TERM HUP INT; echo $$; exec cat <&3 >/dev/null) & wait_for=1; :"


class Left:
    """A run whose command ends at once and leaves a process behind."""

    def __init__(
        self, lockctl: Lockctl, script: str, *options: str, **popen: Any
    ) -> None:
        reader, self.writer = os.pipe()
        os.set_inheritable(reader, True)
        # Not `3<&{reader}`: of some shells a descriptor has one digit.
        script = f"exec 3</proc/self/fd/{reader}; {script}"
        self.lockctl = lockctl.start(
            "run", *options, "-c", script, "job", pass_fds=[reader], **popen
        )
        os.close(reader)
        self.pid = int(line_of(self.lockctl))
        self.pidfd = os.pidfd_open(self.pid)

    def end(self) -> None:
        os.close(self.writer)

    @property
    def runs(self) -> bool:
        return not select.select([self.pidfd], [], [], 0)[0]


@pytest.mark.parametrize("script", WAYS)
def test_lock_is_held_as_long_as_what_the_command_left_behind_runs(
    lockctl: Lockctl, client: Client, script: str
) -> None:
    left = Left(lockctl, script + "; exit 3")
    (holder,) = client.query("job")["holders"]
    command = os.pidfd_open(holder["pid"]) if _is_there(holder["pid"]) else None
    if command is not None:
        wait_for_exit(command)
    assert client.try_acquire("job") is None
    assert left.runs
    left.end()
    assert left.lockctl.wait(LIMIT) == 3
    assert client.try_acquire("job") is not None


def test_lock_of_a_command_that_has_ended_outlives_an_upgrade(
    lockctl: Lockctl, client: Client, lockd: DaemonProcess
) -> None:
    left = Left(lockctl, BACKGROUND)
    (holder,) = client.query("job")["holders"]
    while _is_there(holder["pid"]):
        pass
    lockd.upgrade()
    assert client.try_acquire("job") is None
    left.end()
    assert left.lockctl.wait(LIMIT) == 0
    assert client.try_acquire("job") is not None


@pytest.mark.parametrize("script", WAYS)
def test_close_ends_the_lock_with_the_command_itself(
    lockctl: Lockctl, client: Client, script: str
) -> None:
    left = Left(lockctl, script, "-o")
    assert left.lockctl.wait(LIMIT) == 0
    assert left.runs
    assert client.try_acquire("job") is not None
    left.end()


@pytest.mark.parametrize("script", WAYS)
@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "TERM"])
def test_signal_stops_what_the_command_left_behind(
    lockctl: Lockctl, client: Client, script: str, name: str
) -> None:
    left = Left(lockctl, script)
    (holder,) = client.query("job")["holders"]
    if _is_there(holder["pid"]):
        wait_for_exit(os.pidfd_open(holder["pid"]))
    # Only now is it certain that the signal is not for the command.
    while _is_there(holder["pid"]):
        pass
    left.lockctl.send_signal(getattr(signal, f"SIG{name}"))
    assert left.lockctl.wait(LIMIT) == 0
    assert not left.runs
    assert client.try_acquire("job") is not None
    left.end()


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "TERM"])
def test_ignored_signal_does_not_stop_what_the_command_left_behind(
    lockctl: Lockctl, client: Client, name: str
) -> None:
    number = getattr(signal, f"SIG{name}")
    left = Left(
        lockctl,
        "sh -c 'echo $$; cat <&3; echo whole' &",
        *("--signal", "KILL"),
        preexec_fn=partial(signal.signal, number, signal.SIG_IGN),
    )
    (holder,) = client.query("job")["holders"]
    while _is_there(holder["pid"]):
        pass
    left.lockctl.send_signal(number)
    # Greater than the others, so it is taken after them. It stops lockctl alone.
    left.lockctl.send_signal(signal.SIGTSTP)
    _, status = os.waitpid(left.lockctl.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    left.lockctl.send_signal(signal.SIGCONT)
    assert client.try_acquire("job") is None
    left.end()
    assert left.lockctl.communicate(timeout=LIMIT) == ("whole\n", "")
    assert left.lockctl.returncode == 0
    assert client.try_acquire("job") is not None


def test_who_stops_a_shell_stops_what_it_waits_for(
    lockctl: Lockctl, client: Client
) -> None:
    left = Left(lockctl, "sh -c 'echo $$; exec cat <&3' >&1; :")
    left.lockctl.terminate()
    assert left.lockctl.wait(LIMIT) == -signal.SIGTERM
    assert not left.runs
    left.end()


@pytest.mark.parametrize("script", WAYS)
def test_loss_stops_what_the_command_left_behind(
    lockctl: Lockctl, lockd: DaemonProcess, script: str
) -> None:
    left = Left(lockctl, script)
    lockd.kill()
    assert left.lockctl.wait(LIMIT) in (0, 76)
    assert not left.runs
    left.end()


def test_what_does_not_stop_is_killed_and_so_are_its_children(
    lockctl: Lockctl, lockd: DaemonProcess
) -> None:
    stubborn = "trap '' TERM; sh -c 'echo $$; cat <&3' & wait"
    left = Left(lockctl, f'sh -c "{stubborn}" & wait', "--kill-after", "0.05")
    lockd.kill()
    assert left.lockctl.wait(LIMIT) == 76
    assert not left.runs
    left.end()


def test_what_is_waited_for_is_told_on_a_terminal(
    lockctl: Lockctl, tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"\n")
    os.mkfifo(tmp_path / "fifo")
    # The command ends when what it leaves behind is cat, and no shell any more.
    left = f"cat </proc/self/fd/{reader} >{tmp_path}/fifo"
    words = (*PROGRAM, "run", "-c", f"{left} & read x <{tmp_path}/fifo", "job")
    terminal = Terminal(words, lockctl.env, pass_fds=[reader])
    terminal.wait_for(
        "the command has ended; 'job' stays locked until the processes that it started "
        "have ended: cat (pid "
    )
    os.close(writer)
    os.close(reader)
    terminal.type("\x1c")  # SIGQUIT, if the end of the pipe was not enough
    terminal.wait()


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
