"""`lockctl graph`: who waits for whom."""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import click

from lockd.client.blocking import connect
from lockd.ctl.options import as_json
from lockd.ctl.render import ordinal, say, show_json, user
from lockd.errors import UnavailableError
from lockd.names import plain
from lockd.terms import ResourceKey
from lockd.text import counted, duration

LONG: Final = 3
"""Of how many who wait for each other a chain is marked."""

Thing = dict[str, Any]


class Node(NamedTuple):
    """Somebody who holds or waits, by the daemon's number of the owner."""

    owner: int
    name: str
    pid: int
    uid: int

    @property
    def shown(self) -> str:
        """Who it is, in few words."""
        return f"{plain(self.name)} (pid {self.pid}, {user(self.uid)})"


class Wait(NamedTuple):
    """Somebody waits for a lock that somebody else has, or stands in line for.

    Attributes:
        behind: the holders; of those who are not the first, the same.
        outside: what stands for a process that is not lockd's.
    """

    waiter: Node
    key: ResourceKey
    place: int
    converting: bool
    mode: str
    waited: float
    behind: tuple[Node, ...]
    outside: str | None


class Graph:
    """Who waits for whom: by the holder of what each waits for.

    Cycles cannot exist: the daemon refuses the request that would close one.
    """

    def __init__(self, waiters: Iterable[Thing]) -> None:
        self.waits: list[Wait] = []
        holders: dict[ResourceKey, tuple[Node, ...]] = {}
        for waiter in waiters:
            key = ResourceKey(waiter["lockspace"], waiter["resource"])
            before = tuple(map(_node, waiter["behind"]))
            if waiter["place"] == 1 or key not in holders:
                holders[key] = before
            self.waits.append(
                Wait(
                    _node(waiter),
                    key,
                    waiter["place"],
                    waiter["converting"],
                    waiter["mode"],
                    waiter["waited"],
                    tuple(x for x in holders[key] if x.owner != waiter["owner"]),
                    _outside(waiter["outside"]),
                )
            )
        self.nodes = {
            node.owner: node
            for wait in self.waits
            for node in (wait.waiter, *wait.behind)
        }
        self._waiting = {wait.waiter.owner for wait in self.waits}

    def roots(self) -> list[Node]:
        """Returns below whom somebody stands, and who waits for nobody."""
        behind = {x.behind[0].owner: x.behind[0] for x in self.waits if x.behind}
        return [node for number, node in behind.items() if number not in self._waiting]

    def waits_for(self, node: Node) -> list[Wait]:
        """Returns who waits for what somebody holds; of several holders the first."""
        return [x for x in self.waits if x.behind and x.behind[0].owner == node.owner]

    def unheld(self) -> list[Wait]:
        """Returns the waits for what nobody in lockd holds."""
        return [wait for wait in self.waits if not wait.behind]

    def longest_chain(self) -> list[Node]:
        """Returns the longest chain of those who wait, each for the next."""
        known: dict[int, list[Node]] = {}

        def chain(number: int) -> list[Node]:
            if number not in known:
                known[number] = []
                further = [
                    chain(node.owner)
                    for wait in self.waits
                    if wait.waiter.owner == number
                    for node in wait.behind
                ]
                known[number] = [self.nodes[number], *max(further, key=len, default=[])]
            return known[number]

        return max((chain(number) for number in self._waiting), key=len, default=[])


@click.command(short_help="Draw who waits for whom.")
@click.argument("lockspace", required=False)
@click.option("--dot", is_flag=True, help="Print the graph in the language of dot(1).")
@click.option("--svg", is_flag=True, help="Print it as a picture; takes graphviz.")
@as_json
@click.pass_obj
def graph(
    socket: str | None,
    /,
    lockspace: str | None,
    dot: bool,
    svg: bool,
    as_json: bool,
) -> None:
    """Draw who waits for whom, in LOCKSPACE or everywhere, as a tree.

    Below each holder stand those who wait for it, in the order of their turns, and
    below them those who wait for what they hold in turn. Chains of three and more who
    wait for each other are marked with `!`. A circle cannot be: the request that would
    close it is refused.
    """
    with connect(socket) as client:
        found = Graph(client.list_waiters(lockspace))
    if as_json:
        show_json(**_as_plain_data(found))
    elif svg:
        _draw(found)
    elif dot:
        sys.stdout.writelines(line + "\n" for line in _dot(found))
    elif found.waits:
        print("\n".join(_tree(found)))
        chain = found.longest_chain()
        if len(chain) > LONG:
            names = " → ".join(plain(node.name) for node in chain)
            say(f"the longest chain is of {counted(len(chain) - 1, 'wait')}: {names}")
    elif sys.stdout.isatty():
        print("Nobody waits.")


