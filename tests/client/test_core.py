"""The core alone: bytes in, bytes out, no socket."""

from itertools import count
from typing import Any

import pytest

from lockd.client.core import ClientCore
from lockd.client.grants import AnyGrant
from lockd.client.reply import Reply
from lockd.client.threads.grants import Grant
from lockd.errors import (
    BusyError,
    ConnectionLostError,
    InternalError,
    InvalidRequestError,
    LimitError,
    LockdError,
    LockLostError,
    NotHeldError,
    UnavailableError,
)
from lockd.protocol.codec import Decoder, Encoder
from lockd.terms import ResourceKey

encoder = Encoder()

DISK = ResourceKey("default", "disk")


class Deaf:
    """A connection on which nothing comes but what a test says."""

    forked = False

    def catch_up(self) -> None:
        pass

    def release(self, *grants: AnyGrant) -> list[Reply]:
        raise NotImplementedError


def sent(core: ClientCore) -> list[tuple[int, str, dict[str, Any]]]:
    """Takes what the core wants to send: msgid, method, params of each request."""
    messages = list(Decoder().receive(b"".join(core.outgoing)))
    core.outgoing.clear()
    return [(msgid, method, params) for _, msgid, method, (params,) in messages]


def answered(core: ClientCore, reply: Reply, result: Any = None) -> None:
    core.receive(encoder.response(reply.msgid, None, result))


def refused(core: ClientCore, reply: Reply, error: str) -> None:
    core.receive(encoder.response(reply.msgid, (1, error, {}), None))


def lost(core: ClientCore, token: int, cause: str = "broken", **more: str) -> None:
    told = {"lockspace": "default", "resource": "disk"}
    params = {**told, "fencing_token": token, "cause": cause, **more}
    core.receive(encoder.notification("lost", params))


def shape(token: int, mode: str = "exclusive", resource: str = "disk") -> Any:
    key = {"lockspace": "default", "resource": resource}
    return {**key, "mode": mode, "fencing_token": token, "waited": 0.5}


def acquiring(core: ClientCore, mode: str = "exclusive") -> Reply:
    reply = Reply("acquire", {"resource": "disk", "mode": mode})
    core.start(reply)
    return reply


def acquired(core: ClientCore, token: int = 7, mode: str = "exclusive") -> Grant:
    reply = acquiring(core, mode)
    answered(core, reply, {"grant": shape(token, mode)})
    core.outgoing.clear()
    grant: Grant = reply.grants[0]
    return grant


def converting(core: ClientCore, mode: str) -> Reply:
    reply = Reply("convert", {"resource": "disk", "mode": mode})
    core.start(reply)
    return reply


@pytest.fixture
def core() -> ClientCore:
    return ClientCore(lambda hold: Grant(hold, Deaf()), "thread")


def test_word_of_another_process_that_serves_on_changes_nothing(
    core: ClientCore,
) -> None:
    grant = acquired(core)
    waiting = acquiring(core)
    core.outgoing.clear()
    core.receive(encoder.notification("resumed", {"epoch": 2}))
    assert grant.held
    assert not waiting.done
    assert not core.outgoing
    answered(core, waiting, {"grant": shape(8)})
    assert waiting.grants[0].held


def test_answers_find_their_requests_in_any_order(core: ClientCore) -> None:
    replies = [Reply("statistics", {}) for _ in range(3)]
    for reply in replies:
        core.start(reply)
    assert [method for _, method, _ in sent(core)] == ["statistics"] * 3
    for reply in reversed(replies):
        answered(core, reply, reply.msgid)
    assert [reply.outcome() for reply in replies] == [r.msgid for r in replies]


def test_answer_may_come_byte_by_byte(core: ClientCore) -> None:
    reply = acquiring(core)
    data = encoder.response(reply.msgid, None, {"grant": shape(7)})
    for byte in data[:-1]:
        core.receive(bytes([byte]))
        assert not reply.done
    core.receive(data[-1:])
    assert reply.grants[0].fencing_token == 7
    assert reply.grants[0].waited == 0.5


