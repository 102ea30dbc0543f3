"""Serves libvirt: turns its calls into requests of the native protocol.

It checks the arguments, the order and the rights of calls as virtlockd does. The
dispatcher does everything else, and does not know about libvirt. The path of a
directory names its lockspace; an empty path means `direct`.
"""

import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any, Final

from lockd.daemon.clients.peer import Peer
from lockd.daemon.replies.refusals import no_process
from lockd.daemon.requests.dispatch import Dispatcher
from lockd.daemon.system.credentials import command_line, paths_in
from lockd.errors import RequestError
from lockd.libvirt import procedures as p
from lockd.libvirt.arguments import (
    LockspaceArgs,
    RegisterArgs,
    ResourceArgs,
    RestrictArgs,
)
from lockd.libvirt.connection import Call
from lockd.libvirt.errors import Domain, Number, RemoteError, out_of_order
from lockd.lockspaces.base import Lockspace
from lockd.names import MAX_NAME_BYTES, canonical_path, plain
from lockd.protocol import methods as m
from lockd.protocol.calls import Method, MethodCall
from lockd.terms import DIRECT_LOCKSPACE, EXCLUSIVE, SHARED

MAX_PATHS: Final = 16_384
"""How many paths to remember, to find the path for a hashed name."""

MAX_SESSIONS: Final = 1_024
"""How many sessions to remember whose guest's command line was read."""

MAX_LOCKSPACE_NAME: Final = 60
"""The most characters in the name of a new lockspace; each has at most 4 bytes."""

_HASHED: Final = re.compile("[0-9a-f]{64}")


class Virtlockd:
    """Handles the calls of all peers that speak libvirt's protocol.

    Args:
        dispatcher: handles the requests.
        lockspaces: all lockspaces by name.
    """

    def __init__(
        self, dispatcher: Dispatcher, lockspaces: dict[str, Lockspace]
    ) -> None:
        self._dispatcher = dispatcher
        self._lockspaces = lockspaces
        self._paths = HashedPaths()
        self._handlers: dict[int, Callable[[Peer, Any], m.Params | None]] = {
            p.REGISTER: self._register,
            p.RESTRICT: self._restrict,
            p.NEW: self._new,
            p.CREATE_RESOURCE: self._file,
            p.DELETE_RESOURCE: self._file,
            p.ACQUIRE_RESOURCE: self._acquire,
            p.RELEASE_RESOURCE: self._release,
            p.CREATE_LOCKSPACE: self._create_lockspace,
        }

    def take(self, peer: Peer, call: Call) -> None:
        """Carries out a call, or rejects it."""
        procedure = call.procedure
        try:
            self._check_order(peer, call)
            params = self._handlers[procedure](peer, call.args)
        except RequestError as error:
            peer.send_error(call.number, error)
            return
        if params is None:
            peer.send_result(call.number)
            return
        self._dispatcher.take(
            peer, MethodCall(call.number, _METHODS[procedure], params)
        )

    def _check_order(self, peer: Peer, call: Call) -> None:
        """Raises unless the call is valid at this time, by virtlockd's own order."""
        unknown = call.args.flags & ~_FLAGS.get(call.procedure, 0)
        if unknown:
            raise RemoteError(
                Number.INVALID_ARG, Domain.RPC, f"unsupported flags (0x{unknown:x})"
            )
        if peer.restricted:
            raise RemoteError(
                Number.OPERATION_DENIED,
                Domain.RPC,
                "lock manager connection has been restricted",
            )
        registered = self._dispatcher.has_registered(peer)
        if call.procedure == p.REGISTER:
            if registered:
                raise out_of_order("lock owner details have already been registered")
        elif not registered and call.procedure != p.CREATE_LOCKSPACE:
            # libvirtd creates its lockspaces before it registers.
            raise out_of_order("lock owner details have not been registered")

    # From arguments to parameters.

    def _register(self, peer: Peer, args: RegisterArgs) -> m.Params:
        if not args.id:
            raise out_of_order("lock owner details have not been registered")
        if not 0 < args.pid < 2**31:
            raise no_process(args.pid)
        owner = m.OwnerParams(
            name=_shown_name(args.name),
            uuid=args.uuid,
            id=args.id,
            pid=args.pid,
        )
        # The guest must be dead before another one gets its disks.
        return m.RegisterParams(owner=owner, on_disconnect="kill")

    def _restrict(self, peer: Peer, args: RestrictArgs) -> m.Params:
        return m.NoParams()

    def _acquire(self, peer: Peer, args: ResourceArgs) -> m.Params:
        space = self._lockspace(args.path)
        resource = _resource(space, args.name)
        return m.AcquireParams(
            lockspace=space.name,
            resource=resource,
            mode=SHARED if args.flags & p.SHARED else EXCLUSIVE,
            timeout=0,
            # A file with its own path is a disk: never create or remove it.
            create=None if space.kind == "direct" else bool(args.flags & p.AUTOCREATE),
            label=self._label(peer, space, resource),
        )

    def _label(self, peer: Peer, space: Lockspace, resource: str) -> str | None:
        """Returns the path of a resource with a hashed name; None for any other."""
        if space.kind == "direct":
            self._paths.see(os.fsencode(resource))
            return None
        if self._paths.should_look(resource, peer.session):
            self._paths.look(peer.session, self._dispatcher.owner_pid(peer))
        return self._paths.path_of(resource)

    def _release(self, peer: Peer, args: ResourceArgs) -> m.Params:
        space = self._lockspace(args.path)
        resource = _resource(space, args.name)
        return m.ReleaseParams(lockspace=space.name, resource=resource)

    def _file(self, peer: Peer, args: ResourceArgs) -> m.Params:
        space = self._lockspace(args.path)
        resource = _resource(space, args.name)
        return m.ResourceFileParams(lockspace=space.name, resource=resource)

    def _new(self, peer: Peer, args: LockspaceArgs) -> m.Params | None:
        if not args.path:
            raise out_of_order("the default lockspace already exists")
        if self._find(args.path) is not None:
            raise RemoteError(
                Number.INTERNAL_ERROR,
                Domain.RPC,
                f"Lockspace for path {args.path} already exists",
            )
        return self._create_lockspace(peer, args)

    def _create_lockspace(self, peer: Peer, args: LockspaceArgs) -> m.Params | None:
        path = args.path
        if self._find(path) is not None:
            return None
        name = _name_for(path, self._lockspaces)
        params = m.CreateLockspaceParams(name=name, kind="directory", path=path)
        _check_directory(path)
        return params

    # Lockspaces.

    def _lockspace(self, path: str) -> Lockspace:
        found = self._find(path)
        if found is None:
            raise RemoteError(
                Number.INTERNAL_ERROR,
                Domain.RPC,
                f"Lockspace for path {path} does not exist",
            )
        return found

    def _find(self, path: str) -> Lockspace | None:
        if not path:
            return self._lockspaces[DIRECT_LOCKSPACE]
        if not path.startswith("/") or "\0" in path:
            return None
        found = self._at(path)
        if found is None:
            # This takes a system call for each directory on the way.
            found = self._at(canonical_path(path))
        return found

    def _at(self, path: str) -> Lockspace | None:
        for space in self._lockspaces.values():
            if space.path == path:
                return space
        return None


