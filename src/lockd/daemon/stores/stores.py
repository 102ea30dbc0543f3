"""Everything that outlives the process, in a few descriptors."""

from typing import Final

from lockd.daemon.stores.in_flight import OLD_QUEUES, InFlight
from lockd.daemon.stores.ledger import Ledger
from lockd.daemon.stores.streams import Cells, Pipe


class Stores:
    """The stores, and the descriptors that hold them.

    Args:
        found: the descriptors that the service manager kept for a predecessor, by name;
            None creates new ones.
    """

    #: The names of the descriptors.
    NAMES: Final = frozenset(
        ["cells", "ledger-0", "ledger-1", "pipe-0", "pipe-1"]
        + [f"end-{n:02}" for n in range(2 * (1 + OLD_QUEUES))]
    )

    def __init__(self, found: dict[str, int] | None = None) -> None:
        if found is None:
            self.ledger, self.cells = Ledger(), Cells()
            self.in_flight, self.pipe = InFlight(), Pipe()
            return
        self.ledger = ledger_of(found)
        self.cells = Cells(found["cells"])
        self.pipe = Pipe((found["pipe-0"], found["pipe-1"]))
        ends = sorted(x for x in found if x.startswith("end-"))
        self.in_flight = InFlight([found[name] for name in ends])

    def descriptors(self) -> dict[str, int]:
        """Returns the descriptors to keep, by the names that `__init__` takes."""
        named = names_of(self.ledger)
        named |= {f"pipe-{n}": fd for n, fd in enumerate(self.pipe.ends)}
        named |= {f"end-{n:02}": fd for n, fd in enumerate(self.in_flight.ends)}
        return named | {"cells": self.cells.fd}


def names_of(ledger: Ledger) -> dict[str, int]:
    """Returns the descriptors of a ledger, by the names that `ledger_of` takes."""
    return {f"ledger-{n}": fd for n, fd in enumerate(ledger.fds)}


def ledger_of(found: dict[str, int]) -> Ledger:
    """Returns the ledger of some named descriptors; raises as `Ledger`."""
    return Ledger((found["ledger-0"], found["ledger-1"]))
