"""What of the daemon outlives its process: nothing, if nobody keeps it.

`survival` has the one that keeps. Both have the same methods, so that nobody who tells
what is to be kept has to know whether it is.
"""

import socket
from collections.abc import Iterable

from lockd.daemon.clients.peer import Peer
from lockd.daemon.config.config import Config
from lockd.daemon.stores.streams import Flow, PlainFlow
from lockd.daemon.system.listener import Role
from lockd.daemon.system.processes import Describe
from lockd.lockspaces.base import LockFile, Lockspace
from lockd.terms import ResourceKey


class Keeping:
    """Keeps nothing.

    Attributes:
        by: who keeps; None for nobody.
    """

    by: str | None = None

    @property
    def in_flight(self) -> int:
        """How many descriptors are kept, those no longer wanted included."""
        return 0

    @property
    def record_bytes(self) -> int:
        """How many bytes the records have that count."""
        return 0

    @property
    def memory_bytes(self) -> int:
        """How much shared memory the records take, garbage and reserves included."""
        return 0

    @property
    def is_short(self) -> bool:
        """Whether nothing may be added, for want of memory."""
        return False

    @property
    def is_stuck(self) -> bool:
        """Whether nobody is answered, for want of memory to record the answers."""
        return False

    # Connections.

    def open_flow(self, session: int, sock: socket.socket, role: Role) -> Flow:
        """Keeps a connection from now on; returns how its bytes come and go.

        Raises:
            OSError: it cannot be kept.
        """
        return PlainFlow(sock)

    def take_up_flow(self, sock: socket.socket, slot: int) -> Flow:
        """Returns how the bytes of a connection that is kept already come and go.

        Raises:
            OSError: there is no memory for its positions.
        """
        return PlainFlow(sock)

    def abandon_flow(self, session: int, role: Role, flow: Flow) -> None:
        """Stops keeping a connection that has no records."""

    def open_peer(self, peer: Peer) -> None:
        """Records who a new peer is, with the next `commit`."""

    def close_peer(self, peer: Peer) -> None:
        """Stops keeping a connection, and what is recorded of it."""

    # Files and processes.

    def keep_file(self, key: ResourceKey, file: LockFile) -> None:
        """Keeps the locked file of a resource.

        Raises:
            OSError: it cannot be kept.
        """

    def drop_file(self, key: ResourceKey) -> None:
        """Stops keeping the file of a resource."""

    def keep_pidfd(self, owner_id: int, pidfd: int) -> None:
        """Keeps the pidfd of an owner, before that counts.

        Raises:
            OSError: it cannot be kept.
        """

    def drop_pidfd(self, owner_id: int) -> None:
        """Stops keeping the pidfd of an owner, before it is closed."""

    def note_process(self, owner_id: int, describe: Describe) -> None:
        """Records what has become of the process of an owner, with the next `commit`.

        Args:
            describe: returns it as plain data.
        """

    # What counts for all.

    def note_lockspace(self, lockspace: Lockspace) -> None:
        """Records a lockspace, which is new or another one than before."""

    def note_config(self, config: Config) -> None:
        """Records a configuration, which counts from now on."""

    # Turns.

    def commit(self, peers: Iterable[Peer]) -> bool:
        """Records everything that changed; tells whether answers may leave.

        Args:
            peers: those that something was read from, or is to be sent to.
        """
        return True

    def tidy(self) -> None:
        """Drops what is no longer needed, now and then, when a turn ends."""

    def tidy_thoroughly(self) -> None:
        """Drops all that is not wanted: it would keep file systems busy."""
