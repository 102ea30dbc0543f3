"""What is measured, row by row, and the figures that must be reached."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

from benchmarks import daemons, growth, guests, programs
from benchmarks.comparisons import (
    IN_FLIGHT,
    LOCKSPACE_OF_KIND,
    Comparison,
    Row,
    everywhere,
    opened,
    rate_of,
    time_of,
    times,
)
from benchmarks.cpus import Cpus
from benchmarks.floor import CALLS, compiled, floor
from benchmarks.measure import Duel, Round, take_turns
from benchmarks.table import Goal, Result
from benchmarks.wires import VirtlockdWire, in_flight, names, one_by_one

_LOCKS_OF_A_GUEST: Final = 4
_GUESTS: Final = (1, 50)


def one_by_one_row(directory: Path) -> Iterator[Result]:
    # At libvirt's socket, lockd too may end an owner that disconnects with locks held:
    # this process, if it is interrupted. So that connection outlives lockd.
    with ExitStack() as last, ExitStack() as stack:
        virtlockd = stack.enter_context(daemons.virtlockd(directory / "virtlockd"))
        daemon = stack.enter_context(daemons.lockd(directory / "lockd"))
        resources = names(IN_FLIGHT)
        rounds = {"virtlockd": one_by_one(virtlockd.wire, resources)}
        for kind in LOCKSPACE_OF_KIND:
            rounds[kind] = one_by_one(opened(stack, daemon, kind), resources)
        through = VirtlockdWire(daemon.virtlockd_socket, daemon.locks)
        last.callback(through.close)
        rounds["libvirt"] = one_by_one(through, names(IN_FLIGHT, "libvirt"))
        pids = dict.fromkeys(rounds, daemon.pid) | {"virtlockd": virtlockd.pid}
        what = "pair one by one, "
        goals: dict[str, dict[Cpus, Goal]] = {
            "memory": {Cpus.ONE: Goal(0.9)},
            "directory": {Cpus.ONE: Goal(1.05), Cpus.TWO: Goal(1.15)},
            "libvirt": {Cpus.ONE: Goal(1.4)},
        }
        titles = {"libvirt": "directory, libvirt's socket"}
        lines = [
            Comparison(what + titles.get(kind, kind), kind, "virtlockd", must)
            for kind, must in goals.items()
        ]
        yield from everywhere(rounds, pids, lines)


def in_flight_row(directory: Path) -> Iterator[Result]:
    with ExitStack() as stack:
        virtlockd = stack.enter_context(daemons.virtlockd(directory / "virtlockd"))
        daemon = stack.enter_context(daemons.lockd(directory / "lockd"))
        rounds = {"virtlockd": in_flight(virtlockd.wire, names(IN_FLIGHT))}
        for kind in LOCKSPACE_OF_KIND:
            wire = opened(stack, daemon, kind)
            rounds[kind] = in_flight(wire, names(IN_FLIGHT))
        pids = dict.fromkeys(rounds, daemon.pid) | {"virtlockd": virtlockd.pid}
        what = f"pair, {IN_FLIGHT} in flight, "
        goals = {"memory": Goal(0.36), "directory": Goal(0.6)}
        lines = [
            Comparison(what + kind, kind, "virtlockd", {Cpus.ONE: goal})
            for kind, goal in goals.items()
        ]
        yield from everywhere(rounds, pids, lines)


def floor_row(directory: Path) -> Iterator[Result]:
    """How far lockd and virtlockd are from what no daemon goes below."""
    program = compiled(directory)
    with ExitStack() as last, ExitStack() as stack:
        virtlockd = stack.enter_context(daemons.virtlockd(directory / "virtlockd"))
        daemon = stack.enter_context(daemons.lockd(directory / "lockd"))
        rounds = {"virtlockd": one_by_one(virtlockd.wire, names(IN_FLIGHT))}
        for kind in LOCKSPACE_OF_KIND:
            wire = opened(stack, daemon, kind)
            rounds[kind] = one_by_one(wire, names(IN_FLIGHT))
        through = VirtlockdWire(daemon.virtlockd_socket, daemon.locks)
        last.callback(through.close)  # as above
        rounds["libvirt"] = one_by_one(through, names(IN_FLIGHT, "libvirt"))
        for calls in CALLS:
            wire = stack.enter_context(floor(program, directory / calls, calls))
            rounds[calls] = one_by_one(wire, names(IN_FLIGHT))
        costs = take_turns(rounds)
    # At libvirt's socket, files go at once.
    kinds = {"none": "memory", "kept": "directory", "made": "libvirt"}
    for calls, title in CALLS.items():
        duel = Duel(costs[kinds[calls]], costs[calls])
        against = f"C loop {time_of(duel.theirs)}"
        what = f"floor: {title}"
        yield Result(what, time_of(duel.ours), against, duel.cost_ratio())
    duel = Duel(costs["virtlockd"], costs["made"])
    yield Result(
        "floor: virtlockd, the file made and removed",
        f"({time_of(duel.ours)})",
        f"C loop {time_of(duel.theirs)}",
        duel.cost_ratio(),
    )


def look_row(directory: Path) -> Iterator[Result]:
    """What it costs to look who else has a file locked."""
    with ExitStack() as stack:
        daemon = stack.enter_context(daemons.lockd(directory))
        paths = [str(daemon.locks / name) for name in names(IN_FLIGHT)]
        for path in paths:
            Path(path).touch()
        rounds = {
            lockspace: one_by_one(stack.enter_context(closing(wire)), paths)
            for lockspace in (daemons.LOOKING, daemons.NOT_LOOKING)
            for wire in [daemon.wire(lockspace)]
        }
        costs = take_turns(rounds)
    what = "pair of a file by its path, with a look"
    yield times(what, costs, daemons.LOOKING, daemons.NOT_LOOKING, Goal(1.05))


def kept_row(directory: Path) -> Iterator[Result]:
    """What it costs that all of it would survive a crash."""
    ways = {"one by one": one_by_one, f"{IN_FLIGHT} in flight": in_flight}
    with ExitStack() as stack:
        kept = stack.enter_context(daemons.lockd_that_is_kept(directory / "kept"))
        plain = stack.enter_context(daemons.lockd(directory / "plain"))
        for way, rounds_of in ways.items():
            for kind in LOCKSPACE_OF_KIND:
                rounds = {
                    name: rounds_of(opened(stack, daemon, kind), names(IN_FLIGHT))
                    for name, daemon in (("kept", kept), ("not kept", plain))
                }
                costs = take_turns(rounds)
                duel = Duel(costs["kept"], costs["not kept"])
                yield Result(
                    f"pair {way}, {kind}, kept",
                    time_of(duel.ours),
                    f"not kept {time_of(duel.theirs)}",
                    duel.difference(1e6),
                    Goal(15),
                    "us",
                )


def guests_row(directory: Path) -> Iterator[Result]:
    """Guests that start with four disks and stop, in libvirt's protocol, to both."""
    with ExitStack() as stack:
        virtlockd = stack.enter_context(daemons.virtlockd(directory / "virtlockd"))
        daemon = stack.enter_context(daemons.lockd(directory / "lockd"))
        ours = VirtlockdWire(daemon.virtlockd_socket, daemon.locks)
        stack.enter_context(closing(ours))
        contenders = {
            "lockd": (daemon.virtlockd_socket, ours),
            "virtlockd": (virtlockd.socket, virtlockd.wire),
        }
        owners = [
            stack.enter_context(guests.Process(virtlockd.socket))
            for _ in range(max(_GUESTS))
        ]
        for count in _GUESTS:
            ends: dict[str, dict[str, Round]] = {"releases": {}, "is killed": {}}
            for name, (socket, wire) in contenders.items():
                at_once = [
                    guests.Guest.of(
                        wire, owner.pid, names(_LOCKS_OF_A_GUEST, f"{owner.pid}-")
                    )
                    for owner in owners[:count]
                ]
                ends["releases"][name] = guests.starts_and_stops(socket, at_once)
                ends["is killed"][name] = guests.starts_and_deaths(
                    socket, at_once, wire
                )
            for how, rounds in ends.items():
                costs = take_turns(rounds)
                duel = Duel(costs["lockd"], costs["virtlockd"])
                yield Result(
                    f"guest starts, {how}; {count} at a time",
                    rate_of(duel.ours, "guests"),
                    f"virtlockd {rate_of(duel.theirs, 'guests')}",
                    duel.rate_ratio(),
                    Goal(1, at_least=True),
                )


ROWS: Final[dict[str, Row]] = {
    "one-by-one": one_by_one_row,
    "in-flight": in_flight_row,
    "floor": floor_row,
    "look": look_row,
    "kept": kept_row,
    "guests": guests_row,
    "held-memory": growth.held_memory_row,
    "held-directory": growth.held_directory_row,
    "handover": growth.handover_row,
    "weight": growth.weight_row,
    "upgrade": growth.upgrade_row,
    "clients": programs.clients_row,
    "lockctl": programs.lockctl_row,
    "crash": growth.crash_row,
}
