"""Releases whose answers nobody waits for: what the client knows, and tells later."""

import pytest

from client.test_core import acquired, answered, core, lost, refused, sent, shape
from client.test_notices import hear
from lockd.client.core import ClientCore
from lockd.client.reply import MOST_LEFT, LeftReleases, Reply
from lockd.client.threads.grants import Grant
from lockd.errors import InternalError, LockLostError, NotHeldError

__all__ = ["core"]


def leaving(core: ClientCore, token: int, strand: int = 0) -> tuple[Grant, Reply]:
    """Acquires a lock for a strand, and releases it without waiting."""
    acquire = Reply("acquire", {"resource": f"disk {token}", "strand": strand})
    core.start(acquire)
    answered(core, acquire, {"grant": shape(token)})
    core.outgoing.clear()
    grant: Grant = acquire.grants[0]
    reply = core.release(grant, wait=False)
    return grant, reply


def test_lock_that_was_left_is_not_held_before_the_answer(core: ClientCore) -> None:
    grant, reply = leaving(core, 7)
    assert not grant.held
    assert not grant.lost
    assert "releasing" in repr(grant)
    assert list(core.left.unanswered) == [reply]
    answered(core, reply)
    assert len(core.left.unanswered) == 0
    assert not grant.held
    assert not core.left.refused


def test_refusal_is_told_once_and_only_if_nobody_waits(core: ClientCore) -> None:
    _, reply = leaving(core, 7)
    refused(core, reply, "not_held: no")
    assert len(core.left.unanswered) == 0
    with pytest.raises(NotHeldError) as caught:
        core.left.tell(0)
    assert caught.value.__notes__ == ["lockd: the lock had been given back meanwhile"]
    core.left.tell(None)

    waited, first = leaving(core, 8)
    assert core.release(waited) is first
    assert len(core.left.unanswered) == 0
    refused(core, first, "not_held: no")
    core.left.tell(None)
    with pytest.raises(NotHeldError):
        first.outcome()


def test_second_release_is_not_sent_whoever_waits(core: ClientCore) -> None:
    grant, reply = leaving(core, 7)
    assert len(sent(core)) == 1
    assert core.release(grant, wait=False) is reply
    assert core.release(grant) is reply
    assert not sent(core)


def test_loss_that_crosses_the_release_is_told(core: ClientCore) -> None:
    grant, reply = leaving(core, 7)
    lost(core, 7, reason="why")
    refused(core, reply, "not_held: no")
    assert grant.lost
    with pytest.raises(LockLostError, match="why"):
        core.left.tell(0)


def test_loss_that_is_known_is_told_at_once(core: ClientCore) -> None:
    grant = acquired(core)
    lost(core, 7)
    reply = core.release(grant, wait=False)
    assert len(core.left.unanswered) == 0
    with pytest.raises(LockLostError):
        reply.outcome()
    core.left.tell(None)


def test_lock_whose_release_was_refused_is_held_again(core: ClientCore) -> None:
    grant, reply = leaving(core, 7)
    refused(core, reply, "internal: a defect")
    assert grant.held
    with pytest.raises(InternalError):
        core.left.tell(0)
    assert core.release(grant) is not reply


def test_end_of_the_connection_is_no_refusal(core: ClientCore) -> None:
    _, reply = leaving(core, 7)
    core.receive(b"")
    assert reply.done
    assert len(core.left.unanswered) == 0
    core.left.tell(None)


def test_each_strand_is_told_of_its_own_and_of_nobodys(core: ClientCore) -> None:
    for token, strand in ((7, 1), (8, 3), (9, 2), (10, 0)):
        _, reply = leaving(core, token, strand)
        refused(core, reply, f"not_held: {token}")
    for strand, told in ((5, "9"), (5, "10"), (3, "8")):
        with pytest.raises(NotHeldError, match=told):
            core.left.tell(strand)
    core.left.tell(5)
    core.left.tell(3)
    with pytest.raises(NotHeldError, match="7"):
        core.left.tell(None)
    core.left.tell(None)


def test_refusals_that_nobody_hears_do_not_pile_up(core: ClientCore) -> None:
    for token in range(1, 3 * MOST_LEFT):
        _, reply = leaving(core, token)
        refused(core, reply, f"not_held: {token}")
    assert len(core.left.refused) == MOST_LEFT
    with pytest.raises(NotHeldError, match=str(2 * MOST_LEFT)):
        core.left.tell(None)


def test_refusals_outlive_their_connection(core: ClientCore) -> None:
    _, reply = leaving(core, 7)
    refused(core, reply, "not_held: no")
    left = LeftReleases()
    left.inherit(core.left)
    with pytest.raises(NotHeldError):
        left.tell(0)


def test_lock_that_was_left_is_no_news(core: ClientCore) -> None:
    news = core.open_news()
    leaving(core, 7)
    hear(core, "wanted", 7)
    with pytest.raises(IndexError):
        news.take()
