"""The names under which a file is locked, and the locks on it that are not lockd's.

A file has many paths: symbolic links, hard links, bind mounts. In lockspaces of hashed
names it is called by the hash of one of them. Whoever asks about one of its names wants
to hear of a lock under any.
"""

import os
from collections.abc import Iterator
from contextlib import suppress

from lockd.client.blocking import Client
from lockd.ctl.render import Thing, key_of
from lockd.errors import LockdError
from lockd.names import canonical_path, hashed_name
from lockd.terms import ResourceKey

Inode = tuple[int, int]


def keys_of_inode(client: Client, path: str) -> list[ResourceKey]:
    """Returns what is anchored in a file, in any lockspace, under whatever name."""
    inode = _inode_of(path)
    if inode is None:
        return []
    return [key_of(x) for x in client.list_resources(inode=inode)]


def keys_of_file(client: Client, name: str) -> list[ResourceKey]:
    """Returns all resources that stand for a file, under whatever name.

    Besides those that are anchored in it: its path as its holder spells it, the hash of
    that, and a label that says so.
    """
    found: dict[ResourceKey, None] = {}
    path, hashed = canonical_path(name), hashed_name(name)
    for spelled in {path, os.path.abspath(name)}:
        for resource in client.list_resources(path=spelled):
            # What is below it is listed, too, if it is a directory.
            if spelled in _labels(resource) or resource["resource"] in (
                spelled,
                hashed,
            ):
                found[key_of(resource)] = None
    found |= dict.fromkeys(keys_of_inode(client, path))
    inode = _inode_of(path)
    if inode is None:
        return list(found)
    # The hash of another path of the same file is not the hash of this one.
    for space in client.list_lockspaces():
        if space["kind"] == "directory" and space["held"] != 0:
            for resource in client.list_resources(space["name"]):
                if any(_leads_to(label, inode) for label in _labels(resource)):
                    found[key_of(resource)] = None
    return list(found)


def states_of(client: Client, keys: list[ResourceKey]) -> Iterator[Thing]:
    """Yields what the daemon says of resources, of those that we may see."""
    for key in keys:
        with suppress(LockdError):
            yield client.query(key.resource, lockspace=key.lockspace)


def outsiders_of(client: Client, name: str, held: int) -> list[Thing]:
    """Returns the locks on a file that are not lockd's, which has so many on it."""
    from lockd.ctl.look.outside import inode_of, outsiders

    inode = inode_of(canonical_path(name))
    if inode is None:
        return []
    return [
        {
            "kind": found.lock.kind,
            "mode": found.lock.mode,
            "waits": found.lock.waits,
            "from": int(found.lock.span[0]),
            "to": None if found.lock.span[1] == "EOF" else int(found.lock.span[1]),
            "pid": found.pid,
            "uid": found.uid,
            "command": found.command,
            "unit": found.unit,
            "perhaps_lockd": found.perhaps_ours,
        }
        for found in outsiders(inode, client.statistics()["pid"], held)
    ]


def program_of(found: Thing) -> str | None:
    """Returns what a process that locks past lockd runs, by its command line."""
    return os.path.basename((found["command"] or "").split(" ")[0]) or None


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
