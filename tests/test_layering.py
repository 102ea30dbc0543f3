"""The laws of the house: where things may be, and who may know whom.

Each law is a function that goes through a house and names what breaks it. It is fed the
source, and, so that it is known to bite, a small house that breaks it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from house import House, Module, in_circles
from plan import FLOORS, box_of, may_know
from support.attributes import Classes, Plant
from support.planted import planted

RECORDS = {
    "engine.session.OwnerState": "the engine's state, which is told apart in modules",
    "engine.session.Request": "the engine's state, which is told apart in modules",
    "engine.session.Session": "the engine's state, which is told apart in modules",
    "engine.resource.Resource": "the engine's state, which is told apart in modules",
    "client.grants.Hold": "what `core` knows of a lock; the links read it",
    "client.reply.Reply": "what `core` knows of a request; `wake` is for who waits",
}
"""Plain data that all modules of its own folder may set, and why."""

TWINS = {
    "Client": "the same session, for threads and for tasks",
    "Connection": "one conversation: in each tongue, and at the client's end",
    "Grant": "one lock held: as the engine, a thread and a task have it",
    "Lock": "the lock that a program names: for threads and for tasks",
    "Session": "one client connection: at the daemon's end, and at lockctl's",
}
"""Names that several classes have, because they mean the same thing."""

WORDS = {
    "Anchor": ("what makes a lock real outside the daemon", "engine lockspaces"),
    "Epoch": ("one life of the lock table, in its fencing tokens", "daemon.system"),
    "Event": ("something that happened to a resource", "daemon.activity client ctl"),
    "Feed": ("the events that watchers have still to be told", "daemon.replies"),
    "Grant": ("one lock held", "engine client"),
    "Hold": ("what a client knows of a lock that it has", "client"),
    "Keeper": ("who keeps descriptors that outlive the process", "daemon.stores"),
    "Keeping": ("what of the daemon is kept, and when", "daemon"),
    "Ledger": ("records that outlive the process", "daemon.stores"),
    "Lockspace": ("a named set of resources", "lockspaces engine"),
    "Peer": ("the process at the other end of a socket", "daemon"),
    "Request": ("what a client asked, and what is to come of it", "engine client"),
    "Resource": ("the thing that is locked", "engine names"),
    "Session": ("one client connection", "engine daemon client ctl.run"),
    "Turn": ("one round of the daemon's loop", "daemon"),
    "Wait": ("one link between an owner and what it waits for", "engine ctl.look"),
}
"""Words that mean one thing, and where the classes are that are named by them."""

TAKERS = {"daemon.requests.dispatch", "daemon.replies.reader"}
"""Take requests from the wire, to change the engine or to read from it."""

MOST_LINES = 400
"""Of a module, without empty ones: more than that hides a second subject."""

MOST_MODULES = 16
"""In a folder."""

HOUSE = House()

# The laws.


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


def modules_are_short(house: House) -> Iterator[str]:
    """Names each module that is too long."""
    for module in house.modules.values():
        if sum(1 for line in module.text.splitlines() if line.strip()) > MOST_LINES:
            yield module.name


def nothing_is_planted(
    house: House, records: Mapping[str, str] = RECORDS
) -> Iterator[str]:
    """Names each attribute that is set from outside the module of its class."""
    for plant in _plants(house):
        if not plant.is_method and not _is_record(plant, records):
            yield str(plant)


def no_method_is_replaced(house: House) -> Iterator[str]:
    """Names each method to which something is assigned, from wherever."""
    yield from (str(plant) for plant in _plants(house) if plant.is_method)


def names_are_unique(house: House) -> Iterator[str]:
    """Names each class that has the name of another one and means something else."""
    for name, modules in _twins(house).items():
        if name not in TWINS:
            yield from (f"{module}.{name}" for module in modules)


def words_mean_one_thing(house: House) -> Iterator[str]:
    """Names each class that is such a thing by its name, and not at home there."""
    for module, name in _classes(house):
        _, homes = WORDS.get(_word(name), ("", module))
        if not any(_is_in(module, home) for home in homes.split()):
            yield f"{module}.{name}"


def _is_in(module: str, box: str) -> bool:
    return module == box or module.startswith(f"{box}.")


@cache
def _all(house: House) -> Classes:
    return Classes(house)


@cache
def _plants(house: House) -> list[Plant]:
    return list(_all(house).plants())


def _is_record(plant: Plant, records: Mapping[str, str] = RECORDS) -> bool:
    owner = plant.owner
    if owner is None or owner.place not in records:
        return False
    return _is_in(plant.by.name, owner.module.name.rpartition(".")[0])


def _classes(house: House) -> Iterator[tuple[str, str]]:
    for owner in _all(house).all:
        yield owner.module.name, owner.name


def _twins(house: House) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for module, name in _classes(house):
        found.setdefault(name.strip("_"), set()).add(module)
    return {name: modules for name, modules in found.items() if len(modules) > 1}


def _word(name: str) -> str:
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
        modules_are_short,
        nothing_is_planted,
        no_method_is_replaced,
        names_are_unique,
        words_mean_one_thing,
    )
}

DEBTS: dict[str, str] = {
    "arrows_go_down": """
