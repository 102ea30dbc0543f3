"""A daemon whose texts are meant for the terminal of whoever reads them.

It stands before a real one, and adds to each text of what that answers.
"""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack

EVIL = "\x1b]0;owned\x07\x9b31m\u202e\r\nlockctl: all is well"

#: Texts that programs, and not people, read: with another one nothing would be shown.
KEPT = (
    *("mode", "kind", "event", "cause", "ended", "on_disconnect", "by", "server"),
    *("code", "lockspace", "metrics"),
)


def spoil(thing: Any, *, wholly: bool, name: str = "") -> Any:
    """Returns an answer with something hostile in each text."""
    if isinstance(thing, dict):
        return {k: spoil(v, wholly=wholly, name=k) for k, v in thing.items()}
    if isinstance(thing, list):
        return [spoil(x, wholly=wholly, name=name) for x in thing]
    if isinstance(thing, str) and (wholly or name not in KEPT):
        return thing + EVIL
    return thing


class Hostile:
    """Listens until it is closed.

    Args:
        real: the socket of a daemon.
        path: where to listen.
        wholly: whether texts for programs are spoiled, too.
    """

    def __init__(self, real: str, path: Path, *, wholly: bool) -> None:
        self._real, self._wholly = real, wholly
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(path))
        self._door.listen()
        self._run(self._accept)

    def close(self) -> None:
        """Ends it; whoever is connected sees that."""
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()

    def _run(self, job: Callable[..., None], *args: Any) -> None:
        threading.Thread(target=job, args=args, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._real)
            self._run(_copy, client, server)
            self._run(self._spoil, server, client)

    def _spoil(self, server: socket.socket, client: socket.socket) -> None:
        unpacker = msgpack.Unpacker()
        with suppress(OSError), client:  # it went away
            while data := server.recv(65_536):
                unpacker.feed(data)
                for message in unpacker:
                    client.sendall(msgpack.packb(self._spoiled(message)))

    def _spoiled(self, message: list[Any]) -> list[Any]:
        match message:
            case [1, msgid, error, result]:
                if error:
                    error = [*error[:1], error[1] + EVIL, *error[2:]]
                return [1, msgid, error, spoil(result, wholly=self._wholly)]
            case [2, method, params]:
                return [2, method, spoil(params, wholly=self._wholly)]
        return message


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError), target:  # it went away
        while data := source.recv(65_536):
            target.sendall(data)
