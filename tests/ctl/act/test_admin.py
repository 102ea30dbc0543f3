"""`lockctl break` and `disconnect`: safely, and told to everybody."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import StartDaemon
from ctl.processes import Lockctl, Locker, line_of
from lockd import Client, LockLostError, connect
from support.asking import ask_until
from support.daemon_process import DaemonProcess


def test_break_shows_the_victim_takes_the_lock_and_is_in_the_log(
    lockctl: Lockctl, lockd: DaemonProcess, client: Client
) -> None:
    grant = client.acquire("job", reason="nightly")
    token = str(grant.fencing_token)
    done = lockctl("break", token, "--reason", "it hangs", "--yes")
    assert done.returncode == 0
    facts = dict(line.split("\t") for line in done.stdout.splitlines())
    assert facts["lock"] == "job"
    assert (facts["held by"], facts["pid"]) == ("the test", str(os.getpid()))
    assert (facts["fencing token"], facts["reason"]) == (token, "nightly")
    assert "'job' was taken from the test" in done.stderr
    with pytest.raises(LockLostError, match="it hangs"):
        client.release(grant)
    line = lockd.wait_for_line("breaks the lock 'job'")
    assert f"uid {os.getuid()}, 'lockctl'" in line
    assert f"of 'the test' (pid {os.getpid()}, uid {os.getuid()}, session " in line
    assert line.endswith(": 'it hangs'")


def test_every_break_is_in_the_log_however_many(
    lockd: DaemonProcess, client: Client, sock: str
) -> None:
    """Other lines that are alike are left out."""
    with connect(sock) as admin:
        for number in range(60):
            grant = client.acquire(f"n{number}")
            admin.break_grant(grant.fencing_token, f"reason {number}")
    lockd.wait_for_line("'reason 59'")
    audited = [line for line in lockd.said if "breaks the lock" in line]
    assert len(audited) == 60


def test_break_of_one_of_many_holders_takes_that_one(
    lockctl: Lockctl, sock: str, client: Client
) -> None:
    others = [connect(sock, name=f"r{number}") for number in range(20)]
    grants = [peer.acquire("job", mode="shared") for peer in others]
    done = lockctl(
        "break", grants[18].fencing_token, "--reason", "x", "--yes", "--json"
    )
    assert json.loads(done.stdout)["broken"]["name"] == "r18"
    assert client.query("job")["holder_count"] == 19
    for peer in others:
        peer.close()


def test_break_does_not_say_what_the_victim_does_then(
    lockctl: Lockctl, client: Client
) -> None:
    """`lockctl run` ends its command when it is told; others may go on."""
    client.acquire("job")
    done = lockctl("break", "job", "--reason", "x", "--yes")
    assert "nobody waits, so the lock is free; the old holder is notified" in (
        done.stdout
    )


def test_break_says_who_gets_the_lock(
    lockctl: Lockctl, sock: str, client: Client
) -> None:
    client.acquire("job")
    waiter = lockctl.start("run", "--owner", "tar", "job", "--", "true")
    state = ask_until(client, "job", lambda state: state["waiter_count"] == 1)
    pid = state["waiters"][0]["pid"]
    done = lockctl("break", "job", "--reason", "x", "--yes")
    facts = dict(line.split("\t") for line in done.stdout.splitlines())
    assert facts["then"] == (
        f"'tar' (pid {pid}) gets the lock next; "
        "the old holder is notified, and may run on"
    )
    assert waiter.wait(30) == 0


def test_break_of_a_shared_lock_says_that_the_others_keep_it(
    lockctl: Lockctl, client: Client, sock: str
) -> None:
    token = client.acquire("job", mode="shared").fencing_token
    with connect(sock) as other:
        other.acquire("job", mode="shared")
        done = lockctl("break", token, "--reason", "x", "--yes")
    assert "then\t1 other holder keeps the lock; the old holder is" in done.stdout


def test_break_where_that_kills_says_so_first(
    start_daemon: StartDaemon, process: subprocess.Popen[bytes]
) -> None:
    daemon = start_daemon("[lockspaces.k]\nkind='memory'\non_disconnect='kill'\n")
    lockctl = Lockctl(str(daemon.socket))
    words = ("acquire", "--lockspace", "k", "job", "--owner-pid", process.pid)
    token = lockctl(*words).stdout.strip()
    done = lockctl("break", token, "--reason", "x", "--yes")
    assert f"lockd kills process {process.pid}, then nobody waits" in done.stdout
    assert process.wait(30) == -15


_GUEST = """
import sys, lockd
client = lockd.connect(sys.argv[1])
client.register("guest", on_disconnect="kill")
print(client.acquire("job").fencing_token, flush=True)
sys.stdin.read()
"""


def test_break_of_what_a_holder_would_die_for_says_so_first(
    lockctl: Lockctl, sock: str, client: Client
) -> None:
    guest = subprocess.Popen(
        [sys.executable, "-c", _GUEST, sock],
        env=lockctl.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with guest:
        token = line_of(guest)
        done = lockctl("break", token, "--reason", "x", "--yes")
        assert f"lockd kills process {guest.pid}, then nobody waits" in done.stdout
        assert f"is free when process {guest.pid} is dead" in done.stderr
        assert guest.wait(30) == -15


def test_break_of_a_token_that_nobody_has_says_what_to_do(lockctl: Lockctl) -> None:
    done = lockctl("break", "17", "--reason", "x", "--yes")
    assert (done.returncode, done.stdout) == (64, "")
    assert "no lock has the fencing token 17: `lockctl show NAME`" in done.stderr


@pytest.mark.parametrize("command", ["break", "disconnect"])
def test_reason_that_says_nothing_is_refused(lockctl: Lockctl, command: str) -> None:
    for reason in ("", "  "):
        done = lockctl(command, "1", "--reason", reason, "--yes")
        assert (done.returncode, done.stdout) == (64, "")
        assert "give a reason" in done.stderr


def test_number_that_no_session_can_have_is_wrong_usage(lockctl: Lockctl) -> None:
    done = lockctl("disconnect", 10**23, "--reason", "x", "--yes")
    assert done.returncode == 64
    assert f"SESSION: '{10**23}' is not a whole number from 1 to" in done.stderr


def test_break_by_name_takes_the_lock_from_its_one_holder(
    lockctl: Lockctl, client: Client
) -> None:
    grant = client.acquire("17")
    words = ("--reason", "it hangs", "--yes")
    unknown = lockctl("break", "17", *words)
    assert "has the fencing token 17" in unknown.stderr
    done = lockctl("break", "17", "--lockspace", "default", *words)
    assert (done.returncode, done.stderr.split(",")[0]) == (
        0,
        "lockctl: '17' was taken from the test",
    )
    assert str(grant.fencing_token) in done.stdout
    free = lockctl("break", "job", *words)
    assert (free.returncode, free.stdout) == (64, "")
    assert free.stderr == ("lockctl: 'job' has no holder: there is nothing to break\n")


def test_break_by_name_of_a_shared_lock_asks_for_the_token(
    lockctl: Lockctl, client: Client, sock: str
) -> None:
    with connect(sock) as other:
        tokens = [
            x.acquire("job", mode="shared").fencing_token for x in (client, other)
        ]
        done = lockctl("break", "job", "--reason", "x", "--yes")
        assert (done.returncode, done.stdout) == (64, "")
        assert f"one of the fencing tokens {tokens[0]}, {tokens[1]};" in done.stderr
        assert client.query("job")["holder_count"] == 2


def test_break_by_a_name_of_a_file_takes_the_lock_under_the_other(
    lockctl: Lockctl, client: Client, disk: Path
) -> None:
    link = disk.with_name("link")
    link.hardlink_to(disk)
    client.acquire(str(disk))
    done = lockctl("break", link, "--reason", "x", "--yes")
    assert (done.returncode, client.query(str(disk))["holders"]) == (0, [])
    assert f"'{disk}' was taken from the test" in done.stderr


def test_break_of_what_is_held_past_lockd_says_who_would_have_to_end(
    lockctl: Lockctl, client: Client, disk: Path, locker: Locker
) -> None:
    pid = locker(disk, "POSIX")
    done = lockctl("break", disk, "--reason", "x", "--yes")
    assert done.returncode == 64
    assert f"(pid {pid}) outside lockd, so lockd cannot take it away" in done.stderr


def test_help_promises_the_reason_only_to_whom_it_is_told(lockctl: Lockctl) -> None:
    assert "The holder gets it" in lockctl("break", "--help").stdout
    told = " ".join(lockctl("disconnect", "--help").stdout.split())
    assert "The client only sees the end of its connection" in told


def test_disconnect_shows_the_victim_and_ends_its_session(
    lockctl: Lockctl, lockd: DaemonProcess, sock: str, client: Client
) -> None:
    victim = connect(sock, name="victim")
    victim.acquire("job")
    session = victim.session
    assert lockctl("disconnect", session, "--reason", "x", stdin=None).returncode == 64
    done = lockctl("disconnect", session, "--reason", "it floods", "--yes")
    assert done.returncode == 0
    facts = dict(line.split("\t") for line in done.stdout.splitlines())
    assert (facts["session"], facts["name"]) == (str(session), "victim")
    assert facts["holds"] == "1 lock"
    ask_until(client, "job", lambda state: state["holder_count"] == 0)
    line = lockd.wait_for_line("disconnects 'victim'")
    assert line.endswith(": 'it floods'")
    done = lockctl("disconnect", session, "--reason", "x", "--yes")
    assert done.returncode == 64
    assert "`lockctl sessions` lists them" in done.stderr
    victim.close()
