"""`lockctl graph`: who waits for whom."""

import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from typing import Final, NamedTuple

import click

from lockd.client.blocking import connect
from lockd.ctl.line.clicks import as_json
from lockd.ctl.render import (
    Thing,
    key_of,
    obstacle,
    show_json,
    standing,
    user,
)
from lockd.ctl.streams import draw, say
from lockd.errors import UnavailableError
from lockd.names import plain
from lockd.terms import SLOT, ResourceKey
from lockd.text import counted, duration

LONG: Final = 3
"""How many waits a marked chain has at least."""

NAMED: Final = 3
"""How many locks one line of the tree names."""


class Node(NamedTuple):
    """A holder or waiter.

    Attributes:
        owner: the daemon's number of the owner, or a number above all of these for one
            of its strands.
        strand: the number of the strand; 0 for the owner as a whole.
    """

    owner: int
    name: str
    pid: int
    uid: int
    strand: int = 0

    @property
    def shown(self) -> str:
        """Its name, pid and user, and its strand."""
        strand = f", strand {self.strand}" if self.strand else ""
        return f"{plain(self.name)} (pid {self.pid}, {user(self.uid)}{strand})"


class Edge(NamedTuple):
    """A waiter, and the holders that it waits for.

    Attributes:
        waiter: the waiter.
        key: the lock that it waits for.
        place: its place in the queue.
        converting: whether it holds the lock and wants another mode.
        mode: the mode that it wants.
        waited: seconds.
        behind: the holders of the lock, without the waiter.
        outside: the words for a process outside lockd that has the lock.
        inside: the tokens of the locks that the waiter is inside of.
    """

    waiter: Node
    key: ResourceKey
    place: int
    converting: bool
    mode: str
    waited: float
    behind: tuple[Node, ...]
    outside: str | None
    inside: tuple[int, ...]

    @property
    def standing(self) -> str:
        """Its place in the queue in words."""
        return standing(self.place, converting=self.converting)


class Graph:
    """The waiters, and the holders that they wait for.

    Cycles cannot exist, because the daemon refuses the request that would close one.
    But the daemon lists waiters page by page, and changes in between may look like a
    cycle.
    """

    def __init__(self, waiters: Iterable[Thing]) -> None:
        self.edges: list[Edge] = []
        holders: dict[ResourceKey, tuple[Node, ...]] = {}
        waiters = list(waiters)
        node = _Nodes(waiters).node
        for waiter in waiters:
            key, waits = key_of(waiter), node(waiter)
            before = tuple(map(node, waiter["behind"]))
            if waiter["place"] == 1 or key not in holders:
                holders[key] = before
            self.edges.append(
                Edge(
                    waits,
                    key,
                    waiter["place"],
                    waiter["converting"],
                    waiter["mode"],
                    waiter["waited"],
                    tuple(x for x in holders[key] if x.owner != waits.owner),
                    _outside(waiter["outside"]),
                    tuple(waiter.get("inside", ())),  # an older daemon does not tell
                )
            )
        self.nodes = {
            found.owner: found
            for edge in self.edges
            for found in (edge.waiter, *edge.behind)
        }
        self._below: defaultdict[int, list[Edge]] = defaultdict(list)
        self._before: defaultdict[int, list[int]] = defaultdict(list)
        for edge in self.edges:
            if edge.behind:
                self._below[edge.behind[0].owner].append(edge)
            self._before[edge.waiter.owner] += [x.owner for x in edge.behind]

    def roots(self) -> list[Node]:
        """Returns the holders that wait for nobody."""
        return [self.nodes[x] for x in self._below if x not in self._before]

    def waits_for(self, node: Node) -> list[Edge]:
        """Returns the edges to a holder.

        An edge to several holders counts for the first.
        """
        return self._below.get(node.owner, [])

    def unheld(self) -> list[Edge]:
        """Returns the edges that lead to no holder in lockd."""
        return [edge for edge in self.edges if not edge.behind]

    def longest_chain(self) -> list[Node]:
        """Returns the longest chain of owners, each waiting for the next."""
        sorter = TopologicalSorter(self._before)
        with suppress(CycleError):  # it then omits the cycle
            sorter.prepare()
        lengths: dict[int | None, int] = {None: 0}
        onward: dict[int, int | None] = {}
        while sorter.is_active():
            for number in sorter.get_ready():
                before = self._before.get(number, [])
                onward[number] = max(before, key=lengths.__getitem__, default=None)
                lengths[number] = lengths[onward[number]] + 1
                sorter.done(number)
        waiting = (x for x in self._before if x in onward)
        at = max(waiting, key=lengths.__getitem__, default=None)
        chain = []
        while at is not None:
            chain.append(self.nodes[at])
            at = onward[at]
        return chain


@click.command(short_help="Draw a tree of owners and their waiters.")
@click.argument("lockspace", required=False)
@click.option("--dot", is_flag=True, help="Print the graph in the language of dot(1).")
@click.option("--svg", is_flag=True, help="Print a picture; this needs graphviz.")
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
    """Draw a tree of the owners and waiters, in LOCKSPACE or everywhere.

    The waiters stand below the owner that they wait for, in the order of the queue. A
    waiter that holds locks has its own waiters below it. An owner that waits in several
    queues has its subtree only once. `!` marks a chain of three or more. The graph has
    no cycle: lockd rejects a request that would close one.
    """
    with connect(socket) as client:
        found = Graph(client.list_waiters(lockspace))
    if as_json:
        show_json(**_as_plain_data(found))
    elif svg:
        _draw(found)
    elif dot:
        sys.stdout.writelines(plain(line) + "\n" for line in _dot(found))
    elif found.edges:
        print("\n".join(map(plain, tree(found))))
        chain = found.longest_chain()
        if len(chain) > LONG:
            names = " → ".join(plain(node.name) for node in chain)
            say(f"the longest chain has {counted(len(chain) - 1, 'wait')}: {names}")
    elif sys.stdout.isatty():
        print("Nobody waits.")


