"""What a resource may be called; canonical paths; hashed names for file lockspaces.

Pure text, but for `canonical_path`, which asks the file system where a path leads.
"""

import os
import sys
from collections.abc import Collection
from typing import Final

from lockd.errors import InvalidRequestError
from lockd.terms import DEFAULT_LOCKSPACE, DIRECT_LOCKSPACE

MAX_NAME_BYTES: Final = 255
"""NAME_MAX of Linux file systems: a name must fit into a directory entry."""

MAX_PATH_BYTES: Final = 4095
"""PATH_MAX less the terminating NUL (limits.h)."""

MAX_DEPTH: Final = 64
"""Names in one path of a file that is to be locked. Whoever waits for it has the way
gone again when it is his turn, so many may go it at once."""

MAX_STEPS: Final = 512
"""Names in all paths of one request: each takes several system calls."""


def check_name(name: str) -> None:
    """Checks the name of a resource that needs no file: any printable text.

    Raises:
        InvalidRequestError: empty, over 255 bytes of UTF-8, not UTF-8, or with
            control characters.
    """
    # The common case in two C calls: printable ASCII is what it looks like.
    if name.isascii() and name.isprintable() and 0 < len(name) <= MAX_NAME_BYTES:
        return
    check_text(name, "name", MAX_NAME_BYTES)


def check_file_name(name: str) -> None:
    """Checks the name of a resource that is a file in a directory.

    Raises:
        InvalidRequestError: as `check_name`, or with a slash, or `.` or `..`.
    """
    check_name(name)
    if "/" in name:
        raise InvalidRequestError(
            f"the name {quoted(name)} contains a slash: "
            "in a directory lockspace every resource is one file"
        )
    if name in (".", ".."):
        raise InvalidRequestError(f"the name {quoted(name)} is a directory")


def check_path(path: str) -> None:
    """Checks the name of a resource that is the path of a file.

    Symbolic links are not looked at here; a path must only be spelled canonically, so
    that one file has one name.

    Raises:
        InvalidRequestError: not absolute, not normal (`//`, `.`, `..`, a slash at the
            end), over 4095 bytes, not UTF-8, or with control characters.
    """
    check_text(path, "path", MAX_PATH_BYTES)
    if not path.startswith("/"):
        raise InvalidRequestError(f"the path {quoted(path)} is not absolute")
    # POSIX lets two slashes at the beginning mean something; on Linux they do not.
    normal = "/" + os.path.normpath(path).lstrip("/")
    if path != normal:
        raise InvalidRequestError(
            f"the path {quoted(path)} is not canonical: write {quoted(normal)}, "
            "and resolve symbolic links first"
        )


def check_ways(paths: Collection[str]) -> None:
    """Checks that the ways to files are short enough to be gone while others wait.

    Args:
        paths: canonical ones, all that one request names.

    Raises:
        InvalidRequestError: too many names on one way, or on all of them together.
    """
    steps = 0
    for path in paths:
        depth = path.count("/")
        if depth > MAX_DEPTH:
            raise InvalidRequestError(
                f"the path {quoted(path, 40)} has {depth} names, at most {MAX_DEPTH} "
                "are allowed: lock a file that lies less deep"
            )
        steps += depth
    if steps > MAX_STEPS:
        raise InvalidRequestError(
            f"the {len(paths)} paths have {steps} names together, at most {MAX_STEPS} "
            "are allowed in one request: ask for fewer files at once"
        )


CHECK_OF_KIND: Final = {
    "memory": check_name,
    "directory": check_file_name,
    "direct": check_path,
}
"""What a resource may be called in a lockspace of each kind."""


def check_lockspace_name(name: str) -> None:
    """Checks the name of a lockspace: as a file name, and without a colon.

    Raises:
        InvalidRequestError: it may not be called so.
    """
    check_file_name(name)
    if ":" in name:
        raise InvalidRequestError(f"the lockspace name {quoted(name)} has a colon")