def test_answers_that_come_together_are_taken_up_to_the_half_one(
    core: ClientCore,
) -> None:
    replies = [acquiring(core) for _ in range(3)]
    answers = [
        encoder.response(reply.msgid, None, {"grant": shape(7 + place)})
        for place, reply in enumerate(replies)
    ]
    data = b"".join(answers)
    core.receive(data[:-9])
    assert [reply.done for reply in replies] == [True, True, False]
    core.receive(data[-9:-4])
    core.receive(data[-4:])
    assert [reply.grants[0].fencing_token for reply in replies] == [7, 8, 9]


@pytest.mark.parametrize("bad", [b"\xc1", b"\xd4\x01x", b"\x81\x90\x01"])
def test_answers_before_bytes_that_are_no_message_count(
    core: ClientCore, bad: bytes
) -> None:
    first, second = acquiring(core), acquiring(core)
    answer = encoder.response(first.msgid, None, {"grant": shape(7)})
    core.receive(answer + bad + encoder.response(second.msgid, None, {}))
    assert first.grants[0].fencing_token == 7
    assert core.ended
    with pytest.raises(ConnectionLostError, match="broke the protocol"):
        second.outcome()
    # What is read after that does not suffer from it.
    other = ClientCore(lambda hold: Grant(hold, Deaf()), "thread")
    assert acquired(other).held


def test_waking_happens_once_when_the_answer_is_there(core: ClientCore) -> None:
    reply = acquiring(core)
    woken = []
    reply.wake_with(lambda: woken.append(reply.done))
    answered(core, reply, {"grant": shape(7)})
    core.end("over")
    assert woken == [True]


def test_refusal_has_its_class_its_sentence_and_its_facts(core: ClientCore) -> None:
    reply = acquiring(core)
    error = (1, "busy: 'a: b' is held", {"holder_count": 1})
    core.receive(encoder.response(reply.msgid, error, None))
    with pytest.raises(BusyError, match=r"^'a: b' is held$") as caught:
        reply.outcome()
    assert caught.value.facts == {"holder_count": 1}


def test_daemon_that_does_not_know_a_parameter_yet_is_called_older(
    core: ClientCore,
) -> None:
    for method, name, said in (
        ("acquire", "max_waiting", "there is no parameter `max_waiting`: the "),
        ("acquire", "whole", "there is no parameter `whole`: the parameters are "),
        ("acquire", "max_hold", "there is no parameter `max_hold`: the parameters "),
        ("acquire", "wanted", "there is no parameter `wanted`: the parameters are "),
        ("acquire", "slots", "there is no parameter `slots`: the parameters are "),
        ("acquire", "strand", "there is no parameter `strand`: the parameters are "),
        ("acquire", "strand", "acquire: there is no `strand`: `mode` can be given"),
        ("convert", "fencing_token", "there is no parameter `fencing_token`: the "),
    ):
        for params, told in (
            ({"resource": "disk", name: 1}, "the daemon is older .*: update lockd"),
            ({"resource": "disk"}, "there is no "),
        ):
            reply = Reply(method, params)
            core.start(reply)
            refused(core, reply, f"invalid: {said}")
            with pytest.raises(InvalidRequestError, match=told) as caught:
                reply.outcome()
            assert f"`{name}`" in str(caught.value)


def test_number_of_an_unanswered_request_is_not_used_again(core: ClientCore) -> None:
    waiting = acquiring(core)
    core._msgids = count(2**32)
    replies = [Reply("statistics", {}) for _ in range(2)]
    for reply in replies:
        core.start(reply)
    assert waiting.msgid == 1
    assert [reply.msgid for reply in replies] == [0, 2]


def test_request_that_cannot_be_sent_changes_nothing(core: ClientCore) -> None:
    deep: Any = "x"
    for _ in range(10):
        deep = [deep]
    for value in ["x" * 70_000, object(), 2**70, deep]:
        with pytest.raises((InvalidRequestError, TypeError), match=r"^resource "):
            core.start(Reply("acquire", {"resource": value}))
    assert not core.outgoing
    assert "0 pending" in repr(core)


def test_request_at_the_limits_is_sent_and_beyond_them_is_not(
    core: ClientCore,
) -> None:
    longest, most = "x" * 16_384, [str(number) for number in range(1_024)]
    for allowed in (longest, longest.encode(), most, dict.fromkeys(most[:64], 1)):
        core.start(Reply("acquire", {"resource": allowed}))
    core.start(Reply("acquire", dict.fromkeys(most[:64])))
    assert len(sent(core)) == 5
    for value in (longest + "x", ["x", longest + "x"], [*most, "x"]):
        with pytest.raises(InvalidRequestError, match=r"^resource has .* at most"):
            core.start(Reply("acquire", {"resource": value}))
    with pytest.raises(InvalidRequestError, match=r"^the request has 65 entries"):
        core.start(Reply("acquire", dict.fromkeys(most[:65])))
    with pytest.raises(InvalidRequestError, match=r"^the request has .* bytes"):
        core.start(Reply("acquire", {"resource": [longest] * 4}))
    assert not core.outgoing


