"""What the tests of this folder share."""

from typing import Any

import msgpack

from lockd.protocol.calls import MethodCall
from lockd.protocol.connection import Connection


def received(connection: Connection, *messages: Any) -> list[MethodCall]:
    data = b"".join(
        msgpack.packb(m, unicode_errors="surrogateescape") for m in messages
    )
    return list(connection.receive(data))


def sent(connection: Connection) -> list[Any]:
    unpacker = msgpack.Unpacker()
    unpacker.feed(connection.data_to_send())
    return list(unpacker)


def refusal(message: Any) -> tuple[Any, str]:
    """Returns the msgid and the sentence with which one message is refused."""
    connection = Connection()
    assert received(connection, message) == []
    ((kind, msgid, error, result),) = sent(connection)
    assert (kind, result) == (1, None)
    return msgid, error[1]
