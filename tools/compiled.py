"""Compiles modules of the daemon with mypyc; pyproject.toml has the list.

    compiled.py into DIRECTORY [--python PROGRAM] [--must]   for that interpreter
    compiled.py away DIRECTORY [--why TEXT]                  removes what is there

DIRECTORY has the package `lockd`. Each prints one line that says what will run there.
If the modules cannot be compiled, or do not load, the source runs; that is no failure
without --must. What was compiled is stored in `.compiled/`, by a hash of all that
decides what comes out.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Final

TOP: Final = Path(__file__).parents[1]
SOURCE: Final = TOP / "src"
STORE: Final = TOP / ".compiled"

OBJECTS: Final = STORE / "objects"
"""What a C file became: an edit of one module leaves most of them as they are."""

LOG: Final = STORE / "log"
"""What the compilers print, and why they failed."""

MOST_STORED: Final = 3

INTERPRETED: Final = "lockd is not compiled, and runs interpreted"

sys.path.insert(0, str(SOURCE))
from lockd import compilation  # noqa: E402

FLAGS: Final = (
    *("-O2", "-DNDEBUG", "-fwrapv", "-fPIC", "-fvisibility=hidden", "-w"),
    *("-pipe", "-g0"),
)

TOLD: Final = """
import json, sys, sysconfig
print(json.dumps({
    "program": sys.executable,
    "version": sys.version.split()[0],
    "suffix": sysconfig.get_config_var("EXT_SUFFIX"),
    "include": sysconfig.get_path("include"),
    "compiler": sysconfig.get_config_var("CC") or "cc",
}))
"""

# As the daemon loads them.
LOAD: Final = """
import sys
sys.path.insert(0, sys.argv[1])
import lockd.daemon.main as main
print(main.compilation.problem() or len(main.compilation.compiled_modules()))
"""


class ObstacleError(Exception):
    """Why the modules are not compiled, in a line."""


@dataclass(frozen=True)
class Interpreter:
    """What the modules are compiled for."""

    program: str
    version: str
    suffix: str
    include: str
    compiler: str

    @classmethod
    def of(cls, program: str) -> "Interpreter":
        """Asks an interpreter about itself."""
        told = subprocess.run(
            [program, "-c", TOLD], check=True, capture_output=True, text=True
        )
        return cls(**json.loads(told.stdout))

    def compilers(self) -> list[str]:
        """Returns the C compiler, with its options; empty without one.

        That of the machine first: each interpreter calls its own by another name. CC
        allows no other.
        """
        chosen = os.environ.get("CC", "").split()
        known = [[name] for name in ("cc", "gcc", "clang")] + [self.compiler.split()]
        for words in [chosen] if chosen else known:
            if shutil.which(words[0]):
                return words
        return []

    def obstacle(self) -> str | None:
        """Returns what keeps us from compiling for it; None if nothing does."""
        if self.suffix != sysconfig.get_config_var("EXT_SUFFIX"):
            ours = ".".join(map(str, sys.version_info[:2]))
            return (
                f"{self.program} is Python {self.version}, and .venv is Python {ours} "
                f"(`make clean`, then `make install PYTHON={self.program}`)"
            )
        if not self.compilers():
            wanted = os.environ.get("CC", "").strip()
            return f"there is no {wanted or 'C compiler (Debian: gcc)'}"
        if not Path(self.include, "Python.h").exists():
            return f"{self.include}/Python.h is missing (Debian: python3-dev)"
        return None


def listed() -> list[str]:
    """Returns the names of the modules that are compiled."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    modules: list[str] = project["tool"]["lockd"]["compiled"]
    return modules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    into = commands.add_parser("into")
    into.add_argument("directory", type=Path)
    into.add_argument("--python", default=sys.executable)
    into.add_argument("--must", action="store_true")
    away = commands.add_parser("away")
    away.add_argument("directory", type=Path)
    away.add_argument("--why")
    arguments = parser.parse_args()
    directory = arguments.directory.absolute()
    remove(directory)
    if arguments.command == "away":
        print(f"{INTERPRETED}{f': {arguments.why}' if arguments.why else ''}")
        return
    try:
        print(compile_into(directory, Interpreter.of(arguments.python)))
    except ObstacleError as obstacle:
        remove(directory)
        print(f"{INTERPRETED}: {obstacle}")
        sys.exit(arguments.must)


def compile_into(directory: Path, target: Interpreter) -> str:
    """Compiles, and returns a line that says so.

    Raises:
        ObstacleError: it cannot be, or what was compiled does not load.
    """
    if (obstacle := target.obstacle()) is not None:
        raise ObstacleError(obstacle)
    try:
        put(stored(target), directory)
    except OSError as error:
        raise ObstacleError(str(error)) from error
    except (Exception, SystemExit) as error:
        with LOG.open("a") as log:
            traceback.print_exception(error, file=log)
        raise ObstacleError(f"the compiler failed ({LOG})") from error
    # A wheel is filled where no source is.
    if (directory / "lockd" / "daemon" / "main.py").exists():
        check_loads(directory, target)
    return f"lockd is compiled, for {target.program} ({target.version})"


