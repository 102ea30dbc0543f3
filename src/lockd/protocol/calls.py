"""Requests whose method exists, and whose parameters are valid."""

from typing import Any, Literal

from msgspec import Struct

Access = Literal["always", "unrestricted", "admin"]
"""Who may call it: everybody, unrestricted sessions, or admins."""


class Method:
    """One method of the catalogue.

    Args:
        name: its name.
        params: the type of its parameters.
        access: who may call it.
    """

    __slots__ = ("access", "name", "params")

    def __init__(
        self, name: str, params: type[Struct], access: Access = "unrestricted"
    ) -> None:
        self.name = name
        self.params = params
        self.access = access


class MethodCall:
    """A request; `params` is of the type that its method has."""

    __slots__ = ("method", "msgid", "params")

    def __init__(self, msgid: int, method: Method, params: Any) -> None:
        self.msgid = msgid
        self.method = method
        self.params = params
