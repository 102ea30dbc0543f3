"""virtlockd's place: each call of libvirt becomes a request of the native protocol.

What is asked, in which order and of whom, is checked here as virtlockd does it; all
else is the dispatcher's, which does not know who asked. A lockspace is named by its
directory, an empty name stands for `direct`.
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
from lockd.daemon.system.credentials import paths_of
from lockd.errors import RequestError
from lockd.libvirt import procedures as p
from lockd.libvirt.connection import Call
from lockd.libvirt.errors import Domain, Number, RemoteError, out_of_order
from lockd.libvirt.procedures import Procedure
from lockd.lockspaces.base import Lockspace
from lockd.names import MAX_NAME_BYTES, canonical_path, plain
from lockd.protocol import methods as m
from lockd.protocol.connection import MethodCall
from lockd.terms import DIRECT_LOCKSPACE, EXCLUSIVE, SHARED

MAX_PATHS: Final = 16_384
"""How many paths are remembered, to tell what a hashed name stands for."""

MAX_LOCKSPACE_NAME: Final = 60
"""Characters of the name of a lockspace that is made; each has 4 bytes at most."""

_HASHED: Final = re.compile("[0-9a-f]{64}")


class Virtlockd:
    """Takes the calls of all peers that speak virtlockd's tongue.

    Args:
        dispatcher: takes what they become.
        lockspaces: all that are served.
    """

    def __init__(
        self, dispatcher: Dispatcher, lockspaces: dict[str, Lockspace]
    ) -> None:
        self._dispatcher = dispatcher
        self._lockspaces = lockspaces
        self._paths = HashedPaths()
        self._handlers: dict[Procedure, Callable[[Peer, Any], m.Params | None]] = {
            Procedure.REGISTER: self._register,
            Procedure.RESTRICT: self._restrict,
            Procedure.NEW: self._new,
            Procedure.CREATE_RESOURCE: self._file,
            Procedure.DELETE_RESOURCE: self._file,
            Procedure.ACQUIRE_RESOURCE: self._acquire,
            Procedure.RELEASE_RESOURCE: self._release,
            Procedure.CREATE_LOCKSPACE: self._create_lockspace,
        }

    def take(self, peer: Peer, call: Call) -> None:
        """Carries out a call, or refuses it."""
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
        method = m.METHODS[_METHODS[procedure]]
        self._dispatcher.take(peer, MethodCall(call.number, method, params))

    def _check_order(self, peer: Peer, call: Call) -> None:
        """Raises unless it is time for a call; in virtlockd's own order."""
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
        registered = self._dispatcher.registered_pid(peer) is not None
        if call.procedure == Procedure.REGISTER:
            if registered:
                raise out_of_order("lock owner details have already been registered")
        elif not registered and call.procedure != Procedure.CREATE_LOCKSPACE:
            # libvirtd makes its lockspaces without saying for whom.
            raise out_of_order("lock owner details have not been registered")

    # From arguments to parameters.

    def _register(self, peer: Peer, args: p.RegisterArgs) -> m.Params:
        if not args.id:
            raise out_of_order("lock owner details have not been registered")
        if not 0 < args.pid < 2**31:
            raise no_process(args.pid)
        owner = m.OwnerParams(
            name=_shown_name(args.name),
            uuid=str(args.uuid),
            id=args.id,
            pid=args.pid,
        )
        # The guest must be dead before its disks are given to another.
        return m.RegisterParams(owner=owner, on_disconnect="kill")

    def _restrict(self, peer: Peer, args: p.RestrictArgs) -> m.Params:
        return m.NoParams()

    def _acquire(self, peer: Peer, args: p.ResourceArgs) -> m.Params:
        space = self._lockspace(args.path)
        resource = _resource(space, args.name)
        pid = self._dispatcher.registered_pid(peer)
        return m.AcquireParams(
            lockspace=space.name,
            resource=resource,
            mode=SHARED if args.flags & p.SHARED else EXCLUSIVE,
            timeout=0,
            # A file at a path of its own is a disk: never made, never removed.
            create=None if space.kind == "direct" else bool(args.flags & p.AUTOCREATE),
            label=self._paths.label(space, resource, pid),
        )

    def _release(self, peer: Peer, args: p.ResourceArgs) -> m.Params:
        space = self._lockspace(args.path)
        resource = _resource(space, args.name)
        return m.ReleaseParams(lockspace=space.name, resource=resource)

    def _file(self, peer: Peer, args: p.ResourceArgs) -> m.Params:
        space = self._lockspace(args.path)
        resource = _resource(space, args.name)
        return m.ResourceFileParams(lockspace=space.name, resource=resource)

    def _new(self, peer: Peer, args: p.LockspaceArgs) -> m.Params | None:
        if not args.path:
            raise out_of_order("the default lockspace already exists")
        if self._find(args.path) is not None:
            raise RemoteError(
                Number.INTERNAL_ERROR,
                Domain.RPC,
                f"Lockspace for path {args.path} already exists",
            )
        return self._create_lockspace(peer, args)

    def _create_lockspace(self, peer: Peer, args: p.LockspaceArgs) -> m.Params | None:
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
        for wanted in (path, canonical_path(path)):
            for space in self._lockspaces.values():
                if space.path == wanted:
                    return space
        return None


