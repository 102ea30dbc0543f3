"""A driver of tooz, the coordination library of OpenStack, for `lockd://`."""

from collections.abc import Iterator
from contextlib import contextmanager

from lockd.client import blocking
from lockd.client.threads.locks import Lock
from lockd.errors import ConnectionLostError, DeniedError, LockdError, LockLostError
from lockd.hints import Any
from lockd.names import name_of, plain
from lockd.parts import part
from lockd.terms import EXCLUSIVE, SHARED

with part("tooz", "the driver of tooz"):
    import tooz
    from tooz import coordination, locking, utils


class LockdDriver(coordination.CoordinationDriver):
    """Locks for `tooz.coordination.get_coordinator("lockd://", b"me")`.

    The path in the URL is that of the daemon's socket (`lockd:///run/user/0/lockd.sock`);
    without one, it is found as by `lockd.connect`. A coordinator is a session, and
    connects again after the daemon has ended.

    lockd has locks alone: groups, members and leaders raise `tooz.NotImplemented`. No
    heartbeat is needed. A lock lasts until it is released, or its process ends.
    """

    CHARACTERISTICS = (
        coordination.Characteristics.NON_TIMEOUT_BASED,
        coordination.Characteristics.DISTRIBUTED_ACROSS_THREADS,
        coordination.Characteristics.DISTRIBUTED_ACROSS_PROCESSES,
    )

    def __init__(
        self, member_id: bytes, parsed_url: Any, options: dict[str, Any]
    ) -> None:
        super().__init__(member_id, parsed_url, options)
        self._socket: str | None = parsed_url.path or None
        self._name = plain(_text(member_id))

    def _start(self) -> None:
        with _as_tooz_errors():
            self._client = blocking.connect(
                self._socket, name=self._name, reconnect=True
            )

    def _stop(self) -> None:
        with _as_tooz_errors():
            self._client.close()

    def get_lock(self, name: bytes | str) -> "LockdLock":
        """Returns a lock. Its name is that of a lock in the lockspace `default`.

        A name of more than 255 bytes, or with control characters, is hashed.
        """
        if not self.is_started:
            raise tooz.ToozError("start the coordinator before you ask for a lock")
        return LockdLock(self._client, name)

    # The base class would take a callback that nothing ever calls.

    def watch_join_group(self, *_: Any) -> None:
        """Raises `tooz.NotImplemented`."""
        raise tooz.NotImplemented("lockd has no groups")

    def watch_leave_group(self, *_: Any) -> None:
        """Raises `tooz.NotImplemented`."""
        raise tooz.NotImplemented("lockd has no groups")

    def watch_elected_as_leader(self, *_: Any) -> None:
        """Raises `tooz.NotImplemented`."""
        raise tooz.NotImplemented("lockd has no groups")


class LockdLock(locking.Lock):
    """A lock of tooz. It is not re-entrant, but one that is shared can be counted.

    Args:
        client: the session that acquires it.
        name: its name.
    """

    def __init__(self, client: blocking.Client, name: bytes | str) -> None:
        super().__init__(name)  # type: ignore[arg-type]
        self._client = client
        self._resource = name_of(_text(name))
        label = plain(_text(name))
        with _as_tooz_errors():
            self._locks = [
                client.lock(self._resource, lockspace="default", mode=mode, label=label)
                for mode in (EXCLUSIVE, SHARED)
            ]
        #: What this object has acquired, in order.
        self._held: list[Lock] = []

    def acquire(
        self,
        blocking: bool | float = True,
        shared: bool = False,
        timeout: float | None = None,
    ) -> bool:
        """Waits for the lock, in the daemon's queue; returns whether it was acquired.

        Args:
            blocking: False does not wait; a number is a timeout.
            shared: whether others may hold it, too, if they are shared.
            timeout: in seconds.
        """
        waits, timeout = utils.convert_blocking(blocking, timeout)
        if not waits:
            timeout = 0
        lock = self._locks[shared]
        with _as_tooz_errors():
            acquired = bool(lock.acquire(timeout=-1 if timeout is None else timeout))
        if acquired:
            self._held.append(lock)
        return acquired

    def release(self) -> bool:
        """Releases what was acquired last; returns whether it was still held."""
        try:
            lock = self._held.pop()
        except IndexError:
            return False
        with _as_tooz_errors():
            try:
                lock.release()
            except LockLostError:
                return False
        return True

    def is_still_owner(self) -> bool:
        """Returns whether the lock is held through this object."""
        return any(lock.locked() for lock in self._locks)

    def break_(self) -> bool:
        """Takes the lock away from all that hold it; returns whether somebody did.

        Raises:
            ToozError: this user may not break locks.
        """
        with _as_tooz_errors():
            found = self._client.query(self._resource, lockspace="default")
            for holder in found["holders"]:
                self._client.break_grant(holder["fencing_token"], "break_() of tooz")
        return bool(found["holders"])


def _text(name: bytes | str) -> str:
    if isinstance(name, str):
        return name
    return name.decode("utf-8", "surrogateescape")


@contextmanager
def _as_tooz_errors() -> Iterator[None]:
    try:
        yield
    except (ConnectionLostError, DeniedError) as error:
        raise coordination.ToozConnectionError(str(error)) from error
    except LockdError as error:
        raise tooz.ToozError(str(error)) from error
