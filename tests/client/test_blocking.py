import subprocess
from collections.abc import Iterator

import pytest

import lockd
from client.adapters import BlockingShell, blocking_shell
from client.conformance import Conformance


class TestBlocking(Conformance):
    @pytest.fixture
    def shell(self) -> Iterator[BlockingShell]:
        with blocking_shell() as shell:
            yield shell


def test_release_of_a_grant_says_how_the_work_ended(sock: str) -> None:
    with lockd.connect(sock) as client:
        grant = client.acquire("disk")
        with pytest.raises(lockd.InvalidRequestError, match="outcome"):
            grant.release("bad")  # type: ignore[arg-type]
        assert grant.held
        grant.release(outcome="failed")
        previous = client.acquire("disk").previous
        assert previous is not None
        assert previous["outcome"] == "failed"


def test_locks_until_both_outlive_their_process_with_the_session(
    sock: str, process: subprocess.Popen[bytes]
) -> None:
    with lockd.connect(sock) as client, lockd.connect(sock) as onlooker:
        client.register("cat", pid=process.pid, until="both")
        grant = client.acquire("disk")
        onlooker.acquire("tape")
        with lockd.connect(sock) as other:
            other.register("cat", pid=process.pid)
            process.kill()
            process.wait()
            # It waits, at most until the daemon sees the death.
            with pytest.raises(lockd.NotFoundError):
                other.acquire("tape")
        assert onlooker.query("disk")["holder_count"] == 1
        grant.release("ok")
        assert onlooker.query("disk")["last_holder"]["ended"] == "released"