daemon.clients.admission knows daemon.requests.dispatch
daemon.clients.admission knows daemon.survival.keeping
daemon.metrics.families knows daemon.service
daemon.replies.statistics knows daemon.survival.keeping
daemon.requests.runtime knows daemon.survival.keeping
daemon.server knows daemon.survival.keeping
daemon.survival.handover knows daemon.service
daemon.survival.keeping knows daemon.service
daemon.survival.recording knows daemon.service
""",
    "floors_are_there": """
daemon.assembly
""",
    "no_circle_of_files": """
daemon.clients.admission
daemon.metrics.families
daemon.metrics.publishing
daemon.replies.statistics
daemon.requests.dispatch
daemon.requests.runtime
daemon.requests.virtlockd
daemon.server
daemon.service
daemon.survival.handover
daemon.survival.keeping
daemon.survival.recording
""",
    "no_circle_of_folders": """
daemon.clients
daemon.metrics
daemon.replies
daemon.requests
daemon.server
daemon.service
daemon.survival
""",
    "folders_are_small": """
engine
""",
    "modules_are_short": """
daemon.clients.peer
daemon.service
daemon.stores.in_flight
engine.lock_engine
""",
    "nothing_is_planted": """
client.tasks.link sets client.core.ClientCore.on_event
client.tasks.link sets client.core.ClientCore.on_free
client.tasks.link sets client.core.ClientCore.on_lost
client.tasks.link sets client.turns.Turn.wake
client.threads.link sets client.core.ClientCore.on_event
client.threads.link sets client.core.ClientCore.on_free
client.threads.link sets client.core.ClientCore.on_lost
client.threads.link sets client.turns.Turn.wake
ctl.top.feed sets ctl.top.board.Board.facts
daemon.clients.gate sets daemon.activity.counts.Counts.turned_away
daemon.metrics.slow_log sets ?.owner
daemon.metrics.slow_log sets daemon.activity.counts.Counts.now
daemon.metrics.slow_log sets daemon.activity.counts.Counts.on_slow_end
daemon.metrics.slow_log sets daemon.activity.counts.Space.slow_hold
daemon.metrics.slow_log sets daemon.activity.counts.Space.slow_holds
daemon.metrics.slow_log sets daemon.activity.counts.Space.slow_wait
daemon.metrics.slow_log sets daemon.activity.counts.Space.slow_waits
daemon.replies.answers sets ?.on_error
daemon.requests.dispatch sets ?.greeted
daemon.requests.dispatch sets daemon.clients.peer.Peer.claims_itself
daemon.requests.dispatch sets daemon.clients.peer.Peer.client
daemon.requests.dispatch sets daemon.clients.peer.Peer.is_closing
daemon.requests.dispatch sets daemon.clients.peer.Peer.is_inheritable
daemon.requests.dispatch sets daemon.clients.peer.Peer.restricted
daemon.requests.dispatch sets daemon.clients.peer.Peer.watched
daemon.requests.runtime sets daemon.activity.counts.Counts.now
daemon.requests.runtime sets daemon.activity.history.History.now
daemon.server sets daemon.clients.peer.Peer.is_closing
daemon.server sets daemon.clients.peer.Peer.is_leaving
daemon.server sets daemon.system.poller.Poller.woke
daemon.service sets daemon.activity.counts.Counts.took_over
daemon.service sets daemon.clients.limits.LimitKeeper.limits
daemon.service sets daemon.requests.runtime.Runtime.keeping
daemon.service sets daemon.server.Server.keeping
daemon.service sets daemon.system.processes.Processes.kill_grace
daemon.start.serve sets daemon.activity.counts.Counts.revivals
daemon.start.serve sets daemon.requests.dispatch.Dispatcher.upgrades
daemon.start.serve sets engine.lock_engine.LockEngine.last_token
daemon.start.takeover sets daemon.clients.peer.Peer.is_closing
daemon.start.takeover sets daemon.requests.dispatch.Dispatcher.last_number
daemon.start.takeover sets daemon.requests.dispatch.Dispatcher.started
daemon.start.takeover sets daemon.requests.dispatch.Dispatcher.upgrades
daemon.stores.ledger sets daemon.stores.ledger_file.File.end
daemon.stores.ledger sets daemon.stores.ledger_file.File.most
daemon.survival.keeping sets daemon.system.processes.Processes.drop
daemon.survival.keeping sets daemon.system.processes.Processes.keep
daemon.survival.recording sets daemon.clients.limits.LimitKeeper.is_short
daemon.survival.recording sets daemon.system.processes.Processes.changed
engine.mending sets engine.lock_engine.LockEngine.ended
engine.records sets engine.changes.Changes.counts
engine.records sets engine.lock_engine.LockEngine.changed
engine.records sets engine.snapshot.ResourceRecord.anchor
engine.records sets engine.snapshot.ResourceRecord.anchor_wanted
engine.records sets engine.snapshot.ResourceRecord.pending
""",
    "names_are_unique": """
