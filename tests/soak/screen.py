"""What the soak tells in the end: one screen, in plain words."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from campaigns.misbehaving import NICE
from soak.clients import HONEST_UID, MISBEHAVING_UIDS, own_place
from soak.meter import Phase, Sample
from torture.board import Record
from torture.judge import Judge

P99_FACTOR: Final = 3.0
"""The p99 of the honest under load may be so many times that without."""

_NAMES: Final = {
    "unit": ("memory of the unit", "MiB", "the memory of the unit"),
    "resident": ("memory of the process", "MiB", "the memory of the process"),
    "shared": ("shared memory (memfds)", "MiB", "the shared memory"),
    "descriptors": ("descriptors of lockd", "", "the descriptors of lockd"),
    "manager": ("descriptors of PID 1", "", "the descriptors of PID 1"),
    "in_flight": ("descriptors in flight", "", "the descriptors in flight"),
}


@dataclass
class Screen:
    """What was measured and found.

    Attributes:
        seconds: for which clients misbehaved.
        is_p99_judged: whether it counts how long the honest waited.
        phases: before, during and after that.
        records: of all that the honest held.
        acts: by kind of those who misbehave what they did, and what was done to them.
        restarts: of the service, as the service manager counts them.
        defects: what the journal has of them.
        judge: of the records, done.
    """

    seconds: float
    is_p99_judged: bool
    phases: tuple[Phase, Phase, Phase]
    records: list[Record]
    acts: dict[str, Counter[str]]
    restarts: int
    defects: list[str]
    judge: Judge

    @cached_property
    def p99(self) -> list[float]:
        """Milliseconds until a free lock was granted, by phase."""
        own = {own_place(slot).number for slot in {r.slot for r in self.records}}
        found = []
        for phase in self.phases:
            waits = sorted(
                (r.granted - r.sent) / 1e6
                for r in self.records
                if r.resource in own and phase.begin <= r.sent < phase.end
            )
            found.append(waits[len(waits) * 99 // 100] if waits else float("nan"))
        return found

    @property
    def failures(self) -> list[str]:
        """What is wrong, a sentence each."""
        found = []
        before, _, after = self.phases
        if self.restarts:
            found.append(f"The service restarted {self.restarts} times.")
        found += [f"A defect: {story}" for story in self.defects]
        found += [f"{kind}: {n} found." for kind, n in self.judge.found.items()]
        found += self.judge.told
        bounds = Sample.bounds(before.most)
        for name in after.last.grown(before.most):
            now, most = getattr(after.last, name), bounds[name]
            found.append(
                f"Growth: {_NAMES[name][2]}: {now:.1f} after the load, "
                f"at most {most:.1f} was expected."
            )
        if failed := sum(acts["failed"] for acts in self.acts.values()):
            found.append(
                f"{failed} clients that misbehave ended by an error of theirs."
            )
        if not all(self._granted()):
            found.append("The honest were granted nothing in one of the phases.")
        if self.is_p99_judged and not self.p99[1] <= P99_FACTOR * self.p99[0]:
            found.append(f"The honest waited {self.p99[1] / self.p99[0]:.1f} times "
                         "as long under load.")  # fmt: skip
        return found

    def _granted(self) -> list[int]:
        return [
            sum(p.begin <= r.granted < p.end for r in self.records) for p in self.phases
        ]

    def text(self, took: float) -> str:
        """Returns the screen."""
        before, during, after = self.phases
        count = sum(bool(acts) for acts in self.acts.values())
        lines = [
            "",
            f"Soak of lockd: clients misbehaved for {self.seconds:.0f} s "
            f"({took:.0f} s with the boot and the quiet before and after)",
            f"{len(MISBEHAVING_UIDS)} users misbehave in {count} ways; a third user "
            f"(uid {HONEST_UID}) is honest.",
            f"All of them, the daemon and this program share {os.cpu_count()} "
            f"processors; those who misbehave run at nice {NICE}, the daemon at -10.",
            "",
            _row("", "before", "during", "after", "may be"),
        ]
        bounds = Sample.bounds(before.most)
        grown = after.last.grown(before.most)
        for name, (title, unit, _) in _NAMES.items():
            values = (getattr(x, name) for x in (before.most, during.most, after.last))
            number = _mib if unit else _count
            verdict = "GREW" if name in grown else "ok"
            if getattr(after.last, name) is None:
                lines.append(_row(title, "not", "counted", "here"))
                continue
            lines.append(
                _row(f"{title}, {unit}" if unit else title, *map(number, values),
                     number(bounds[name]), verdict)
            )  # fmt: skip
        lines.append(
            _percents("processor time of lockd, %", lambda p: p.cpu, self.phases)
        )
        lines.append(_percents("all processors busy, %", lambda p: p.busy, self.phases))
        ratio = self.p99[1] / self.p99[0]
        verdict = "not judged" if not self.is_p99_judged else (
            "ok" if ratio <= P99_FACTOR else "SLOW")  # fmt: skip
        lines.append(
            _row("p99 of the honest, ms", *(f"{x:.2f}" for x in self.p99),
                 f"{P99_FACTOR * self.p99[0]:.2f}", f"{verdict} (x {ratio:.1f})")
        )  # fmt: skip
        lines.append(_row("grants to the honest", *map(str, self._granted())))
        lines.append(
            _row("restarts of the service", "", str(self.restarts), "", "0",
                 "ok" if not self.restarts else "RESTARTED")
        )  # fmt: skip
        wrong = sum(self.judge.found.values())
        lines.append(
            _row("overlaps, fallen tokens, ...", "", str(wrong), "", "0",
                 "ok" if not wrong else "VIOLATED")
        )  # fmt: skip
        lines += [
            "  (before and during: the most; after: at the end; memory may be 1.5 x "
            "what it was, and 32 MiB)",
            "",
            _row("who misbehaved", "acts", "killed", "stopped"),
        ]
        lines += [
            _row(f"  {name}", *(f"{acts[x]:,}" for x in ("acted", "killed", "stopped")))
            for name, acts in self.acts.items()
        ]
        lines += ["", *(self.failures or ["Nothing is wrong."])]
        return "\n".join(lines)


def _row(title: str, *cells: str) -> str:
    """A line of the table; the last of five cells is a verdict."""
    line = f"{title:<31}" + "".join(f"{cell:>11}" for cell in cells[:4])
    return "  ".join([line, *cells[4:]])


def _percents(
    title: str, what: Callable[[Phase], float], phases: Sequence[Phase]
) -> str:
    return _row(title, *(f"{100 * what(phase):.1f}" for phase in phases))


def _mib(value: float) -> str:
    return f"{value:.1f}"


def _count(value: float) -> str:
    return f"{value:.0f}"
