"""Shows the blocking and the async client to the same cases in the same way.

A `Peer` is one session. What waits is started, in a thread or task of its own, and its
outcome is asked for later. All that is called is called by one thread or task.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

import lockd
from support.wire_client import PATIENCE


class Pending(Protocol):
    """What runs in the background."""

    def result(self) -> Any: ...


class Held(Protocol):
    """A body that holds a lock, in the background."""

    def grant(self) -> lockd.Grant:
        """Waits until the body runs."""

    def leave(self) -> None:
        """Lets the body end."""

    def result(self) -> Any:
        """Waits until the lock is given back."""


class Peer(Protocol):
    """One session."""

    @property
    def session(self) -> int: ...
    def call(self, method: str, /, *args: Any, **params: Any) -> Any: ...
    def start(self, method: str, /, *args: Any, **params: Any) -> Pending: ...
    def start_all(self, method: str, /, *args: Any) -> Pending:
        """Calls a method with each of the arguments, in one thread or task."""

    def start_calls(
        self, function: Callable[[Any], Any], args: Iterable[Any]
    ) -> Pending:
        """Calls a function with each of the arguments, in one thread or task."""

    def run(self, function: Callable[[], Any]) -> Pending:
        """Runs a function in a thread or task."""

    def run_in_main(self, function: Callable[[], Any]) -> Any:
        """Runs a function in the thread or task of all that is called."""

    def collect(self, method: str, /, *args: Any, **params: Any) -> list[Any]: ...
    def hold(self, resource: str, /, **params: Any) -> Held: ...
    def close(self) -> None: ...


class Shell(Protocol):
    """One of the clients."""

    def connect(self, socket: str, **params: Any) -> Peer: ...


class Thread:
    """A call that runs in a thread."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._future: Future[Any] = Future()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self) -> Any:
        """Returns what the call returned, when nothing is left of the thread."""
        result = self._future.result(PATIENCE)
        self._thread.join(PATIENCE)
        return result

    def _run(self) -> None:
        try:
            self._future.set_result(self._function())
        except BaseException as error:
            self._future.set_exception(error)


class ThreadBody:
    """A `with` body in a thread."""

    def __init__(self, lock: lockd.Lock) -> None:
        self._lock = lock
        self._grant: Future[lockd.Grant] = Future()
        self._may_leave = threading.Event()
        self._thread = Thread(self._body)

    def grant(self) -> lockd.Grant:
        return self._grant.result(PATIENCE)

    def leave(self) -> None:
        self._may_leave.set()

    def result(self) -> Any:
        return self._thread.result()

    def _body(self) -> None:
        with self._lock as lock:
            self._grant.set_result(lock.grant)
            assert self._may_leave.wait(PATIENCE)


class BlockingPeer:
    """A session of `lockd.connect`."""

    def __init__(self, client: lockd.Client) -> None:
        self.client = client

    @property
    def session(self) -> int:
        return self.client.session

    def call(self, method: str, /, *args: Any, **params: Any) -> Any:
        return getattr(self.client, method)(*args, **params)

    def run(self, function: Callable[[], Any]) -> Thread:
        """Runs a function in a thread."""
        return Thread(function)

    def run_in_main(self, function: Callable[[], Any]) -> Any:
        """Runs a function in the thread of all that is called."""
        return function()

    def start(self, method: str, /, *args: Any, **params: Any) -> Thread:
        return self.run(lambda: self.call(method, *args, **params))

    def start_all(self, method: str, /, *args: Any) -> Thread:
        return self.start_calls(getattr(self.client, method), args)

    def start_calls(
        self, function: Callable[[Any], Any], args: Iterable[Any]
    ) -> Thread:
        return self.run(lambda: [function(arg) for arg in args])

    def collect(self, method: str, /, *args: Any, **params: Any) -> list[Any]:
        return list(self.call(method, *args, **params))

    def hold(self, resource: str, /, **params: Any) -> ThreadBody:
        return ThreadBody(self.client.lock(resource, **params))

    def close(self) -> None:
        self.client.close()


class BlockingShell:
    """Opens sessions of `lockd.connect`; closes them at the end."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def connect(self, socket: str, **params: Any) -> BlockingPeer:
        client = self._stack.enter_context(lockd.connect(socket, **params))
        return BlockingPeer(client)


class Task:
    """An async call that runs in a task of the portal's loop, and can be cancelled."""

    def __init__(self, portal: BlockingPortal, function: Callable[[], Any]) -> None:
        self._portal = portal
        self._function = function
        self._scope = portal.call(anyio.CancelScope)
        self._future = portal.start_task_soon(self._run)

    def cancel(self) -> None:
        """Cancels it; does not wait for its end."""
        self._portal.call(self._scope.cancel)

    def result(self) -> Any:
        """Waits for its end; None if it was cancelled."""
        return self._future.result(PATIENCE)

    @property
    def cancelled(self) -> bool:
        return self._scope.cancelled_caught

    async def _run(self) -> Any:
        with self._scope:
            return await self._function()