def check_loads(directory: Path, target: Interpreter) -> None:
    """Loads the modules as a daemon does; raises ObstacleError if they do not run."""
    # What is installed takes its dependencies from beside it, and no others.
    options = "-IS" if (directory / "trio").exists() else "-I"
    command = [target.program, options, "-c", LOAD, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or done.stdout.strip() != str(len(listed())):
        said = (done.stderr if done.returncode else done.stdout).strip()
        why = said.rpartition("\n")[2]
        raise ObstacleError(f"the compiled modules do not load: {why}")


def remove(directory: Path) -> None:
    """Removes what was compiled; the record last, so that a rest of it does not run."""
    package = directory / "lockd"
    for path in package.rglob("*.so"):
        path.unlink()
    (package / compilation.RECORD).unlink(missing_ok=True)


def put(found: Path, directory: Path) -> None:
    """Copies what was compiled.

    A daemon that is just starting finds a record that tells it to run the source. One
    that runs keeps the files that it has.
    """
    record = directory / "lockd" / compilation.RECORD
    written = json.loads((found / "lockd" / compilation.RECORD).read_bytes())
    record.write_text(json.dumps(written | {"source": "not yet complete"}))
    for path in found.rglob("*.so"):
        place = directory / path.relative_to(found)
        place.parent.mkdir(parents=True, exist_ok=True)  # a wheel has no source here
        shutil.copy(path, place)
    record.write_text(json.dumps(written, indent=1) + "\n")


def stored(target: Interpreter) -> Path:
    """Returns the directory with what is compiled from the source as it is.

    All releases of a minor version of Python load the same: their suffix is the same.
    """
    compiler = target.compilers()
    STORE.mkdir(exist_ok=True)
    LOG.write_text("")
    key = digest(
        *(compilation.fingerprint(SOURCE / "lockd"), *listed(), *FLAGS, *compiler),
        *(target.suffix, version_of(compiler), metadata.version("mypy")),
        Path(__file__).read_text(),
    )
    found = STORE / key
    if not found.exists():
        print("Compiling lockd takes one to two minutes.", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=STORE, prefix=".new-") as directory:
            with logged():
                compile_all(target, Path(directory))
            with suppress(FileExistsError, OSError):  # another one was as fast
                Path(directory, "out").rename(found)
    os.utime(found)
    for path in newest_first(STORE.glob("[0-9a-f]*"))[MOST_STORED:]:
        shutil.rmtree(path)
    return found


@contextmanager
def logged() -> Iterator[None]:
    """Has all that is printed meanwhile go to the log, by programs that we run, too."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        with LOG.open("a") as log:
            for number in (1, 2):
                os.dup2(log.fileno(), number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, fd in zip((1, 2), kept, strict=True):
            os.dup2(fd, number)
            os.close(fd)


def compile_all(target: Interpreter, directory: Path) -> None:
    """Leaves the shared objects and the record in `directory/out/lockd`."""
    from mypyc.build import mypycify

    source = compilation.fingerprint(SOURCE / "lockd")
    modules = listed()
    # Paths in tracebacks begin where the package does, wherever it will be installed.
    os.chdir(SOURCE)
    extensions = mypycify(
        [
            *("--config-file=", "--explicit-package-bases", "--ignore-missing-imports"),
            f"--cache-dir={TOP / '.mypy_cache' / 'compiled'}",
            *(f"{name.replace('.', '/')}.py" for name in modules),
        ],
        multi_file=True,
        group_name=compilation.LIBRARY.removesuffix("__mypyc"),
        target_dir=str(directory / "c"),
    )
    out = directory / "out"
    compiler = target.compilers()
    # The modules include the header of their library without its folder.
    places = {target.include, str(directory / "c" / "lockd")}
    places.update(place for found in extensions for place in found.include_dirs)
    include = [f"-I{place}" for place in sorted(places)]
    headers = sorted((directory / "c").rglob("*.h"))
    common = [
        *compiler,
        version_of(compiler),
        *FLAGS,
        target.suffix,
        metadata.version("mypy"),
    ]
    decisive = digest(*common, *(path.read_text() for path in headers))
    compilations, links = [], []
    for found in extensions:
        objects = []
        for c_file in found.sources:
            made = OBJECTS / f"{digest(decisive, Path(c_file).read_text())}.o"
            objects.append(str(made))
            command = [*compiler, *FLAGS, *include, "-c", c_file, "-o"]
            compilations.append(partial(compile_one, command, made))
        shared = out.joinpath(*found.name.split(".")).with_suffix(target.suffix)
        shared.parent.mkdir(parents=True, exist_ok=True)
        links.append(partial(run, [*compiler, "-shared", *objects, "-o", str(shared)]))
    run_all(compilations)
    run_all(links)
    for path in newest_first(OBJECTS.glob("*.o"))[MOST_STORED * len(compilations) :]:
        path.unlink()
    record = {"suffix": target.suffix, "source": source, "modules": modules}
    (out / "lockd" / compilation.RECORD).write_text(json.dumps(record))


def compile_one(command: list[str], made: Path) -> None:
    """Makes an object, if it is not there from the last time that it was needed."""
    if made.exists():
        os.utime(made)
        return
    OBJECTS.mkdir(exist_ok=True)
    new = made.with_suffix(f".{os.getpid()}")
    run([*command, str(new)])
    new.rename(made)


def run_all(jobs: Iterable[Callable[[], None]]) -> None:
    """Runs as many at once as there are processors, none after one that fails."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        futures = [threads.submit(job) for job in jobs]
        try:
            for future in futures:
                future.result()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def run(command: list[str]) -> None:
    subprocess.run(command, check=True)


def version_of(compiler: list[str]) -> str:
    command = [*compiler, "--version"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)


if __name__ == "__main__":
    main()
