"""Finds the locks on a file: in lockd under any name, and outside lockd.

A file has many paths: symbolic links, hard links, bind mounts. In lockspaces of hashed
names its name is the hash of one of them. A user who asks for one name wants to know of
a lock under any other.
"""

import os
from collections.abc import Iterator
from contextlib import suppress

from lockd.client.blocking import Client
from lockd.ctl.render import Thing, key_of
from lockd.errors import LockdError, NotFoundError
from lockd.names import MAX_PATH_BYTES, canonical_path, hashed_name, quoted
from lockd.spans import is_mark, shows_writer
from lockd.terms import EXCLUSIVE, ResourceKey

Inode = tuple[int, int]


def keys_of_inode(client: Client, path: str) -> list[ResourceKey]:
    """Returns the resources that are anchored in a file, in any lockspace."""
    inode = _inode_of(path)
    if inode is None:
        return []
    return [key_of(x) for x in client.list_resources(inode=inode)]


def keys_of_file(client: Client, name: str) -> list[ResourceKey]:
    """Returns all resources that stand for a file.

    They are the resources anchored in it, and those with its path, the hash of its path
    or its path as a label.
    """
    found: dict[ResourceKey, None] = {}
    path, hashed = canonical_path(name), hashed_name(name)
    for spelled in {path, os.path.abspath(name)}:
        for resource in client.list_resources(path=spelled):
            # For a directory, the daemon lists the files below it too.
            if spelled in _labels(resource) or resource["resource"] in (
                spelled,
                hashed,
            ):
                found[key_of(resource)] = None
    found |= dict.fromkeys(keys_of_inode(client, path))
    inode = _inode_of(path)
    if inode is None:
        return list(found)
    # Another path of the same file has another hash.
    for space in client.list_lockspaces():
        if space["kind"] == "directory" and space["held"] != 0:
            for resource in client.list_resources(space["name"]):
                if any(_leads_to(label, inode) for label in _labels(resource)):
                    found[key_of(resource)] = None
    return list(found)


def states_of(client: Client, keys: list[ResourceKey]) -> Iterator[Thing]:
    """Yields the answers of `query`, for the resources that we may see."""
    for key in keys:
        with suppress(LockdError):
            yield client.query(key.resource, lockspace=key.lockspace)


def outsiders_of(client: Client, name: str, held: int) -> list[Thing]:
    """Returns the locks on a file outside lockd, which has `held` locks on it."""
    from lockd.ctl.look.outside import inode_of, outsiders

    inode = inode_of(canonical_path(name))
    if inode is None:
        return []
    return [
        {
            "kind": found.lock.kind,
            "mode": found.lock.mode,
            "waits": found.lock.waits,
            "from": found.lock.first,
            "to": found.lock.last,
            "by": found.lock.by,
            "pid": found.pid,
            "uid": found.uid,
            "command": found.command,
            "unit": found.unit,
            "perhaps_lockd": found.perhaps_ours,
        }
        for found in outsiders(inode, client.statistics()["pid"], held)
    ]


def program_of(found: Thing) -> str | None:
    """Returns the program of a process outside lockd, from its command line."""
    return os.path.basename((found["command"] or "").split(" ")[0]) or None


def excludes(found: Thing) -> str:
    """Returns the mode that a lock outside lockd stands for.

    QEMU takes read locks even to write, and lockd where it may only read.
    """
    of_bytes = found["kind"] in ("POSIX", "OFD")
    first, last = found["from"], found["to"]
    writes = of_bytes and (shows_writer(first, last) or is_mark(last))
    return EXCLUSIVE if writes else found["mode"]


def _labels(resource: Thing) -> list[str]:
    return [x["label"] for x in resource["holders"] if x["label"] is not None]


def _inode_of(path: str) -> Inode | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino)


def _leads_to(label: str, inode: Inode) -> bool:
    return label.startswith("/") and _inode_of(label) == inode


def check_exists(path: str) -> None:
    """Checks that there is a file, as far as this user may look it up.

    Raises:
        NotFoundError: there is none.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(
            f"there is no file {quoted(path, MAX_PATH_BYTES)}, and nobody holds it: "
            "check the path"
        ) from None
    except OSError:
        pass  # nobody can tell
