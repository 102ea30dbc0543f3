"""Prints what of requirements.lock the installed program needs, with its hashes.

The lock file pins what the tests and the checks need, too; what the program needs
follows from the dependencies that the installed packages declare. `lockctl top` is part
of it: who needs it on a host is in no position to add packages to the program's own
directory, which is all that its interpreter looks at. Nothing of it is loaded unless it
is used.
"""

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP = Path(__file__).parents[1]
EXTRAS = {"all"}


def needed(name: str, extras: set[str], found: set[tuple[str, str]]) -> set[str]:
    """Returns a package and all that it needs on this interpreter, with these extras.

    Args:
        found: what was looked at already: packages, each without an extra or with one.
    """
    names: set[str] = set()
    for extra in {"", *extras}:
        if (canonicalize_name(name), extra) in found:
            continue
        found.add((canonicalize_name(name), extra))
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # not for this platform
        names.add(canonicalize_name(name))
        for requirement in map(Requirement, requirements):
            marker = requirement.marker
            if marker is None or marker.evaluate({"extra": extra}):
                names |= needed(requirement.name, requirement.extras, found)
    return names


def main() -> None:
    names = needed("lockd", EXTRAS, set()) - {"lockd"}
    blocks = re.findall(
        r"^[\w.-]+==.*?(?=^\S|\Z)",
        (TOP / "requirements.lock").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    wanted = (x for x in blocks if canonicalize_name(x.split("==")[0]) in names)
    print("".join(wanted), end="")


if __name__ == "__main__":
    main()
