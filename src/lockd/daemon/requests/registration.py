"""Registers the process for which a session acts."""

from collections.abc import Callable

from lockd.daemon.clients.peer import Peer
from lockd.daemon.replies import refusals
from lockd.daemon.system.credentials import open_pidfd
from lockd.daemon.system.processes import Process, Processes
from lockd.engine.lock_engine import LockEngine
from lockd.errors import UnavailableError
from lockd.procs import uid_of


class Registration:
    """Creates the owners of processes.

    Args:
        engine: has the owners.
        processes: the processes of all owners.
        new_number: returns the number of a new owner.
    """

    def __init__(
        self,
        engine: LockEngine,
        processes: Processes,
        new_number: Callable[[], int],
    ) -> None:
        self._engine = engine
        self._processes = processes
        self._new_number = new_number

    def owner_of(self, peer: Peer, pid: int, *, kill: bool) -> tuple[int, int]:
        """Returns number and uid of the owner for another process.

        Args:
            peer: the peer that registers it.
            pid: the process.
            kill: whether the peer must have the right to kill it.

        Raises:
            RequestError: the process does not exist, or the peer may not act for it.
        """
        if peer.is_foreign:
            raise refusals.foreign()
        processes = self._processes
        pidfd = open_pidfd(pid)
        if pidfd is None:
            raise refusals.no_process(pid)
        uid = uid_of(pid)
        claimant = peer.credentials.uid
        is_theirs = claimant in (0, uid)
        process = Process(pid, pidfd, sender=claimant if is_theirs else None)
        # It is alive after its uid was read. So the uid was its own, and not that of
        # another process with the same pid.
        if uid is None or process.is_dead:
            process.close()
            raise refusals.no_process(pid)
        if kill and not process.can_be_ended:
            process.close()
            raise refusals.cannot_end(pid, claimant)
        if not is_theirs:
            # A peer that joins an owner may release its locks, and its locks count for
            # the user of the owner. A stranger must not do either.
            uid = process.claimant = claimant
        owner_id = processes.registered(pid, process.claimant)
        first = None if owner_id is None else processes.of(owner_id)
        # If it is dead, its end is about to be reported, and the pid has a new process.
        if owner_id is None or first is None or first.is_dead:
            owner_id = self._new_number()
            try:
                processes.add_registered(owner_id, process)
            except OSError as error:
                process.close()
                why = f"lockd cannot watch process {pid}: {error.strerror}"
                raise UnavailableError(why) from None
        else:
            process.close()
            if claimant == 0:
                processes.empower(owner_id)
        return owner_id, uid

    def check_can_end(self, peer: Peer) -> None:
        """Raises `DeniedError` if the process of a peer must be killable and is not."""
        owner = self._engine.sessions[peer.session].owner
        if not self._processes.can_end(owner.owner_id):
            if peer.is_foreign:
                raise refusals.cannot_be_reached()
            raise refusals.cannot_end(owner.identity.pid, peer.credentials.uid)
