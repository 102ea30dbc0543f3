"""How one lock is: what the daemon says of it, and who locks its file past lockd."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lockd.client.blocking import Client, connect
from lockd.ctl.look.files import (
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
)
from lockd.names import plain, quoted
from lockd.terms import DIRECT_LOCKSPACE, SHARED, ResourceKey
from lockd.text import duration

#: Seconds after which people want the time of day, too.
_LONG = 60


class State(NamedTuple):
    """How a lock is.

    Attributes:
        resource: the daemon's answer to `query`.
        outside: the locks on its file that are not lockd's and keep lockd from it, as
            far as we can see them; the daemon tells of one, too, while somebody waits.
        elsewhere: the same as `resource` for each other name under which its file is
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
        """Whether nobody holds it or waits for it."""
        return not (self.is_held or self._is_waited_for)

    @property
    def word(self) -> str:
        """How it is, in one word or two."""
        if not self.is_held:
            return "waited for" if self._is_waited_for else "free"
        return "shared" if self._modes == {SHARED} else "held"

    @property
    def holders(self) -> list[Thing]:
        """Who holds it, under whatever name."""
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
        return {x["mode"] for x in (*self.holders, *self.outside, *told)}

    @property
    def held(self) -> str:
        """By whom it is held and since when, for a sentence."""
        by = next((x for x in self._everywhere if x["holders"]), None)
        if by is None:
            if self.outside:
                first = self.outside[0]
                return f"held by {outsider(program_of(first), first['pid'])}"
            if found := self.resource["outside"]:
                return f"held by {obstacle(found)}"
            return "held by nobody in lockd"
        holder = by["holders"][0]
        others = sum(x["holder_count"] for x in self._everywhere)
        others += len(self.outside) - 1
        more = f" and {others} more" if others else ""
        why = f" ({plain(said)})" if (said := purpose(holder)) else ""
        held = f"held for {duration(holder['held_for'])}"
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
    """Asks the daemon, and the kernel where a file is locked, how a lock is."""
    resource: Thing = client.query(key.resource, lockspace=key.lockspace)
    path = _file_of(client, key)
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
    # However many share a lock in lockd, the kernel knows one of it.
    held = bool(resource["holders"]) + sum(x != key for x in anchored)
    return State(resource, list(_outside(client, path, held)), elsewhere)


def explain_wait(socket: str, lockspace: str, names: Sequence[str], pid: int) -> str:
    """Returns the sentence for a waiter, looked up through a session of its own.

    Args:
        socket: where the daemon listens.
        lockspace: where the names are.
        names: what the waiter wants.
        pid: the waiter.

    Raises:
        LockdError: the daemon does not say.
    """
    with connect(socket) as client:
        states = [state_of(client, ResourceKey(lockspace, name)) for name in names]
    # Of several names, the one that is in the way: the one with the longest queue.
    state = max(states, key=lambda x: (x.is_held, _place(x.resource, pid)))
    place = _place(state.resource, pid)
    # The wait may have ended since it was asked about: nobody is in line then.
    where = f"{ordinal(place)} in queue; " if place else ""
    name = quoted(state.resource["resource"])
    return f"waiting for {name} ({where}{state.held})"


def _outside(client: Client, path: str, held: int) -> Iterator[Thing]:
    for found in outsiders_of(client, path, held):
        # The first byte is what lockd locks; flock(2) and leases do not mind that.
        of_fcntl = found["kind"] in ("POSIX", "OFD")
        if of_fcntl and found["from"] == 0 and not found["waits"]:
            yield found


def _file_of(client: Client, key: ResourceKey) -> str | None:
    """Returns the path of the file that is locked; None if there is none."""
    for space in client.list_lockspaces():
        if space["name"] == key.lockspace:
            if space["kind"] == "direct":
                return key.resource
            if space["kind"] == "directory" and space["path"] is not None:
                return f"{space['path']}/{key.resource}"
    return None


def _place(resource: Thing, pid: int) -> int:
    pids = [waiter["pid"] for waiter in resource["waiters"]]
    # The daemon names only the first waiters; who is not among them came last.
    return pids.index(pid) + 1 if pid in pids else resource["waiter_count"]
