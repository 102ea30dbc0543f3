"""The table: one line per comparison, as it becomes known."""

from dataclasses import dataclass
from typing import Final

from benchmarks.cpus import Cpus
from benchmarks.measure import Spread

_WIDTHS: Final = (50, 14, 18, 28, 34, 9)
_DIGITS: Final = {"": 2, "us": 1, "s": 3, "B": 0}


@dataclass(frozen=True)
class Goal:
    """The figure that must be reached."""

    limit: float
    at_least: bool = False

    def is_met_by(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Args:
        figure: the ratio, or what the unit says. None: the two cannot be compared.
        cpus: where client and daemons ran.
    """

    what: str
    ours: str
    against: str
    figure: Spread | None
    goal: Goal | None = None
    unit: str = ""
    cpus: str = Cpus.ONE.value

    @classmethod
    def of_times(cls, what: str, costs: list[float], goal: Goal) -> "Result":
        """Makes a line of what one operation took, beside nothing else."""
        figure = Spread.of([cost * 1e6 for cost in costs])
        return cls(what, f"{figure.median:.1f} us", "-", figure, goal, "us")

    def cells(self) -> tuple[str, ...]:
        figures, goal, verdict = "not comparable", "", ""
        if self.figure is not None:
            digits = _DIGITS[self.unit]
            median, low, high = (
                f"{x:.{digits}f}"
                for x in (self.figure.median, self.figure.low, self.figure.high)
            )
            figures = f"{median} {self.unit}".rstrip() + f"  ({low} - {high})"
            if self.goal is not None:
                goal = f"{self.goal} {self.unit}".rstrip()
                verdict = "met" if self.goal.is_met_by(self.figure.median) else "MISSED"
        return (
            *(self.what, self.cpus, self.ours, self.against, figures),
            *(goal, verdict),
        )


HEADING: Final = (
    *("", "CPUs", "lockd", "against", "ratio, or as given  (middle half)"),
    *("must be", ""),
)


def plain(cells: tuple[str, ...]) -> str:
    """Returns a line for a terminal."""
    padded = (
        f"{cell:<{width}}" for cell, width in zip(cells, (*_WIDTHS, 0), strict=True)
    )
    return "  ".join(padded).rstrip()


def markdown(cells: tuple[str, ...]) -> str:
    """Returns a line for a page in Markdown (docs/explanation/speed.md)."""
    line = f"| {' | '.join(' '.join(cell.split()) for cell in cells)} |"
    if cells == HEADING:
        line += "\n" + "|---" * len(cells) + "|"
    return line
