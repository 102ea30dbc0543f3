"""Whether the modules of the daemon that are compiled run, or their source.

mypyc compiles modules into shared objects beside their source (`tools/compiled.py`).
They are compiled together from one state of the source, and reach into each other. So
all of them run or none: one that is missing, or older than its source, makes Python
load the source of all.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Final

PACKAGE: Final = Path(__file__).parent

RECORD: Final = "compiled.json"
"""The file in the package that says what was compiled, and from which source."""

LIBRARY: Final = "lockd.compiled__mypyc"
"""The shared object that has all of the code."""

_OTHER_ROOMS: Final = ("client", "ctl")
"""No compiled module imports anything of them."""

_problem: str | None = None


def sources(package: Path) -> Iterator[Path]:
    """Yields all files that decide what the compiled modules do."""
    yield from sorted(package.glob("*.py"))
    for room in sorted(package.iterdir()):
        if room.is_dir() and room.name not in _OTHER_ROOMS:
            yield from sorted(room.rglob("*.py"))


def fingerprint(package: Path) -> str:
    """Returns a hash of these files."""
    found = hashlib.sha256()
    for path in sources(package):
        content = path.read_bytes()
        found.update(f"{path.relative_to(package)} {len(content)}\n".encode())
        found.update(content)
    return found.hexdigest()


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
        record = json.loads((PACKAGE / RECORD).read_bytes())
        suffix, modules, source = (record[x] for x in ("suffix", "modules", "source"))
    except FileNotFoundError:
        if not any(PACKAGE.glob(f"{library}.*")):
            return None
        return _runs_interpreted(f"{RECORD} is missing beside its compiled modules")
    except (ValueError, LookupError, TypeError):
        return _runs_interpreted(f"{RECORD} is damaged")
    objects = (
        PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(suffix)
        for name in (*modules, LIBRARY)
    )
    if suffix not in EXTENSION_SUFFIXES:
        why = "its compiled modules are for another interpreter"
    elif not all(path.exists() for path in objects):
        why = "some of its compiled modules are missing"
    elif source != fingerprint(PACKAGE):
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
