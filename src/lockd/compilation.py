"""Whether the modules of the daemon that are compiled run, or their source.

mypyc compiles modules into shared objects beside their source (`tools/compiled.py`).
They are compiled together from one state of the source, and reach into each other. So
all of them run or none: one that is missing, or older than its source, makes Python
load the source of all.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Final
from zlib import crc32

import msgspec

PACKAGE: Final = Path(__file__).parent

RECORD: Final = "compiled.json"
"""The file in the package that says what was compiled, and from which source."""

LIBRARY: Final = "lockd.compiled__mypyc"
"""The shared object that has all of the code."""

_OTHER_ROOMS: Final = ("client", "ctl")
"""No compiled module imports anything of them."""

_problem: str | None = None


class Compiled(msgspec.Struct):
    """What was compiled: for which interpreter, from which source, and which modules.

    Attributes:
        suffix: that of the shared objects.
        source: its `fingerprint`.
    """

    suffix: str
    source: str
    modules: list[str]


def sources(package: Path) -> Iterator[str]:
    """Yields all files that decide what the compiled modules do."""
    for room, rooms, files in os.walk(package):
        if room == str(package):
            rooms[:] = set(rooms).difference(_OTHER_ROOMS)
        rooms.sort()
        yield from (f"{room}/{name}" for name in sorted(files) if name[-3:] == ".py")


def fingerprint(package: Path) -> str:
    """Returns a checksum of these files, and their length.

    Each start computes it while everybody waits, so it is a fast one.
    """
    checksum = length = 0
    for path in sources(package):
        with open(path, "rb", buffering=0) as file:
            content = file.read()
        name = path.removeprefix(str(package))
        checksum = crc32(
            content, crc32(b"%s %d" % (name.encode(), len(content)), checksum)
        )
        length += len(content)
    return f"{checksum:08x} {length}"


def prefer_source_if_stale() -> None:
    """Makes Python load no compiled module if these do not belong to the source.

    Call it before the first of them is loaded.
    """
    global _problem
    _problem = _what_is_wrong()
    if _problem is not None:
        prefer_source()


def prefer_source() -> None:
    """Makes Python load no compiled module from now on."""
    sys.meta_path.insert(0, _Sources())


def problem() -> str | None:
    """Returns why the compiled modules that are there do not run, as a sentence."""
    return _problem


def compiled_modules() -> list[str]:
    """Returns the names of the modules that run compiled."""
    return sorted(
        name
        for name, module in list(sys.modules.items())
        if name.startswith("lockd.") and name != LIBRARY and _is_compiled(module)
    )


def is_compiled() -> bool:
    """Says whether compiled modules run."""
    return bool(compiled_modules())


def _is_compiled(module: ModuleType) -> bool:
    return isinstance(getattr(module, "__loader__", None), ExtensionFileLoader)


def _what_is_wrong() -> str | None:
    """Compares the compiled modules with the interpreter and the source."""
    library = LIBRARY.rpartition(".")[2]
    try:
        raw = (PACKAGE / RECORD).read_bytes()
        record = msgspec.json.decode(raw, type=Compiled)
    except FileNotFoundError:
        if not any(PACKAGE.glob(f"{library}.*")):
            return None
        return _runs_interpreted(f"{RECORD} is missing beside its compiled modules")
    except ValueError:  # it is no JSON, no UTF-8, or has another shape
        return _runs_interpreted(f"{RECORD} is damaged")
    objects = (
        f"{PACKAGE.parent}/{name.replace('.', '/')}{record.suffix}"
        for name in (*record.modules, LIBRARY)
    )
    if record.suffix not in EXTENSION_SUFFIXES:
        why = "its compiled modules are for another interpreter"
    elif not all(map(os.path.exists, objects)):
        why = "some of its compiled modules are missing"
    elif record.source != fingerprint(PACKAGE):
        why = "its compiled modules are not those of its source"
    else:
        return None
    return _runs_interpreted(why)


def _runs_interpreted(why: str) -> str:
    return (
        f"lockd runs interpreted: {why}; `make compiled` or `make install` repairs it"
    )


class _Sources:
    """Finds the source of modules that are compiled, too (`sys.meta_path`)."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if not fullname.startswith("lockd.") or not path:
            return None
        file = Path(path[0], fullname.rpartition(".")[2]).with_suffix(".py")
        return spec_from_file_location(fullname, file) if file.exists() else None