def path_text(what: str, path: str | os.PathLike[str]) -> str:
    """Returns a path as text.

    Args:
        what: what a sentence calls it.
        path: what was given for it.

    Raises:
        TypeError: it is neither text nor an `os.PathLike` of text.
        InvalidRequestError: it is empty, or has a character that no path has.
    """
    text: object = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str):
        given = "None" if path is None else type(path).__name__
        raise TypeError(f"{what} must be text or a pathlib.Path, not {given}")
    if not text:
        raise InvalidRequestError(f"{what} is empty")
    if "\0" in text:
        raise InvalidRequestError(
            f"{what} {quoted(text)} has a NUL character, which no path has"
        )
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise InvalidRequestError(f"{what} {quoted(text)} {_unwritable()}") from None
    return text


def canonical_path(path: str | os.PathLike[str]) -> str:
    """Returns the one name of the file that a path leads to: realpath(3).

    Callers that hash a path must do this first, or two spellings of one file get two
    locks. The file need not exist.

    Raises:
        TypeError: the path is neither text nor an `os.PathLike` of text.
        InvalidRequestError: the path is empty (realpath(3) refuses that, too), has a
            character that no path has, or is relative to a directory that was removed.
    """
    path = path_text("the path", path)
    try:
        return _on_wire(os.path.realpath(path))
    except FileNotFoundError:
        raise InvalidRequestError(
            f"the path {quoted(path)} leads nowhere, as the current directory was "
            "removed: go to another one, or write a path that begins with a slash"
        ) from None


def hashed_name(path: str | os.PathLike[str]) -> str:
    """Returns the name under which a directory lockspace locks a file elsewhere.

    SHA-256 of the canonical path in hexadecimal: the rule of libvirt's lock driver
    (qemu-lockd.conf, `file_lockspace_dir`), so that its hosts and ours agree.
    """
    import hashlib  # loads OpenSSL, which takes longer than the rest of a client

    name = canonical_path(path).encode("utf-8", "surrogateescape")
    return hashlib.sha256(name).hexdigest()


def _unwritable() -> str:
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8":
        return "is not UTF-8"
    return f"cannot be written in {encoding}, the locale's encoding: set PYTHONUTF8=1"


def _on_wire(path: str) -> str:
    """Returns what lockd calls a path: its bytes are UTF-8, whatever the locale."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def default_lockspace(resource: str) -> str:
    """Returns the lockspace that a bare name on a command line means.

    A name that begins with a slash is a file in `direct`; any other is in `default`.
    """
    return DIRECT_LOCKSPACE if resource.startswith("/") else DEFAULT_LOCKSPACE


def quoted(text: str, limit: int = MAX_NAME_BYTES) -> str:
    """Returns text as it may stand in a sentence, a log or on a terminal.

    Control characters, bidirectional overrides and bytes that are not UTF-8 are
    escaped: what a client calls itself must not forge a line. Text that is longer than
    any name is cut; a path that somebody has to look at rarely is.
    """
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return "'" + plain(text) + "'"


def plain(text: str, *, keep: str = "") -> str:
    """Returns text with everything escaped that a terminal would act on.

    Args:
        keep: characters that stay as they are.
    """
    rest = text.translate(dict.fromkeys(map(ord, keep))) if keep else text
    if rest.isprintable():
        return text
    return "".join(
        c
        if c.isprintable() or c in keep
        else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in text
    )


def is_utf8(text: str) -> bool:
    """Tells whether text has only characters: no bytes that stand for themselves."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def check_text(text: str, what: str, limit: int) -> None:
    """Checks a text by which something is called: printable, of so many bytes.

    Args:
        text: what is given.
        what: how a sentence calls it.
        limit: bytes of UTF-8.

    Raises:
        InvalidRequestError: it is empty, too long, not UTF-8 or not printable.
    """
    if not text:
        raise InvalidRequestError(f"the {what} is empty")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidRequestError(f"the {what} {quoted(text)} is not UTF-8") from None
    if size > limit:
        raise InvalidRequestError(
            f"the {what} {quoted(text, 40)} has {size} bytes, "
            f"at most {limit} are allowed"
        )
    if not text.isprintable():
        raise InvalidRequestError(
            f"the {what} {quoted(text)} has control or invisible characters"
        )
