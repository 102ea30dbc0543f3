"""The problems that an admin should fix."""

import logging
import textwrap
from typing import Final

logger = logging.getLogger(__name__)

MAX_SUMMARY: Final = 500
"""The most characters of the summary. The log and `statistics` have all of it."""


class Health:
    """Problems by subject. A new problem replaces the old one of the same subject.

    A problem stays until its subject works again.
    """

    def __init__(self) -> None:
        self._problems: dict[str, str] = {}

    @property
    def problems(self) -> list[str]:
        """A sentence for each problem, the oldest first."""
        return list(self._problems.values())

    def problem(self, key: str) -> str | None:
        """Returns the problem of a subject; None if it works."""
        return self._problems.get(key)

    def report(self, key: str, problem: str) -> None:
        """Sets the problem of a subject. Logs it once while it stays the same."""
        if self._problems.get(key) != problem:
            logger.error("%s", problem)
        self._problems[key] = problem

    def clear(self, *keys: str) -> None:
        """Removes the problems of subjects that work again."""
        for key in keys:
            self._problems.pop(key, None)

    def replace_all(self, prefix: str, problems: dict[str, str]) -> None:
        """Replaces all problems with a prefix."""
        self.clear(*(key for key in self._problems if key.startswith(prefix)))
        for key, problem in problems.items():
            self.report(prefix + key, problem)

    def summary(self) -> str:
        """Returns all problems on one line, shortened; empty without any."""
        line = "; ".join("; ".join(x.splitlines()) for x in self.problems)
        return textwrap.shorten(line, MAX_SUMMARY, placeholder="…")
