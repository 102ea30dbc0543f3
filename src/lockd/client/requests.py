"""Builds the parameters of requests: what is not said is left out of the map."""

from collections.abc import Iterable
from typing import Any, Final

from lockd.client.core import PROTOCOL_VERSION, Grant, Reply
from lockd.errors import InvalidRequestError
from lockd.names import default_lockspace, quoted
from lockd.terms import Mode, ResourceKey

CLIENT_NAME: Final = "lockd-python"

PAGE: Final = 256
"""As much as may be asked for; the daemon says how much there is at once."""

MOST_AT_ONCE: Final = 64
"""Of the resources of one request (protocol 6.1)."""


def request(method: str, **params: Any) -> Reply:
    """Returns a new request; parameters that are None are left out."""
    said = {name: value for name, value in params.items() if value is not None}
    return Reply(method, said)


def opening(name: str | None, client: str = CLIENT_NAME) -> list[Reply]:
    """Returns the requests that open a conversation; `hello` is the first."""
    hello = request("hello", protocol=PROTOCOL_VERSION, client=client)
    return [hello] if name is None else [hello, register(name)]


def register(
    name: str,
    uuid: str | None = None,
    owner_id: int | None = None,
    pid: int | None = None,
    on_disconnect: str | None = None,
) -> Reply:
    """Returns the request that names an owner."""
    owner = {"name": name, "uuid": uuid, "id": owner_id, "pid": pid}
    said = {key: value for key, value in owner.items() if value is not None}
    return request("register", owner=said, on_disconnect=on_disconnect)


def key_of(target: Grant | str, lockspace: str | None = None) -> ResourceKey:
    """Returns what a grant is on, or what a name means."""
    if isinstance(target, Grant):
        return ResourceKey(target.lockspace, target.resource)
    return ResourceKey(lockspace or default_lockspace(target), target)


def about(
    method: str, target: Grant | str, lockspace: str | None, **params: Any
) -> Reply:
    """Returns a request about one resource."""
    space, resource = key_of(target, lockspace)
    return request(method, lockspace=space, resource=resource, **params)


def acquire_all(
    resources: Iterable[str], lockspace: str | None, mode: Mode, **params: Any
) -> Reply:
    """Returns a request for several resources, all or nothing.

    Raises:
        InvalidRequestError: too many, or one of them twice.
    """
    names = list(resources)
    if len(names) > MOST_AT_ONCE:
        raise InvalidRequestError(
            f"{len(names)} resources are wanted at once, at most {MOST_AT_ONCE} can "
            "be: take them in several requests"
        )
    for place, name in enumerate(names):
        if name in names[:place]:
            raise InvalidRequestError(f"{quoted(name)} is named twice: name it once")
    space = lockspace or default_lockspace(names[0] if names else "")
    return request("acquire", lockspace=space, resources=names, mode=mode, **params)


def page(method: str, after: object, **params: Any) -> Reply:
    """Returns the request for one page of a listing."""
    return request(method, after=after, limit=PAGE, **params)
