"""Errors that do not come from the lock table: what is wrong, and what to do."""

from lockd.daemon.replies.sentences import unchangeable
from lockd.engine.effects import Situation
from lockd.errors import (
    AlreadyExistsError,
    DeniedError,
    InUseError,
    InvalidRequestError,
    NotFoundError,
)
from lockd.lockspaces.base import Lockspace
from lockd.names import quoted

MSGID_IN_USE = "another request with this msgid has no answer yet: use another msgid"


def other_protocol(asked: int, served: int) -> InvalidRequestError:
    """Returns the error for another version of the protocol."""
    return InvalidRequestError(
        f"lockd does not speak protocol {asked}: send hello with protocol {served}"
    )


def no_process(pid: int) -> NotFoundError:
    """Returns the error for an owner whose process does not exist."""
    return NotFoundError(f"process {pid} does not exist: register a running process")


def no_session(session: int) -> NotFoundError:
    """Returns the error for an unknown session."""
    return NotFoundError(
        f"there is no session {session}: `lockctl sessions` lists all sessions"
    )


def no_grant(token: int) -> NotFoundError:
    """Returns the error for a fencing token that is unknown, or hidden from a peer."""
    return NotFoundError(
        f"no lock has the fencing token {token}: `lockctl show NAME` prints the token "
        "of a lock"
    )


def not_whole(space: Lockspace) -> InvalidRequestError:
    """Returns the error for `whole` where the files are only lock files."""
    return InvalidRequestError(
        f"lockspace {quoted(space.name)} locks nothing whole: only a file that is "
        "locked by its path can be"
    )


def no_slots(space: Lockspace) -> InvalidRequestError:
    """Returns the error for a slot in a lockspace with files."""
    return InvalidRequestError(
        f"lockspace {quoted(space.name)} has no slots, because it locks files: "
        'use a lockspace of kind "memory", such as `default`'
    )


def exists(space: Lockspace) -> AlreadyExistsError:
    """Returns the error for a lockspace that already exists."""
    return AlreadyExistsError(
        f"lockspace {quoted(space.name)} already exists with kind {space.kind}: "
        "use it, or choose another name"
    )


def in_use(found: Situation, now: float, facts: dict[str, object]) -> InUseError:
    """Returns the error for a file that cannot change because it is in use."""
    return InUseError(unchangeable(found, now), facts)


def foreign() -> DeniedError:
    """Returns the error for a peer whose pids mean nothing here."""
    return DeniedError(
        "lockd cannot resolve the pid, because the process of this session is in "
        "another pid or user namespace, or gone: register without a pid"
    )


def cannot_end(pid: int, uid: int) -> DeniedError:
    """Returns the error for a lock of a process that the user may not kill."""
    return DeniedError(
        f"on_disconnect is 'kill', and uid {uid} may not kill process {pid}: "
        f"lock for a process of uid {uid}, or use a lockspace with 'release'"
    )


def cannot_be_reached() -> DeniedError:
    """Returns the error for a lock of a process that lockd cannot kill."""
    return DeniedError(
        "on_disconnect is 'kill', and lockd cannot reach this session's process to "
        "kill it: lock from outside the container, or use a lockspace with 'release'"
    )
