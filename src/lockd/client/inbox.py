"""A queue between the core and the thread or task that waits for its items."""

from collections import OrderedDict, deque
from collections.abc import Callable

from lockd.client.awaited import Awaited
from lockd.client.grants import AnyGrant, Hold
from lockd.errors import LockdError
from lockd.hints import Any, Final

_FEW: Final = 64


class Inbox(Awaited):
    """Events or losses that nobody has taken yet, in order."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._newest = -1
        self._error: LockdError | None = None

    @property
    def done(self) -> bool:
        """Whether it has an item to take, or the error at the end."""
        return bool(self._items) or self._error is not None

    def put(self, item: Any, number: int) -> None:
        """Adds an item, unless one with this number or a higher one has been added."""
        # No call between the test, the store and the append (see `core`).
        if number > self._newest:
            self._newest = number
            self._items.append(item)
        self.rouse()

    def take(self) -> Any:
        """Returns the next item, or raises the error at the end.

        Raises:
            IndexError: it is empty: other code has taken the item.
        """
        if self._items or self._error is None:
            return self._items.popleft()
        raise self._error

    def end(self, error: LockdError) -> None:
        """Marks the end. The items in the inbox can still be taken."""
        self._error = error
        self.rouse()


class News(Inbox):
    """The locks that were lost, or of which a notice said something new, each once.

    So nothing piles up while nobody takes them.

    Args:
        show: returns the grant for a hold.
    """

    def __init__(self, show: Callable[[Hold], AnyGrant]) -> None:
        super().__init__()
        self._show = show
        self._changed: OrderedDict[Hold, None] = OrderedDict()
        #: How many there may be until those that were released are dropped.
        self._most = _FEW

    def __len__(self) -> int:
        return len(self._changed)

    @property
    def done(self) -> bool:
        """Whether it has a grant to take, or the error at the end."""
        return bool(self._changed) or self._error is not None

    def put_hold(self, hold: Hold) -> None:
        """Adds a hold."""
        if len(self._changed) >= self._most:
            for old in list(self._changed):
                if old.released or old.left:
                    self._changed.pop(old, None)
            self._most = _FEW + 2 * len(self._changed)
        self._changed[hold] = None
        self.rouse()

    def take(self) -> Any:
        """Returns the next grant that was not released, or raises the error at the end.

        Raises:
            IndexError: there is none.
        """
        while self._changed or self._error is None:
            try:
                hold, _ = self._changed.popitem(last=False)
            except KeyError:
                raise IndexError from None
            if not (hold.released or hold.left):
                return self._show(hold)
        raise self._error
