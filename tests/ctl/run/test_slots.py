"""Slots on the command line: `run`, `hold` and `acquire` with --slots and --slot."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from conftest import StartDaemon
from ctl.processes import LIMIT, LOCKCTL, Lockctl, Terminal, end_input, line_of
from lockd import BusyError, Client, connect
from support.asking import ask_until
from support.wire_client import WireClient

SHOW = 'echo "$LOCKD_SLOT of $LOCKD_SLOTS"; read line'
"""A command that says which slot it has, and ends with its input."""


def waiting(client: Client, name: str, count: int) -> None:
    ask_until(client, name, lambda found: found["waiter_count"] == count)


def test_six_runs_share_four_slots(lockctl: Lockctl, client: Client) -> None:
    command = ("run", "--slots", "4", "gpu", "-c", SHOW)
    runs = [lockctl.start(*command) for _ in range(4)]
    said = {line_of(run) for run in runs}
    assert said == {f"{slot} of 4" for slot in range(4)}
    late = [lockctl.start(*command)]
    waiting(client, "gpu", 1)
    late.append(lockctl.start(*command))
    waiting(client, "gpu", 2)
    other = lockctl("run", "--slots", "3", "gpu", "--", "true")
    assert other.returncode == 64
    assert "'gpu' has 4 slots" in other.stderr
    assert "3 were asked for" in other.stderr
    # The first who waits gets the slot that is given back, and nobody before.
    end_input(runs[2])
    assert line_of(late[0]) in said
    waiting(client, "gpu", 1)
    for run in (runs[0], runs[1], runs[3], late[0]):
        end_input(run)
    assert line_of(late[1]) in said
    end_input(late[1])


def test_who_drains_the_pool_starves_nobody_and_is_not_starved(
    lockctl: Lockctl, client: Client
) -> None:
    held = lockctl.start("run", "--slots", "2", "gpu", "-c", SHOW)
    assert line_of(held) == "0 of 2"
    drain = lockctl.start("run", "gpu", "-c", "echo drained; read line")
    waiting(client, "gpu", 1)
    after = [lockctl.start("run", "--slots", "2", "gpu", "-c", SHOW)]
    waiting(client, "gpu", 2)
    # A slot is free, but the drain stands before them.
    done = lockctl("run", "-n", "--slots", "2", "gpu", "--", "true")
    assert done.returncode == 75
    assert "'gpu' has 1 of 2 slots taken by " in done.stderr
    end_input(held)
    assert line_of(drain) == "drained"
    assert [x["mode"] for x in client.query("gpu")["holders"]] == ["exclusive"]
    end_input(drain)
    assert line_of(after[0]) == "0 of 2"
    end_input(after[0])


def test_number_may_be_configured(start_daemon: StartDaemon) -> None:
    daemon = start_daemon('[lockspaces.default.slots]\n"gpu" = 2\n')
    lockctl = Lockctl(str(daemon.socket))
    env = lockctl("run", "--slot", "gpu", "--", "env").stdout.splitlines()
    assert {"LOCKD_SLOT=0", "LOCKD_SLOTS=2"} <= {*env}
    refused = lockctl("run", "--slots", "3", "gpu", "--", "true")
    assert refused.returncode == 64
    assert "'gpu' has 2 slots (as configured)" in refused.stderr


def test_unknown_number_is_refused(lockctl: Lockctl) -> None:
    refused = lockctl("run", "--slot", "gpu", "--", "true")
    assert refused.returncode == 64
    assert refused.stderr == (
        "lockctl: nobody has said how many slots 'gpu' has: give their number (in "
        "lockctl --slots N), or set it in `slots` of lockd.toml(5)\n"
    )


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--slots", "2", "--slot", "a"), "exclude each other"),
        (("--slots", "2", "-s", "a"), "exclude each other"),
        (("--slot", "-x", "a"), "a lock in a slot is not --exclusive"),
        (("--slots", "2", "a", "b"), "run one command within the other\n"),
        (("--slot", "3", "b"), "(did you mean --slots 3?)\n"),
        (("--slot", "a", "3"), "run one command within the other\n"),
        (("--slots", "0", "a"), "'0' is not a whole number from 1 to 1024"),
        (("--slots", "1025", "a"), "'1025' is not a whole number from 1 to 1024"),
        (("--slots", "2", "./a"), "has no slots, because it locks files"),
    ],
)
def test_wrong_options_are_refused(
    lockctl: Lockctl, words: tuple[str, ...], why: str, tmp_path: Path
) -> None:
    (tmp_path / "a").touch()
    done = lockctl("run", *words, "--", "true", cwd=tmp_path)
    assert done.returncode == 64
    assert why in done.stderr


def test_command_without_slots_sees_the_slot_around_it(lockctl: Lockctl) -> None:
    inner = (*LOCKCTL, "run", "data", "--", "env")
    done = lockctl("run", "--slots", "2", "gpu", "--", *inner)
    assert {"LOCKD_SLOT=0", "LOCKD_SLOTS=2", "LOCKD_NAME=data"} <= {
        *done.stdout.splitlines()
    }
    assert "LOCKD_SLOT" not in lockctl("run", "gpu", "--", "env").stdout


def test_nested_run_in_a_slot_runs_in_the_same(lockctl: Lockctl) -> None:
    says = 'echo "$LOCKD_SLOT of $LOCKD_SLOTS"'
    inner = (*LOCKCTL, "run", "--slot", "gpu", "-c", says)
    done = lockctl("run", "--slots", "1", "gpu", "--", *inner)
    assert (done.stdout, done.returncode) == ("0 of 1\n", 0)
    deeper = (*LOCKCTL, "run", "--slots", "1", "gpu", "--", *inner)
    done = lockctl("run", "--slots", "1", "gpu", "--", *deeper)
    assert (done.stdout, done.returncode) == ("0 of 1\n", 0)


def test_runs_in_all_slots_nest_without_a_wait(
    lockctl: Lockctl, client: Client
) -> None:
    """Each would wait for a slot of another one: a hang, or a refusal of the last."""
    inner = f"{' '.join(LOCKCTL)} run --slot gpu -c 'echo $LOCKD_SLOT'"
    command = ("run", "--slots", "3", "gpu", "-c", f"echo began; read line; {inner}")
    runs = [lockctl.start(*command) for _ in range(3)]
    assert {line_of(run) for run in runs} == {"began"}
    assert client.query("gpu")["slots_taken"] == 3
    for run in runs:
        end_input(run)
    assert {line_of(run) for run in runs} == {"0", "1", "2"}
    assert {run.wait(LIMIT) for run in runs} == {0}


def test_two_in_one_slot_take_turns(lockctl: Lockctl, client: Client) -> None:
    inner = f"{' '.join(LOCKCTL)} run --slot gpu -c 'echo in; read line'"
    both = f"{inner} <&3 & {inner} <&3 & wait"
    run = lockctl.start("run", "--slots", "2", "gpu", "-c", f"exec 3<&0; {both}")
    assert line_of(run) == "in"
    waiting(client, "gpu", 1)
    found = client.query("gpu")
    assert (found["holder_count"], found["slots_taken"]) == (2, 1)
    assert found["holders"][1]["inside"] == [found["holders"][0]["fencing_token"]]
    (waiter,) = client.list_waiters()
    assert [x["fencing_token"] for x in waiter["behind"]] == [
        found["holders"][1]["fencing_token"]
    ]
    end_input(run)
    assert (line_of(run), run.wait(LIMIT)) == ("in", 0)


@pytest.mark.parametrize(
    ("outer", "inner", "why"),
    [
        (("--slots", "2"), (), "'gpu' is held in a slot by the command that this is"),
        (("--slots", "2"), ("-s",), "'gpu' is held in a slot by the command that"),
        ((), ("--slots", "2"), "'gpu' is held exclusively by the command that this"),
        (("-s",), ("--slots", "2"), "'gpu' is held shared by the command that this"),
    ],
)
def test_slot_mixes_with_no_other_mode_in_a_tree(
    lockctl: Lockctl, outer: tuple[str, ...], inner: tuple[str, ...], why: str
) -> None:
    nested = (*LOCKCTL, "run", *inner, "gpu", "--", "true")
    done = lockctl("run", *outer, "gpu", "--", *nested)
    assert done.returncode == 73
    assert why in done.stderr


def test_verbose_and_status_tell_the_slot(lockctl: Lockctl) -> None:
    reader, writer = os.pipe()
    command = ("run", "-v", "--slots", "3", "--status-fd", str(writer), "gpu")
    done = lockctl(*command, "--", "true", pass_fds=(writer,))
    os.close(writer)
    assert "slot 0 of 3" in done.stderr
    with open(reader) as status:
        facts = json.load(status)
    assert (facts["slot"], facts["slots"]) == (0, 3)


def test_hold_and_acquire_take_slots(lockctl: Lockctl, client: Client) -> None:
    hold = lockctl.start("hold", "--slots", "2", "gpu")
    assert line_of(hold) == "held slot 0 of 2"
    pid = str(os.getpid())
    done = lockctl("acquire", "--slot", "--owner-pid", pid, "--json", "gpu")
    (grant,) = json.loads(done.stdout)["grants"]
    assert (grant["mode"], grant["slot"], grant["slots"]) == ("slot", 1, 2)
    lockctl("release", str(grant["fencing_token"]))
    hold.terminate()
    hold.wait(LIMIT)


# What is shown.


def test_list_show_and_test_tell_how_many_are_taken(
    lockctl: Lockctl, sock: str
) -> None:
    with connect(sock, name="one") as one, connect(sock, name="two") as two:
        one.acquire("gpu", slots=4)
        two.acquire("gpu", slots=4)
        (line,) = lockctl("list").stdout.splitlines()
        assert line.split("\t")[2:5] == ["slot 2/4", "2", "one"]
        found = [x.split("\t") for x in lockctl("show", "gpu").stdout.splitlines()]
        assert [(x[1], x[6], x[11]) for x in found] == [
            ("one", "slot", "0"),
            ("two", "slot", "1"),
        ]
        assert lockctl("test", "gpu").stdout == "2 of 4 slots taken\n"
        terminal = Terminal((*LOCKCTL, "show", "gpu"), lockctl.env)
        assert terminal.wait() == 0
        assert "SLOT" in terminal.shown
        terminal = Terminal((*LOCKCTL, "list"), lockctl.env)
        assert terminal.wait() == 0
        assert "slot 2/4" in terminal.shown
    with connect(sock) as client:
        client.acquire("a")
        terminal = Terminal((*LOCKCTL, "show", "a"), lockctl.env)
        assert terminal.wait() == 0
        assert "SLOT" not in terminal.shown


def test_number_of_slots_shrinks_and_nobody_is_told_more_than_is_true(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon('[lockspaces.default.slots]\n"gpu" = 4\n')
    lockctl = Lockctl(str(daemon.socket))
    assert lockctl("test", "gpu").stdout == "free\n"
    terminal = Terminal((*LOCKCTL, "show", "gpu"), lockctl.env)
    assert terminal.wait() == 0
    assert "'gpu' is free, and has no known last holder. It has 4 slots." in (
        " ".join(terminal.shown.split())
    )
    assert "default\tmemory\t-\trelease\t0\t-\tgpu 4\n" in lockctl("spaces").stdout
    assert "memory, 0 held, slots: gpu 4\n" in lockctl("status").stdout
    with WireClient(daemon.socket) as client:
        client.call("register", owner={"name": "trainer"})
        for strand in range(4):
            client.acquire("gpu", mode="slot", strand=strand)
        daemon.config.write_text('[lockspaces.default.slots]\n"gpu" = 2\n')
        daemon.reload()
        (line,) = lockctl("list").stdout.splitlines()
        assert line.split("\t")[2:5] == ["slot 2/2+2", "4", "trainer"]
        said = "2 of 2 slots and 2 removed slots taken"
        assert lockctl("test", "gpu").stdout == f"{said}\n"
        refused = lockctl("wait", "-w", "0", "gpu")
        assert f"'gpu' is not free: {said}, the first held for " in refused.stderr
        refused = lockctl("run", "-n", "--slot", "gpu", "--", "true")
        assert f"'gpu' has {said} by trainer" in refused.stderr
        client.call("release", resource="gpu")
        (line,) = lockctl("list").stdout.splitlines()
        assert line.split("\t")[2] == "slot 1/2+2"


def test_all_slots_of_a_process_are_listed(lockctl: Lockctl, sock: str) -> None:
    with WireClient(sock) as other, WireClient(sock) as client:
        other.call("register", owner={"name": "other"})
        client.call("register", owner={"name": "many"})
        for strand in range(9):
            (client if strand % 3 else other).acquire(
                "gpu", mode="slot", slots=9, strand=strand
            )
        done = lockctl("list", "--json", "--owner", "many")
        (found,) = json.loads(done.stdout)["resources"]
        assert [x["slot"] for x in found["holders"]] == [1, 2, 4, 5, 7, 8]
        (line,) = lockctl("list", "--owner", "many").stdout.splitlines()
        assert line.split("\t")[2:5] == ["slot 9/9", "9", "many"]


def test_graph_says_that_any_slot_will_do(lockctl: Lockctl, sock: str) -> None:
    with connect(sock, name="one") as one, connect(sock, name="two") as two:
        one.acquire("gpu", slots=2)
        two.acquire("gpu", slots=2)
        waiter = lockctl.start("run", "--slots", "2", "gpu", "--", "true")
        waiting(one, "gpu", 1)
        assert "slot, 0." in (shown := lockctl("graph").stdout)
        assert "or for 1 more holder" in shown
        one.release("gpu")
        assert waiter.wait(LIMIT) == 0


# By chance.


def test_thousand_tries_never_exceed_the_slots(sock: str) -> None:
    slots, held, most = 3, set[int](), 0

    def tries(seed: int) -> int:
        nonlocal most
        random, got = Random(seed), 0
        with connect(sock) as client:
            for _ in range(250):
                timeout = random.choice((0, 0, 0.01, None))
                try:
                    grant = client.acquire("gpu", slots=slots, timeout=timeout)
                except (BusyError, TimeoutError):
                    continue
                got += 1
                assert grant.slot is not None
                # Nobody else has it: a set is changed in one step.
                assert grant.slot not in held
                held.add(grant.slot)
                most = max(most, len(held))
                assert len(held) <= slots
                held.remove(grant.slot)
                client.release(grant)
        return got

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(tries, range(4))) > 100
    assert held == set()
    assert most <= slots
