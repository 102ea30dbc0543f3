"""The lock file holds on every Python that the project supports, not on one only.

Whether it does follows from what the installed packages declare: nothing is installed
for it, and no registry is asked.
"""

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from support.places import DOCS, ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PYTHONS = ["3.11.0", "3.11.2", "3.11.14", "3.12.0", "3.13.0", "3.14.0"]
"""The first of each minor version, Debian 12's, and a late 3.11: markers may name a
patch release."""


def environment(python: str) -> dict[str, str]:
    """Returns what markers are evaluated against on another Python of this system."""
    return {
        **default_environment(),  # type: ignore[dict-item]
        "python_version": python.rpartition(".")[0],
        "python_full_version": python,
        "implementation_version": python,
    }


def pinned(lock: str, python: str) -> dict[str, str]:
    """Returns what pip would install there: versions by name.

    Raises:
        AssertionError: a package has no hash, or two versions.
    """
    found: dict[str, str] = {}
    for block in re.findall(r"^[\w.-]+==.*?(?=^\S|\Z)", lock, re.MULTILINE | re.DOTALL):
        assert "--hash=sha256:" in block, block
        requirement = Requirement(block.split("\\")[0])
        marker = requirement.marker
        if marker is None or marker.evaluate(environment(python)):
            name = canonicalize_name(requirement.name)
            assert name not in found
            found[name] = str(requirement.specifier).removeprefix("==")
    return found


def declared(name: str) -> list[str]:
    """Returns what a package requires; nothing if it is not for this Python.

    Such a package is looked at where the tests run on the Python that it is for.
    """
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        assert canonicalize_name(name) not in pinned(LOCK, running_python())
        return []


def running_python() -> str:
    return default_environment()["python_full_version"]


def unmet(lock: str, python: str) -> Iterator[str]:
    """Goes through what somebody requires there and the lock file does not pin."""
    pins, env = pinned(lock, python), environment(python)
    groups = PYPROJECT["dependency-groups"]
    parts = PROJECT["optional-dependencies"] | {"dev": groups["dev"]}
    of_project = [*PROJECT["dependencies"], *(x for y in parts.values() for x in y)]
    to_do = [("", text, "lockd") for text in of_project]
    seen = set()
    while to_do:
        extra, text, who = to_do.pop()
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is not None and not marker.evaluate({**env, "extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        version = pins.get(name)
        if name == "lockd":  # all its parts are looked at
            continue
        if version is None or not requirement.specifier.contains(version):
            yield f"{who} requires {text}; pinned is {version}"
            continue
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                to_do += ((wanted, x, name) for x in declared(name))


LOCK = (ROOT / "requirements.lock").read_text()
DOCS_LOCK = (DOCS / "requirements.lock").read_text()


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_file_pins_all_that_is_required_on_each_python(python: str) -> None:
    assert list(unmet(LOCK, python)) == []


@pytest.mark.parametrize("python", PYTHONS)
def test_each_pinned_version_runs_on_each_python(python: str) -> None:
    for name in pinned(LOCK, python).keys() & pinned(LOCK, running_python()).keys():
        allowed = metadata.metadata(name)["Requires-Python"] or ""
        assert SpecifierSet(allowed).contains(python), name


def test_a_requirement_of_one_patch_release_only_is_missed_if_it_is_not_pinned() -> (
    None
):
    without = re.sub(
        r"^async-timeout==.*?(?=^\S)", "", LOCK, flags=re.MULTILINE | re.DOTALL
    )
    assert [x.split(";")[0] for x in unmet(without, "3.11.2")] == [
        "redis requires async-timeout>=4.0.3"
    ]
    assert list(unmet(without, "3.11.14")) == []


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_file_of_the_site_pins_what_it_is_made_with(python: str) -> None:
    pins = pinned(DOCS_LOCK, python)
    groups, extras = PYPROJECT["dependency-groups"], PROJECT["optional-dependencies"]
    for text in (*PROJECT["dependencies"], *extras["aio"], *groups["docs"]):
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_the_project_names_the_pythons_that_are_tested() -> None:
    prefix = "Programming Language :: Python :: 3."
    named = {x.removeprefix(prefix) for x in PROJECT["classifiers"] if prefix in x}
    assert named == {x.split(".")[1] for x in PYTHONS}
    assert SpecifierSet(PROJECT["requires-python"]).contains(min(PYTHONS))
