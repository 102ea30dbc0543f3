"""The pictures of `lockctl show` and `lockctl top`: `make pictures` draws them.

They show what is printed today, of a real daemon with real processes. What differs from
run to run (processes, times, who runs it) is replaced, so that two runs draw the same.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ctl.processes import LOCKCTL, Lockctl, Terminal
from ctl.top.screen import Screen, play
from lockd import connect
from screen_svg import Line, drawn
from support.daemon_process import DaemonProcess
from support.places import DOCS

PICTURES = DOCS / "pictures"
SIZE = (106, 11)
"""Of the screen of `top`: as wide as the other picture."""

HELD = {"dump.sh": "3m12s", "schema.sh": "41 s", "serve.sh +1": "2h05m"}
"""How long each holder shall have held its lock."""

WAITED = {"restic.sh": "48 s", "verify.sh": "9 s"}
EVENTS = ("03:17:00", "03:19:24", "03:20:03")

TITLES = {
    "show": "lockctl show backup: dump.sh holds the lock, restic.sh and verify.sh wait",
    "top": "lockctl top: who holds which lock, for how long, and how many wait",
}


@contextlib.contextmanager
def scene() -> Iterator[tuple[DaemonProcess, list[int]]]:
    """Has programs hold locks and wait for them; yields the daemon and their pids."""
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        daemon = DaemonProcess(place)
        stack.callback(daemon.close)
        daemon.start()
        lockctl = Lockctl(str(daemon.socket))
        stack.callback(lockctl.end_all)
        client = stack.enter_context(connect(str(daemon.socket), name="the pictures"))

        def run(name: str, program: str, *options: str) -> None:
            script = place / program
            script.write_text("#!/bin/sh\nread -r line\n")
            script.chmod(0o755)
            before = number_of_parties(client.statistics())
            words = ("run", *options, name, "--", f"./{program}")
            lockctl.start(*words, cwd=place)
            while number_of_parties(client.statistics()) == before:
                pass

        run("backup", "dump.sh", "--reason", "nightly dump")
        run("backup", "restic.sh")
        run("backup", "verify.sh")
        run("schema", "schema.sh", "--reason", "version 42")
        run("schema", "verify.sh")
        run("site", "serve.sh", "--shared")
        run("site", "serve.sh", "--shared")
        parties = [
            party
            for name in ("backup", "schema", "site")
            for kind in ("holders", "waiters")
            for party in client.query(name)[kind]
        ]
        yield daemon, [party["pid"] for party in parties]


def number_of_parties(counts: dict[str, int]) -> int:
    return counts["held"] + counts["waiting"]


def shown() -> dict[str, list[Line]]:
    """Returns the lines of each picture, as the programs print them now."""
    with scene() as (daemon, pids):
        return {"show": show(daemon, pids), "top": top(daemon, pids)}


def show(daemon: DaemonProcess, pids: Sequence[int]) -> list[Line]:
    """What `lockctl show backup` prints on a terminal."""
    env = Lockctl(str(daemon.socket)).env
    terminal = Terminal((*LOCKCTL, "show", "backup"), env, 300)
    assert terminal.wait() == 0, terminal.shown
    text = re.sub(r"\x1b\[[\d;]*m", "", terminal.shown).replace("\r\n", "\n")
    lines = [Line("$ lockctl show backup", "dim")]
    for block in text.rstrip("\n").split("\n\n"):
        rows = cells_of(block.splitlines())
        for number, row in enumerate(rows):
            row["PID"] = alike(row["PID"], pids)
            row["USER"] = "root"
            if "WHEN" in row:
                row["WHEN"] = EVENTS[number]
            else:
                row["FOR"] = (HELD | WAITED)[row["NAME"]]
            if "COMMAND" in row:
                row["COMMAND"] = short(row["COMMAND"])
        lines += [*([Line("")] if len(lines) > 1 else []), *table(rows)]
    return lines


def short(command: str) -> str:
    """A lockctl of a test is a module that Python runs, or a program that it reads."""
    return re.sub(
        r"^\S*python\S* (-m lockd\.ctl\.main|\S*/lockctl)", "lockctl", command
    )


def cells_of(lines: Sequence[str]) -> list[dict[str, str]]:
    """Returns the rows of a table by their titles, without what this host adds."""
    titles = [(m[0].strip(), m.start()) for m in re.finditer(r"\S+(?: \S+)*", lines[0])]
    ends = [start for _, start in titles[1:]] + [None]
    return [
        {
            title: line[start:end].strip()
            for (title, start), end in zip(titles, ends, strict=True)
            if title != "UNIT"
        }
        for line in lines[1:]
    ]


def table(rows: Sequence[dict[str, str]]) -> Iterator[Line]:
    titles = [*rows[0]]
    widths = [max(len(x) for x in (t, *(row[t] for row in rows))) for t in titles]
    for style, cells in (("bold", titles), *(("", [*row.values()]) for row in rows)):
        pairs = zip(cells, widths, strict=True)
        yield Line(
            "  ".join(cell.ljust(width) for cell, width in pairs).rstrip(), style
        )


def alike(pid: str, pids: Sequence[int]) -> str:
    return str(4711 + pids.index(int(pid)))


def top(daemon: DaemonProcess, pids: Sequence[int]) -> list[Line]:
    """What is on the screen of `lockctl top`."""
    seen: list[str] = []

    async def look(screen: Screen) -> None:
        seen.append(await screen.until("4 held", "3 waiting", "> backup", "site"))

    play(str(daemon.socket), look, SIZE)
    lines: list[Line] = []
    heading = ""
    for text in seen[0].splitlines():
        text = re.sub(r"pid \d+, up [^,]*", "pid 4700, up 3d04h", text)
        text = re.sub(r"\d+ sessions, ", "8 sessions, ", text)
        text = re.sub(r"[\d.]+ grants/s", "0 grants/s", text).rstrip()
        if "HELD BY" in text:
            heading = text
            lines.append(Line(text, "bold"))
        elif heading and text.startswith(("> ", "  ")):
            lines.append(of_a_lock(heading, text, pids))
        else:
            lines.append(Line(text, "" if lines else "dim"))
    return lines


def of_a_lock(heading: str, text: str, pids: Sequence[int]) -> Line:
    """A line of the table; its columns keep their places."""

    def put(title: str, new: str) -> str:
        """Exchanges a cell that stands at the right end of its column."""
        end = heading.index(title) + len(title)
        start = end - {"PID": 7, "FOR": 6}[title]
        return text[:start] + new.rjust(end - start) + text[end:]

    holder = text[heading.index("HELD BY") :].split("  ")[0]
    pid = text[: heading.index("PID") + len("PID")].split()[-1]
    text = put("PID", alike(pid, pids))
    text = put("FOR", HELD[holder])
    user = heading.index("USER")
    text = text[:user] + "root".ljust(8) + text[user + 8 :]
    return Line(text, "reverse" if text.startswith("> ") else "")


def main() -> None:
    """Draws all pictures."""
    PICTURES.mkdir(exist_ok=True)
    for name, lines in shown().items():
        (PICTURES / f"{name}.svg").write_text(drawn(TITLES[name], lines))


if __name__ == "__main__":
    main()