# Whoever waited is gone.


def test_abandoned_acquire_is_cancelled_once(core: ClientCore) -> None:
    reply = acquiring(core)
    core.outgoing.clear()
    assert core.abandon(reply)
    assert not core.abandon(reply)
    assert [request[1:] for request in sent(core)] == [
        ("cancel", {"request": reply.msgid})
    ]
    refused(core, reply, "cancelled: by its own session")
    assert reply.done
    assert not sent(core)


def test_grant_that_comes_after_all_is_given_back(core: ClientCore) -> None:
    reply = acquiring(core)
    core.abandon(reply)
    core.outgoing.clear()
    answered(core, reply, {"grant": shape(7)})
    assert [request[1:] for request in sent(core)] == [
        ("release", {"fencing_token": 7})
    ]


def test_several_grants_that_come_after_all_are_given_back(core: ClientCore) -> None:
    reply = Reply("acquire", {"resources": ["a", "b"]})
    core.start(reply)
    core.abandon(reply)
    core.outgoing.clear()
    grants = [shape(7, resource="a"), shape(8, resource="b")]
    answered(core, reply, {"grants": grants})
    assert [params for _, _, params in sent(core)] == [
        {"fencing_token": 7},
        {"fencing_token": 8},
    ]


def test_grant_that_nobody_took_is_given_back(core: ClientCore) -> None:
    reply = acquiring(core)
    answered(core, reply, {"grant": shape(7)})
    core.outgoing.clear()
    assert not core.abandon(reply)
    assert not core.abandon(reply)
    assert [request[1:] for request in sent(core)] == [
        ("release", {"fencing_token": 7})
    ]


def test_upgrade_that_comes_after_all_is_taken_back(core: ClientCore) -> None:
    grant = acquired(core, mode="shared")
    reply = converting(core, "exclusive")
    core.abandon(reply)
    core.outgoing.clear()
    answered(core, reply, {"grant": shape(7)})
    ((msgid, method, params),) = sent(core)
    assert (method, params) == ("convert", {"resource": "disk", "mode": "shared"})
    result = {"grant": shape(7, "shared")}
    core.receive(encoder.response(msgid, None, result))
    assert grant.mode == "shared"
    assert not sent(core)


def test_downgrade_is_not_taken_back(core: ClientCore) -> None:
    grant = acquired(core)
    reply = converting(core, "shared")
    core.abandon(reply)
    core.outgoing.clear()
    answered(core, reply, {"grant": shape(7, "shared")})
    assert grant.mode == "shared"
    assert not sent(core)


def test_abandoned_query_is_not_cancelled(core: ClientCore) -> None:
    reply = Reply("query", {"resource": "disk"})
    core.start(reply)
    core.outgoing.clear()
    assert not core.abandon(reply)
    assert not core.outgoing


# Grants.


def test_grant_is_held_until_its_release_is_answered(core: ClientCore) -> None:
    grant = acquired(core)
    reply = core.release(grant)
    assert grant.held
    answered(core, reply)
    assert not grant.held
    assert not grant.lost
    reply.outcome()


def test_release_says_how_the_work_ended(core: ClientCore) -> None:
    grant = acquired(core)
    core.release(grant, "failed")
    ((_, method, params),) = sent(core)
    assert (method, params) == ("release", {"fencing_token": 7, "outcome": "failed"})


def test_grant_says_how_the_last_hold_ended(core: ClientCore) -> None:
    previous = {"ended": "owner_died", "outcome": None, "pid": 5}
    for found in (previous, None, "odd"):
        reply = acquiring(core)
        answered(core, reply, {"grant": {**shape(9), "previous": found}})
        assert reply.grants[0].previous == (previous if found == previous else None)


