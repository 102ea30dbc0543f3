"""`lockctl graph` and `waiters`: who waits for whom."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from threading import Thread
from typing import Any

import pytest

from ctl.processes import LOCKCTL, Lockctl, Terminal
from lockd import Client, LockdError, connect
from lockd.ctl.look.graph import Graph, tree
from support.asking import ask_until


@pytest.fixture
def chain(sock: str, client: Client) -> Iterator[list[Client]]:
    """Five who hold one lock each; all but the first wait for that of the one before.

    A sixth waits for the first one's as well.
    """
    with ExitStack() as stack:
        line = [stack.enter_context(connect(sock, name=f"w{n}")) for n in range(6)]
        threads = []

        def wait(number: int, name: str, count: int) -> None:
            def acquire() -> None:
                # Each acts as a whole, not for the threads in which it holds and waits.
                with pytest.raises(LockdError):
                    line[number].call("acquire", resource=name, reason="next")

            threads.append(Thread(target=acquire))
            threads[-1].start()
            ask_until(client, name, lambda state: state["waiter_count"] == count)

        for number in range(5):
            line[number].call("acquire", resource=f"s{number}")
        for number in range(1, 5):
            wait(number, f"s{number - 1}", 1)
        wait(5, "s0", 2)
        yield line
        # From the end: nobody is granted anything meanwhile.
        for peer in reversed(line):
            peer.close()
        for thread in threads:
            thread.join()


def test_tree_has_each_below_whom_it_waits_for(
    lockctl: Lockctl, chain: list[Client]
) -> None:
    done = lockctl("graph")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("w0 (pid ")
    starts = [line.split(" (pid")[0] for line in lines[1:]]
    assert starts == [
        "├─ s0: 1st w1",
        "│  └─ s1: 1st w2",
        "│     └─ ! s2: 1st w3",
        "│        └─ ! s3: 1st w4",
        "└─ s0: 2nd w5",
    ]
    assert "4 waits: w4 → w3 → w2 → w1 → w0" in done.stderr


def test_graph_as_json_has_the_longest_chain(
    lockctl: Lockctl, chain: list[Client]
) -> None:
    told = json.loads(lockctl("graph", "--json").stdout)
    names = {node["owner"]: node["name"] for node in told["owners"]}
    assert sorted(names.values()) == [f"w{n}" for n in range(6)]
    assert [names[x] for x in told["longest_chain"]] == ["w4", "w3", "w2", "w1", "w0"]
    edges = {(names[x["owner"]], names[x["behind"][0]]) for x in told["waits"]}
    assert edges == {(f"w{n}", f"w{n - 1}") for n in range(1, 5)} | {("w5", "w0")}


def waiter(number: int, name: str, holder: int, place: int = 1) -> dict[str, Any]:
    """An entry of `list_waiters`: owner NUMBER waits for what HOLDER has."""

    def party(number: int) -> dict[str, Any]:
        return {"owner": number, "name": f"w{number}", "pid": 100 + number, "uid": 0}

    key = {"lockspace": "default", "resource": name, "place": place}
    state = {"mode": "exclusive", "converting": False, "waited": 5.0, "outside": None}
    return party(number) | key | state | {"behind": [party(holder)]}


def test_chain_of_any_length_is_drawn() -> None:
    length = 2000
    graph = Graph(waiter(n, f"s{n}", n - 1) for n in range(1, length))
    lines = list(tree(graph))
    assert len(lines) == length
    assert lines[-1].endswith(
        f"! s{length - 1}: 1st w{length - 1} (pid 2099, root), exclusive, 5 s"
    )
    chain = [node.owner for node in graph.longest_chain()]
    assert chain == list(reversed(range(length)))


def test_who_waits_at_several_places_is_drawn_once_with_those_below() -> None:
    """Each waits for two locks of the one before: 2^n ways, but n lines."""
    waits = [
        waiter(n, f"{letter}{n - 1}", n - 1) for n in range(1, 40) for letter in "ab"
    ]
    lines = list(tree(Graph(waits)))
    assert len(lines) == 40
    assert lines[1] == "└─ a0, b0: 1st w1 (pid 101, root), exclusive, 5 s"


def test_branch_that_was_drawn_is_referred_to() -> None:
    waits = [
        waiter(2, "a", 0), waiter(2, "b", 1), waiter(3, "c", 2),
        *(waiter(4, f"d{n}", 3) for n in range(5)),
    ]  # fmt: skip
    assert [
        line.replace(" (pid ", "|").split("|")[0] for line in tree(Graph(waits))
    ] == [
        "w0",
        "└─ a: 1st w2",
        "   └─ c: 1st w3",
        "      └─ ! d0, d1, d2 and 2 more: 1st w4",
        "w1",
        "└─ b: 1st w2",
    ]
    assert list(tree(Graph(waits)))[-1].endswith("exclusive, 5 s, see above")


def test_what_looks_like_a_circle_is_drawn_as_far_as_it_is_none() -> None:
    """Those who wait are listed page by page: they need not fit together."""
    waits = [waiter(1, "a", 2), waiter(2, "b", 1), waiter(3, "c", 0)]
    graph = Graph(waits)
    assert [node.owner for node in graph.longest_chain()] == [3, 0]
    assert len(list(tree(graph))) == 2


def test_each_strand_is_drawn_for_itself() -> None:
    """Two threads of one program, each of which waits for the other's program."""

    def party(owner: int, session: int, strand: int) -> dict[str, Any]:
        named = {"name": f"w{owner}", "pid": 100 + owner, "uid": 0}
        return named | {"owner": owner, "session": session, "strand": strand}

    waits = [
        waiter(0, name, 0) | party(*waits) | {"behind": [party(*holds)]}
        for name, waits, holds in [
            ("a", (1, 10, 1), (2, 20, 2)),
            ("b", (2, 20, 1), (1, 10, 2)),
            # The same number in another session is another strand.
            ("c", (2, 21, 1), (1, 10, 1)),
        ]
    ]
    graph = Graph(waits)
    assert len(graph.nodes) == 5
    assert len({*graph.nodes}) == 5
    assert list(tree(graph)) == [
        "w2 (pid 102, root, strand 2)",
        "└─ a: 1st w1 (pid 101, root, strand 1), exclusive, 5 s",
        "   └─ c: 1st w2 (pid 102, root, strand 1), exclusive, 5 s",
        "w1 (pid 101, root, strand 2)",
        "└─ b: 1st w2 (pid 102, root, strand 1), exclusive, 5 s",
    ]


