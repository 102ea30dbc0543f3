"""The state of a client's session, as one daemon leaves it to the next.

Each turn of the client records its position, in few bytes, and the rest only if that
has changed. A field that was added later has a default, for the records of an older
daemon.
"""

from typing import Any

from msgspec import Struct
from msgspec.structs import replace


class Position(Struct, frozen=True, array_like=True, gc=False):
    """How far the streams of a session are, and its claims: fields of `PeerState`.

    Attributes:
        state: the CRC-32 of the record with the rest of the state. If that record is
            lost, an older one must not pass for it.
    """

    done: int
    sent: int
    unsent: bytes
    claims: int | None = None
    state: int = 0

    def of(self, state: int) -> "Position":
        """Returns the position that belongs to that record of a state."""
        return Position(self.done, self.sent, self.unsent, self.claims, state)


class PeerState(Struct, frozen=True, array_like=True, gc=False):
    """The state of a session as plain data (`Peer.dump_state`).

    Attributes:
        done: how many bytes of requests were carried out, or are in `connection`.
        sent: how many bytes of answers were sent before those in `unsent`.
        arrays: the msgids of requests that expect an array of grants.
        claims: `Session.claims`, recorded apart from the locks, so that a missing lock
            is detected.
        unsent_apart: how many bytes before `unsent` are recorded in `Pieces`.
        partial_apart: the same for the half message in `connection`.
        reloads: the msgids of requests that wait for the end of a reload.
        is_inheritable: as in `Peer`; always true for the sessions of an older daemon.
        missed_notices: as in `Outbox`.
        position_apart: whether the fields of `Position` are recorded apart.
    """

    done: int
    sent: int
    connection: dict[str, Any]
    unsent: bytes
    piled_up: int
    arrays: list[int]
    is_closing: bool
    restricted: bool
    client: str | None
    claims_itself: bool
    watched: str | None
    claims: int | None = None
    unsent_apart: int = 0
    partial_apart: int = 0
    reloads: tuple[int, ...] = ()
    is_inheritable: bool = True
    missed_notices: bool = False
    position_apart: bool = False

    def at(self, position: Position) -> "PeerState":
        """Returns the same state with its position."""
        return replace(
            self,
            done=position.done,
            sent=position.sent,
            unsent=position.unsent,
            claims=position.claims,
            position_apart=False,
        )