client.grants.Hold
client.paths.Place
client.tasks.locks.Hold
client.threads.locks.Hold
ctl.look.graph.Wait
ctl.top.feed.Feed
daemon.activity.counts.Wait
daemon.activity.history.Hold
daemon.config.config.Places
daemon.metrics.scrape.Place
daemon.metrics.scrape.Places
daemon.replies.feed.Feed
daemon.replies.pages.Found
daemon.replies.reader.Reader
daemon.stores.in_flight.Kept
daemon.stores.ledger_file.Header
daemon.stores.pieces.Pieces
daemon.survival.handover.Kept
daemon.survival.revival.Found
engine.effects.Wait
engine.records.Pieces
engine.records.Place
engine.session.Request
libvirt.connection.Header
libvirt.xdr.Reader
protocol.connection.Request
""",
    "words_mean_one_thing": """
client.turns.Turn
client.turns.Turns
ctl.top.feed.Feed
daemon.activity.counts.Wait
daemon.activity.history.Hold
daemon.clients.limits.LimitKeeper
protocol.connection.Request
""",
}


@pytest.mark.parametrize("law", LAWS)
def test_law_is_kept(law: str) -> None:
    broken = set(LAWS[law](HOUSE))
    owed = set(DEBTS.get(law, "").strip().splitlines())
    told = [f"{place} breaks it" for place in sorted(broken - owed)]
    told += [f"{place}: paid; remove it from DEBTS" for place in sorted(owed - broken)]
    assert not told, "\n".join([f"{law}:", *told])


def test_debts_are_of_laws() -> None:
    assert DEBTS.keys() <= LAWS.keys()


def test_each_record_is_set_by_its_folder() -> None:
    needed = {p.owner.place for p in _plants(HOUSE) if p.owner and _is_record(p)}
    assert needed == RECORDS.keys()


def test_each_twin_has_one() -> None:
    assert set(_twins(HOUSE)) >= TWINS.keys()


def test_each_word_names_something() -> None:
    assert {_word(name) for _, name in _classes(HOUSE)} >= WORDS.keys()


# Each law bites: houses that break it, each in one way.

#: A module of the planted house that has a class, or two.
THING = """
class Thing:
    size: int = 0

    def __init__(self, other: "Thing | None" = None) -> None:
        self.colour = "red"
        self.keep = print
        self.parts: dict[str, Thing] = {}

    def grow(self) -> None: ...

    @property
    def age(self) -> int: ...

    @age.setter
    def age(self, value: int) -> None: ...
