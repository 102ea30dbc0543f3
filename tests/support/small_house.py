"""Small houses that are made to see what is said of them."""

from collections.abc import Mapping
from pathlib import Path

from house import House


def planted(directory: Path, files: Mapping[str, str]) -> House:
    """Makes a house of some modules, each given as path in it and text.

    Each folder gets an `__init__`.
    """
    package = directory / "lockd"
    for name, text in files.items():
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for folder in path.relative_to(directory).parents:
            (directory / folder / "__init__.py").touch()
    return House(package)