class _Nodes:
    """Numbers the parties of a listing."""

    def __init__(self, waiters: Iterable[Thing]) -> None:
        parties = (x for waiter in waiters for x in (waiter, *waiter["behind"]))
        self._most = max((x["owner"] for x in parties), default=0)
        self._strands: dict[tuple[int, int, int], int] = {}

    def node(self, party: Thing) -> Node:
        # An older daemon says nothing of strands.
        owner, strand = party["owner"], party.get("strand", 0)
        if strand:
            new = self._most + 1 + len(self._strands)
            name = owner, party["session"], strand
            owner = self._strands.setdefault(name, new)
        return Node(owner, party["name"], party["pid"], party["uid"], strand)


def _outside(found: Thing | None) -> str | None:
    return None if found is None else obstacle(found)


# The tree.


def tree(graph: Graph) -> Iterator[str]:
    """Yields the lines of the tree."""
    drawn: set[int] = set()
    for root in graph.roots():
        yield root.shown
        yield from _branches(graph, graph.waits_for(root), drawn)
    unheld: dict[ResourceKey, list[Edge]] = {}
    for edge in graph.unheld():
        unheld.setdefault(edge.key, []).append(edge)
    for key, edges in unheld.items():
        yield (
            edges[0].outside
            or f"nobody holds {plain(str(key))}: the first in line waits for more locks"
        )
        yield from _branches(graph, edges, drawn)


def _branches(graph: Graph, edges: list[Edge], drawn: set[int]) -> Iterator[str]:
    """Yields the lines of waiters, and below each the lines of those who wait for it.

    Each owner is drawn once.

    Args:
        graph: the graph.
        edges: all to one holder, or all for one lock.
        drawn: the owners that have been drawn; it grows.
    """
    # Not recursive: a chain may be longer than Python's limit of recursion.
    stack = [*_at_one_place(edges, "", 1)]
    while stack:
        indent, depth, last, alike = stack.pop()
        waiter = alike[0].waiter
        below = graph.waits_for(waiter)
        above = ", see above" if below and waiter.owner in drawn else ""
        mark = "! " if depth >= LONG else ""
        yield f"{indent}{'└' if last else '├'}─ {mark}{_shown(alike)}{above}"
        if not above:
            drawn.add(waiter.owner)
            deeper = indent + ("   " if last else "│  ")
            stack += _at_one_place(below, deeper, depth + 1)


def _at_one_place(
    edges: list[Edge], indent: str, depth: int
) -> Iterator[tuple[str, int, bool, list[Edge]]]:
    """Yields the branches below one line, the last first.

    Joins edges that look alike.
    """
    found: dict[tuple[object, ...], list[Edge]] = {}
    for edge in edges:
        key = (edge.waiter.owner, edge.standing, edge.mode)
        found.setdefault(key, []).append(edge)
    for number, alike in enumerate(reversed(found.values())):
        yield indent, depth, number == 0, alike


def _shown(alike: list[Edge]) -> str:
    edge = alike[0]
    names = ", ".join(plain(str(x.key)) for x in alike[:NAMED])
    if len(alike) > NAMED:
        names += f" and {len(alike) - NAMED} more"
    more = max(len(x.behind) for x in alike) - 1
    # Any slot will do.
    link = "or" if edge.mode == SLOT else "and"
    others = f", {link} for {counted(more, 'more holder')}" if more > 0 else ""
    waited = duration(max(x.waited for x in alike))
    who = f"{edge.standing} {edge.waiter.shown}"
    inside = f", inside {edge.inside[-1]}" if edge.inside else ""
    return f"{names}: {who}, {edge.mode}, {waited}{inside}{others}"


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
    for edge in graph.edges:
        label = _quoted(f"{plain(str(edge.key))}: {edge.standing}")
        for node in edge.behind:
            yield f"  o{edge.waiter.owner} -> o{node.owner} [label={label}];"
        if not edge.behind:
            name = _quoted(edge.outside or "nobody in lockd")
            yield f"  o{edge.waiter.owner} -> {name} [label={label}];"
    yield "}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _draw(graph: Graph) -> None:
    source = "\n".join(_dot(graph)).encode("utf-8", "replace")
    try:
        done = subprocess.run(["dot", "-Tsvg"], input=source, capture_output=True)
    except (FileNotFoundError, PermissionError):
        # PermissionError, if this user may not search a directory of PATH (execvp(3)).
        raise UnavailableError(
            "`dot` is not installed: install graphviz, or draw --dot on another host"
        ) from None
    if done.returncode:
        said = plain(done.stderr.decode("utf-8", "replace").strip())
        raise UnavailableError(f"`dot -Tsvg` failed: {said}")
    # ASCII is the same picture for every reader, and harmless to a terminal.
    picture = done.stdout.decode("utf-8", "replace")
    draw(picture.encode("ascii", "xmlcharrefreplace").decode("ascii"))


def _as_plain_data(graph: Graph) -> Thing:
    return {
        "owners": [node._asdict() for node in graph.nodes.values()],
        "waits": [
            {
                "owner": edge.waiter.owner,
                "behind": [node.owner for node in edge.behind],
                "outside": edge.outside,
                "lockspace": edge.key.lockspace,
                "resource": edge.key.resource,
                "place": edge.place,
                "converting": edge.converting,
                "mode": edge.mode,
                "waited": edge.waited,
                "inside": edge.inside,
            }
            for edge in graph.edges
        ],
        "longest_chain": [node.owner for node in graph.longest_chain()],
    }