class HashedPaths:
    """Maps hashed names to the paths it has seen.

    libvirt only sends the hash. The path is in the command line of the guest, or in an
    earlier request. The command line is read once for each session: it takes longer
    than a lock, and libvirt opens a session for each operation.
    """

    def __init__(self) -> None:
        self._path_of: OrderedDict[str, str] = OrderedDict()
        #: Sessions for which the command line was read, until there are too many.
        self._looked_for: set[int] = set()
        #: The last command line.
        self._line = b""

    def path_of(self, resource: str) -> str | None:
        """Returns the path with a hashed name; None if it is unknown."""
        return self._path_of.get(resource)

    def should_look(self, resource: str, session: int) -> bool:
        """Returns whether the guest of a session may tell an unknown path."""
        if resource in self._path_of or session in self._looked_for:
            return False
        return _HASHED.fullmatch(resource) is not None

    def look(self, session: int, pid: int) -> None:
        """Reads the command line of the guest of a session."""
        if len(self._looked_for) >= MAX_SESSIONS:
            self._looked_for.clear()
        self._looked_for.add(session)
        line = command_line(pid)
        if line != self._line:  # libvirt often does several things for one guest
            self._line = line
            for path in paths_in(line):
                self.see(path)

    def see(self, path: bytes) -> None:
        """Remembers a path."""
        digest = hashlib.sha256(path).hexdigest()
        self._path_of[digest] = os.fsdecode(path)
        self._path_of.move_to_end(digest)
        if len(self._path_of) > MAX_PATHS:
            self._path_of.popitem(last=False)


_METHODS: Final[dict[int, Method]] = {
    p.REGISTER: m.METHODS["register"],
    p.RESTRICT: m.METHODS["restrict"],
    p.NEW: m.METHODS["create_lockspace"],
    p.CREATE_RESOURCE: m.METHODS["create_resource"],
    p.DELETE_RESOURCE: m.METHODS["delete_resource"],
    p.ACQUIRE_RESOURCE: m.METHODS["acquire"],
    p.RELEASE_RESOURCE: m.METHODS["release"],
    p.CREATE_LOCKSPACE: m.METHODS["create_lockspace"],
}

_FLAGS: Final = {
    p.ACQUIRE_RESOURCE: p.SHARED | p.AUTOCREATE,
}
"""The flags of each procedure; most have none."""


def _check_directory(path: str) -> None:
    """Raises virtlockd's error if a directory cannot be created at a path."""
    if not path.startswith("/"):
        raise RemoteError(
            Number.INVALID_ARG, Domain.LOCKSPACE, f"{path} is not an absolute path"
        )
    if "\0" not in path and os.path.exists(path) and not os.path.isdir(path):
        raise RemoteError(
            Number.INTERNAL_ERROR,
            Domain.LOCKSPACE,
            f"Lockspace location {path} exists, but is not a directory",
        )


def _resource(space: Lockspace, name: str) -> str:
    """Returns the name of a resource in lockd: each file has one name."""
    if space.kind == "direct" and name.startswith("/") and "\0" not in name:
        return canonical_path(name)
    return name


def _shown_name(name: str) -> str:
    """Returns the name of a guest in a printable form."""
    shown = plain(name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    while len(shown.encode()) > MAX_NAME_BYTES:
        shown = shown[:-1]
    return shown or "unknown"


def _name_for(path: str, taken: Collection[str]) -> str:
    """Returns a new name for the lockspace of a directory: its path, with dashes."""
    usual = os.path.normpath(path).strip("/").replace("/", "-").replace(":", "-")
    usual = usual[-MAX_LOCKSPACE_NAME:]
    name, number = usual, 1
    while name in taken:
        number += 1
        name = f"{usual}-{number}"
    return name
