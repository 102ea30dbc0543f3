"""Keeps nothing: the end of the process is the end of all connections and locks.

`survival` has the class that keeps everything. Both have the same methods, so callers
need not know which one they have.
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
    """Keeps nothing."""

    @property
    def by(self) -> str | None:
        """Who keeps what is stored; None for nobody."""
        return None

    def descriptors(self) -> dict[str, int]:
        """Returns the descriptors of the stores by name; none without stores."""
        return {}

    @property
    def in_flight(self) -> int:
        """How many descriptors are kept, wanted or not."""
        return 0

    @property
    def record_bytes(self) -> int:
        """How many bytes the valid records have."""
        return 0

    @property
    def memory_bytes(self) -> int:
        """How many bytes of shared memory the records take, garbage included."""
        return 0

    @property
    def is_short(self) -> bool:
        """Whether memory is so short that nothing may be added."""
        return False

    @property
    def is_stuck(self) -> bool:
        """Whether no answer may leave: there is no memory to record it."""
        return False

    # Connections.

    def open_flow(self, session: int, sock: socket.socket, role: Role) -> Flow:
        """Keeps a connection from now on. Returns the flow of its bytes.

        Raises:
            OSError: it cannot be kept.
        """
        return PlainFlow(sock)

    def take_up_flow(self, sock: socket.socket, slot: int) -> Flow:
        """Returns the flow of a connection that is already kept.

        Raises:
            OSError: there is no memory for its positions.
        """
        return PlainFlow(sock)

    def abandon_flow(self, session: int, role: Role, flow: Flow) -> None:
        """Stops keeping a connection that has no records."""

    def open_peer(self, peer: Peer) -> None:
        """Records a new peer with the next `commit`."""

    def close_peer(self, peer: Peer) -> None:
        """Stops keeping a connection, and removes its records."""

    # Files and processes.

    def keep_file(self, key: ResourceKey, file: LockFile) -> None:
        """Keeps the locked file of a resource.

        Raises:
            OSError: it cannot be kept.
        """

    def drop_file(self, key: ResourceKey) -> None:
        """Stops keeping the file of a resource."""

    def keep_pidfd(self, owner_id: int, pidfd: int) -> None:
        """Keeps the pidfd of an owner. Call it before the registration takes effect.

        Raises:
            OSError: it cannot be kept.
        """

    def drop_pidfd(self, owner_id: int) -> None:
        """Stops keeping the pidfd of an owner. Call it before closing it."""

    def note_process(self, owner_id: int, describe: Describe) -> None:
        """Records the data of a process with the next `commit`.

        Args:
            owner_id: its owner.
            describe: returns the data.
        """

    # Global state.

    def note_lockspace(self, lockspace: Lockspace) -> None:
        """Records a new or changed lockspace."""

    def note_config(self, config: Config) -> None:
        """Records the configuration in effect."""

    # Turns.

    def commit(self, peers: Iterable[Peer]) -> bool:
        """Records all changes. Returns whether the answers may be sent.

        Args:
            peers: those that the turn has read from or will send to.
        """
        return True

    def tidy(self) -> None:
        """Removes unneeded data, now and then at the end of a turn."""

    def tidy_thoroughly(self) -> None:
        """Removes all unwanted descriptors, because they keep file systems busy."""

    def stage_late(self) -> bool:
        """Stages records that nobody waits for. The end of the next turn records them.

        Returns whether there were any; there may be more.
        """
        return False

    def compact(self) -> bool:
        """Removes some garbage from the records. Returns whether there is more."""
        return False
