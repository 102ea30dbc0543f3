"""Signals, and what happens when lockctl, the daemon or the lock goes away."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from ctl.processes import LIMIT, LOCKCTL, Lockctl, Terminal, line_of, wait_for_exit
from ctl.run.signalled import TELL_SIGNAL
from lockd import Client
from support.asking import ask_until
from support.daemon_process import DaemonProcess

FORWARDED = ["HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "CONT", "WINCH", "TSTP"]

COUNT_INTERRUPTS = """
import signal
both = [signal.SIGINT, signal.SIGUSR1]
signal.pthread_sigmask(signal.SIG_BLOCK, both)
print("ready", flush=True)
SI_KERNEL = 0x80
first = signal.sigwaitinfo([signal.SIGINT])
print("from the", "terminal" if first.si_code == SI_KERNEL else "lockctl", flush=True)
signal.sigwait([signal.SIGUSR1])
print("again" if signal.SIGINT in signal.sigpending() else "once", flush=True)
"""


@pytest.mark.parametrize("name", FORWARDED)
def test_signal_is_forwarded_to_the_command(lockctl: Lockctl, name: str) -> None:
    process = lockctl.start_python("job", TELL_SIGNAL)
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert line_of(process) == f"SIG{name}"
    assert process.wait(LIMIT) == 0


def test_interrupt_from_the_terminal_reaches_the_command_once(lockctl: Lockctl) -> None:
    argv = (*LOCKCTL, "run", "job", "--", sys.executable, "-c", COUNT_INTERRUPTS)
    terminal = Terminal(argv, lockctl.env)
    terminal.wait_for("ready")
    # Two equal signals at a time are one: lockctl shall see it after the command.
    os.kill(terminal.pid, signal.SIGSTOP)
    os.waitpid(terminal.pid, os.WUNTRACED)
    terminal.type("\x03")
    terminal.wait_for("from the terminal")
    os.kill(terminal.pid, signal.SIGCONT)
    # Forwarded after everything that came before it.
    os.kill(terminal.pid, signal.SIGUSR1)
    terminal.wait_for("once")
    assert terminal.wait() == 0


@pytest.mark.parametrize("name", ["HUP", "INT"])
def test_signal_that_is_ignored_does_not_end_the_wait(
    lockctl: Lockctl, client: Client, name: str
) -> None:
    grant = client.acquire("job")
    nohup = f"trap '' {name}; exec {' '.join((*LOCKCTL, 'run', 'job', '--', 'echo'))} "
    shell = ["sh", "-c", nohup + "ran"]
    process = subprocess.Popen(shell, env=lockctl.env, stdout=subprocess.PIPE)
    ask_until(client, "job", lambda state: state["waiter_count"] == 1)
    process.send_signal(getattr(signal, f"SIG{name}"))
    client.release(grant)
    output, _ = process.communicate(timeout=LIMIT)
    assert output == b"ran\n"
    assert process.returncode == 0


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "TERM"])
def test_signal_that_is_ignored_is_not_passed_on(lockctl: Lockctl, name: str) -> None:
    number = getattr(signal, f"SIG{name}")
    process = lockctl.start_python(
        "job", TELL_SIGNAL, preexec_fn=partial(signal.signal, number, signal.SIG_IGN)
    )
    process.send_signal(number)
    # Greater than the others: the command would have told of them first.
    process.send_signal(signal.SIGWINCH)
    assert line_of(process) == "SIGWINCH"
    assert process.wait(LIMIT) == 0


@pytest.mark.parametrize("name", [*FORWARDED, "ALRM", "CHLD", "IO"])
@pytest.mark.parametrize("option", ["--close", "--no-fork"])
def test_command_ignores_what_the_parent_of_lockctl_ignores(
    lockctl: Lockctl, name: str, option: str
) -> None:
    number = getattr(signal, f"SIG{name}")
    process = lockctl.start(
        *("run", option, "job", "--", "grep", "SigIgn", "/proc/self/status"),
        preexec_fn=partial(signal.signal, number, signal.SIG_IGN),
    )
    _, ignored = line_of(process).split()
    # Without those of the C library, 32 and 33, which may come from far outside.
    assert int(ignored, 16) & 0x7FFFFFFF == 1 << (number - 1)
    assert process.wait(LIMIT) == 0


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "TERM"])
def test_signal_during_the_wait_leaves_the_queue_and_ends_lockctl(
    lockctl: Lockctl, client: Client, tmp_path: Path, name: str
) -> None:
    mark = tmp_path / "ran"
    grant = client.acquire("job")
    process = lockctl.start("run", "job", "--", "touch", mark, cwd=tmp_path)
    state = ask_until(client, "job", lambda state: state["waiter_count"] == 1)
    owner = os.pidfd_open(state["waiters"][0]["pid"])
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert process.wait(LIMIT) == -getattr(signal, f"SIG{name}")
    ask_until(client, "job", lambda state: state["waiter_count"] == 0)
    wait_for_exit(owner)
    client.release(grant)
    assert not mark.exists()


def test_signal_during_the_wait_is_told_as_a_cancellation(
    lockctl: Lockctl, client: Client
) -> None:
    client.acquire("job")
    with client.watch() as events:
        process = lockctl.start("run", "job", "--", "true")
        while (event := next(events))["event"] != "waiting":
            pass
        process.terminate()
        assert process.wait(LIMIT) == -signal.SIGTERM
        event = next(events)
    assert (event["event"], event["code"]) == ("refused", "cancelled")


def test_signal_during_the_wait_ends_lockctl_though_the_daemon_hangs(
    lockctl: Lockctl, client: Client, lockd: DaemonProcess
) -> None:
    client.acquire("job")
    process = lockctl.start("run", "job", "--", "true")
    ask_until(client, "job", lambda state: state["waiter_count"] == 1)
    os.kill(lockd.pid, signal.SIGSTOP)
    process.terminate()
    assert process.wait(LIMIT) == -signal.SIGTERM
    os.kill(lockd.pid, signal.SIGCONT)
