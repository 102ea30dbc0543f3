"""The state of one lock, from the daemon and from the kernel."""

import os
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from lockd.client.blocking import Client, connect
from lockd.ctl.look.files import (
    excludes,
    keys_of_file,
    keys_of_inode,
    outsiders_of,
    program_of,
    states_of,
)
from lockd.ctl.render import (
    Thing,
    key_of,
    obstacle,
    ordinal,
    outsider,
    purpose,
    since,
    slots_of,
)
from lockd.errors import CodedError
from lockd.names import plain, quoted
from lockd.procs import ancestors_of
from lockd.terms import DIRECT_LOCKSPACE, SHARED, SLOT, ResourceKey
from lockd.text import duration

#: Seconds after which the time of day is shown too.
_LONG = 60


class State(NamedTuple):
    """The state of one lock.

    Attributes:
        resource: the daemon's answer to `query`.
        outside: the visible locks on its file outside lockd that keep lockd from it.
            While somebody waits, `resource` names one too.
        elsewhere: the answers to `query` for the other names under which its file is
            held or waited for.
    """

    resource: Thing
    outside: list[Thing]
    elsewhere: list[Thing] = []  # noqa: RUF012 - never changed

    @property
    def is_held(self) -> bool:
        """Whether somebody holds it."""
        return bool(self._modes)

    @property
    def is_free(self) -> bool:
        """Whether it has neither holders nor waiters."""
        return not (self.is_held or self._is_waited_for)

    @property
    def word(self) -> str:
        """Its state in one word or two."""
        if not self.is_held:
            return "waited for" if self._is_waited_for else "free"
        if self._modes == {SLOT}:
            return f"{slots_of(self.resource)} taken"
        return "shared" if self._modes == {SHARED} else "held"

    @property
    def holders(self) -> list[Thing]:
        """Its holders, under any name."""
        return [x for each in self._everywhere for x in each["holders"]]

    @property
    def _everywhere(self) -> list[Thing]:
        return [self.resource, *self.elsewhere]

    @property
    def _is_waited_for(self) -> bool:
        return any(each["waiters"] for each in self._everywhere)

    @property
    def _modes(self) -> set[str]:
        told = filter(None, [self.resource["outside"]])
        modes = {x["mode"] for x in (*self.holders, *told)}
        return modes | {excludes(x) for x in self.outside}

    @property
    def held(self) -> str:
        """The first holder and since when, as a part of a sentence."""
        return self.held_by(None)

    def held_by(self, named: Thing | None, around: Collection[int] = ()) -> str:
        """Names a holder and since when, as a part of a sentence.

        Args:
            named: which of `holders`; None: the first.
            around: the tokens of the holders that do not count.
        """
        if named is None:
            counted = (x for x in self.holders if x["fencing_token"] not in around)
            named = next(counted, None)
        if named is None:
            if self.outside:
                first = self.outside[0]
                return f"held by {outsider(program_of(first), first['pid'])}"
            if found := self.resource["outside"]:
                return f"held by {obstacle(found)}"
            if around:
                return "held by nobody but the commands that this is part of"
            return "held by nobody in lockd"
        holder = named
        by = next(x for x in self._everywhere if named in x["holders"])
        others = sum(x["holder_count"] for x in self._everywhere)
        others -= sum(x["fencing_token"] in around for x in self.holders)
        others += len(self.outside) - 1
        more = f" and {others} more" if others else ""
        why = f" ({plain(said)})" if (said := purpose(holder)) else ""
        held = f"held for {duration(holder['held_for'])}"
        if holder.get("slot") is not None:  # an older daemon does not send it
            which = "the first" if holder is by["holders"][0] else "one"
            held = f"{slots_of(by)} taken, {which} {held}"
        if holder["held_for"] >= _LONG:
            held += f", since {since(holder['since'])},"
        name = (
            "" if by is self.resource else f", under the name {quoted(str(key_of(by)))}"
        )
        return (
            f"{held} by {plain(holder['name'])}, "
            f"pid {holder['pid']}, uid {holder['uid']}{why}{more}{name}"
        )


def state_of(client: Client, key: ResourceKey) -> State:
    """Asks the daemon, and for a file the kernel, for the state of a lock."""
    resource: Thing = client.query(key.resource, lockspace=key.lockspace)
    space = _space_of(client, key)
    path = _file_of(space, key)
    if path is None:
        return State(resource, [], [])
    anchored = keys_of_inode(client, path)
    others = dict.fromkeys(anchored)
    if key.lockspace == DIRECT_LOCKSPACE:
        others |= dict.fromkeys(keys_of_file(client, path))
    others.pop(key, None)
    elsewhere = [
        x for x in states_of(client, list(others)) if x["holders"] or x["waiters"]
    ]
    # A lock that several share in lockd is one lock for the kernel.
    held = bool(resource["holders"]) + sum(x != key for x in anchored)
    # The command of a holder may have locked other bytes itself. An older daemon does
    # not look there.
    looks = not held and space.get("outside") == "file"
    outside = list(_outside(client, path, held, looks=looks))
    return State(resource, outside, elsewhere)


