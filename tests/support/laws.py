"""The laws of the house: each goes through a house, and names what breaks it."""

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache

from house import House, in_circles
from plan import FLOORS, box_of, may_know
from support.attributes import Plant, plants
from support.classes import Classes

RECORDS = {
    "lockspaces.base.LockFile": "what a lockspace knows of a file of its own",
}
"""Plain data that all modules of its own folder may set, and why."""

TWINS = {
    "Client": "client.blocking client.aio",
    "Connection": "protocol.connection libvirt.connection client.threads.connection",
    "Events": "client.threads.methods client.tasks.methods",
    "Grant": "engine.effects client.threads.grants client.tasks.link",
    "Lock": "client.threads.locks client.tasks.locks",
    "Methods": "client.threads.methods client.tasks.methods",
    "Notices": "client.threads.methods client.tasks.methods",
    "Session": "engine.session ctl.run.session",
    "Strand": "engine.session client.strands",
}
"""Classes of one name that mean the same thing, each in a way of its own: a session, a
strand, a conversation, a lock that is held, for threads and tasks, here and there."""

WORDS = {
    "Anchor": ("what makes a lock real outside the daemon", "engine lockspaces"),
    "Edge": ("one who waits for another, in the graph of waits", "engine ctl.look"),
    "Epoch": ("one life of the lock table, in its fencing tokens", "daemon.system"),
    "Event": ("something that happened to a resource", "daemon.activity client ctl"),
    "Feed": ("the events that watchers have still to be told", "daemon.replies"),
    "Grant": ("one lock held", "engine client"),
    "Hold": ("what a client knows of a lock that it has", "client"),
    "Keeping": ("what of the daemon is kept, and when", "daemon"),
    "Ledger": ("records that outlive the process", "daemon.stores"),
    "Lockspace": ("a named set of resources", "lockspaces engine"),
    "Peer": ("the process at the other end of a socket", "daemon"),
    "Request": ("what a client asked, and what is to come of it", "engine client"),
    "Resource": ("the thing that is locked", "engine names"),
    "Session": ("one client connection", "engine daemon client ctl.run"),
    "Turn": ("one round of the daemon's loop, which is no object", ""),
    "Wait": ("the time from a request to its grant or refusal", "daemon.activity"),
}
"""Words that mean one thing, and where the classes are that are named by them.

Where no place is given, no class has the word.
"""

TAKERS = {
    "daemon.requests.dispatch",
    "daemon.replies.reader",
    "daemon.replies.filters",
    "daemon.replies.listings",
}
"""Take requests from the wire, to change the engine or to read from it."""

MOST_LINES = 400
"""Of a module, without empty ones: more than that hides a second subject."""

MOST_MODULES = 16
"""In a folder."""

AT_THE_TOP = {"daemon": 4, "ctl": 8, "client": 16}
"""How many modules a room with folders has beside them, at most."""

NEVER_MISSING = {"keeping"}
"""Parts that are always there: one that does nothing stands for a missing one."""


def arrows_go_down(house: House) -> Iterator[str]:
    """Names each import of something that is not on a lower floor, or behind a wall."""
    for one, other in house.arrows:
        for module in (one, other):
            if box_of(module) is None:
                yield f"{module} has no floor"
        if not may_know(one, other):
            yield f"{one} knows {other}"


def floors_are_there(house: House, floors: str = FLOORS) -> Iterator[str]:
    """Names each box that has a floor, and is no more."""
    for box in floors.split():
        if box not in house.modules:
            yield box


def only_takers_know_engine_and_protocol(house: House) -> Iterator[str]:
    """Names each module but the takers of requests that imports from both rooms."""
    for one in house.modules:
        rooms = {other.split(".")[0] for x, other in house.arrows if x == one}
        if {"engine", "protocol"} <= rooms and one not in TAKERS:
            yield one


def no_circle_of_files(house: House) -> Iterator[str]:
    """Names each module from which arrows lead back to it."""
    yield from in_circles(house.arrows)


