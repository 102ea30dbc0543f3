"""What an admin has to mend, until it is mended."""

import logging
import textwrap
from typing import Final

logger = logging.getLogger(__name__)

MAX_SUMMARY: Final = 500
"""Characters of the summary; the log, and `statistics`, have all of it."""


class Health:
    """Problems by what they concern: a later word on the same replaces the earlier.

    A problem stays until whatever it concerns works again, whatever else does.
    """

    def __init__(self) -> None:
        self._problems: dict[str, str] = {}

    @property
    def problems(self) -> list[str]:
        """A sentence for each problem, the earliest first."""
        return list(self._problems.values())

    def problem(self, key: str) -> str | None:
        """Returns what is wrong with something; None if it works."""
        return self._problems.get(key)

    def report(self, key: str, problem: str) -> None:
        """Says what is wrong; once in the log for as long as it stays the same."""
        if self._problems.get(key) != problem:
            logger.error("%s", problem)
        self._problems[key] = problem

    def clear(self, *keys: str) -> None:
        """Forgets what is mended."""
        for key in keys:
            self._problems.pop(key, None)

    def replace_all(self, prefix: str, problems: dict[str, str]) -> None:
        """Has the problems under a prefix be exactly these."""
        self.clear(*(key for key in self._problems if key.startswith(prefix)))
        for key, problem in problems.items():
            self.report(prefix + key, problem)

    def summary(self) -> str:
        """Returns all problems on one line, cut; empty if there are none."""
        line = "; ".join("; ".join(x.splitlines()) for x in self.problems)
        return textwrap.shorten(line, MAX_SUMMARY, placeholder="…")
