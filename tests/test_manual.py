"""The manual pages, as the site has them: nothing is lost, and no mark is left over."""

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from manual import markdown
from support.places import ROOT

MANUAL = sorted((ROOT / "man").iterdir())


def words(text: str) -> list[str]:
    return re.findall(r"[\w/.-]*\w", text)


def words_of(page: str) -> list[str]:
    """Returns the words of a manual page, by a way of its own: without all macros."""
    text = re.sub(
        r"^\.T[HS] .*|^tab.*|^l[bl ]+\.?$|^'.*|^_$", "", page, flags=re.MULTILINE
    )
    text = re.sub(
        r"^\.IP .*|^\.[A-Z]{2}$|^\.br$|^\.(nf|fi)$", "", text, flags=re.MULTILINE
    )
    text = re.sub(r"^\.(B|I|[BIR]{2}|SH) ", "", text, flags=re.MULTILINE)
    text = re.sub(r"\\f[BIR]|\\&", "", text.replace("\\(dq", '"'))
    return words(text.replace("\\-", "-").replace('"', " "))


@pytest.mark.parametrize("path", MANUAL, ids=lambda x: x.name)
def test_page_keeps_all_words_of_the_manual(path: Path) -> None:
    page = path.read_text()
    shown = re.sub(r"\\(?=\W)|\*", "", markdown(page)).replace('"', " ")
    expected = "".join(words_of(page))
    found = "".join(words(shown.partition("\n")[2].replace("```text", "")))
    assert re.sub(r"\W", "", found) == re.sub(r"\W", "", expected)


@pytest.mark.parametrize("path", MANUAL, ids=lambda x: x.name)
def test_every_mark_of_a_font_is_understood(path: Path) -> None:
    shown = MarkdownIt().render(markdown(path.read_text()))
    text = re.sub(r"<pre>.*?</pre>", "", shown, flags=re.DOTALL)
    assert "<strong>" in text
    # A star in the text itself stands alone, as in `NAME*`.
    assert "**" not in re.sub(r"<[^>]*>", "", text)


def test_list_of_a_definition_is_inside_it() -> None:
    page = """\
.TH X 1
.SH "A PART"
.TP
.BI \\-\\-one " N"
First,
.BR two (3):
.RS
.TP
.B inner
Said.
.IP \\(bu 2
a
.IP \\(bu 2
b
.RE
.TP
.B next
.nf
code *
.fi
"""
    assert markdown(page).splitlines() == [
        *("# x(1)", "", "## A PART", "", "**--one** *N*", ""),
        *(": First, **two**(3):", "", "  **inner**", "", "  : Said.", ""),
        *("  - a", "  - b", "", "**next**", ""),
        *(": ```text", "  code *", "  ```"),
    ]


def test_macro_that_nobody_knows_is_no_text() -> None:
    with pytest.raises(ValueError, match=r"\.XX"):
        markdown(".XX a")