class Explanation(NamedTuple):
    """A sentence about a wait, and whether it is for an ancestor of this process."""

    sentence: str
    is_for_ancestor: bool


def explain_wait(
    socket: str, lockspace: str, names: Sequence[str], session: int, pid: int
) -> Explanation | None:
    """Explains the wait of a waiter. Opens a session of its own.

    Args:
        socket: the socket of the daemon.
        lockspace: the lockspace of the names.
        names: the resources for which the waiter waits: it gets all of them together.
        session: the session that waits.
        pid: the owner of the session, as this process knows it.

    Returns:
        None if the session waits no more: it has them, or was refused.

    Raises:
        LockdError: the daemon does not answer.
    """
    with connect(socket) as client:
        states = [state_of(client, ResourceKey(lockspace, name)) for name in names]
    if any(x["session"] == session for state in states for x in state.holders):
        return None
    waits = [_WaitingFor(state, session) for state in states]
    if not any(wait.place for wait in waits):
        return None
    # Of several names, explain the one with the longest queue.
    wait = max(waits, key=lambda x: x.weight)
    where = f"{ordinal(wait.place)} in queue; " if wait.place else ""
    name, ancestor = quoted(wait.state.resource["resource"]), wait.ancestor(pid)
    held = wait.state.held_by(ancestor, wait.around)
    sentence = f"waiting for {name} ({where}{held})"
    if ancestor is not None:
        sentence += "; it runs this command, and may wait for its end"
    return Explanation(sentence, ancestor is not None)


class _WaitingFor:
    """The wait of a session for one lock.

    Attributes:
        state: the state of the lock.
        place: the place in the queue, from 1; 0 if the session is not in it.
        around: the tokens of the holders that the waiter is inside of, and for which it
            does not wait.
    """

    def __init__(self, state: State, session: int) -> None:
        self.state = state
        waiters = state.resource["waiters"]
        sessions = [waiter["session"] for waiter in waiters]
        # The daemon only names the first waiters. Any other is taken for the last.
        count: int = state.resource["waiter_count"]
        self.place = count if count > len(waiters) else 0
        self._waiter: Thing | None = None
        if session in sessions:
            self.place = sessions.index(session) + 1
            self._waiter = waiters[self.place - 1]
        # An older daemon does not tell.
        self.around = set((self._waiter or {}).get("inside", ()))

    @property
    def _blockers(self) -> list[Thing]:
        return [x for x in self.state.holders if x["fencing_token"] not in self.around]

    @property
    def weight(self) -> tuple[bool, int]:
        """What decides which of several waits is explained."""
        held = self.state.is_held if not self.around else bool(self._blockers)
        return held, self.place

    def ancestor(self, pid: int) -> Thing | None:
        """Returns a holder that is an ancestor of this process, which may wait for it.

        Only words follow from this: a pid may be used again.

        Args:
            pid: the waiter. The daemon knows it under another number if it sees other
                processes than this one does (pid_namespaces(7)).
        """
        if self._waiter is not None and self._waiter["pid"] != pid:
            return None
        above = {os.getpid(), *ancestors_of(os.getpid())}
        return next((x for x in self._blockers if x["pid"] in above), None)


def culprit(socket: str, error: CodedError) -> str | None:
    """Returns the program that keeps lockd from a file, if the daemon cannot name it.

    The kernel names the process of a POSIX lock only. Root finds the others.

    Args:
        socket: the path of the daemon's socket.
        error: a refusal.

    Raises:
        LockdError: the daemon does not answer.
    """
    blamed, path = error.facts.get("outside"), str(error.facts.get("resource"))
    if not blamed or blamed["pid"] is not None or not path.startswith("/"):
        return None
    with connect(socket) as client:
        others = outsiders_of(client, path, 0)
    for found in others:
        # An older daemon does not say how it is locked.
        alike = found["by"] == blamed.get("by") and not found["waits"]
        if alike and found["pid"] is not None:
            return outsider(program_of(found), found["pid"], "")
    return None


def _outside(client: Client, path: str, held: int, *, looks: bool) -> Iterator[Thing]:
    for found in outsiders_of(client, path, held):
        # lockd locks the first byte. flock(2) and leases do not conflict with that.
        of_fcntl = found["kind"] in ("POSIX", "OFD")
        if (looks or (of_fcntl and found["from"] == 0)) and not found["waits"]:
            yield found


def _space_of(client: Client, key: ResourceKey) -> Thing:
    """Returns the lockspace of a resource, as far as the daemon tells."""
    spaces = client.list_lockspaces()
    return next((x for x in spaces if x["name"] == key.lockspace), {"kind": "memory"})


def _file_of(space: Thing, key: ResourceKey) -> str | None:
    """Returns the path of the locked file; None without one."""
    if space["kind"] == "direct":
        return key.resource
    if space["kind"] == "directory" and space["path"] is not None:
        return f"{space['path']}/{key.resource}"
    return None
