"""What both daemons said that is held, in the comparison with virtlockd."""

import os
from collections.abc import Collection

from campaigns.events import Event, Hold
from campaigns.twins import Line, Owner, Twins, Unexpected, pid_of
from support import libvirt_client as lc

Key = tuple[bytes, bytes]


class Holdings:
    """Who holds what, by what both answered alike.

    Attributes:
        of: the holds of each resource, which is named by lockspace and name.
        gone: what those held who died just now.
        exchanged: files that came or went while they were held.
    """

    def __init__(self, twins: Twins, *, is_strict: bool) -> None:
        self.of: dict[Key, list[Hold]] = {}
        self.gone: list[tuple[bytes, bytes, Hold]] = []
        self.exchanged: set[str] = set()
        self._twins = twins
        self._is_strict = is_strict

    def remember(self, event: Event) -> None:
        # They are C strings.
        key = (event.space.partition(b"\0")[0], event.name.partition(b"\0")[0])
        owner = event.owner
        assert owner is not None
        if event.procedure == lc.ACQUIRE:
            self.of.setdefault(key, []).append(Hold(owner, event.flags))
        elif event.procedure == lc.RELEASE:
            holds = self.of.get(key, [])
            hold = next((hold for hold in holds if hold.owner == owner), None)
            if hold is None and self._is_strict:
                return  # left by somebody who is dead
            if hold is None:
                raise Unexpected(f"both released what nobody holds: {event}")
            holds.remove(hold)
            if not holds:
                del self.of[key]

    def forget(self, owners: Collection[Owner]) -> None:
        """Moves what the dead cannot hold any more to `gone`."""
        self.gone = []
        for key, holds in list(self.of.items()):
            self.gone += [(*key, hold) for hold in holds if hold.owner in owners]
            self.of[key] = [hold for hold in holds if hold.owner not in owners]
            if not self.of[key]:
                del self.of[key]

    def left_in_virtlockd(self) -> bool:
        """Releases what virtlockd still has of those who are dead; tells if it had."""
        left = [
            self._twins.in_the_name_of(
                pid_of(hold.owner, 0),
                lc.RELEASE,
                lc.resource(self._twins.fill(space, 0), self._twins.fill(name, 0)),
            )
            for space, name, hold in self.gone
        ]
        self.gone = []
        return any(left)

    def is_owning(self, line: Line) -> bool:
        """Whether its process is killed if it closes this connection."""
        return line.owner is line.persona and any(
            hold.owner is line.owner for holds in self.of.values() for hold in holds
        )

    def is_held_otherwise(self, event: Event) -> bool:
        """Whether the file that is named is held by another name."""
        return any(self._is_other((event.space, event.name), key) for key in self.of)

    def _files(self, space: bytes, name: bytes) -> set[object]:
        """Tells which file is meant: by its path, and by itself if it is there."""
        path = os.path.join(space, name).partition(b"\0")[0]
        path = self._twins.fill(path, 1)
        try:
            status = os.stat(path)
        except OSError:
            return {os.path.realpath(path)}
        return {os.path.realpath(path), (status.st_dev, status.st_ino)}

    def shares_a_file(self, owner: Owner | None) -> bool:
        """Whether a file is held for an owner by one name, and by another one, too."""
        own = [key for key in self.of if any(h.owner == owner for h in self.of[key])]
        return any(self._is_other(key, name) for key in own for name in self.of)

    def _is_other(self, key: Key, other: Key) -> bool:
        return key != other and bool(self._files(*key) & self._files(*other))

    def see_change(self, place: str, name: str) -> None:
        """A file comes or goes."""
        changed = self._files(os.fsencode(f"@/{place}"), os.fsencode(name))
        if any(self._files(*key) & changed for key in self.of):
            self.exchanged.add(f"{place}/{name}")

    def was_exchanged(self, event: Event) -> bool:
        path = os.path.join(event.space, event.name).removeprefix(b"@/")
        return os.fsdecode(path) in self.exchanged
