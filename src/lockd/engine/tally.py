"""Counts by user: who has how much."""


class Tally(dict[int, int]):
    """How much of something each uid has; who has none is not in it."""

    def add(self, uid: int, more: int = 1) -> None:
        """Counts so much more, which is not 0."""
        self[uid] = self.get(uid, 0) + more

    def remove(self, uid: int, less: int = 1) -> None:
        """Counts so much less."""
        left = self[uid] - less
        if left:
            self[uid] = left
        else:
            del self[uid]