class MainTask:
    """A task that runs one async function after the other."""

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal
        self._send, self._receive = anyio.create_memory_object_stream[
            tuple[Callable[[], Any], Future[Any]]
        ](1)
        portal.start_task_soon(self._serve)

    def result(self, function: Callable[[], Any]) -> Any:
        """Has it run a function, and returns what that returns."""
        future: Future[Any] = Future()
        self._portal.call(self._send.send_nowait, (function, future))
        return future.result(PATIENCE)

    async def _serve(self) -> None:
        with self._send, self._receive:
            async for function, future in self._receive:
                try:
                    future.set_result(await function())
                except BaseException as error:
                    future.set_exception(error)
                    if isinstance(error, anyio.get_cancelled_exc_class()):
                        raise


class TaskBody:
    """An `async with` body in a task."""

    def __init__(
        self,
        portal: BlockingPortal,
        hold: Callable[[], AbstractAsyncContextManager[Any]],
    ) -> None:
        self._portal = portal
        self._hold = hold
        self._grant: Future[lockd.Grant] = Future()
        self._may_leave = portal.call(anyio.Event)
        self._task = Task(portal, self._body)

    def grant(self) -> lockd.Grant:
        return self._grant.result(PATIENCE)

    def leave(self) -> None:
        self._portal.call(self._may_leave.set)

    def cancel(self) -> None:
        self._task.cancel()

    @property
    def cancelled(self) -> bool:
        return self._task.cancelled

    def result(self) -> Any:
        return self._task.result()

    async def _body(self) -> None:
        async with self._hold() as grant:
            self._grant.set_result(grant)
            await self._may_leave.wait()


class AsyncPeer:
    """A session of `lockd.aio.connect`."""

    def __init__(
        self,
        portal: BlockingPortal,
        client: lockd.aio.Client,
        close: Callable[[], None],
    ) -> None:
        self.client = client
        self.close = close
        self._portal = portal
        self._main = MainTask(portal)

    @property
    def session(self) -> int:
        return self.client.session

    def call(self, method: str, /, *args: Any, **params: Any) -> Any:
        function = getattr(self.client, method)
        return self.run_in_main(lambda: function(*args, **params))

    def run_in_main(self, function: Callable[[], Any]) -> Any:
        """Runs an async function in the task of all that is called."""
        return self._main.result(function)

    def run(self, function: Callable[[], Any]) -> Task:
        """Runs an async function in a task."""
        return Task(self._portal, function)

    def start(self, method: str, /, *args: Any, **params: Any) -> Task:
        function = getattr(self.client, method)
        return self.run(lambda: function(*args, **params))

    def start_all(self, method: str, /, *args: Any) -> Task:
        return self.start_calls(getattr(self.client, method), args)

    def start_calls(self, function: Callable[[Any], Any], args: Iterable[Any]) -> Task:
        async def call_all() -> list[Any]:
            return [await function(arg) for arg in args]

        return self.run(call_all)

    def collect(self, method: str, /, *args: Any, **params: Any) -> list[Any]:
        async def collected() -> list[Any]:
            listed = getattr(self.client, method)(*args, **params)
            return [item async for item in listed]

        return list(self._portal.call(collected))

    def hold(self, resource: str, /, **params: Any) -> TaskBody:
        return TaskBody(self._portal, lambda: self.client.hold(resource, **params))


class AsyncShell:
    """Opens sessions of `lockd.aio.connect`; closes them at the end."""

    def __init__(self, portal: BlockingPortal, stack: ExitStack) -> None:
        self.portal = portal
        self._stack = stack

    def connect(self, socket: str, **params: Any) -> AsyncPeer:
        stack = self._stack.enter_context(ExitStack())
        session = lockd.aio.connect(socket, **params)
        client = stack.enter_context(self.portal.wrap_async_context_manager(session))
        return AsyncPeer(self.portal, client, stack.close)

    def run(self, function: Callable[[], Any]) -> Any:
        """Runs an async function."""
        return Task(self.portal, function).result()


@contextmanager
def blocking_shell() -> Iterator[BlockingShell]:
    """The client for threads."""
    with ExitStack() as stack:
        yield BlockingShell(stack)


@contextmanager
def async_shell(backend: str) -> Iterator[AsyncShell]:
    """The client for tasks, in a loop that runs in a thread."""
    with start_blocking_portal(backend) as portal:
        try:
            with ExitStack() as stack:
                yield AsyncShell(portal, stack)
        finally:
            # What still waits, because a test has failed, must not wait for ever.
            portal.call(portal.stop, True)