def test_lock_that_is_free_only_for_who_waits_for_more(
    lockctl: Lockctl, sock: str, client: Client
) -> None:
    client.acquire("a")
    with connect(sock, name="both") as both:
        waiting = Thread(target=lambda: both.acquire_all(["a", "b"], timeout=1000))
        waiting.start()
        ask_until(client, "a", lambda state: state["waiter_count"] == 1)
        lines = lockctl("graph").stdout.splitlines()
        client.release("a")
        waiting.join()
    assert [line.split(" (pid")[0] for line in lines] == [
        "the test",
        "└─ a: 1st both",
        "nobody holds b: the first in line waits for more locks",
        "└─ b: 1st both",
    ]


def test_graph_in_the_language_of_dot(
    lockctl: Lockctl, sock: str, client: Client, chain: list[Client]
) -> None:
    lines = lockctl("graph", "--dot").stdout.splitlines()
    assert (lines[0], lines[-1]) == ("digraph waits {", "}")
    assert sum(" -> " in line for line in lines) == 5
    # The longest chain is marked, w5 is not in it.
    assert sum("color=red" in line for line in lines) == 5
    if shutil.which("dot") is None:
        done = lockctl("graph", "--svg")
        assert done.returncode == 69
        assert "install graphviz" in done.stderr
    else:
        assert "<svg" in lockctl("graph", "--svg").stdout
        source = "\n".join(lines).encode()
        subprocess.run(
            ["dot", "-Tcanon"], input=source, check=True, capture_output=True
        )


def test_names_cannot_break_out_of_dot(
    lockctl: Lockctl, sock: str, client: Client
) -> None:
    with connect(sock, name='evil"]; x [label="') as holder:
        holder.acquire('a"b\\')
        with connect(sock) as waiter:
            waiting = Thread(target=lambda: waiter.acquire('a"b\\', timeout=1000))
            waiting.start()
            ask_until(client, 'a"b\\', lambda state: state["waiter_count"] == 1)
            dot = lockctl("graph", "--dot").stdout
            holder.release('a"b\\')
            waiting.join()
    assert 'evil\\"]; x [label=\\"' in dot
    assert '"a\\"b\\\\: 1st"' in dot


def test_graph_without_waits_says_so_only_on_a_terminal(lockctl: Lockctl) -> None:
    assert lockctl("graph").stdout == ""
    terminal = Terminal((*LOCKCTL, "graph"), lockctl.env)
    assert terminal.wait() == 0
    assert terminal.shown == "Nobody waits.\r\n"


def test_graph_without_graphviz_says_what_to_do(
    lockctl: Lockctl, chain: list[Client]
) -> None:
    lockctl.env["PATH"] = "/nowhere"
    done = lockctl("graph", "--svg")
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr == (
        "lockctl: `dot` is not installed: install graphviz, or draw --dot on "
        "another host\n"
    )


def test_waiters_are_listed_with_place_and_who_goes_before(
    lockctl: Lockctl, chain: list[Client]
) -> None:
    lines = [line.split("\t") for line in lockctl("waiters").stdout.splitlines()]
    assert [line[1:4] for line in lines] == [
        ["s0", "1st", "w1"],
        ["s0", "2nd", "w5"],
        ["s1", "1st", "w2"],
        ["s2", "1st", "w3"],
        ["s3", "1st", "w4"],
    ]
    behind = [line[8].split(" (")[0] for line in lines]
    assert behind == ["w0", "w1", "w1", "w2", "w3"]
    assert {line[9] for line in lines} == {"next"}
    longest_first = lockctl("waiters", "--sort", "for").stdout.splitlines()
    assert [x.split("\t")[3] for x in longest_first] == ["w1", "w2", "w3", "w4", "w5"]
