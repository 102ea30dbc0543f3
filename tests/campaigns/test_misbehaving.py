"""Each client that misbehaves acts, and the daemon serves others beside it."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from campaigns.misbehaving import MISDEEDS, misbehave
from support.daemon_process import DaemonProcess
from support.wire_client import WireClient

ACTS = 30


@pytest.mark.parametrize("name", MISDEEDS)
def test_daemon_serves_others_while_a_client_misbehaves(
    name: str, tmp_path: Path
) -> None:
    daemon = DaemonProcess(tmp_path, checks=False)
    daemon.start()
    acts = 0
    try:
        with WireClient(daemon.socket) as honest:

            def pause() -> bool:
                nonlocal acts
                acts += 1
                honest.acquire("honest")
                honest.call("release", resource="honest")
                return acts < ACTS

            misbehave(MISDEEDS[name], str(daemon.socket), random.Random(1), 8, pause)
            assert acts == ACTS
            assert honest.call("statistics")["held"] >= 0
    finally:
        daemon.close()


def test_misdeed_begins_anew_when_its_connection_ends() -> None:
    begun = 0

    def refused(*_: object) -> Iterator[None]:
        nonlocal begun
        begun += 1
        yield
        raise ConnectionResetError

    pauses = iter([True] * 6 + [False])
    misbehave(refused, "", random.Random(1), 1, lambda: next(pauses))
    assert begun == 4
