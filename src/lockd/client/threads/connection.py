"""Opens connections for threads, and reconnects."""

from collections.abc import Callable

from lockd.client import paths, requests
from lockd.client.core import UnheardError
from lockd.client.inbox import Inbox, News
from lockd.client.reply import Reply
from lockd.client.strands import Strand
from lockd.client.threads.grants import Grant
from lockd.client.threads.link import ThreadLink
from lockd.errors import InvalidRequestError
from lockd.hints import Any
from lockd.lean import socket
from lockd.terms import ResourceKey


def open_link(
    address: paths.Address, opening: requests.Opening
) -> tuple[ThreadLink, Any]:
    """Opens a connection and a conversation.

    Args:
        address: where the daemon listens.
        opening: the first requests.

    Returns:
        The connection, and the result of the first request.

    Raises:
        ConnectionLostError: no daemon listens there, or it closed the connection.
        DeniedError: this user may not connect there.
        RequestError: the daemon rejected one of the requests.
    """
    attempts = 0
    while True:
        attempts += 1
        link = ThreadLink(_open_socket(address))
        try:
            first = opening.requests()
            link.perform(*first)
            welcome, *_ = [reply.outcome() for reply in first]
            return link, welcome
        except BaseException as error:
            link.close()
            if isinstance(error, InvalidRequestError) and opening.say_less():
                continue
            if not isinstance(error, UnheardError) or attempts == paths.ATTEMPTS:
                raise


def _open_socket(address: paths.Address) -> socket.socket:
    sock = paths.new_socket()
    try:
        paths.connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


class Connection:
    """The link of a client, which it can replace by a new one.

    Args:
        address: where the daemon listens.
        name: the name of the owner of the locks.
        on_lost: called with each grant that is lost.
        reconnect: whether to open a new link after the daemon has closed this one.
    """

    def __init__(
        self,
        address: paths.Address,
        name: str | None,
        on_lost: Callable[[Grant], None] | None,
        *,
        reconnect: bool,
    ) -> None:
        self._address = address
        self._name = name
        self._on_lost = on_lost
        self._reconnect = reconnect
        self._closed = False
        #: The link, and the daemon's answer to `hello`.
        self._opened = self._open()

    @property
    def last(self) -> ThreadLink:
        """The newest link, which may have ended."""
        return self._opened[0]

    @property
    def welcome(self) -> dict[str, Any]:
        """The daemon's answer to `hello`."""
        return self._opened[1]

    @property
    def forked(self) -> bool:
        """Whether this process is a forked child, and the session its parent's."""
        return self._opened[0].forked

    def close(self) -> None:
        """Ends the link, and any that another thread is opening.

        Raises:
            LockdError: a release was refused for which nobody has waited.
        """
        self._closed = True
        link = self.last
        try:
            link.hear_out()
        finally:
            link.close()

    def link(self) -> ThreadLink:
        """Returns the link for the next request; it may be closed.

        Reconnects if necessary.

        Raises:
            LockdError: it had to reconnect, and the daemon cannot be reached.
        """
        opened = self._opened
        if not self._reconnect or not opened[0].lost:
            return opened[0]
        new = self._open()
        # No call between the test and the store: another thread may be faster.
        if self._opened is opened:
            self._opened = new
            new[0].left.inherit(opened[0].left)
            opened[0].close()
        else:
            new[0].close()
        # `close` sets the mark first and then closes the stored link. So check after
        # storing.
        if self._closed:
            self.last.close()
        return self.last

    def ask(self, reply: Reply) -> Any:
        """Sends a request, waits for the answer, and returns its result."""
        link = self.link()
        try:
            link.perform(reply)
            return reply.outcome()
        except BaseException:
            # A signal at this moment would leave a grant that nobody knows.
            link.abandon(reply)
            raise

    def strand(self) -> Strand | None:
        """Returns the strand of the calling thread; None if the session has none."""
        return self.last.strand()

    def find_held(self, key: ResourceKey) -> tuple[int, int | None]:
        """Returns the strand of the calling thread, and its token for a lock."""
        return self.last.find_held(key)

    def open_events(self) -> Inbox:
        """Returns an inbox that receives the events of a watch."""
        return self.link().open_events()

    def close_events(self, inbox: Inbox) -> None:
        """Stops passing events to an inbox."""
        self.last.close_events(inbox)

    def open_notices(self) -> News:
        """Returns an inbox for the grants of which notices say something new."""
        return self.link().open_notices()

    def close_notices(self, news: News) -> None:
        """Stops passing grants to an inbox."""
        self.last.close_notices(news)

    def wait_item(self, inbox: Inbox) -> Any:
        """Waits for the next item of an inbox and returns it."""
        return self.last.wait_item(inbox)

    def _open(self) -> tuple[ThreadLink, dict[str, Any]]:
        link, welcome = open_link(self._address, requests.Opening(self._name))
        try:
            if self._on_lost is not None:
                link.call_when_lost(self._on_lost)
        except BaseException:
            link.close()
            raise
        return link, welcome
