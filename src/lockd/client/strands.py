"""Strands: which thread or task of this program a request acts for (protocol 5.3).

Each thread has a strand, and so has each task. The daemon makes strands exclude each
other, and finds deadlocks between them. A single acquire can have a strand of its own.
Then it acts for no thread: any thread may release the lock, and the strand never waits
a second time.
"""

import os
from collections.abc import Iterator, Mapping
from itertools import count

from lockd.client.reply import Reply
from lockd.errors import CodedError, LockdError
from lockd.hints import Any, ClassVar, Final
from lockd.lean import local
from lockd.names import plain

_NAMED: Final = 3
"""How many holders the daemon names in a sentence."""


class Strand(int):
    """A strand, and its number on the wire: odd if it is of a thread or a task.

    A number is free once nothing refers to its strand. Threads, tasks, requests and
    held locks do. So a thread that ended while it held a lock keeps its number.
    """

    _numbers: ClassVar[Iterator[int]] = count(1, 2)

    #: The numbers of strands that no longer exist.
    _free: ClassVar[list[int]] = []

    def __new__(cls) -> "Strand":
        """Returns a strand with a number that no other strand has."""
        try:
            number = cls._free.pop()
        except IndexError:
            number = next(cls._numbers)
        return super().__new__(cls, number)

    def __del__(self) -> None:
        self._free.append(int(self))


class LoneStrand(Strand):
    """The strand of a single acquire, which acts for no thread; its number is even."""

    _numbers: ClassVar[Iterator[int]] = count(2, 2)
    _free: ClassVar[list[int]] = []


class _OfThread(local):
    """The strand of each thread."""

    strand: Strand | None = None

    def keep(self, strand: Strand) -> Strand:
        """Sets the strand of the calling thread, unless it has one. Returns its own."""
        # No call between the test and the store: a signal handler may come first.
        if self.strand is None:
            self.strand = strand
        return self.strand


_of_thread = _OfThread()


def strand_of_thread() -> Strand:
    """Returns the strand of the calling thread, for all clients."""
    return _of_thread.strand or _of_thread.keep(Strand())


class Program:
    """What the daemon takes this program for, in one session.

    Args:
        kind: what has a strand in this program: "thread" or "task".

    Attributes:
        whole: whether the session has no strands. It acts for another process, as other
            sessions may do. All of them are one strand.
    """

    def __init__(self, kind: str) -> None:
        self.whole = False
        self._kind = kind
        self._session: int | None = None

    def hear(self, reply: Reply, result: Any) -> None:
        """Takes note of an answer."""
        if reply.method == "hello" and isinstance(result, dict):
            self._session = result.get("session")
        elif reply.method == "register":
            pid = reply.params["owner"].get("pid")
            self.whole = pid is not None and pid != os.getpid()

    def in_own_words(self, error: LockdError, strand: int) -> LockdError:
        """Returns a refusal that says what belongs to this program.

        The daemon names each holder and waiter by its process, which all threads have
        in common.

        Args:
            error: the refusal of the daemon.
            strand: the strand that was refused.
        """
        if not strand or not isinstance(error, CodedError) or not error.facts:
            return error
        said, rest = "", error.message
        for party in _parties(error.facts):
            name = f"{plain(str(party.get('name')))} (pid {party.get('pid')}, uid "
            before, found, after = rest.partition(name)
            if found:
                uid, end, rest = after.partition(")")
                words = self._words(party, strand)
                said += before + (words or name + uid + end)
        return type(error)(said + rest, error.facts)

    def _words(self, party: Mapping[str, Any], strand: int) -> str | None:
        if party.get("session") != self._session:
            return None
        other = party.get("strand") or 0
        if other == strand:
            return f"this {self._kind}"
        return f"another {self._kind} of this program" if other % 2 else "this program"


def _parties(facts: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the parties that a sentence names, in its order."""
    if cycle := facts.get("cycle"):
        for edge in cycle:
            yield edge
            if inside := edge.get("inside"):
                yield inside
        yield cycle[0]
    else:
        yield from facts.get("holders", ())[:_NAMED]
    yield from facts.get("waiters", ())[:1]
