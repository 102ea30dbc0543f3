"""`lockctl show`, `test`, `wait`, `lock-name`: about one lock."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from ctl.processes import Lockctl, end_input
from lockd import Client
from support.asking import ask_until
from support.daemon_process import DaemonProcess


def test_show_tells_holder_queue_and_last_holder(
    lockctl: Lockctl, client: Client
) -> None:
    client.release(client.acquire("job"))
    first = lockctl.start("run", "job", "--", "cat")
    ask_until(client, "job", lambda state: state["holder_count"] == 1)
    second = lockctl.start("run", "-s", "job", "--", "cat")
    ask_until(client, "job", lambda state: state["waiter_count"] == 1)
    lines = [line.split("\t") for line in lockctl("show", "job").stdout.splitlines()]
    assert [line[0] for line in lines[:2]] == ["holds", "1st in queue"]
    assert lines[2][0].startswith("released ")
    assert [line[1] for line in lines] == ["cat", "cat", "the test"]
    assert [line[6] for line in lines] == ["exclusive", "shared", "exclusive"]
    end_input(first)
    end_input(second)


@pytest.mark.parametrize(
    ("script", "told"), [("exit 0", "released"), ("exit 3", "failed")]
)
def test_show_tells_how_the_work_of_the_last_holder_ended(
    lockctl: Lockctl, script: str, told: str
) -> None:
    lockctl("run", "job", "--", "sh", "-c", script)
    assert lockctl("show", "job").stdout.startswith(f"{told} ")


def test_show_as_json_is_the_answer_of_query(lockctl: Lockctl, client: Client) -> None:
    grant = client.acquire("job")
    state = json.loads(lockctl("show", "--json", "job").stdout)["resource"]
    assert state["holders"][0]["fencing_token"] == grant.fencing_token
    assert state["waiters"] == []
    assert state["last_holder"] is None


@pytest.mark.parametrize(
    ("mode", "word"), [("exclusive", "held"), ("shared", "shared")]
)
def test_test_of_a_held_lock_is_1(
    lockctl: Lockctl, client: Client, mode: str, word: str
) -> None:
    client.call("acquire", resource="job", mode=mode)
    done = lockctl("test", "job")
    assert (done.returncode, done.stdout) == (1, f"{word}\n")


def test_test_of_a_free_lock_is_0_and_takes_nothing(
    lockctl: Lockctl, client: Client
) -> None:
    done = lockctl("test", "job")
    assert (done.returncode, done.stdout) == (0, "free\n")
    assert client.query("job")["last_holder"] is None


def test_wait_that_is_too_short_says_who_holds_it_and_why(
    lockctl: Lockctl, client: Client
) -> None:
    client.create_lockspace("other", "memory")
    client.acquire("a job", lockspace="other", reason="nightly")
    words = ("wait", "a job", "--lockspace", "other", "-w")
    me = f"by the test, pid {os.getpid()}, uid {os.getuid()} (nightly)"
    command = "see `lockctl show 'a job' --lockspace other`"
    done = lockctl(*words, 0)
    assert done.returncode == 75
    assert done.stderr.startswith("lockctl: 'other:a job' is not free: held for ")
    assert done.stderr.endswith(f" {me}; {command}\n")
    done = lockctl(*words, 0.1)
    assert "'other:a job' was not free within 0.1 s: held for " in done.stderr


def test_wait_says_what_to_do_when_the_daemon_ends(
    lockctl: Lockctl, lockd: DaemonProcess, client: Client
) -> None:
    client.acquire("job")
    waiting = lockctl.start("wait", "job")
    # Until the daemon has heard of both: who was never heard connects again.
    while [x["client"] for x in client.list_sessions()].count("lockd-python") < 2:
        pass
    lockd.stop()
    assert waiting.wait(30) == 69
    assert waiting.stderr is not None
    said = waiting.stderr.read()
    assert "connect again when `lockctl status` says that it runs" in said


def test_lock_name_is_the_hash_of_the_canonical_path(
    lockctl: Lockctl, tmp_path: Path
) -> None:
    disk, link = tmp_path / "disk.img", tmp_path / "link"
    link.symlink_to(disk)
    expected = hashlib.sha256(os.fsencode(disk.resolve())).hexdigest()
    assert lockctl("lock-name", link).stdout == f"{expected}\n"
