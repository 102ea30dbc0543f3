"""Signals, and what happens when lockctl, the daemon or the lock goes away."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from conftest import StartDaemon
from ctl.processes import (
    LIMIT,
    LOCKCTL,
    Lockctl,
    Terminal,
    ask_until,
    end_input,
    line_of,
    wait_for_exit,
)
from ctl.run.signalled import Signalled, children_of
from daemon_process import DaemonProcess
from lockd import Client, connect

FORWARDED = ["HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "CONT", "WINCH", "TSTP"]

TELL_SIGNAL = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
print("ready", flush=True)
info = signal.sigwaitinfo(signal.valid_signals())
print(signal.Signals(info.si_signo).name, flush=True)
"""

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


def test_lockctl_stops_and_continues_with_its_command(lockctl: Lockctl) -> None:
    process = lockctl.start("run", "-c", "echo ready; cat", "job", process_group=0)
    assert line_of(process) == "ready"
    process.send_signal(signal.SIGTSTP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    assert process.communicate("still here", LIMIT) == ("still here", "")
    assert process.returncode == 0


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


@pytest.mark.parametrize("script", ["exit 0", "exit 3", "kill -9 $$"])
def test_end_of_the_command_is_told_as_a_release(
    lockctl: Lockctl, client: Client, script: str
) -> None:
    with client.watch() as events:
        lockctl("run", "job", "--", "sh", "-c", script)
        told = [next(events) for _ in range(2)]
    assert [event["event"] for event in told] == ["granted", "released"]
    assert told[-1]["cause"] == "released"


def test_lock_that_is_broken_by_ending_the_command_is_76(
    start_daemon: StartDaemon,
) -> None:
    killing = '[lockspaces.killing]\nkind = "memory"\non_disconnect = "kill"\n'
    lockd = start_daemon(killing)
    lockctl = Lockctl(str(lockd.socket))
    process = lockctl.start(
        *("run", "--lockspace", "killing", "-c", "echo ready; exec sleep 60", "job")
    )
    assert line_of(process) == "ready"
    with connect(lockd.socket) as admin:
        (holder,) = admin.query("job", lockspace="killing")["holders"]
        admin.break_grant(holder["fencing_token"], "the disk is on fire")
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 76
    assert "the disk is on fire" in errors


def test_lockctl_killed_while_waiting_leaves_the_queue_and_runs_nothing(
    lockctl: Lockctl, client: Client, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    client.acquire("job")
    process = lockctl.start("run", "job", "--", "touch", mark)
    state = ask_until(client, "job", lambda state: state["waiter_count"] == 1)
    owner = os.pidfd_open(state["waiters"][0]["pid"])
    process.kill()
    wait_for_exit(owner)
    ask_until(client, "job", lambda state: state["waiter_count"] == 0)
    assert not mark.exists()


def test_lock_outlives_a_killed_lockctl_as_long_as_its_command(
    lockctl: Lockctl, client: Client
) -> None:
    process = lockctl.start("run", "-c", "echo ready; cat", "job")
    assert line_of(process) == "ready"
    process.kill()
    process.wait(LIMIT)
    # Only now is its session certainly gone.
    ended = [session["pid"] for session in client.list_sessions()]
    while process.pid in ended:
        ended = [session["pid"] for session in client.list_sessions()]
    assert lockctl("run", "-n", "job", "--", "true").returncode == 75
    end_input(process)
    ask_until(client, "job", lambda state: not state["holders"])


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


def test_daemon_that_goes_during_the_wait_is_69(
    lockctl: Lockctl, client: Client, lockd: DaemonProcess, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    client.acquire("job")
    process = lockctl.start("run", "job", "--", "touch", mark)
    ask_until(client, "job", lambda state: state["waiter_count"] == 1)
    lockd.stop()
    assert process.wait(LIMIT) == 69
    assert not mark.exists()


def test_waiting_is_explained_on_a_terminal(lockctl: Lockctl, client: Client) -> None:
    grant = client.acquire("job")
    terminal = Terminal((*LOCKCTL, "run", "job", "--", "true"), lockctl.env)
    terminal.wait_for("lockctl: waiting for 'job' (1st in queue; held for ")
    terminal.wait_for(f"by the test, pid {os.getpid()}, uid {os.getuid()})")
    client.release(grant)
    assert terminal.wait() == 0


def test_verbose_says_what_was_got(lockctl: Lockctl) -> None:
    done = lockctl("run", "-v", "job", "--", "true")
    assert done.stderr.startswith("lockctl: got 'job' after 0.0")
