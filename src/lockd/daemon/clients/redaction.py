"""Hides from a peer what it may not see of others: reasons, labels, or everything.

It works on the engine's values before they become sentences or maps, so the code that
makes those need not care.
"""

from typing import Final

from msgspec.structs import replace

from lockd.daemon.clients.access import Access
from lockd.daemon.clients.faces import Faces, Look, look_up
from lockd.daemon.clients.peer import Peer
from lockd.engine.commands import Owner
from lockd.engine.effects import LastHolder, Refused, Situation, WaitEdge
from lockd.names import quoted
from lockd.terms import OutsideHolder, ResourceKey

HIDDEN: Final = ResourceKey("", "")
"""Stands for a resource that a peer may not see."""

_CODES = {
    "timeout": "{} was not granted in time",
    "cancelled": "the wait for {} was cancelled",
    "deadlock": "waiting for {} would never end",
}


class Redaction:
    """Hides what a peer may not see in a lockspace.

    Args:
        access: the rights.
    """

    def __init__(self, access: Access) -> None:
        self._access = access

    def refusal(self, effect: Refused, peer: Peer) -> Refused:
        """Returns a refusal without what its receiver may not see."""
        situation = effect.situation
        if peer.is_admin:
            return effect
        effect = effect.replace(outside=self.outside(effect.outside, peer))
        if situation is None:
            return effect
        if self._access.may(peer, "list", situation.key.lockspace):
            return effect.replace(
                situation=self.situation(situation, peer),
                cycle=tuple(self._edge(x, peer) for x in effect.cycle),
            )
        if effect.mismatch is not None:
            mismatch = replace(effect.mismatch, owner=None)
            return effect.replace(situation=None, mismatch=mismatch)
        said = _CODES.get(effect.code, "{} is held or waited for")
        message = said.format(quoted(str(situation.key)))
        if effect.code != "busy":
            message = effect.message or message
        return Refused(effect.session, effect.request, effect.code, message)

    def _edge(self, edge: WaitEdge, peer: Peer) -> WaitEdge:
        inside = edge.inside
        if inside and not self._access.may(peer, "list", inside.key.lockspace):
            edge = edge.replace(inside=inside.replace(key=HIDDEN))
        seen = self._access.may(peer, "list", edge.key.lockspace)
        return edge if seen else edge.replace(key=HIDDEN)

    def situation(self, situation: Situation, peer: Peer) -> Situation:
        """Returns holders and waiters without what a peer may not see."""
        if situation.outside is not None:
            outside = self.outside(situation.outside, peer)
            situation = situation.replace(outside=outside)
        if self.shows_details(peer, situation.key.lockspace):
            return situation
        return situation.replace(
            holders=tuple(
                x if is_own(x.owner, peer) else x.replace(label=None, reason=None)
                for x in situation.holders
            ),
            waiters=tuple(
                x if is_own(x.owner, peer) else x.replace(label=None, reason=None)
                for x in situation.waiters
            ),
        )

    def last_holder(self, last: LastHolder | None, peer: Peer) -> LastHolder | None:
        """Returns the last holder without what a peer may not see."""
        if last is None or is_own(last.grant.owner, peer):
            return last
        if self.shows_details(peer, last.grant.key.lockspace):
            return last
        return last.replace(grant=last.grant.replace(label=None, reason=None))

    def names(self, last: LastHolder, peer: Peer) -> bool:
        """Returns whether a peer may see who held a resource last."""
        return self.sees(peer, last.grant.key.lockspace)

    def sees(self, peer: Peer, lockspace: str) -> bool:
        """Returns whether a peer may see who holds and waits in a lockspace."""
        return peer.is_admin or self._access.may(peer, "list", lockspace)

    def look(self, peer: Peer, lockspace: str | None, look: Look = look_up) -> Look:
        """Returns a function that looks up the commands that a peer may see.

        Arguments of a command may reveal reasons, labels, and names of lockspaces. A
        peer that may not see these gets the program alone.

        Args:
            peer: the peer.
            lockspace: where the owner holds or waits; None for a session.
            look: looks up whole commands.
        """
        if peer.is_admin or (
            lockspace is not None and self.shows_details(peer, lockspace)
        ):
            return look

        def look_at_program(owner: Owner, now: float) -> Faces:
            command, unit = look(owner, now)
            if command is not None and not is_own(owner, peer):
                command = command.split(" ", 1)[0]
            return command, unit

        return look_at_program

    def outside(self, found: OutsideHolder | None, peer: Peer) -> OutsideHolder | None:
        """Returns who locks a file, or None if the peer may not see its lockspace.

        The answer must not say that a process outside lockd has the file, because none
        has.
        """
        if found is None or found.key is None or peer.is_admin:
            return found
        seen = self._access.may(peer, "list", found.key.lockspace)
        return found if seen else None

    def shows_details(self, peer: Peer, lockspace: str) -> bool:
        """Returns whether a peer may see the reasons and labels of others."""
        return peer.is_admin or self._access.may(peer, "details", lockspace)


def is_own(owner: Owner, peer: Peer) -> bool:
    """Returns whether an owner belongs to the peer's own user."""
    return owner.uid == peer.credentials.uid and not peer.is_foreign
