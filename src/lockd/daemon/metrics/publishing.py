"""Publishes the metrics at an address and in a file, as configured."""

import logging
import os
import socket
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from lockd.daemon.activity.health import Health
from lockd.daemon.config.config import MetricsConfig
from lockd.daemon.metrics import scrape
from lockd.daemon.system.defects import defect
from lockd.daemon.system.jobs import undisturbed

logger = logging.getLogger(__name__)

BACKLOG = 16
"""The most connections that wait for accept(2)."""

_ADDRESS: Final = "metrics address"
_TEXTFILE: Final = "metrics textfile"


class Publisher:
    """Publishes the metrics while `run` runs, as last configured.

    Args:
        text: returns the metrics.
        health: gets the problems.
    """

    def __init__(self, text: scrape.Text, health: Health) -> None:
        self._text = text
        self._health = health
        self._wanted = MetricsConfig()
        self._changed = trio.Event()

    def configure(self, wanted: MetricsConfig) -> None:
        """Changes where to publish, and retries after a failure."""
        self._wanted = wanted
        self._health.clear(_ADDRESS, _TEXTFILE)
        self._changed.set()

    async def run(self) -> None:
        """Publishes until it is cancelled."""
        while True:
            self._changed = trio.Event()
            wanted = self._wanted
            async with trio.open_nursery() as nursery:
                if wanted.listen:
                    nursery.start_soon(self._listen, wanted.listen)
                if wanted.textfile:
                    nursery.start_soon(self._write_again_and_again, wanted)
                await self._changed.wait()
                nursery.cancel_scope.cancel()

    async def _listen(self, place: str) -> None:
        try:
            listener = bind(place)
        except OSError as error:
            self._health.report(
                _ADDRESS,
                f"no metrics at {place}: {os.strerror(error.errno or 0)} "
                "(in the sandbox of the service, enable lockd-metrics.socket)",
            )
            return
        with listener:
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            logger.info("metrics at http://%s:%d/metrics", shown, port)
            await scrape.serve(listener, self._text)

    async def _write_again_and_again(self, wanted: MetricsConfig) -> None:
        while True:
            try:
                job = partial(write, wanted.textfile, self._text("plain"))
            except Exception as error:
                said = defect(error).message
            else:
                said = await trio.to_thread.run_sync(
                    undisturbed, job, abandon_on_cancel=True
                )
            if said:
                problem = f"no metrics in {wanted.textfile}: {said}"
                self._health.report(_TEXTFILE, problem)
            else:
                self._health.clear(_TEXTFILE)
            await trio.sleep(wanted.textfile_interval)


def bind(place: str) -> socket.socket:
    """Returns a socket that listens at a loopback address and port.

    Raises:
        OSError: the address cannot be used.
    """
    host, _, port = place.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host.strip("[]"), int(port)))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def write(path: str, text: str) -> str:
    """Replaces a file by a text, atomically. Returns the error; empty on success.

    It may never return, so use it in a thread.
    """
    # node_exporter only reads *.prom.
    new = f"{path}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with suppress(FileNotFoundError):
            os.unlink(new)
        with open(os.open(new, flags, 0o600), "wb") as file:
            file.write(text.encode())
            # Everybody may read it, regardless of the umask.
            os.fchmod(file.fileno(), 0o644)
        os.replace(new, path)
    except OSError as error:
        return os.strerror(error.errno or 0)
    return ""
