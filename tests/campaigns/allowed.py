"""The differences from virtlockd that are meant: each with its reason, all here.

A rule says why, how one knows the difference, and how both are made alike again: what
virtlockd did is undone, so that the comparison goes on. Where that cannot be done the
episode is over.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from campaigns.events import Event
from campaigns.twins import Owner, Persona, Unexpected, is_locked, pid_of
from support import libvirt_client as lc

if TYPE_CHECKING:
    from campaigns.steps import Episode

    Test = Callable[[Event, Episode], bool]
    Heal = Callable[[Event, Episode], None]

_BUSY, _IO = "87/51", "38/51"
_OF_RESOURCES: Final = (
    lc.CREATE_RESOURCE,
    lc.DELETE_RESOURCE,
    lc.ACQUIRE,
    lc.RELEASE,
)


@dataclass(frozen=True)
class Allowed:
    """A difference: why it is meant, how one knows it, and how both are made alike."""

    reason: str
    applies: "Test"
    heal: "Heal"


def _is(event: Event, procedure: int, first: str, second: str) -> bool:
    return (
        event.procedure == procedure
        and event.answers[0].startswith(first)
        and event.answers[1].startswith(second)
    )


def _refuses(event: Event) -> bool:
    return event.answers[1].endswith(" level 2")


def _differing(event: Event) -> set[str]:
    first, second = event.files
    return {p for p in first.keys() | second.keys() if first.get(p) != second.get(p)}


# Owners.


def _registers_again(event: Event, _: "Episode") -> bool:
    line = event.line
    again = _is(event, lc.REGISTER, "ok", "55/7")
    return again and line is not None and line.owner is not None


def _register_as_before(event: Event, episode: "Episode") -> None:
    line = event.line
    assert line is not None
    assert line.owner is not None
    payload = lc.owner(pid_of(line.owner, 0))
    assert line.clients[0].done(lc.REGISTER, payload)


def _owner_is_no_process(event: Event, _: "Episode") -> bool:
    # Nor is it one that could be ended, as fencing has to: nobody may end the first.
    is_none = event.owner == 1 or not _is_alive(event.owner)
    return _is(event, lc.REGISTER, "ok", _IO) and is_none


def _is_alive(owner: Owner | None) -> bool:
    return not owner.is_dead if isinstance(owner, Persona) else owner == 1


def _hang_up(event: Event, episode: "Episode") -> None:
    assert event.line is not None
    episode.hang_up(event.line)


def _left_by_the_dead(event: Event, episode: "Episode") -> bool:
    is_death = event.what in ("death", "all die")
    return is_death and episode.holdings.left_in_virtlockd()


def _left_by_the_killed(event: Event, episode: "Episode") -> bool:
    is_close = event.answers[0].endswith("killed")
    return is_close and episode.holdings.left_in_virtlockd()


def _nothing(event: Event, episode: "Episode") -> None:
    """It was released already, to know that it was there."""


def _cannot_identify(event: Event, _: "Episode") -> bool:
    # "Cannot find start time for pid"
    line = event.line
    return line is not None and line.persona.is_dead and event.answers[0][:3] == "1/0"


# Direct paths.


def _is_direct(event: Event) -> bool:
    return not event.space.partition(b"\0")[0]


def _makes_direct(event: Event, _: "Episode") -> bool:
    if not _is_direct(event):
        return False
    acquires = _is(event, lc.ACQUIRE, "ok", _IO) and bool(event.flags & lc.AUTOCREATE)
    return acquires or _is(event, lc.CREATE_RESOURCE, "ok", "38/0")


def _undo(event: Event, episode: "Episode") -> None:
    """Has whoever did it undo it; the other one did not."""
    event.is_undone = event.answers[0] != event.answers[1]
    if event.procedure == lc.RELEASE and "ok" in event.answers and event.is_undone:
        episode.is_over = True  # one lock more in one of them, seen or not
    undoing = {lc.ACQUIRE: lc.RELEASE, lc.CREATE_RESOURCE: lc.DELETE_RESOURCE}
    if event.procedure not in undoing or "ok" not in event.answers:
        return
    side = event.answers.index("ok")
    assert event.line is not None
    fill = episode.twins.fill
    payload = lc.resource(fill(event.space, side), fill(event.name, side))
    if not event.line.clients[side].done(undoing[event.procedure], payload):
        raise Unexpected(f"{event} cannot be undone")


def _make_alike(event: Event, episode: "Episode") -> None:
    """Undoes it, and gives virtlockd's directory the files that lockd's has.

    What is locked in one of them only cannot be mended: the episode is over.
    """
    _undo(event, episode)
    event.files = episode.twins.look()
    # Locked in one of them only.
    if any(is_locked(f.get(p, "")) for f in event.files for p in _differing(event)):
        episode.is_over = True
        return
    theirs, ours = (side.root for side in episode.twins.sides)
    for path in sorted(_differing(event)):
        if os.path.lexists(theirs / path):
            (theirs / path).unlink()
        if path in event.files[1]:
            _copy(ours / path, theirs / path)


def _copy(source: Path, target: Path) -> None:
    """Makes such a file, too; all names of one file become names of one."""
    status = os.lstat(source)
    if stat.S_ISLNK(status.st_mode):
        target.symlink_to(os.readlink(source))
    elif stat.S_ISFIFO(status.st_mode):
        os.mkfifo(target, stat.S_IMODE(status.st_mode))
    elif other := _other_name(source, status):
        os.link(target.parent / other, target)
    else:
        target.write_bytes(source.read_bytes())
        target.chmod(stat.S_IMODE(status.st_mode))


def _other_name(source: Path, status: os.stat_result) -> str | None:
    """Returns another name of a file in its directory."""
    with os.scandir(source.parent) as entries:
        names = [e.name for e in entries if e.inode() == status.st_ino]
    return next((name for name in names if name != source.name), None)


def _names_no_plain_file(event: Event, episode: "Episode") -> bool:
    """Whether what is named is a link, a file with two names, or no file at all."""
    path = os.path.join(event.space, event.name)
    try:
        status = os.lstat(episode.twins.fill(path, 1))
    except (OSError, ValueError):
        return False
    is_plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
    made_through_link = _is(event, lc.CREATE_RESOURCE, "ok", "ok")
    names_file = event.procedure in _OF_RESOURCES and not is_plain
    return names_file and (made_through_link or _refuses(event))


def _joins_what_is_gone(event: Event, episode: "Episode") -> bool:
    """Whether it is another lock on a file that was removed or exchanged."""
    is_exchanged = episode.holdings.was_exchanged(event)
    return is_exchanged and _is(event, lc.ACQUIRE, "ok", _IO)


def _names_held_otherwise(event: Event, _: "Episode") -> bool:
    """Whether the file is held under another name."""
    answers = ("ok", f"{_BUSY} level 2", "1/51 level 2")
    is_end = event.procedure == 0 and event.answers[0] == event.answers[1]
    return event.is_held_otherwise and (is_end or event.answers[1] in answers)


def _has_nul(event: Event, _: "Episode") -> bool:
    return _refuses(event) and b"\0" in event.space + event.name


def _names_no_file(event: Event, _: "Episode") -> bool:
    """Whether a name is none that a file in a directory can have, or not a text."""
    name = event.name.removeprefix(b"@/disks/")
    try:
        is_text = name.decode().isprintable()
    except UnicodeDecodeError:
        is_text = False
    return _refuses(event) and (b"/" in name or not is_text)


def _names_dead(event: Event, _: "Episode") -> bool:
    owner = event.line.owner if event.line else None
    is_dead = isinstance(owner, Persona) and owner.is_dead
    return is_dead and _is(event, lc.ACQUIRE, "", _IO)


def _names_no_lockspace(event: Event, _: "Episode") -> bool:
    is_relative = bool(event.space) and not event.space.startswith((b"/", b"@"))
    return is_relative and _refuses(event)


def _removes_locked(event: Event, _: "Episode") -> bool:
    """Whether virtlockd removed a file that somebody outside had locked."""
    return _is(event, lc.DELETE_RESOURCE, "ok", _BUSY) and all(
        is_locked(event.files[1].get(path, "")) for path in _differing(event)
    )


def _names_lockspace_otherwise(event: Event, _: "Episode") -> bool:
    return event.space in (b"@/one/", b"@//one", b"@/one/../one")


def _removes_direct(event: Event, _: "Episode") -> bool:
    return _is_direct(event) and _is(event, lc.DELETE_RESOURCE, "ok", _IO)


def _removed(event: Event) -> set[str]:
    """Returns what virtlockd removed when locks went, if that is all it did."""
    is_release = event.procedure in (0, lc.RELEASE)  # or a close, or a death
    if not is_release or event.answers[0] != event.answers[1]:
        return set()
    differing = _differing(event)
    return set() if differing & event.files[0].keys() else differing


def _removed_direct(event: Event, _: "Episode") -> bool:
    removed = _removed(event)
    is_direct = event.procedure == lc.RELEASE and _is_direct(event)
    return bool(removed) and (
        is_direct or all(path.startswith("disks/") for path in removed)
    )


def _removed_exchanged(event: Event, episode: "Episode") -> bool:
    return any(path in episode.holdings.exchanged for path in _removed(event))


def _over(_: Event, episode: "Episode") -> None:
    episode.is_over = True


ALLOWED: Final = (
    Allowed("a text does not end at a NUL", _has_nul, _make_alike),
    Allowed("a name must be a file's in its directory", _names_no_file, _make_alike),
    Allowed("a lockspace is an absolute path", _names_no_lockspace, _make_alike),
    Allowed(
        "a file that is locked from outside is not removed",
        _removes_locked,
        _make_alike,
    ),
    Allowed(
        "a lockspace is found by any path to it",
        _names_lockspace_otherwise,
        _make_alike,
    ),
    Allowed(
        "an owner is registered once, virtlockd lets a connection change it",
        _registers_again,
        _register_as_before,
    ),
    Allowed(
        "an owner must be a process, virtlockd takes any number",
        _owner_is_no_process,
        _hang_up,
    ),
    Allowed(
        "an owner that dies without a connection of its own loses its locks",
        _left_by_the_dead,
        _nothing,
    ),
    Allowed(
        "virtlockd answers no first call when the caller is dead",
        _cannot_identify,
        _hang_up,
    ),
    Allowed("an owner that is dead gets no locks", _names_dead, _make_alike),
    Allowed(
        "a shared lock taken twice leaves no ghost",
        _left_by_the_killed,
        _nothing,
    ),
    Allowed("a direct path is never made", _makes_direct, _make_alike),
    Allowed("a direct path is never removed by DELETE", _removes_direct, _make_alike),
    Allowed(
        "AUTOCREATE never removes a file at a direct path",
        _removed_direct,
        _make_alike,
    ),
    Allowed(
        "a shared lock of a file that was exchanged is not joined",
        _joins_what_is_gone,
        _make_alike,
    ),
    Allowed(
        "a file that was put in the place of a locked one is not removed",
        _removed_exchanged,
        _make_alike,
    ),
    Allowed(
        "one file has one lock, whatever it is called", _names_held_otherwise, _over
    ),
    Allowed(
        "only files are locked that have one name and are no links",
        _names_no_plain_file,
        _make_alike,
    ),
)
