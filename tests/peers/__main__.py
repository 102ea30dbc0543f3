"""Runs the tests of other lock libraries with lockd in the place of their locks.

    python -m peers PYTHON [PEER ...]

PYTHON is an interpreter with the packages of `requirements.lock`. Each suite comes from
the sdist on PyPI, in the version and with the hash of `suites.py`, and has a daemon of
its own. All of its tests must pass but those that are named there, with the reason. No
test may take longer than a minute, and no suite longer than 15.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

import lockd
from peers.suites import SUITES, Suite
from support.daemon_process import DaemonProcess

ADAPTERS: Final = Path(__file__).parent / "adapters"

#: Seconds, for a test and for a suite.
TEST_TIMEOUT, SUITE_TIMEOUT = 60, 900

#: How much of what pytest printed is shown if something is wrong.
TAIL: Final = 4_000


def fetch(suite: Suite, python: str, place: Path) -> Path:
    """Downloads and unpacks the sdist of a peer; returns its directory.

    Raises:
        AssertionError: it is not the one that `suites.py` knows.
    """
    # pip would build the metadata, and that takes tools which nobody needs here.
    words = ["--no-binary", "--index-url", "https://pypi.org/simple"]
    wanted = f"{suite.peer}=={suite.version}"
    command = [python, "-m", "unearth", *words, "--download", str(place), wanted]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
    (sdist,) = place.glob("*.tar.gz")
    assert sha256(sdist.read_bytes()).hexdigest() == suite.sha256, sdist
    subprocess.run(["tar", "-xzf", sdist.name], cwd=place, check=True)
    return place / sdist.name.removesuffix(".tar.gz")


def outcomes(suite: Suite, python: str, source: Path, sock: str) -> list[list[str]]:
    """Runs the tests; returns the outcome and the name of each."""
    written = source.parent / "outcomes"
    printed = source.parent / "printed"
    written.touch()
    left_out = [
        f"--{'ignore' if name.endswith('.py') else 'deselect'}={name}"
        for name in suite.left_out
    ]
    plugins = ["-p", "outcomes", "-p", "no:cacheprovider", "-p", "no:randomly"]
    # The options are the peer's own, and may want what is not for this.
    options = ["-o", "addopts=", f"--timeout={TEST_TIMEOUT}", *plugins, *left_out]
    environment = {
        **os.environ,
        "LOCKD_SOCKET": sock,
        "LOCKD_PEER": suite.peer,
        "LOCKD_OUTCOMES": str(written),
        "PYTHONPATH": str(ADAPTERS),
        "TOOZ_TEST_URL": f"lockd://{sock}",
    }
    with printed.open("wb") as file:
        process = subprocess.Popen(
            [python, "-m", "pytest", "-q", *options, *suite.tests],
            cwd=source,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(SUITE_TIMEOUT)
        except subprocess.TimeoutExpired:
            status = -1
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what a test left behind
            process.wait()
    found = [line.split(maxsplit=1) for line in written.read_text().splitlines()]
    if status not in (0, 1):
        found.append(["failed", f"pytest itself, with status {status}"])
        print(printed.read_text(errors="replace")[-TAIL:])
    return found


def problems(suite: Suite, found: list[list[str]]) -> Iterator[str]:
    """Names what is wrong with the outcomes."""
    yield from (f"{name} failed" for outcome, name in found if outcome == "failed")
    passed = sum(outcome == "passed" for outcome, _ in found)
    if passed < suite.fewest:
        yield f"only {passed} tests passed, of at least {suite.fewest}"


def run(suite: Suite, python: str) -> bool:
    """Runs the tests of one peer, and prints what came of it; returns whether well."""
    with tempfile.TemporaryDirectory(prefix="peers-") as place:
        source = fetch(suite, python, Path(place))
        (Path(place) / "lockd").mkdir()
        daemon = DaemonProcess(Path(place) / "lockd", checks=False, executed=True)
        daemon.start()
        try:
            with lockd.connect(daemon.socket) as client:
                before = client.acquire("before").fencing_token
            found = outcomes(suite, python, source, str(daemon.socket))
            with lockd.connect(daemon.socket) as client:
                granted = client.acquire("after").fencing_token - before - 1
        finally:
            daemon.close()
    wrong = list(problems(suite, found))
    if not granted:
        wrong.append("no lock of lockd was used")
    counts = {
        word: sum(outcome == word for outcome, _ in found)
        for word in ("passed", "failed", "skipped")
    }
    told = ", ".join(f"{number} {word}" for word, number in counts.items())
    print(f"{suite.peer} {suite.version}: {told}; {granted} locks", flush=True)
    for problem in wrong:
        print(f"  {problem}", flush=True)
    return not wrong


def main() -> None:
    interpreter, *peers = sys.argv[1:]
    python = str(Path(interpreter).absolute())
    known = [suite.peer for suite in SUITES]
    assert set(peers) <= set(known), f"the peers are {known}"
    chosen = [suite for suite in SUITES if suite.peer in (peers or known)]
    passed = [run(suite, python) for suite in chosen]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
