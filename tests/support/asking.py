"""Asks a daemon again and again, until what must become true is."""

from collections.abc import Callable
from typing import Any

from lockd import Client


def ask_until(
    client: Client,
    name: str,
    condition: Callable[[dict[str, Any]], bool],
    **space: str,
) -> dict[str, Any]:
    """Asks for the state of a lock until it is as it must become."""
    while not condition(state := client.query(name, **space)):
        pass
    return state
