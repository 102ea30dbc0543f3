"""The commands of a package that pip has installed. `python -m lockd` is lockctl."""

import gc
import sys

from lockd.errors import MissingPartError


def lockctl() -> None:
    """Runs lockctl and exits."""
    from lockd.ctl.main import main

    main()


def lockd() -> None:
    """Runs the daemon and exits. It may not be installed."""
    from lockd.parts import part

    gc.disable()  # no import is garbage; who needs it enables it
    try:
        with part("daemon", "the daemon"):
            from lockd.daemon.main import main
    except MissingPartError as error:
        sys.exit(f"lockd: {error}")
    main()


if __name__ == "__main__":
    lockctl()
