"""Valid names of resources, canonical paths, and hashed names for file lockspaces.

Only `canonical_path` accesses the file system.
"""

import os
import sys
from collections.abc import Collection

from lockd.errors import InvalidRequestError
from lockd.hints import Final
from lockd.terms import DEFAULT_LOCKSPACE, DIRECT_LOCKSPACE

MAX_NAME_BYTES: Final = 255
"""NAME_MAX of Linux file systems: a name must fit into a directory entry."""

MAX_PATH_BYTES: Final = 4095
"""PATH_MAX less the terminating NUL (limits.h)."""

MAX_DEPTH: Final = 64
"""The most names in the path of a file to lock. The daemon walks a waiter's path again
for each new try, so many walks may happen at once."""

MAX_STEPS: Final = 512
"""The most names in all paths of one request: each name takes several system calls."""


def check_name(name: str) -> None:
    """Checks the name of a resource without a file: any printable text.

    Raises:
        InvalidRequestError: it is empty, has over 255 bytes, is not UTF-8, or has
            control characters.
    """
    # The common case, printable ASCII, takes two calls of C.
    if name.isascii() and name.isprintable() and 0 < len(name) <= MAX_NAME_BYTES:
        return
    check_text(name, "name", MAX_NAME_BYTES)


def check_file_name(name: str) -> None:
    """Checks the name of a resource that is a file in a directory.

    Raises:
        InvalidRequestError: as for `check_name`; or it has a slash, or is `.` or `..`.
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

    The path must be spelled canonically, so that one file has one name. This function
    does not look for symbolic links.

    Raises:
        InvalidRequestError: it is not absolute or not normal (`//`, `.`, `..`, a slash
            at the end), has over 4095 bytes, is not UTF-8, or has control characters.
    """
    check_text(path, "path", MAX_PATH_BYTES)
    if not path.startswith("/"):
        raise InvalidRequestError(f"the path {quoted(path)} is not absolute")
    # POSIX lets two slashes at the beginning have a meaning; on Linux they have none.
    normal = "/" + os.path.normpath(path).lstrip("/")
    if path != normal:
        raise InvalidRequestError(
            f"the path {quoted(path)} is not canonical: write {quoted(normal)}, "
            "and resolve symbolic links first"
        )


def check_ways(paths: Collection[str]) -> None:
    """Checks that the daemon can walk the paths of a request quickly.

    Args:
        paths: all paths of the request, canonical.

    Raises:
        InvalidRequestError: a path has too many names, or all paths together.
    """
    steps = 0
    for path in paths:
        depth = path.count("/")
        if depth > MAX_DEPTH:
            raise InvalidRequestError(
                f"the path {quoted(path, 40)} has {depth} names, at most {MAX_DEPTH} "
                "are allowed: lock a file with a shorter path"
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
"""The check of resource names for each kind of lockspace."""


def check_lockspace_name(name: str) -> None:
    """Checks the name of a lockspace: a file name without a colon.

    Raises:
        InvalidRequestError: it is not valid.
    """
    check_file_name(name)
    if ":" in name:
        raise InvalidRequestError(f"the lockspace name {quoted(name)} has a colon")


def path_text(what: str, path: str | os.PathLike[str]) -> str:
    """Returns a path as text.

    Args:
        what: the subject of an error message.
        path: the path.

    Raises:
        TypeError: it is neither text nor an `os.PathLike` of text.
        InvalidRequestError: it is empty, or has a character that no path may have.
    """
    text: object = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str):
        given = "None" if path is None else type(path).__name__
        raise TypeError(f"{what} must be text or a pathlib.Path, not {given}")
    if not text:
        raise InvalidRequestError(f"{what} is empty")
    if "\0" in text:
        raise InvalidRequestError(
            f"{what} {quoted(text)} has a NUL character, which no path may have"
        )
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise InvalidRequestError(f"{what} {quoted(text)} {_unwritable()}") from None
    return text


def canonical_path(path: str | os.PathLike[str]) -> str:
    """Returns the canonical path of a file, as realpath(3). The file need not exist.

    Callers that hash a path must call this first. Otherwise two spellings of one file
    get two locks.

    Raises:
        TypeError: the path is neither text nor an `os.PathLike` of text.
        InvalidRequestError: the path is empty, has a character that no path may have,
            or is relative to a directory that was removed.
    """
    path = path_text("the path", path)
    try:
        return _on_wire(os.path.realpath(path))
    except FileNotFoundError:
        raise InvalidRequestError(
            f"the path {quoted(path)} leads nowhere, because the current directory was "
            "removed: change to another one, or write a path that begins with a slash"
        ) from None


def hashed_name(path: str | os.PathLike[str]) -> str:
    """Returns the name of a file in a directory lockspace of hashed names.

    It is the SHA-256 of the canonical path in hexadecimal. libvirt's lock driver has
    the same rule (qemu-lockd.conf, `file_lockspace_dir`), so its hosts and ours agree.
    """
    return _hash(canonical_path(path))


def name_of(text: str) -> str:
    """Returns a text if it is the name of a resource; else its SHA-256 in hexadecimal.

    So what another library allows as the name of a lock has a name here, too.
    """
    try:
        check_name(text)
    except InvalidRequestError:
        return _hash(text)
    return text


def name_of_path(path: str | os.PathLike[str]) -> str:
    """Returns the name for a file that is locked by name, and never opened.

    It is that of the canonical path (`name_of`). Programs that lock a file so exclude
    each other, but not those that lock the file itself.
    """
    return name_of(canonical_path(path))


def _hash(text: str) -> str:
    import hashlib  # loading OpenSSL takes longer than the rest of a client

    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _unwritable() -> str:
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8":
        return "is not UTF-8"
    return f"cannot be written in {encoding}, the locale's encoding: set PYTHONUTF8=1"


def _on_wire(path: str) -> str:
    """Returns a path as lockd names it: its bytes as UTF-8 in any locale."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def default_lockspace(resource: str) -> str:
    """Returns the default lockspace of a name on a command line.

    A name that begins with a slash is a file in `direct`; any other is in `default`.
    """
    return DIRECT_LOCKSPACE if resource.startswith("/") else DEFAULT_LOCKSPACE


def quoted(text: str, limit: int = MAX_NAME_BYTES) -> str:
    """Returns text in quotes, safe for a sentence, a log or a terminal.

    Escapes control characters, bidirectional overrides and bytes that are not UTF-8: a
    client's name must not forge a line. Cuts text that is longer than any name.
    """
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return "'" + plain(text) + "'"


def plain(text: str, *, keep: str = "") -> str:
    """Escapes everything in a text that a terminal would act on.

    Args:
        text: the text.
        keep: characters that stay unchanged.
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


def is_grant_name(text: str) -> bool:
    """Returns whether a text names a grant of another connection (protocol 6.2).

    It is an instance of a daemon, a colon, and a fencing token.
    """
    instance, _, token = text.partition(":")
    return (
        text.isascii()
        and text.isprintable()
        and " " not in text
        and 0 < len(instance) <= 64
        and 0 < len(token) <= 19
        and token.isdigit()
    )


def is_utf8(text: str) -> bool:
    """Returns whether a text has only valid characters, and no escaped bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_text(text: str, what: str, limit: int) -> None:
    """Checks a name: printable, with a limited number of bytes.

    Args:
        text: the name.
        what: the subject of an error message.
        limit: the most bytes of UTF-8.

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
