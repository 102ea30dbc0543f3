"""Reads a manual page, and writes it as Markdown for the site (`make docs`).

It knows the macros that the pages in `man/` use, and fails on others.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ESCAPES = {r"\-": "-", r"\&": "", r"\(bu": "-", r"\(dq": '"', r"\e": "\\"}
FONTS = {"B": "**", "I": "*", "R": ""}
SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$^])")
"""What means something in Markdown; a backslash takes the meaning away."""

Span = tuple[str, str]
"""A font, and text in it."""


def markdown(page: str) -> str:
    """Returns a manual page as Markdown, with terms and definitions as in MyST."""
    writer = _Writer()
    lines = iter(page.splitlines())
    for line in lines:
        if line.startswith("'\\\""):
            continue
        if not line.startswith("."):
            writer.say(_spans(line, "R"))
            continue
        macro, _, rest = line[1:].partition(" ")
        words = _words(rest)
        if macro == "TH":
            writer.heading(f"# {words[0].lower()}({words[1]})")
        elif macro == "SH":
            writer.heading(f"## {_written([('R', ' '.join(words))])}")
        elif macro == "TP":
            writer.item(_line(next(lines)))
        elif macro == "TQ":
            writer.term([("R", ", "), *_line(next(lines))])
        elif macro == "IP":
            writer.bullet()
        elif macro == "PP":
            writer.paragraph()
        elif macro == "br":
            writer.say([("R", "\n")])
        elif macro == "RS":
            writer.inwards()
        elif macro == "RE":
            writer.outwards()
        elif macro in ("EX", "nf"):
            end = {"EX": ".EE", "nf": ".fi"}[macro]
            writer.block(["```text", *_plain(_until(end, lines)), "```"])
        elif macro == "TS":
            writer.block(_table(list(_until(".TE", lines))))
        else:
            writer.say(_line(line))
    return writer.text()


class _Writer:
    """Markdown that grows: blocks, each as far indented as what it belongs to."""

    def __init__(self) -> None:
        self._blocks: list[str] = []
        self._spans: list[Span] = []
        self._term: list[Span] = []
        self._mark = ""  # of the next block: that of a definition, or of a list
        self._base = 0
        self._inside = False
        self._outer: list[int] = []

    def say(self, spans: list[Span]) -> None:
        if self._spans and self._spans[-1][1] != "\n" and spans != [("R", "\n")]:
            self._spans.append(("R", " "))
        self._spans += spans

    def heading(self, text: str) -> None:
        self.paragraph()
        self._blocks.append(text)

    def paragraph(self) -> None:
        self._end()
        self._inside = False

    def item(self, term: list[Span]) -> None:
        self.paragraph()
        self._term = term
        self._inside, self._mark = True, ": "

    def term(self, spans: list[Span]) -> None:
        self._term += spans

    def bullet(self) -> None:
        self.paragraph()
        self._inside, self._mark = True, "- "

    def inwards(self) -> None:
        self._end()
        self._outer.append(self._base)
        self._base += self._inside
        self._inside = False

    def outwards(self) -> None:
        self.paragraph()
        self._base = self._outer.pop()

    def block(self, lines: list[str]) -> None:
        self._end()
        self._put(lines)

    def text(self) -> str:
        self._end()
        return "\n\n".join(self._blocks) + "\n"

    def _end(self) -> None:
        spans, self._spans = self._spans, []
        text = _written(spans).strip()
        if text:
            self._put(text.replace("\n", "\\\n").splitlines())

    def _put(self, lines: list[str]) -> None:
        indent = "  " * self._base
        if self._term:
            self._blocks.append(indent + _written(self._term))
            self._term = []
        first = self._mark or ("  " if self._inside else "")
        self._mark = ""
        later = "  " if self._inside else ""
        out = [indent + first + lines[0], *(indent + later + x for x in lines[1:])]
        # The items of a list stand one below the other.
        if first == "- " and self._blocks[-1].lstrip().startswith("- "):
            self._blocks[-1] += "\n" + "\n".join(out)
        else:
            self._blocks.append("\n".join(out))


def _until(end: str, lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line == end:
            return
        yield line


def _words(text: str) -> list[str]:
    """Returns the arguments of a macro: quotes keep blanks."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split, lexer.quotes = True, '"'
    lexer.escape = lexer.commenters = ""
    return list(lexer)


def _line(line: str) -> list[Span]:
    """Returns the text of a line, which may be a macro of fonts."""
    if not line.startswith("."):
        return _spans(line, "R")
    macro, _, rest = line[1:].partition(" ")
    words = _words(rest)
    if macro in ("B", "I"):
        return _spans(" ".join(words), macro)
    if not re.fullmatch("[BIR]{2}", macro):
        raise ValueError(f"an unknown macro: {line}")
    return [
        span
        for number, word in enumerate(words)
        for span in _spans(word, macro[number % 2])
    ]


def _spans(text: str, font: str) -> list[Span]:
    """Splits a text where it changes its font itself; `R` ends such a change."""
    first, *changed = re.split(r"\\f([BIR])", text)
    spans = [(font, first)]
    for other, part in zip(changed[::2], changed[1::2], strict=True):
        spans.append((font if other == "R" else other, part))
    return [(name, _unescaped(part)) for name, part in spans if part]


def _unescaped(text: str) -> str:
    for escape, meaning in ESCAPES.items():
        text = text.replace(escape, meaning)
    return text


def _written(spans: list[Span]) -> str:
    """Returns text with its fonts. Marks stand at words, as Markdown wants them."""
    parts: list[Span] = []
    for font, text in spans:
        if parts and parts[-1][0] == font:
            parts[-1] = (font, parts[-1][1] + text)
        else:
            parts.append((font, text))
    out = ""
    for font, text in parts:
        inner = text.strip()
        before, after = text.partition(inner)[::2] if inner else (text, "")
        mark = FONTS[font] if inner else ""
        out += before + mark + SPECIAL.sub(r"\\\1", inner) + mark + after
    return out


def _plain(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield "".join(text for _, text in _line(line))


def _table(lines: list[str]) -> list[str]:
    """Returns a table whose cells bars separate, with the first row as heading."""
    rows = [line.split("|") for line in lines if "|" in line and "tab(" not in line]
    cells = [[_written(_spans(cell, "R")) for cell in row] for row in rows]
    written = [f"| {' | '.join(row)} |" for row in cells]
    return [written[0], "|---" * len(rows[0]) + "|", *written[1:]]


def main() -> None:
    for page in sorted((Path(__file__).parents[1] / "man").iterdir()):
        print(markdown(page.read_text()))


if __name__ == "__main__":
    main()
