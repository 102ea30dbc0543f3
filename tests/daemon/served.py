"""A daemon in this process, so that tests can look into it, and break it."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

import trio

from lockd.daemon.config.config import read_config
from lockd.daemon.service import Options, Service
from lockd.daemon.start.clock import MonotonicClock
from lockd.daemon.start.serve import begin_empty
from lockd.daemon.stores.stores import Stores
from lockd.daemon.system.epoch import open_epoch
from support.wire_client import PATIENCE

T = TypeVar("T")

CONFIG = """
kill_grace = 0.1
limits.message_timeout = 0.1
lockspaces.killed = {kind = "memory", on_disconnect = "kill"}
"""


class Served:
    """Serves in a thread, at real sockets, until the block ends.

    Args:
        directory: where its sockets and its state are.
        kept: whether its state and its connections are in stores, as of a service.

    Attributes:
        service: to be looked at; to be touched in its own thread (`call`).
    """

    def __init__(self, directory: Path, *, kept: bool) -> None:
        self.socket = directory / "lockd.sock"
        self.service: Service
        self._directory = directory
        self._kept = kept
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._token.run_sync_soon(self._scope.cancel)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error

    def call(self, job: Callable[[], T]) -> T:
        """Does something between two turns."""
        return trio.from_thread.run_sync(job, trio_token=self._token)

    def _serve(self) -> None:
        try:
            trio.run(self._run, clock=MonotonicClock())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _run(self) -> None:
        path = self._directory / "lockd.toml"
        path.write_text(CONFIG)
        config = read_config(str(path))
        epoch = open_epoch(str(self._directory))
        stores = Stores() if self._kept else None
        service = self.service = begin_empty(Options(), config, epoch, {}, stores)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.socket))
        listener.listen()
        service.parts.server.listen(listener)
        self._token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as self._scope:
            self._ready.set()
            await service.parts.server.run()
        service.parts.close()
        epoch.close()
        if stores is not None:
            for store in (stores.ledger, stores.cells, stores.pipe, stores.in_flight):
                store.close()
