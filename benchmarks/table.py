"""The table: one line per comparison, as it becomes known."""

from dataclasses import dataclass
from typing import Final

from benchmarks.measure import Spread

_LINE: Final = "{:<51}  {:<15}  {:<27}  {:<22}  {:<7}  {}"


@dataclass(frozen=True)
class Goal:
    """The figure that a ratio must reach."""

    limit: float
    at_least: bool = False

    def is_met_by(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    what: str
    ours: str
    against: str
    ratio: Spread
    goal: Goal | None = None

    def __str__(self) -> str:
        ratio = self.ratio
        goal, verdict = "", ""
        if self.goal is not None:
            goal = str(self.goal)
            verdict = "met" if self.goal.is_met_by(ratio.median) else "MISSED"
        figures = f"{ratio.median:6.2f}  ({ratio.low:.2f} - {ratio.high:.2f})"
        line = _LINE.format(self.what, self.ours, self.against, figures, goal, verdict)
        return line.rstrip()


def heading() -> str:
    names = ("", "lockd", "against", " ratio  (middle half)", "must be", "")
    return _LINE.format(*names).rstrip()