class HashedPaths:
    """Knows which path a hashed name stands for, if it has seen the path.

    libvirt sends the hash alone. The path stands in the command line of the guest, or
    was asked for by itself.
    """

    def __init__(self) -> None:
        self._path_of: OrderedDict[str, str] = OrderedDict()

    def label(self, space: Lockspace, resource: str, pid: int | None) -> str | None:
        """Returns the path that a resource stands for, if its name does not say so.

        Args:
            pid: of the guest that wants it.
        """
        if space.kind == "direct":
            self._see(resource)
            return None
        if not _HASHED.fullmatch(resource):
            return None
        if resource not in self._path_of and pid is not None:
            for path in paths_of(pid):
                self._see(path)
        return self._path_of.get(resource)

    def _see(self, path: str) -> None:
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()
        self._path_of[digest] = path
        self._path_of.move_to_end(digest)
        if len(self._path_of) > MAX_PATHS:
            self._path_of.popitem(last=False)


_METHODS: Final = {
    Procedure.REGISTER: "register",
    Procedure.RESTRICT: "restrict",
    Procedure.NEW: "create_lockspace",
    Procedure.CREATE_RESOURCE: "create_resource",
    Procedure.DELETE_RESOURCE: "delete_resource",
    Procedure.ACQUIRE_RESOURCE: "acquire",
    Procedure.RELEASE_RESOURCE: "release",
    Procedure.CREATE_LOCKSPACE: "create_lockspace",
}

_FLAGS: Final = {
    Procedure.ACQUIRE_RESOURCE: p.SHARED | p.AUTOCREATE,
}
"""The flags that a procedure takes; most take none."""


def _check_directory(path: str) -> None:
    """Raises, as virtlockd has it, if no directory can be made at a path."""
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
    """Returns what a resource is called here: one file has one name."""
    if space.kind == "direct" and name.startswith("/") and "\0" not in name:
        return canonical_path(name)
    return name


def _shown_name(name: str) -> str:
    """Returns the name of a guest as it can be shown, whatever it is."""
    shown = plain(name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    while len(shown.encode()) > MAX_NAME_BYTES:
        shown = shown[:-1]
    return shown or "unknown"


def _name_for(path: str, taken: Collection[str]) -> str:
    """Returns a name for the lockspace of a directory: its path, with dashes."""
    usual = os.path.normpath(path).strip("/").replace("/", "-").replace(":", "-")
    usual = usual[-MAX_LOCKSPACE_NAME:]
    name, number = usual, 1
    while name in taken:
        number += 1
        name = f"{usual}-{number}"
    return name
