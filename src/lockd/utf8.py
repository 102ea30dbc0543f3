"""One encoding of file names, arguments and environment: UTF-8, whatever the locale.

A file and a lock are named by bytes, which are UTF-8 to everybody who asks lockd. Where
Python takes its encoding from a locale of another one, the same bytes are other text,
or none, and text of the wire is no file name.
"""

import locale
import os
import sys
from contextlib import suppress
from typing import Final

_OPTION: Final = "utf8"
"""Of Python: UTF-8 mode (PEP 540)."""


def insist() -> None:
    """Starts this program anew, in UTF-8 mode, if it was not started so.

    It is the same process, with the same arguments, environment and open files. Called
    before anything else is done.
    """
    if sys.getfilesystemencoding() == "utf-8" or not sys.executable:
        return
    words = [sys.orig_argv[0], "-X", _OPTION, *sys.orig_argv[1:]]
    with suppress(OSError):  # it then does what it can
        os.execv(sys.executable, words)


def encoding_of_terminal(encoding: str) -> str:
    """Returns in which encoding text is printed.

    Args:
        encoding: the one that Python has chosen. After `insist` that is UTF-8, of which
            the user's terminal knows nothing.
    """
    return locale.getencoding() if _OPTION in sys._xoptions else encoding