"""

BOTH = "import lockd.protocol.codec, lockd.engine"

IMPORT = "from lockd.engine.thing import Thing\n"

BREAKS: dict[str, list[tuple[dict[str, str], set[str]]]] = {
    "arrows_go_down": [
        ({"errors": "import lockd.names", "names": ""}, {"errors knows names"}),
        ({"errors": "from lockd import names", "names": ""}, {"errors knows names"}),
        (
            {"names": "def f():\n from lockd.engine import x", "engine/__init__": ""},
            {"names knows engine"},
        ),
        (
            {"terms": "if TYPE_CHECKING:\n from lockd.errors import E", "errors": ""},
            {"terms knows errors"},
        ),
        (
            {"daemon/stores/a": "import lockd.daemon.server", "daemon/server": ""},
            {"daemon.stores.a knows daemon.server"},
        ),
        (
            {"names": "import_module('lockd.ctl.main')", "ctl/main": ""},
            {"names knows ctl.main"},
        ),
        (
            {"client/core": "import lockd.engine.session", "engine/session": ""},
            {"client.core knows engine.session"},
        ),
        ({"attic": "import lockd.names", "names": ""}, {"attic has no floor"}),
    ],
    "floors_are_there": [],
    "only_takers_know_engine_and_protocol": [
        (
            {
                "daemon/requests/dispatch": BOTH,
                "daemon/replies/reader": BOTH,
                "daemon/server": BOTH,
                "daemon/main": "import lockd.engine",
                "engine/__init__": "",
                "protocol/codec": "",
            },
            {"daemon.server"},
        )
    ],
    "no_circle_of_files": [
        (
            {
                "engine/a": "import lockd.engine.b",
                "engine/b": "if TYPE_CHECKING:\n import lockd.engine.c",
                "engine/c": "def f():\n from lockd.engine import a",
                "engine/d": "import lockd.engine.a",
            },
            {"engine.a", "engine.b", "engine.c"},
        ),
    ],
    "no_circle_of_folders": [
        (
            {
                "ctl/a/x": "import lockd.ctl.b.x",
                "ctl/b/x": "",
                "ctl/b/y": "import lockd.ctl.a.y",
                "ctl/a/y": "",
            },
            {"ctl.a", "ctl.b"},
        ),
    ],
    "folders_are_small": [
        ({f"engine/m{i}": "" for i in range(MOST_MODULES + 1)}, {"engine"}),
        ({f"m{i}": "" for i in range(MOST_MODULES + 1)}, {"lockd"}),
    ],
    "modules_are_short": [
        ({"names": "x\n\n" * MOST_LINES + "x", "terms": "x\n" * MOST_LINES}, {"names"})
    ],
    "nothing_is_planted": [
        (
            {"engine/thing": THING, "engine/other": IMPORT + code},
            {f"engine.other sets {planted}"},
        )
        for code, planted in [
            ("def f(x: Thing): x.size = 1", "engine.thing.Thing.size"),
            ("def f(x: 'Thing | None'): x.size += 1", "engine.thing.Thing.size"),
            ("def f(x: Thing): a, x.size = 1, 2", "engine.thing.Thing.size"),
            ("def f(x: Thing): del x.size", "engine.thing.Thing.size"),
            ("def f(x: Thing): x.keep = None", "engine.thing.Thing.keep"),
            ("def f(x: Thing): x.parts['a'].size = 1", "engine.thing.Thing.size"),
            (
                "def f(x: Thing):\n for y in x.parts.values(): y.size = 1",
                "engine.thing.Thing.size",
            ),
            (
                "class Own:\n def __init__(self, x: Thing): self.x = x\n"
                " def f(self): self.x.colour = self.colour = 'blue'",
                "engine.thing.Thing.colour",
            ),
            (
                "def f():\n x = Thing()\n x.parts['a'].size = 1",
                "engine.thing.Thing.size",
            ),
            ("def f(x):\n x.size = 1", "engine.thing.Thing.size"),
            ("Thing.size = 1", "engine.thing.Thing.size"),
            ("def f(x: Thing): setattr(x, 'size', 1)", "engine.thing.Thing.*"),
            ("def f(x): object.__setattr__(x, 'size', 1)", "?.*"),
            ("class Own:\n size = 1\ndef f(x): x.size = 1", "?.size"),
        ]
    ],
    "no_method_is_replaced": [
        (
            {"engine/thing": THING, "engine/other": IMPORT + code},
            {"engine.other sets engine.thing.Thing.grow"},
        )
        for code in [
            "def f(x: Thing): x.grow = print",
            "def f():\n x = Thing()\n x.grow = print",
            "Thing.grow = print",
        ]
    ]
    + [
        (
            {"engine/thing": "class A:\n def b(self): self.b = 1"},
            {"engine.thing sets engine.thing.A.b"},
        )
    ],
    "names_are_unique": [
        (
            {"engine/a": "class Thing: ...", "client/b": "class _Thing: ..."},
            {"engine.a.Thing", "client.b.Thing"},
        )
    ],
    "words_mean_one_thing": [
        ({"client/a": "class LimitKeeper: ..."}, {"client.a.LimitKeeper"}),
        ({"client/a": "class _Turns: ..."}, {"client.a._Turns"}),
    ],
}  # fmt: skip

BITES = [(law, *case) for law, cases in BREAKS.items() for case in cases]


@pytest.mark.parametrize(("law", "files", "broken"), BITES)
def test_law_bites(
    law: str, files: dict[str, str], broken: set[str], tmp_path: Path
) -> None:
    assert set(LAWS[law](planted(tmp_path, files))) == broken


def test_floor_of_nobody_is_noticed(tmp_path: Path) -> None:
    house = planted(tmp_path, {"names": ""})
    assert list(floors_are_there(house, "names attic")) == ["attic"]


def test_every_law_bites() -> None:
    assert BREAKS.keys() == LAWS.keys()


@pytest.mark.parametrize(
    "code",
    [
        "def f():\n x = Thing()\n x.size = 1",
        "class More(Thing):\n def f(self): self.size = 1",
        "def f(x: Thing): x.age = 1",
        "import threading\ndef f(x: threading.Thread): x.size = 1",
        "import trio\ndef f():\n with trio.CancelScope() as x: x.size = 1",
        "class Own:\n size = 1\ndef f(x: Own): x.size = 1",
        "class Own:\n size = 1\ndef f(x: list[Own]):\n for y in x: y.size = 1",
    ],
)
def test_what_is_no_plant_is_allowed(code: str, tmp_path: Path) -> None:
    files = {"engine/thing": THING, "engine/other": IMPORT + code}
    house = planted(tmp_path, files)
    assert list(nothing_is_planted(house)) == []
    assert list(no_method_is_replaced(house)) == []


def test_record_is_set_by_its_own_folder_only(tmp_path: Path) -> None:
    code = IMPORT + "def f(x: Thing): x.size = 1"
    files = {"engine/thing": THING, "engine/other": code, "daemon/other": code}
    found = nothing_is_planted(planted(tmp_path, files), {"engine.thing.Thing": ""})
    assert list(found) == ["daemon.other sets engine.thing.Thing.size"]


# Laws of single rooms.

IMPURE = {
    *("trio", "anyio", "asyncio", "threading", "subprocess", "socket", "select"),
    *("os", "pathlib", "time", "datetime", "random", "secrets", "logging"),
}
"""What would give the engine or the protocol I/O, a clock, or chance."""


def each_of(*rooms: str) -> pytest.MarkDecorator:
    names = [x for x in HOUSE.modules if x.split(".")[0] in rooms]
    return pytest.mark.parametrize(
        "module", [HOUSE.modules[x] for x in names], ids=names
    )


def known(module: Module) -> set[str]:
    return {other for one, other in HOUSE.arrows if one == module.name}


def outside(module: Module) -> set[str]:
    return {source.split(".")[0] for source, _ in module.imports()} - {"lockd"}


@each_of("client", "ctl", "lockd")
def test_clients_know_only_the_codec_of_the_protocol(module: Module) -> None:
    assert {x for x in known(module) if x.startswith("protocol")} <= {"protocol.codec"}


@each_of("client", "ctl", "lockd", "errors", "terms", "names", "text")
def test_clients_do_without_msgspec(module: Module) -> None:
    assert "msgspec" not in outside(module)


@each_of("engine", "protocol")
def test_machines_have_no_io_no_clock_and_no_chance(module: Module) -> None:
    assert outside(module) & IMPURE == set()


@pytest.mark.parametrize("module", HOUSE.modules.values(), ids=HOUSE.modules)
def test_private_names_stay_in_their_room(module: Module) -> None:
    strangers = [
        f"{source}.{name}"
        for source, name in module.imports()
        if (other := HOUSE.inside(source, name)) is not None
        and other.split(".")[0] != module.name.split(".")[0]
        and name.startswith("_")
        and name != "__version__"
    ]
    assert strangers == []
