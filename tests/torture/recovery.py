"""How soon it serves again with much held, what that costs PID 1; and the price."""

import os
import time
from functools import partial
from typing import Final

from torture import scenarios
from torture.board import Board
from torture.inside import Actor, Stage
from torture.line import SOCKET, Line, LostError, Refused, UnansweredError
from torture.report import Report
from torture.target import SERVICE, Target

LOCKS: Final = 10_000
CONNECTIONS: Final = 1_000
SECONDS: Final = 120.0

P50, P99 = 0.4, 0.8
CPU_SECONDS: Final = 0.1
RELOAD_SECONDS: Final = 0.3
PRICE: Final = 1.4

PAIRS: Final = 4_000


def hold_much(board: Board, locks: int, connections: int, stage: Stage) -> None:
    """Holds many locks over many sessions; at each step has one more granted."""
    try:
        lines = [
            Line(board, scenarios.SLOT, f"actor's line {n}") for n in range(connections)
        ]
        each = locks // connections
        for number, line in enumerate(lines):
            names = [f"much-{number}-{n}" for n in range(each)]
            line.call("acquire", lockspace="files", resources=names)
        while stage.step():
            line = lines[0]
            line.call("acquire", lockspace="files", resource="one more")
            stage.step()
            line.call("release", lockspace="files", resource="one more")
        for number, line in enumerate(lines):
            names = [f"much-{number}-{n}" for n in range(each)]
            line.call("release", lockspace="files", resources=names)
            line.finish()
    except (LostError, UnansweredError):
        pass  # has been complained of
    except Refused as refusal:
        board.complain("lost lock", f"one who holds much: {refusal}")


def recovery(target: Target, board: Board, report: Report, kills: int) -> None:
    """Kills with much held, one at a time; shows how long nothing was granted."""
    board.clear()
    cpu = target.first_cpu()
    actor = Actor(target.first_pid, partial(hold_much, board, LOCKS, CONNECTIONS))
    assert actor.wait(SECONDS), board.complaints()
    report.title(f"{LOCKS} locks of {CONNECTIONS} sessions held, {kills} kills")
    acquired = target.first_cpu() - cpu
    report.speed("PID 1's processor time meanwhile", acquired, CPU_SECONDS, "s")
    report.show("used", target.use())
    waits, cpu, lost = [], target.first_cpu(), 0
    for _ in range(kills):
        before = target.wait_pid()
        board.note_fault()
        began = time.monotonic()
        target.kill()
        actor.go()
        if not actor.wait(SECONDS):
            lost += 1
            break
        waits.append(time.monotonic() - began)
        actor.go()
        actor.wait(SECONDS)
        target.wait_pid(before)
    used = target.first_cpu() - cpu
    _reload(target, report)
    board.note_fault()
    said = target.statistics(board)
    report.at_least("locks held at the end", said["held"], LOCKS)
    report.at_least("sessions at the end", said["sessions"], CONNECTIONS)
    actor.end()
    complaints = board.complaints()
    report.must("violations", len(complaints) + lost, 0)
    for kind, what, _ in complaints[:5]:
        report.show(f"  {kind}: {what}", "")
    if waits:
        waits.sort()
        report.speed("first grant after a kill, p50", _share(waits, 0.5), P50, "s")
        report.speed("first grant after a kill, p99", _share(waits, 0.99), P99, "s")
        each = used / len(waits)
        report.speed("PID 1's processor time for each kill", each, CPU_SECONDS, "s")


def _share(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _reload(target: Target, report: Report) -> None:
    times = []
    for _ in range(5):
        began = time.monotonic()
        target.machine.run("systemctl", "daemon-reload")
        times.append(time.monotonic() - began)
    report.speed(
        "daemon-reload, the median of five", sorted(times)[2], RELOAD_SECONDS, "s"
    )


def price(target: Target, board: Board, report: Report) -> None:
    """Acquire and release with keeping and without, alternately, in one run."""
    report.title("The price of keeping")
    times: dict[str, dict[str, float]] = {}
    for _ in range(5):
        for how in ("with", "without"):
            off = "[Service]\nFileDescriptorStoreMax=0\nEnvironment=LOCKD_KEEP=0\n"
            target.machine.run("systemctl", "stop", SERVICE)
            target.drop_in("" if how == "with" else off)
            target.machine.run("systemctl", "start", SERVICE)
            for space in ("default", "files"):
                took = _time_pairs(target, board, space)
                best = times.setdefault(space, {})
                best[how] = min(best.get(how, took), took)
    target.drop_in("")
    target.machine.run("systemctl", "restart", SERVICE)
    for space, best in times.items():
        for how, seconds in best.items():
            report.show(f"acquire + release, {space}, {how}", seconds * 1e6, "us")
        ratio = best["with"] / best["without"]
        report.speed(f"acquire + release, {space}: times as long", ratio, PRICE, "")


def _time_pairs(target: Target, board: Board, space: str) -> float:
    """Returns the seconds that one pair takes, by the clock of the one who asks."""

    def pairs(stage: Stage) -> None:
        line = Line(board, scenarios.SLOT, "actor's line", SOCKET)
        os.nice(-10)
        for _ in range(200):
            line.call("acquire", lockspace=space, resource="one")
            line.call("release", lockspace=space, resource="one")
        stage.step()
        for _ in range(PAIRS):
            line.call("acquire", lockspace=space, resource="one")
            line.call("release", lockspace=space, resource="one")
        stage.step()
        line.close()

    actor = Actor(target.first_pid, pairs)
    assert actor.wait(SECONDS)
    began = time.monotonic()
    actor.go()
    assert actor.wait(SECONDS)
    took = time.monotonic() - began
    actor.end()
    return took / PAIRS
