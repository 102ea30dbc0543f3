"""Counts by user: who has how much."""


class Tally(dict[int, int]):
    """How many of something each uid has; who has none is not in it."""

    def add(self, uid: int) -> None:
        """Counts one more."""
        self[uid] = self.get(uid, 0) + 1

    def remove(self, uid: int) -> None:
        """Counts one less."""
        left = self[uid] - 1
        if left:
            self[uid] = left
        else:
            del self[uid]
