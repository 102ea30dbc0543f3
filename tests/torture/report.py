"""The closing table: what was counted, what had to be, and what was found."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from torture.calls import Hit
from torture.judge import Judge
from torture.rounds import Counted

_WIDTH: Final = 60


@dataclass
class Report:
    """Rows with verdicts; it fails if one does.

    Attributes:
        is_speed_judged: whether it fails if something takes too long.
    """

    is_speed_judged: bool = True
    rows: list[str] = field(default_factory=list)
    failed: bool = False

    def title(self, text: str) -> None:
        self.rows.append(f"\n{text}")
        print(f"\n{text}", flush=True)

    def show(self, what: str, value: object, unit: str = "") -> None:
        """A figure that is only told."""
        self._row(f"  {what:<{_WIDTH}} {_said(value):>12} {unit}")

    def must(self, what: str, value: float, most: float, unit: str = "") -> None:
        """A figure that must not be greater than another."""
        met = value <= most
        self.failed |= not met
        verdict = "met" if met else "MISSED"
        bound = f"<= {most:<8g}"
        self._row(f"  {what:<{_WIDTH}} {_said(value):>12} {unit:<4} {bound} {verdict}")

    def speed(self, what: str, value: float, most: float, unit: str) -> None:
        """How long something takes, and how long it may at most."""
        if self.is_speed_judged:
            self.must(what, value, most, unit)
        else:
            self.show(what, value, f"{unit:<4} <= {most:<8g} not judged")

    def at_least(self, what: str, value: float, least: float) -> None:
        met = value >= least
        self.failed |= not met
        verdict = "met" if met else "MISSED"
        self._row(
            f"  {what:<{_WIDTH}} {_said(value):>12}      >= {least:<8g} {verdict}"
        )

    def rounds(self, counted: Counted) -> None:
        """A kind of rounds."""
        self.failed |= counted.violations > 0
        verdict = "none" if not counted.violations else f"{counted.violations} FOUND"
        self._row(
            f"  {counted.name:<34} {counted.rounds:>3} rounds ({counted.discarded} "
            f"discarded) {counted.faults:>6} faults ({counted.faults_under_load} under "
            f"load) {counted.grants:>8} grants {counted.seconds:>6.0f} s: {verdict}"
        )

    @contextmanager
    def hits(self, name: str) -> Iterator[Hit]:
        """A scenario that is met at one system call after the other by the body.

        What was met is told even if the body is interrupted.
        """
        found = Hit(name)
        try:
            yield found
        finally:
            self._hit(found)

    def _hit(self, found: Hit) -> None:
        self.failed |= found.violations > 0
        verdict = "none" if not found.violations else f"{found.violations} FOUND"
        hits = f"{found.hit}/{found.total}"
        after = f" (after it: {found.hit_after})" if found.hit_after else ""
        self._row(f"  {found.name:<34} {hits:>10}{after} violations: {verdict}")
        if found.missed:
            missed = ", ".join(f"{call} {n}" for call, n in found.missed.most_common())
            self._row(f"    seen once, and not again: {missed}")

    def judged(self, judge: Judge) -> None:
        """What was found, by kind."""
        self.title("What was found")
        for kind in KINDS_OF_VIOLATION:
            self.must(f"violations: {kind}", judge.found.get(kind, 0), 0)
        for kind, count in sorted(judge.found.items()):
            if kind not in KINDS_OF_VIOLATION:
                self.must(f"violations: {kind}", count, 0)
        for line in judge.told:
            self._row(f"    {line}")

    def _row(self, text: str) -> None:
        self.rows.append(text)
        print(text, flush=True)

    def again(self) -> None:
        """Prints all of it once more, at the end."""
        print("\n" + "=" * 100)
        print("\n".join(self.rows))


#: What can go wrong, so that a 0 is printed for it, too.
KINDS_OF_VIOLATION: Final = (
    "overlap",
    "counter",
    "free moment",
    "lost lock",
    "lost connection",
    "slot",
    "notice",
    "overdue",
    "queue order",
    "token",
    "unanswered",
    "repeated answer",
    "unexpected answer",
    "malformed",
    "killed",
    "left",
    "defect",
    "memory",
    "shared memory",
    "harness",
)


def _said(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