def test_second_release_of_a_grant_sends_nothing(core: ClientCore) -> None:
    grant = acquired(core)
    first = core.release(grant)
    core.outgoing.clear()
    assert core.release(grant) is first
    answered(core, first)
    assert core.release(grant).done
    assert not core.outgoing


def test_release_that_fails_leaves_the_grant_held(core: ClientCore) -> None:
    grant = acquired(core)
    reply = core.release(grant)
    refused(core, reply, "internal: a defect")
    with pytest.raises(InternalError):
        reply.outcome()
    assert grant.held
    core.outgoing.clear()
    core.release(grant)
    assert sent(core)


def test_release_of_what_the_daemon_does_not_know_ends_the_grant(
    core: ClientCore,
) -> None:
    grant = acquired(core)
    reply = core.release(grant)
    refused(core, reply, "not_held: no")
    with pytest.raises(NotHeldError):
        reply.outcome()
    assert not grant.held


@pytest.mark.parametrize(
    "params",
    [{"resource": "disk"}, {"resources": ["disk", "other"]}, {"fencing_token": 7}],
)
def test_release_by_name_ends_the_grant(
    core: ClientCore, params: dict[str, Any]
) -> None:
    grant = acquired(core)
    reply = Reply("release", params)
    core.start(reply)
    answered(core, reply)
    assert not grant.held


def test_counted_hold_takes_as_many_releases(core: ClientCore) -> None:
    first, second = acquired(core, mode="shared"), acquired(core, mode="shared")
    answered(core, core.release(first))
    assert not first.held
    assert second.held
    lost(core, 7)
    assert second.lost
    assert not first.lost


def test_lost_grant_is_told_once(core: ClientCore) -> None:
    told: list[AnyGrant] = []
    core.tell_losses_to(told.append)
    grant = acquired(core)
    lost(core, 7, reason="it hangs")
    lost(core, 7)
    core.end("over")
    assert told == [grant]
    assert grant.lost
    with pytest.raises(LockLostError, match=r"lost: it was broken .*it hangs"):
        grant.check()


def test_release_of_a_lost_grant_sends_nothing(core: ClientCore) -> None:
    grant = acquired(core)
    lost(core, 7, "owner_died")
    reply = core.release(grant)
    with pytest.raises(LockLostError) as caught:
        reply.outcome()
    assert caught.value.cause == "owner_died"
    assert not core.outgoing


def test_grant_that_is_lost_before_its_release_arrives_is_lost(
    core: ClientCore,
) -> None:
    told: list[AnyGrant] = []
    core.tell_losses_to(told.append)
    grant = acquired(core)
    reply = core.release(grant)
    lost(core, 7)
    refused(core, reply, "not_held: no")
    with pytest.raises(LockLostError):
        reply.outcome()
    assert not told


def test_loss_of_what_is_not_held_is_nothing(core: ClientCore) -> None:
    grant = acquired(core, 8)
    lost(core, 7)
    assert grant.held
    assert not core.ended


def test_converted_grant_of_another_session_is_told(core: ClientCore) -> None:
    reply = converting(core, "shared")
    answered(core, reply, {"grant": shape(7, "shared")})
    assert reply.grants[0].fencing_token == 7


# The end.


def test_end_loses_what_is_held_and_fails_what_is_pending(core: ClientCore) -> None:
    told: list[AnyGrant] = []
    ends: list[LockdError] = []
    core.tell_losses_to(told.append)
    core.on_end.append(ends.append)
    grant = acquired(core)
    reply = acquiring(core)
    core.receive(b"")
    core.receive(b"")
    with pytest.raises(ConnectionLostError, match="the daemon closed the connection"):
        reply.outcome()
    with pytest.raises(ConnectionLostError):
        core.start(Reply("statistics", {}))
    with pytest.raises(LockLostError) as caught:
        grant.check()
    assert caught.value.cause == "disconnected"
    assert told == [grant]
    assert len(ends) == 1
    assert not core.outgoing


def test_release_that_the_end_outruns_is_a_lost_lock(core: ClientCore) -> None:
    reply = core.release(acquired(core))
    core.end("over")
    with pytest.raises(LockLostError):
        reply.outcome()


