"""The output of lockctl: JSON, sentences, and words that several commands share."""

import pwd
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from lockd.ctl.streams import say
from lockd.names import plain, quoted
from lockd.terms import SLOT, ResourceKey
from lockd.text import counted

Thing = dict[str, Any]
"""A lock, a holder, an event, ... as the daemon sends it (protocol 7)."""

VERSION: Final = 1
"""Of the shapes in docs/reference/json.md. It rises when a field goes or changes its
meaning."""

UNNAMED: Final = "`lockctl list --pid PID --json` shows the one that is process PID"
"""How to see a holder that the daemon does not name (protocol 7.2)."""


def show_json(**things: Any) -> None:
    """Prints named things as one JSON object, with the version of its format.

    On a terminal it is indented, piped it is one line. Nothing is written before all is
    known, so a reader gets the whole object or nothing.
    """
    if sys.stdout.isatty():
        whole = {name: _whole(thing) for name, thing in things.items()}
        print(to_json({"version": VERSION} | whole, indent=2))
        return
    # For many things their text takes less memory than they do.
    text = [f'{{"version": {VERSION}']
    for name, thing in things.items():
        text.append(f', "{name}": ')
        if isinstance(thing, Iterator):
            text.append("[")
            for number, each in enumerate(thing):
                text.append(", " * (number > 0) + to_json(each))
            text.append("]")
        else:
            text.append(to_json(thing))
    text.append("}\n")
    sys.stdout.writelines(text)


def to_json(thing: Any, *, indent: int | None = None) -> str:
    """Returns JSON in the encoding of standard output.

    Characters that a terminal would act on are escaped as in JSON, so nothing is lost.
    """
    import json

    unicode = sys.stdout.encoding.lower() == "utf-8"
    text = json.dumps(thing, indent=indent, ensure_ascii=not unicode)
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text
    )


def _whole(thing: Any) -> Any:
    return list(thing) if isinstance(thing, Iterator) else thing


def since(seconds: float) -> str:
    """Returns a moment, in seconds since 1970, as local date and time."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def clock(seconds: float) -> str:
    """Returns the local time of a moment, with the date unless it is today."""
    moment = datetime.fromtimestamp(seconds)
    today = moment.date() == datetime.now().date()
    return moment.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def ordinal(number: int) -> str:
    """Returns `1st`, `2nd`, `3rd`, `4th`, ..."""
    teen = number % 100 in (11, 12, 13)
    ending = "th" if teen else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def standing(place: int, *, converting: bool) -> str:
    """Returns the place of a waiter in the queue, or that it converts."""
    return "converts" if converting else ordinal(place)


@lru_cache(maxsize=1_000)
def user(uid: int) -> str:
    """Returns the name of a user; the number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def purpose(party: Mapping[str, Any]) -> str | None:
    """Returns the label and reason of a holder or waiter."""
    return ": ".join(filter(None, (party.get("label"), party.get("reason")))) or None


def is_overdue(holder: Mapping[str, Any]) -> bool:
    """Returns whether a holder holds its lock for longer than it may."""
    # An older daemon, and an event, do not say.
    return bool(holder.get("overdue"))


def outsider(program: str | None, pid: int | None, where: str = "outside lockd") -> str:
    """Returns the words for a process that locks a file outside lockd."""
    known = f" (pid {pid})" if pid else ""
    return f"{plain(program or 'a process')}{known} {where}".rstrip()


_KNOWN: Final = {
    "qemu": "QEMU",
    "sqlite": "SQLite",
    "flock": "flock(2)",
    "lease": "a lease",
}
"""The words for programs by what they lock, if nothing better is known."""


def obstacle(outside: Mapping[str, Any]) -> str:
    """Returns the words for the process that locks a file which somebody waits for.

    It is a process outside lockd, or a holder in lockd under another name of the file.
    """
    name = other_name(outside)
    where = "outside lockd" if name is None else f"as {plain(name)}"
    # An older daemon does not say how it is locked.
    program = outside["command"] or _KNOWN.get(outside.get("by") or "")
    return outsider(program, outside["pid"], where)


def other_name(outside: Mapping[str, Any]) -> str | None:
    """Returns the other name under which lockd holds a file; None outside lockd."""
    if outside.get("resource") is None:
        return None
    return str(ResourceKey(outside["lockspace"], outside["resource"]))


def held_by(first: Mapping[str, Any] | None, count: int, outside: Any) -> str | None:
    """Returns the words for the holders: the first and how many more, or an outsider.

    Args:
        first: the first holder in lockd; None without one.
        count: how many hold it.
        outside: the process that locks its file outside lockd, if the daemon knows it.
    """
    if first is not None:
        name: str | None = first["name"]
        # `+1` survives every cut: `tar +1`.
        return f"{name} +{count - 1}" if name and count > 1 else name
    return None if outside is None else obstacle(outside | {"pid": None})


def shown_mode(resource: Mapping[str, Any]) -> str | None:
    """Returns the mode in which a resource is held, and how many slots are taken."""
    found = [x for x in resource["holders"][:1] or [resource["outside"]] if x]
    mode: str | None = found[0]["mode"] if found else None
    if mode != SLOT:
        return mode
    removed = f"+{resource['slots_removed']}" if resource["slots_removed"] else ""
    return f"{mode} {resource['slots_taken']}/{resource['slots']}{removed}"


def slots_of(resource: Mapping[str, Any]) -> str:
    """Returns how many slots of a resource are taken, in words.

    A removed slot is one that it had once, and that somebody still holds.
    """
    taken = f"{resource['slots_taken']} of {resource['slots']} slots"
    if not resource["slots_removed"]:
        return taken
    return f"{taken} and {counted(resource['slots_removed'], 'removed slot')}"


def configured_slots(space: Thing) -> str | None:
    """Returns which names in a lockspace have how many slots, as configured."""
    # An older daemon does not tell.
    found = [f"{x['pattern']} {x['slots']}" for x in space.get("slots", ())]
    return ", ".join(found) or None


def inside_of(parties: Sequence[Mapping[str, Any]]) -> int | None:
    """Returns the token of the innermost lock that one of some parties is inside of."""
    # An older daemon does not tell.
    found = (x.get("inside") for x in parties)
    return max((tokens[-1] for tokens in found if tokens), default=None)


def note_unnamed(found: Thing) -> None:
    """Says how to see the holders of a lock beyond those that the daemon names."""
    if more := found["holder_count"] - len(found["holders"]):
        say(
            f"{counted(more, 'holder')} of {quoted(str(key_of(found)))} not shown: "
            f"{UNNAMED}"
        )


def key_of(resource: Mapping[str, Any]) -> ResourceKey:
    """Returns the resource of an answer."""
    return ResourceKey(resource["lockspace"], resource["resource"])