def _node(party: Thing) -> Node:
    return Node(party["owner"], party["name"], party["pid"], party["uid"])


def _outside(found: Thing | None) -> str | None:
    if found is None:
        return None
    known = f" (pid {found['pid']})" if found["pid"] else ""
    return f"{plain(found['command'] or 'a process')}{known} outside lockd"


# The tree.


def _tree(graph: Graph) -> Iterator[str]:
    for root in graph.roots():
        yield root.shown
        yield from _below(graph, root, "", 1)
    unheld: dict[ResourceKey, list[Wait]] = {}
    for wait in graph.unheld():
        unheld.setdefault(wait.key, []).append(wait)
    for key, waits in unheld.items():
        yield (
            waits[0].outside
            or f"nobody holds {plain(str(key))}, who is first waits for more"
        )
        yield from _branches(graph, waits, "", 1)


def _below(graph: Graph, node: Node, indent: str, depth: int) -> Iterator[str]:
    yield from _branches(graph, graph.waits_for(node), indent, depth)


def _branches(
    graph: Graph, waits: list[Wait], indent: str, depth: int
) -> Iterator[str]:
    for number, wait in enumerate(waits, 1):
        last = number == len(waits)
        mark = "! " if depth >= LONG else ""
        turn = "converts" if wait.converting else ordinal(wait.place)
        more = len(wait.behind) - 1
        others = f", and for {counted(more, 'more holder')}" if more > 0 else ""
        yield (
            f"{indent}{'└' if last else '├'}─ {mark}{plain(str(wait.key))}: {turn} "
            f"{wait.waiter.shown}, {wait.mode}, {duration(wait.waited)}{others}"
        )
        deeper = indent + ("   " if last else "│  ")
        yield from _below(graph, wait.waiter, deeper, depth + 1)


# For graphviz, and for programs.


def _dot(graph: Graph) -> Iterator[str]:
    marked = {node.owner for node in graph.longest_chain()}
    if len(marked) <= LONG:
        marked.clear()
    yield "digraph waits {"
    yield "  rankdir=LR; node [shape=box, fontname=sans]; edge [fontname=sans];"
    for node in graph.nodes.values():
        look = ", color=red" if node.owner in marked else ""
        yield f"  o{node.owner} [label={_quoted(node.shown)}{look}];"
    for wait in graph.waits:
        turn = "converts" if wait.converting else ordinal(wait.place)
        label = _quoted(f"{plain(str(wait.key))}: {turn}")
        for node in wait.behind:
            yield f"  o{wait.waiter.owner} -> o{node.owner} [label={label}];"
        if not wait.behind:
            name = _quoted(wait.outside or "nobody in lockd")
            yield f"  o{wait.waiter.owner} -> {name} [label={label}];"
    yield "}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _draw(graph: Graph) -> None:
    source = "\n".join(_dot(graph)).encode("utf-8", "replace")
    try:
        done = subprocess.run(["dot", "-Tsvg"], input=source, capture_output=True)
    except FileNotFoundError:
        raise UnavailableError(
            "there is no `dot` to draw with: install graphviz, or use --dot elsewhere"
        ) from None
    if done.returncode:
        said = plain(done.stderr.decode("utf-8", "replace").strip())
        raise UnavailableError(f"`dot -Tsvg` failed: {said}")
    sys.stdout.buffer.write(done.stdout)


def _as_plain_data(graph: Graph) -> Thing:
    return {
        "owners": [node._asdict() for node in graph.nodes.values()],
        "waits": [
            {
                "owner": wait.waiter.owner,
                "behind": [node.owner for node in wait.behind],
                "outside": wait.outside,
                "lockspace": wait.key.lockspace,
                "resource": wait.key.resource,
                "place": wait.place,
                "converting": wait.converting,
                "mode": wait.mode,
                "waited": wait.waited,
            }
            for wait in graph.waits
        ],
        "longest_chain": [node.owner for node in graph.longest_chain()],
    }