def test_closed_client_has_released_not_lost(core: ClientCore) -> None:
    told: list[AnyGrant] = []
    core.tell_losses_to(told.append)
    grant = acquired(core)
    reply = acquiring(core)
    core.close()
    assert not grant.held
    assert not grant.lost
    assert not told
    with pytest.raises(ConnectionLostError, match="closed"):
        reply.outcome()
    assert not core.abandon(reply)


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"\x07",
        encoder.response(99, None, None),
        encoder.response(1, (), None),
        encoder.response(1, None, {"grant": {}}),
        encoder.notification("lost", {}),
    ],
)
def test_daemon_that_cannot_be_understood_is_left(
    core: ClientCore, data: bytes
) -> None:
    reply = acquiring(core)
    core.receive(data)
    assert core.ended
    with pytest.raises(ConnectionLostError, match="broke the protocol"):
        core.start(reply)


def test_last_word_of_the_daemon_is_told(core: ClientCore) -> None:
    reply = acquiring(core)
    core.receive(encoder.response(None, (1, "protocol: too deep"), None))
    with pytest.raises(ConnectionLostError, match="too deep"):
        reply.outcome()


@pytest.mark.parametrize(
    ("code", "error"), [("limit", LimitError), ("unavailable", UnavailableError)]
)
def test_who_is_turned_away_is_told_why(
    core: ClientCore, code: str, error: type[LockdError]
) -> None:
    reply = acquiring(core)
    core.receive(encoder.response(None, (1, f"{code}: not today"), None))
    with pytest.raises(error, match="not today"):
        reply.outcome()
    with pytest.raises(error, match="not today"):
        core.check_connected()


def test_unknown_notifications_are_ignored(core: ClientCore) -> None:
    core.receive(encoder.notification("greeting", {"a": 1}))
    core.receive(encoder.notification("event", {"event": "granted"}))
    assert not core.ended


def test_events_are_told(core: ClientCore) -> None:
    events: list[tuple[dict[str, Any], int]] = []
    core.tell_events_to(lambda event, number: events.append((event, number)))
    core.receive(encoder.notification("event", {"event": "granted"}))
    core.receive(encoder.notification("greeting", {}))
    core.receive(encoder.notification("event", {"event": "released"}))
    assert events == [({"event": "granted"}, 0), ({"event": "released"}, 2)]


# Strands.


@pytest.mark.parametrize("end", ["released", "by token", "not held", "lost", "ended"])
def test_token_of_a_strand_is_known_while_it_holds(core: ClientCore, end: str) -> None:
    grants = {}
    for token, strand, mode in ((7, 1, "shared"), (8, 3, "shared"), (9, 0, "shared")):
        reply = Reply("acquire", {"resource": "disk", "mode": mode, "strand": strand})
        core.start(reply)
        answered(core, reply, {"grant": shape(token, mode)})
        (grants[strand],) = reply.grants
    assert [core.token_of(DISK, strand) for strand in (0, 1, 3, 5)] == [9, 7, 8, None]
    assert core.token_of(ResourceKey("other", "disk"), 1) is None
    if end == "released":
        answered(core, core.release(grants[1]))
    elif end == "by token":
        reply = Reply("release", {"fencing_token": 7})
        core.start(reply)
        answered(core, reply)
    elif end == "not held":
        refused(core, core.release(grants[1]), "not_held: no")
    elif end == "lost":
        lost(core, 7)
    else:
        core.receive(b"")
    assert core.token_of(DISK, 1) is None
    rest = [None, None] if end == "ended" else [8, 9]
    assert [core.token_of(DISK, strand) for strand in (3, 0)] == rest


def test_token_of_a_counted_hold_is_known_until_the_last_release(
    core: ClientCore,
) -> None:
    for _ in range(2):
        reply = Reply("acquire", {"resource": "disk", "mode": "shared", "strand": 1})
        core.start(reply)
        answered(core, reply, {"grant": shape(7, "shared")})
    for left in (7, None):
        release = Reply("release", {"fencing_token": 7})
        core.start(release)
        answered(core, release)
        assert core.token_of(DISK, 1) == left


def test_several_locks_of_one_request_are_held_by_its_strand(core: ClientCore) -> None:
    reply = Reply("acquire", {"resources": ["disk", "other"], "strand": 5})
    core.start(reply)
    grants = [shape(7), shape(8, resource="other")]
    answered(core, reply, {"grants": grants})
    assert core.token_of(DISK, 5) == 7
    assert core.token_of(ResourceKey("default", "other"), 5) == 8
    assert [grant.hold.strand for grant in reply.grants] == [5, 5]