def no_circle_of_folders(house: House) -> Iterator[str]:
    """Names each box from which arrows lead back to it, at any depth."""
    yield from in_circles(house.boxes)


def folders_are_small(house: House) -> Iterator[str]:
    """Names each folder with too many modules."""
    for folder, modules in house.folders().items():
        if len(modules) > MOST_MODULES:
            yield folder


def tops_are_clear(house: House) -> Iterator[str]:
    """Names each room with folders that has too many modules beside them."""
    for room, most in AT_THE_TOP.items():
        if len(house.folders().get(room, [])) > most:
            yield room


def modules_are_short(house: House) -> Iterator[str]:
    """Names each module that is too long."""
    for module in house.modules.values():
        if sum(1 for line in module.text.splitlines() if line.strip()) > MOST_LINES:
            yield module.name


def nothing_is_planted(
    house: House, records: Mapping[str, str] = RECORDS
) -> Iterator[str]:
    """Names each attribute that is set from outside the module of its class."""
    for plant in plants_of(house):
        if not plant.is_method and not is_record(plant, records):
            yield str(plant)


def no_method_is_replaced(house: House) -> Iterator[str]:
    """Names each method to which something is assigned, from wherever."""
    yield from (str(plant) for plant in plants_of(house) if plant.is_method)


def no_part_is_missing(house: House) -> Iterator[str]:
    """Names each module that asks whether there is a part that is always there."""
    for module in house.modules.values():
        for node in ast.walk(module.tree):
            match node:
                case ast.Compare(
                    left=ast.Name(id=name) | ast.Attribute(attr=name),
                    ops=[ast.Is() | ast.IsNot()],
                ):
                    if name.strip("_") in NEVER_MISSING:
                        yield module.name


def names_are_unique(house: House) -> Iterator[str]:
    """Names each class that has the name of another one and means something else."""
    for name, modules in namesakes(house).items():
        strangers = modules - set(TWINS.get(name, "").split())
        yield from (f"{module}.{name}" for module in strangers)


def words_mean_one_thing(house: House) -> Iterator[str]:
    """Names each class that is such a thing by its name, and not at home there."""
    for module, name in class_names(house):
        _, homes = WORDS.get(word_of(name), ("", module))
        if not any(_is_in(module, home) for home in homes.split()):
            yield f"{module}.{name}"


def _is_in(module: str, box: str) -> bool:
    return module == box or module.startswith(f"{box}.")


@cache
def _all(house: House) -> Classes:
    return Classes(house)


@cache
def plants_of(house: House) -> list[Plant]:
    """Returns all attributes that are set from outside, and all replaced methods."""
    return list(plants(_all(house)))


def is_record(plant: Plant, records: Mapping[str, str] = RECORDS) -> bool:
    """Says whether this is plain data that its own folder may set."""
    owner = plant.owner
    if owner is None or owner.place not in records:
        return False
    return _is_in(plant.by.name, owner.module.name.rpartition(".")[0])


def class_names(house: House) -> Iterator[tuple[str, str]]:
    """Goes through all classes: module and name."""
    for owner in _all(house).all:
        yield owner.module.name, owner.name


def namesakes(house: House) -> dict[str, set[str]]:
    """Returns the names that several modules have for classes, and these modules."""
    found: dict[str, set[str]] = {}
    for module, name in class_names(house):
        found.setdefault(name.strip("_"), set()).add(module)
    return {name: modules for name, modules in found.items() if len(modules) > 1}


def word_of(name: str) -> str:
    """Returns the last word of a name, which says what a thing is."""
    return re.split("(?=[A-Z])", name)[-1].removesuffix("s")


Law = Callable[[House], Iterable[str]]

LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        arrows_go_down,
        floors_are_there,
        only_takers_know_engine_and_protocol,
        no_circle_of_files,
        no_circle_of_folders,
        folders_are_small,
        tops_are_clear,
        modules_are_short,
        nothing_is_planted,
        no_method_is_replaced,
        no_part_is_missing,
        names_are_unique,
        words_mean_one_thing,
    )
}
"""All laws, by name."""
