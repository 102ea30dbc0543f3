"""The source is held against the laws of the house, and each law is seen to bite.

`support/laws.py` has the laws. What they allow is in tables there, and in the plan of
the house (`tools/plan.py`).
"""

from pathlib import Path

import pytest

from house import House, Module
from support.laws import (
    AT_THE_TOP,
    LAWS,
    MOST_LINES,
    MOST_MODULES,
    RECORDS,
    TWINS,
    WORDS,
    class_names,
    floors_are_there,
    is_record,
    namesakes,
    no_method_is_replaced,
    nothing_is_planted,
    plants_of,
    word_of,
)
from support.small_house import planted

HOUSE = House()

DEBTS: dict[str, str] = {}
"""What breaks a law today, by law. It only gets shorter."""


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
    needed = {p.owner.place for p in plants_of(HOUSE) if p.owner and is_record(p)}
    assert needed == RECORDS.keys()


@pytest.mark.parametrize("name", TWINS)
def test_twins_have_the_same_name(name: str) -> None:
    assert namesakes(HOUSE).get(name, set()) >= set(TWINS[name].split())


def test_each_word_names_something() -> None:
    used = {word_of(name) for _, name in class_names(HOUSE)}
    assert used & WORDS.keys() == {word for word, (_, homes) in WORDS.items() if homes}


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

CLIENT = "class Client: ..."

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
    "tops_are_clear": [
        (
            {f"daemon/m{i}": "" for i in range(AT_THE_TOP["daemon"] + 1)}
            | {f"ctl/m{i}": "" for i in range(AT_THE_TOP["ctl"])},
            {"daemon"},
        )
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
            (
                "class Own:\n size = 1\ndef f(x: Own | Thing): x.size = 1",
                "engine.thing.Thing.size",
            ),
            (
                "from typing import Any\ndef f(x: Any): x.size = 1",
                "engine.thing.Thing.size",
            ),
            ("def f(x): x.unheard_of = 1", "?.unheard_of"),
            ("def f(x: Thing): x.__dict__['size'] = 1", "engine.thing.Thing.*"),
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
    "no_part_is_missing": [
        ({"daemon/a": f"def f(x): return x{code} None"}, {"daemon.a"})
        for code in (".keeping is", ".y._keeping is not")
    ],
    "names_are_unique": [
        (
            {"client/blocking": CLIENT, "client/aio": CLIENT, "ctl/main": CLIENT},
            {"ctl.main.Client"},
        ),
        (
            {"engine/a": "class Thing: ...", "client/b": "class _Thing: ..."},
            {"engine.a.Thing", "client.b.Thing"},
        )
    ],
    "words_mean_one_thing": [
        ({"client/a": "class LimitLedger: ..."}, {"client.a.LimitLedger"}),
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
