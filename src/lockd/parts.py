"""The parts of lockd that need more than msgpack, and how to install what they need.

`pip install lockd` installs the client for threads. The extras of pyproject.toml
install what the other parts need.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from lockd.errors import MissingPartError


@contextmanager
def part(extra: str, what: str, otherwise: str = "") -> Iterator[None]:
    """Says how to install a part of lockd if what the body imports is missing.

    Args:
        extra: the name of the part in `pip install 'lockd[...]'`.
        what: the part, as the beginning of a sentence.
        otherwise: what else the user can do, as the end of the sentence.

    Raises:
        MissingPartError: the body imports a package that is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        # Without a module of its own, lockd is broken. Do not hide that.
        if error.name is None or error.name.partition(".")[0] == "lockd":
            raise
        raise MissingPartError(
            f"{what} needs the Python package {error.name}, which is not installed: "
            f"install it with `pip install 'lockd[{extra}]'`{otherwise}"
        ) from None
