"""An older daemon: it has no `instance`, and releases no lock of another owner.

It stands before a real daemon, and answers in its own words what the older one refused.
"""

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgpack

from support.wire_client import PATIENCE


@contextmanager
def older_daemon(
    path: Path, leads_to: str, before_refusal: Callable[[], None] = lambda: None
) -> Iterator[str]:
    """Serves one client after the other at a path, until the end of the body.

    Args:
        path: the socket.
        leads_to: the socket of the real daemon.
        before_refusal: is called before each release that is refused.
    """
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener:
        listener.bind(str(path))
        listener.listen()
        args = (listener, leads_to, before_refusal)
        thread = threading.Thread(target=_serve, args=args, daemon=True)
        thread.start()
        try:
            yield str(path)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)


def _serve(
    listener: socket.socket, leads_to: str, before_refusal: Callable[[], None]
) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:  # it was closed
            return
        with client, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as daemon:
            daemon.connect(leads_to)
            _relay(client, daemon, before_refusal)


def _relay(
    client: socket.socket, daemon: socket.socket, before_refusal: Callable[[], None]
) -> None:
    requests, answers = msgpack.Unpacker(), msgpack.Unpacker()
    while True:
        for end in select.select([client, daemon], [], [], PATIENCE)[0]:
            data = end.recv(65_536)
            if not data:
                return
            (requests if end is client else answers).feed(data)
        for message in requests:
            _, msgid, method, params = message
            token = params[0].get("fencing_token") if params else None
            if method == "release" and token is not None:
                before_refusal()
                said = f"not_held: you hold no lock with the fencing token {token}"
                client.sendall(msgpack.packb([1, msgid, [1, said, {}], None]))
            else:
                daemon.sendall(msgpack.packb(message))
        for message in answers:
            if message[0] == 1 and isinstance(message[3], dict):
                message[3].pop("instance", None)
            client.sendall(msgpack.packb(message))
