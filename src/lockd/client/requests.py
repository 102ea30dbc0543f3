"""Builds requests, and checks every argument. A parameter that is None is omitted."""

import os
from collections.abc import Callable, Iterable

from lockd.client import within
from lockd.client.arguments import (
    checked,
    file_text,
    printable_name,
    resource_text,
    resource_texts,
)
from lockd.client.core import PROTOCOL_VERSION
from lockd.client.grants import AnyGrant
from lockd.client.reply import Reply
from lockd.errors import InvalidRequestError
from lockd.hints import TYPE_CHECKING, Any, Final
from lockd.names import default_lockspace, quoted
from lockd.terms import EXCLUSIVE, SLOT, ResourceKey
from lockd.terms import key_of as make_key

if TYPE_CHECKING:
    from lockd.terms import Mode

CLIENT_NAME: Final = "lockd-python"

PAGE: Final = 256
"""Entries of a page: the most that the protocol allows. The daemon may return fewer."""

Name = str | os.PathLike[str]
"""The name of a resource, or the path of a file."""


def request(method: str, **params: Any) -> Reply:
    """Returns a new request without the parameters that are None.

    Raises:
        TypeError: a parameter has the wrong type.
        InvalidRequestError: one has a value that is not allowed.
    """
    return Reply(method, checked(method, params))


class Opening:
    """The requests that begin a conversation; `hello` is the first.

    Args:
        name: the name of the owner of the locks; None to register later.
        client: the name of the client for the daemon.
    """

    def __init__(self, name: str | None, client: str = CLIENT_NAME) -> None:
        self._name = name
        self._client = client
        self._within = within.inherited()

    def requests(self) -> list[Reply]:
        """Returns the requests, new at each call."""
        said = {"client": self._client, "within": self._within or None}
        hello = request("hello", protocol=PROTOCOL_VERSION, **said)
        return [hello] if self._name is None else [hello, register(self._name)]

    def say_less(self) -> bool:
        """Leaves out what an older daemon does not know.

        Returns whether there was any of that.
        """
        said_more, self._within = bool(self._within), []
        return said_more


def register(
    name: str,
    uuid: str | None = None,
    owner_id: int | None = None,
    pid: int | None = None,
    on_disconnect: str | None = None,
    *,
    inheritable: bool | None = None,
    until: str | None = None,
) -> Reply:
    """Returns the request that registers an owner."""
    said = {"name": name, "uuid": uuid, "owner_id": owner_id, "pid": pid}
    owner = checked("register", said)
    if "owner_id" in owner:
        owner["id"] = owner.pop("owner_id")
    return request(
        "register",
        owner=owner,
        on_disconnect=on_disconnect,
        inheritable=inheritable,
        until=until,
    )


def key_of(
    target: Name, lockspace: str | None = None, what: str = "resource"
) -> ResourceKey:
    """Returns the resource of a name.

    Args:
        target: the name, or the path of a file.
        lockspace: the lockspace. If None, `direct` for a file, else `default`.
        what: the name of the parameter, for error messages.

    Raises:
        TypeError: the target is none of these.
        InvalidRequestError: it is not a valid name.
    """
    is_text = isinstance(target, str)  # that is quickly told; what a path is, is not
    if lockspace is None and not is_text and isinstance(target, os.PathLike):
        name = file_text(what, target)
    else:
        name = resource_text(what, target)
    if lockspace is None:
        return make_key((default_lockspace(name), name))
    return make_key((printable_name("lockspace", lockspace), name))


def params_about(
    method: str, resource: Name, lockspace: str | None, **params: Any
) -> dict[str, Any]:
    """Returns the parameters of a request about one resource."""
    space, name = key_of(resource, lockspace)
    return {"lockspace": space, "resource": name} | checked(method, params)


def about(method: str, resource: Name, lockspace: str | None, **params: Any) -> Reply:
    """Returns a request about one resource."""
    return Reply(method, params_about(method, resource, lockspace, **params))


def of_held(
    method: str,
    target: AnyGrant | Name,
    lockspace: str | None,
    find: Callable[[ResourceKey], tuple[int, int | None]],
    **params: Any,
) -> Reply:
    """Returns a request about a lock that is held: by its token, if that is known.

    Args:
        method: the method.
        target: the grant of the lock, or the name of the resource.
        lockspace: as for `key_of`.
        find: returns the caller's strand, and the fencing token with which it holds a
            resource. Without a token, the session as a whole may hold it (protocol
            5.3).
        params: other parameters.
    """
    if isinstance(target, AnyGrant):
        name, strand, token = target.resource, target.hold.strand, target.fencing_token
        held: dict[str, Any] = {"fencing_token": token}
    else:
        key = key_of(target, lockspace, "target")
        name = key.resource
        strand, found = find(key)
        held = key._asdict() if found is None else {"fencing_token": found}
    held |= checked(method, params)
    return Reply(method, held, name=name, strand=strand)


def in_mode(mode: "Mode", slots: int | None = None) -> dict[str, Any]:
    """Returns the parameters for a mode. With a number of slots, the mode is "slot".

    `slots` comes first: an older daemon then names it as what it does not know.

    Raises:
        InvalidRequestError: the mode has no slots.
    """
    if slots is None and mode != SLOT:
        return {"mode": mode}
    if mode not in (SLOT, EXCLUSIVE):
        raise InvalidRequestError(
            f'slots need the mode "slot", not {quoted(str(mode))}: leave the mode out'
        )
    return {"slots": True if slots is None else slots, "mode": SLOT}


def acquire_all(
    resources: Iterable[Name],
    lockspace: str | None,
    mode: "Mode",
    *,
    slots: Any = None,
    **params: Any,
) -> Reply:
    """Returns a request for several resources, all or nothing.

    Raises:
        TypeError: they are no names.
        InvalidRequestError: there are none or too many, or one appears twice.
    """
    given = resource_texts("resources", resources)
    keys = [key_of(name, lockspace, "each of resources") for name in given]
    names = [key.resource for key in keys]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise InvalidRequestError(f"{quoted(name)} is named twice: name it once")
    space = keys[0].lockspace
    wanted = in_mode(mode, slots) | params
    return request("acquire", lockspace=space, resources=names, **wanted)


def is_more_of(found: dict[str, Any], last: dict[str, Any]) -> bool:
    """Returns whether an entry names further holders of the last one, and adds them.

    A daemon names a few holders in each entry (protocol 6.9).
    """
    if any(found[name] != last[name] for name in ("lockspace", "resource")):
        return False
    last["holders"] += found["holders"]
    return True


def page(method: str, after: object, **params: Any) -> Reply:
    """Returns the request for one page of a listing."""
    return request(method, after=after, limit=PAGE, **params)


def check_releasable(targets: Iterable[object], *kinds: type) -> None:
    """Checks that each target names a lock to release.

    Raises:
        TypeError: one does not.
    """
    for target in targets:
        if isinstance(target, (str, os.PathLike, *kinds)):
            continue
        known = " or ".join(f"a {kind.__name__}" for kind in kinds)
        given = "None" if target is None else f"of type {type(target).__name__}"
        raise TypeError(
            f"each target of release must be {known}, or the name of a lock, not "
            f"{given}: pass what acquire returned"
        )
