"""The lock of programs that open no connection: `lockd.lock`."""

from lockd.client import arguments, paths, requests
from lockd.client.threads.connection import Connection
from lockd.client.threads.link import ThreadLink
from lockd.client.threads.locks import Lock
from lockd.hints import Final
from lockd.terms import EXCLUSIVE, Mode


class ProcessConnection:
    """The connection of this process, whichever it is; opened at the first use.

    A forked child opens another one. So does a process whose daemon has ended.
    """

    def __init__(self) -> None:
        self._opened: list[Connection] = []

    def __del__(self) -> None:
        # Python ends, and no other thread runs. A mutex may belong to a dead one.
        for connection in self._opened:
            connection.last.sock.close()

    @property
    def forked(self) -> bool:
        """False: a forked child has a connection of its own."""
        return False

    def link(self) -> ThreadLink:
        """Returns the link for the next request. Connects if necessary.

        Raises:
            LockdError: the daemon cannot be reached.
        """
        opened = self._opened
        if not opened or opened[0].last.forked:
            new = [Connection(paths.find_socket(), None, None, reconnect=True)]
            # No call between the test and the store: another thread may be faster.
            if self._opened is opened:
                self._opened = new
            else:
                new[0].close()
        return self._opened[0].link()


_connection: Final = ProcessConnection()


def lock(
    resource: requests.Name,
    *,
    lockspace: str | None = None,
    mode: Mode = EXCLUSIVE,
    slots: int | None = None,
    timeout: float | None = None,
    max_waiting: int | None = None,
    create: bool | None = None,
    whole: bool | None = None,
    max_hold: float | None = None,
    wanted: bool | None = None,
    label: str | None = None,
    reason: str | None = None,
) -> Lock:
    """Returns a lock to use in `with`, or like `threading.Lock`; opens no connection.

    The first use of such a lock connects this process to the daemon that `connect`
    finds without a path. All threads and all locks share this connection, and it stays
    open until the process ends.

    A forked child connects anew at its first use: it does not hold what its parent
    holds, and waits for it. If the daemon ends, its locks are lost, and pending calls
    raise `ConnectionLostError`; the next use connects to the daemon that is there then.

    The arguments are those of `Client.lock`.
    """
    options = {"create": create, "whole": whole, "label": label, "reason": reason}
    hears = {"max_hold": max_hold, "wanted": wanted}
    params = requests.params_about(
        "acquire",
        resource,
        lockspace,
        max_waiting=max_waiting,
        **requests.in_mode(mode, slots),
        **options,
        **hears,
    )
    patience = None if timeout is None else arguments.patience("timeout", timeout)
    return Lock(_connection, params, patience)
