import gc
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lockd import compilation
from lockd.daemon.main import MANNER
from support.daemon_process import DaemonProcess
from support.nursery import DAEMONS, LOCKCTLS, SCRIPTS
from support.outside import Outside
from support.processes import idle


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--skipped-to",
        metavar="FILE",
        help="write the ids of the tests that are skipped into a file: `pytest @FILE` "
        "runs them where they need not be",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A script in the background ignores these, and so would all that is tested.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    # With xdist, the process that hears from all others.
    path = config.getoption("--skipped-to")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Skipped(Path(path)))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Begins with the tests that take seconds, so that nobody waits for one at the end.

    With xdist each process gets a piece of the list, and begins with its share of them.

    A test for the source alone must fail where compiled modules run.
    """
    if compilation.is_compiled():
        for item in items:
            if (mark := item.get_closest_marker("interpreted")) is not None:
                fails = pytest.mark.xfail(reason="compiled modules run", **mark.kwargs)
                item.add_marker(fails)
    pieces = getattr(config, "workerinput", {}).get("workercount", 1)
    slow = [item for item in items if item.get_closest_marker("slow")]
    others = [item for item in items if not item.get_closest_marker("slow")]
    items[:] = [
        item
        for n in range(pieces)
        for item in (
            *slow[n::pieces],
            *others[len(others) * n // pieces : len(others) * (n + 1) // pieces],
        )
    ]


@pytest.fixture(autouse=True)
def _signals_stay_as_they_are() -> Iterator[None]:
    """A test that changes them ends the process of a later one, sooner or later."""
    numbers = (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    after = [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    assert after == before


def pytest_report_header() -> str:
    return f"lockd runs {MANNER}"


def pytest_collection_finish() -> None:
    """Spares each collection of garbage what has been loaded by now."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    for nursery in (DAEMONS, LOCKCTLS, SCRIPTS):
        nursery.close()


class Skipped:
    """Writes down which tests were skipped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_text("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            with self._path.open("a") as file:
                file.write(f"{report.nodeid}\n")


StartDaemon = Callable[..., DaemonProcess]


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[StartDaemon]:
    """Starts daemons with a configuration of one's own; ends them after the test."""
    with ExitStack() as stack:
        count = 0

        def start(
            config: str = "", prefix: list[str] | None = None, *, executed: bool = False
        ) -> DaemonProcess:
            nonlocal count
            count += 1
            directory = tmp_path / f"lockd-{count}"
            directory.mkdir()
            daemon = DaemonProcess(directory, config, executed=executed)
            stack.callback(daemon.close)
            daemon.start(prefix=prefix)
            return daemon

        yield start


@pytest.fixture
def own_command() -> str:
    """The command line of this process, as lockd shows it."""
    words = Path("/proc/self/cmdline").read_text().split("\0")
    return " ".join(words).strip()[:256]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing, until it is killed."""
    with idle() as process:
        yield process


@pytest.fixture
def outside() -> Iterator[Outside]:
    """A process that locks files without asking lockd."""
    process = Outside()
    yield process
    process.kill()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file that is worth locking."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"precious")
    return path


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    """A directory for lock files."""
    path = tmp_path / "locks"
    path.mkdir(mode=0o755)
    return path


@pytest.fixture
def lockd(start_daemon: StartDaemon) -> DaemonProcess:
    """A running daemon with the built-in lockspaces."""
    return start_daemon()


@pytest.fixture
def sock(lockd: DaemonProcess) -> str:
    """The socket of a running daemon."""
    return str(lockd.socket)
