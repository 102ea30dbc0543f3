"""Keeps a board current: reads everything once, follows events, queries what is shown.

One rule limits the load on the daemon: *after each answer it rests nine times as long
as the answer took*. So it leaves the daemon alone for nine tenths of the time. If there
are too many events, it stops watching and reads everything again and again, by the same
rule.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import anyio

from lockd.client import paths
from lockd.client.aio import Client, Events, connect
from lockd.ctl.render import Thing
from lockd.ctl.top.board import Board
from lockd.errors import ConnectionLostError, LockdError, RequestError
from lockd.terms import ResourceKey

Answer = TypeVar("Answer")

REST: Final = 9
"""How many times the duration of an answer to rest after it."""

STALE: Final = 5.0
"""Seconds after which a shown lock is queried again without an event: no event reports
a waiter that left."""

FLOOD: Final = 2_000
"""Events in a second that are too many to follow."""

UNFOLLOWED: Final = 60.0
"""Seconds without a watch after that."""

RETRY: Final = 1.0
"""Seconds between two attempts to reach a daemon that is gone."""


class _TooMuchError(Exception):
    """Raised when there are too many events to follow."""


class Follower:
    """Keeps a board current while `run` runs.

    Args:
        board: the board.
        socket: the socket of the daemon; None for the default.
        interval: seconds between two checks.
        wanted: returns the locks on the screen, and whether sessions are on it.

    Attributes:
        board: the board.
        trouble: why the daemon is not connected; None if it is.
        news: the last event of the daemon that a user should know.
        progress: the progress of the first listing in words; None if it is complete.
    """

    def __init__(
        self,
        board: Board,
        socket: str | None,
        interval: float,
        wanted: Callable[[], tuple[list[ResourceKey], bool]],
    ) -> None:
        self.trouble: str | None = "connecting"
        self.news: str | None = None
        self.progress: str | None = "0 read"
        self.is_watching = False
        self.board = board
        self._socket: str | paths.Address | None = socket
        self._interval = interval
        self._wanted = wanted
        self._client: Client | None = None
        self._epoch: int | None = None
        self._unfollowed_until = 0.0
        # How many more waiters the board has than the daemon counts, at the last two
        # checks; and how many of them exist: a waiter for several locks counts once.
        self._gone = self._gone_before = self._queued_twice = 0

    async def run(self) -> None:
        """Follows the daemon for ever; reconnects when it is gone."""
        while True:
            try:
                address = paths.find_socket(self._socket)
                async with connect(address) as client:
                    # From now on, connect to the same daemon.
                    self._socket = address
                    self._client = client
                    self._greet(client.epoch)
                    await self._serve(client)
            except* _TooMuchError:
                self._unfollowed_until = anyio.current_time() + UNFOLLOWED
            except* LockdError as group:
                self.trouble = _first(group)
            finally:
                self._client = None
                self.is_watching = False
            await anyio.sleep(RETRY)

    async def query(self, key: ResourceKey) -> dict[str, Any]:
        """Returns the daemon's answer about one resource.

        Raises:
            LockdError: the daemon does not answer, or refuses.
        """
        asked = anyio.current_time()
        found = await self._connected().query(key.resource, lockspace=key.lockspace)
        self.board.take(found, anyio.current_time(), asked)
        return found

    async def break_grant(self, fencing_token: int, reason: str) -> None:
        """Takes a lock away from its holder.

        Raises:
            LockdError: the daemon refuses, or is gone.
        """
        await self._connected().break_grant(fencing_token, reason)

    def _connected(self) -> Client:
        if self._client is None:
            raise ConnectionLostError(self.trouble or "top is not connected yet")
        return self._client

    def _greet(self, epoch: int) -> None:
        if self._epoch is not None:
            changed = epoch != self._epoch
            self.news = (
                f"the daemon lost all locks (epoch {epoch}): top reads all again"
                if changed
                else "connected to the daemon again: top reads all again"
            )
        self._epoch, self.trouble, self.progress = epoch, None, "0 read"
        self.board.forget_all()

    async def _serve(self, client: Client) -> None:
        if anyio.current_time() < self._unfollowed_until:
            await self._look_and_ask(client)
            return
        async with client.watch() as events, anyio.create_task_group() as tasks:
            self.is_watching = True
            tasks.start_soon(self._follow, events)
            await self._look_and_ask(client)

    async def _follow(self, events: Events) -> None:
        board = self.board
        began, heard = anyio.current_time(), 0
        async for event in events:
            now = anyio.current_time()
            board.hear(event, now)
            heard += 1
            if now - began >= 1:
                began, heard = now, 0
            elif heard > FLOOD:
                self.news = (
                    f"more than {FLOOD} events a second: top polls from time to time"
                )
                raise _TooMuchError

    async def _look_and_ask(self, client: Client) -> None:
        await self._read_all(client)
        while True:
            await self._paid(self._ask_facts(client))
            await self._ask_what_is_shown(client)
            if not self.is_watching:
                if anyio.current_time() >= self._unfollowed_until:
                    return  # to connect again, and watch
                await self._read_all(client)
            elif self.board.facts["epoch"] != self._epoch:
                # Under a service manager the connection outlives the daemon.
                self._greet(self.board.facts["epoch"])
                await self._read_all(client)
            else:
                await self._miss_who_left(client)
            await anyio.sleep(self._interval)

    async def _read_all(self, client: Client) -> None:
        board, began = self.board, anyio.current_time()
        counted, queued = board.facts.get("waiting", 0), 0
        after: list[str] | None = None
        while True:
            page = await self._paid(self._read_page(client, after))
            queued += sum(told["waiter_count"] for told in page["resources"])
            after = page["next"]
            if after is None:
                break
            if self.progress is not None:
                self.progress = f"{len(board.locks)} read"
        self.progress = None
        self._queued_twice = max(queued - counted, 0)
        board.forget_unheard(began)

    async def _read_page(self, client: Client, after: list[str] | None) -> Thing:
        asked = anyio.current_time()
        page: Thing = await client.call("list", after=after)
        now = anyio.current_time()
        for told in page["resources"]:
            self.board.take(told, now, asked)
        return page

    async def _ask_facts(self, client: Client) -> None:
        self.board.take_facts(await client.statistics())
        self._gone = self.board.gone

    async def _miss_who_left(self, client: Client) -> None:
        """Reads everything again if some waiters seem to have left.

        They must seem so at two checks in a row, because one count may be older than
        the other.
        """
        lasting = min(self._gone, self._gone_before)
        self._gone_before = self._gone
        self._queued_twice = min(self._queued_twice, self._gone)
        if lasting > self._queued_twice:
            await self._read_all(client)

    async def _ask_sessions(self, client: Client) -> None:
        self.board.take_sessions(await client.list_sessions(), anyio.current_time())

    async def _ask_what_is_shown(self, client: Client) -> None:
        keys, sessions = self._wanted()
        if sessions:
            await self._paid(self._ask_sessions(client))
        for key in keys:
            lock = self.board.locks.get(key)
            due = anyio.current_time() - STALE
            if lock is not None and (lock.vague or lock.asked < due):
                try:
                    await self._paid(self.query(key))
                except RequestError:
                    self.board.forget(key)

    async def _paid(self, asking: Awaitable[Answer]) -> Answer:
        began = anyio.current_time()
        answer = await asking
        await anyio.sleep(REST * (anyio.current_time() - began))
        return answer


def _first(group: BaseExceptionGroup[BaseException]) -> str:
    """Returns the message of one of the errors in a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)
