"""What each request waits for: the edges of the graph that `cycles` searches."""

from collections.abc import Collection, Iterator, Mapping
from itertools import islice

from lockd.engine.resource import Resource, compatible
from lockd.engine.session import Request, Strand
from lockd.terms import Mode, ResourceKey

Resources = Mapping[ResourceKey, Resource]

Obstacle = Strand | Request


class Search:
    """Finds what requests wait for, each obstacle once.

    Args:
        resources: all resources.
        only: the obstacles that count; None: all.
    """

    def __init__(
        self, resources: Resources, only: Collection[Obstacle] | None = None
    ) -> None:
        self._resources = resources
        self._only = only
        self._known: dict[ResourceKey, _Known] = {}

    def obstacles(self, request: Request) -> Iterator[tuple[ResourceKey, Obstacle]]:
        """Yields what a request waits for, each with the resource where it waits.

        Skips most of what earlier calls have yielded: all but the holders of the slot
        that a request is inside of.
        """
        found, only = self._all_obstacles(request), self._only
        return found if only is None else (x for x in found if x[1] in only)

    def _all_obstacles(
        self, request: Request
    ) -> Iterator[tuple[ResourceKey, Obstacle]]:
        for key in request.keys:
            resource = self._resources[key]
            if resource.pending is request or request.goes_down:
                continue
            known = self._known.get(key)
            if known is None:
                known = self._known[key] = _Known(resource)
            for strand in known.holders_before(request):
                yield key, strand
            mode, behind_own = resource.mode_for(request), False
            for other in known.line_before(request, mode):
                if not compatible(resource.mode_for(other), mode):
                    behind_own |= other.strand is request.strand
                    yield key, _obstacle(request, resource, other)
                elif len(other.keys) > 1 or behind_own:
                    # It may wait for what this request does not wait for.
                    yield key, other


def _obstacle(request: Request, resource: Resource, other: Request) -> Strand | Request:
    """Returns what a request waits for, if one before it in the line excludes it.

    Usually that is the strand of the other one. It is the other one itself if both are
    of one strand, or if the request is inside what that strand holds.
    """
    if other.strand is request.strand or (
        request.inside and resource.is_inside(request, other.strand)
    ):
        return other
    return other.strand


class _Known:
    """What a search knows of one resource."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._mode = resource.mode
        #: The holders that were no obstacle so far.
        self._holders = list(resource.holders)
        self._line = list(resource.line())
        #: The place of each request in its line.
        self._places = {request: place for place, request in enumerate(self._line)}
        if resource.slots is not None:
            for line in resource.slots.lines.values():
                self._places |= {request: place for place, request in enumerate(line)}
        #: By slot, when somebody inside a slot has been looked at.
        self._in_slot: dict[int | None, list[Strand]] = {}
        #: Up to which place the line was an obstacle, by the mode of a request and the
        #: grants around it; and those that were none, as they are of the same strand.
        self._reached: dict[tuple[Mode, tuple[int, ...]], int] = {}
        self._own: dict[tuple[Mode, tuple[int, ...]], list[Request]] = {}

    def holders_before(self, request: Request) -> list[Strand]:
        """Returns the strands whose grants a request waits for, each once."""
        resource = self._resource
        if self._mode is None or compatible(self._mode, resource.mode_for(request)):
            return []
        own = request.strand if request.converting or request.inside else None
        if request.wish.slot is not None:
            return [
                x
                for x in self._holders_in(request.wish.slot)
                if x is not own and not resource.is_inside(request, x)
            ]
        left: list[Strand] = []
        found: list[Strand] = []
        for strand in self._holders:
            inside = request.inside and resource.is_inside(request, strand)
            (left if inside or strand is own else found).append(strand)
        self._holders = left
        return found

    def _holders_in(self, slot: int) -> list[Strand]:
        """Returns the holders of a slot."""
        if not self._in_slot:
            for strand, grant in self._resource.holders.items():
                self._in_slot.setdefault(grant.slot, []).append(strand)
        return self._in_slot.get(slot, [])

    def line_before(self, request: Request, mode: Mode) -> list[Request]:
        """Returns the requests before this one that may be new obstacles.

        They are the same obstacles to all requests in one mode that are inside the same
        grants, but for those of the same strand.
        """
        place = self._places.get(request, len(self._line))
        alike = mode, request.inside.get(self._resource.key, ())
        begin, own = self._reached.get(alike, 0), self._own.get(alike, [])
        self._reached[alike] = max(begin, place)
        found = [other for other in own if other.strand is not request.strand]
        new = self._line[begin:place]
        if request.wish.slot is not None:
            new = list(islice(self._resource.line_of(request), begin, place))
        self._own[alike] = [
            other for other in (*own, *new) if other.strand is request.strand
        ]
        return found + new
