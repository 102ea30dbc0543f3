"""The commands as `make install` makes them, for the source that is here."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import msgpack

import lockd

SOURCE: Final = Path(lockd.__file__).parents[1]
PACKAGES: Final = Path(msgpack.__file__).parents[1]
SYSTEM_PYTHON: Final = "/usr/bin/python3"
LAUNCHER: Final = Path(__file__).parents[1] / "tools" / "launcher.in"

LOCKD, LOCKCTL = "lockd", "lockctl"
"""The commands."""


def installing_python() -> str:
    """Returns the interpreter that `make install` takes, or ours.

    It can be another one only if it can load the packages that are here. Interpreters
    of one version differ by a quarter in the time that a start takes.
    """
    if not Path(SYSTEM_PYTHON).exists():
        return sys.executable
    told = [SYSTEM_PYTHON, "-c", "import sys; print(sys.implementation.cache_tag)"]
    tag = subprocess.run(told, capture_output=True, text=True).stdout.strip()
    return SYSTEM_PYTHON if tag == sys.implementation.cache_tag else sys.executable


def as_installed(name: str, script: Path) -> list[str]:
    """Writes the script that `make install` writes. Returns the command.

    It takes no option and no module from the environment, and no module of the site.
    """
    launcher = LAUNCHER.read_text().replace("@libdir@", str(SOURCE))
    # It begins with the interpreter, which is another one here.
    main = launcher.replace("@command@", name).partition("\n")[2]
    script.write_text(f"import sys\nsys.path.append({str(PACKAGES)!r})\n{main}")
    return [installing_python(), "-IS", str(script)]
