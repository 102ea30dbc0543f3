"""Makes file names, arguments and environment UTF-8, regardless of the locale.

Bytes name files and locks, and all clients of lockd read them as UTF-8. If Python reads
them in the encoding of another locale, it gets another text, or none.
"""

import os
import sys
from contextlib import suppress

from lockd.hints import Final

_OPTION: Final = "utf8"
"""Python's UTF-8 mode (PEP 540)."""


def insist() -> None:
    """Executes this program again in UTF-8 mode, unless it already runs in it.

    Process, arguments, environment and open files stay the same. Call it before
    anything else.
    """
    if sys.getfilesystemencoding() == "utf-8" or not sys.executable:
        return
    words = [sys.orig_argv[0], "-X", _OPTION, *sys.orig_argv[1:]]
    with suppress(OSError):  # the program then continues in the other encoding
        os.execv(sys.executable, words)


def encoding_of_terminal(encoding: str) -> str:
    """Returns the encoding in which to print text.

    Args:
        encoding: the choice of Python. After `insist` it is UTF-8, which may differ
            from that of the terminal.
    """
    if _OPTION not in sys._xoptions:
        return encoding
    import locale  # takes a millisecond to load

    return locale.getencoding()
