"""Prints what of requirements.lock the installed program needs, with its hashes.

The lock file pins what the tests and the checks need, too; what the program needs
follows from the dependencies that the installed packages declare.
"""

import re
from importlib import metadata
from pathlib import Path

TOP = Path(__file__).parents[1]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, found: set[str]) -> set[str]:
    """Adds a package and all that it needs on this interpreter, without extras."""
    if normal(name) in found:
        return found
    try:
        requirements = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return found  # not for this platform
    found.add(normal(name))
    for line in requirements:
        if "extra ==" not in line:
            needed(re.split(r"[^\w.-]", line, maxsplit=1)[0], found)
    return found


def main() -> None:
    names = needed("lockd", set()) - {"lockd"}
    blocks = re.findall(
        r"^[\w.-]+==.*?(?=^\S|\Z)",
        (TOP / "requirements.lock").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    print("".join(x for x in blocks if normal(x.split("==")[0]) in names), end="")


if __name__ == "__main__":
    main()
