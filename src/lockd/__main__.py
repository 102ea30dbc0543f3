"""The commands, as they are installed. `python -m lockd` is lockctl."""

import gc
import sys


def lockctl() -> None:
    """Runs lockctl and exits."""
    from lockd.ctl.main import main

    main()


def lockd() -> None:
    """Runs the daemon, or `lockd keep`, and exits. The daemon may not be installed."""
    if sys.argv[1:2] == ["keep"]:
        from lockd.keep.main import main as keep

        keep(sys.argv[2:])
    from lockd.errors import MissingPartError
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
