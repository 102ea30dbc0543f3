"""What users read is in plain words (CONTRIBUTING.md).

Covers pages, manual pages, comments of units and of the configuration, help, and every
sentence in the source. Docstrings that no help prints are not covered.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from lockd.ctl.commands import lockctl
from lockd.daemon.main import main as lockd_command

TOP = Path(__file__).parents[1]
WIDTH = 120
MOST_WORDS = 25

PAGES = [
    path.relative_to(TOP).as_posix()
    for pattern in ("*.md", "docs/**/*.md")
    for path in sorted(TOP.glob(pattern))
]
READ = PAGES + [
    path.relative_to(TOP).as_posix()
    for place in ("docs", "man", "conf", "systemd")
    for path in sorted((TOP / place).rglob("*.*"))
    if path.is_file() and path.suffix not in (".md", ".svg", ".py", ".lock")
]

#: The new program says this to the old one at an upgrade, whatever their versions are.
WORD_OF_HANDOVER = "lockd can go on from here"

#: Phrases that readers stumble over, and better words.
BANNED = {
    r"\bis told\b|\bare told\b|\bbe told\b": "gets, sees, is notified",
    r"\bgo(es)? on\b|\bwent on\b": "stays, continues, keeps running, runs on",
    r"\bcomes? to\b": "reaches, happens",
    r"\bthat there (is|are)\b": "exists, or leave it out",
    r"\banew\b": "again; restart, reload",
    r"\bmend(s|ed)?\b": "fix, repair",
    r"\bis no more\b|\bnot \w+ any more\b": "no longer, is gone",
    r"\bof (which|whom) (nothing|nobody)\b": "without",
    r"\b[Ww]hoever\b": "users who, clients that",
    r"\bwaited for no\b|\bas its own session wished\b": "was cancelled",
    r"\bfor so long\b|\bso long as\b": "for SECONDS, while",
    r"\bturns? away\b|\bturned away\b": "rejects",
    r"\bpast lockd\b": "outside lockd, without lockd",
    r"\bjust now\b": "now",
    r"\bgive[sn]? (its place|way)\b": "hands over",
    r"\bcan be had\b|\bbe had\b": "is available",
    r"\b[Pp]iped,": "in a pipe",
}


def phrases_in(text: str) -> Iterator[str]:
    """Goes through the banned phrases of a text, each with better words."""
    for pattern, better in BANNED.items():
        for found in re.finditer(pattern, text):
            around = text[max(0, found.start() - 30) : found.end() + 30]
            yield f"...{around}...: say {better}"


def prose_of(name: str) -> str:
    """Returns the text of a file in one line, without macros and comment signs."""
    text = (TOP / name).read_text()
    if name.startswith("man/"):
        text = re.sub(r"^\.\w+ ?", "", text, flags=re.MULTILINE)
    if name.startswith(("conf/", "systemd/")):
        text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    return " ".join(text.split())


def without_output(name: str) -> str:
    """Returns the text of a page without its blocks of code."""
    text = (TOP / name).read_text()
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def long_lines(name: str) -> list[str]:
    """Returns the lines of a page that are too long.

    Tables and the output of programs are exempt: nobody can break these lines.
    """
    if not name.endswith(".md"):
        return []
    lines = without_output(name).splitlines()
    return [x for x in lines if len(x) > WIDTH and not x.startswith("|")]


def long_sentences(name: str) -> list[str]:
    """Returns the sentences of a page that have too many words.

    A colon or a semicolon ends one, too. Code counts as one word.
    """
    if not name.endswith(".md"):
        return []
    text = re.sub(r"`[^`]*`", "code", without_output(name))
    parts = re.split(r"\n\s*\n|\n\s*(?=- |\d+\. |#)|\||(?<=[.!?:;])\s", text)
    return [part for part in parts if len(part.split()) > MOST_WORDS]


@pytest.mark.parametrize("name", sorted(READ))
def test_file_has_short_lines_and_plain_words(name: str) -> None:
    found = [*long_lines(name), *long_sentences(name), *phrases_in(prose_of(name))]
    assert found == []


def sentences(path: Path) -> Iterator[str]:
    """Goes through the texts of a module that have blanks, without docstrings."""
    tree = ast.parse(path.read_text())
    alone = {x.value for x in ast.walk(tree) if isinstance(x, ast.Expr)}
    for node in ast.walk(tree):
        if node in alone or not isinstance(node, ast.Constant):
            continue
        if isinstance(node.value, str) and " " in node.value:
            yield node.value


@pytest.mark.parametrize(
    "room", sorted((TOP / "src" / "lockd").glob("[a-z]*")), ids=lambda x: x.name
)
def test_no_sentence_of_the_source_has_a_banned_phrase(room: Path) -> None:
    modules = [room] if room.suffix == ".py" else room.rglob("*.py")
    texts = (text for path in modules for text in sentences(path))
    found = [x for text in texts if text != WORD_OF_HANDOVER for x in phrases_in(text)]
    assert found == []


def test_no_help_has_a_banned_phrase() -> None:
    context = click.Context(lockctl)
    commands = [lockctl.get_command(context, x) for x in lockctl.list_commands(context)]
    for command in (lockd_command, lockctl, *filter(None, commands)):
        # A command remembers the names of its help option from the first context.
        context = click.Context(command, **command.context_settings)
        text = " ".join(command.get_help(context).split())
        assert list(phrases_in(text)) == [], command.name
