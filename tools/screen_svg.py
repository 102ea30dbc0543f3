"""Draws what a program printed as a picture: an SVG that needs nothing from elsewhere.

The font is the reader's own. Each line is as wide as it has characters, whatever that
font is, so that columns stand one below the other.
"""

from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDE, HIGH, EDGE = 8, 18, 14
"""Of a character, of a line, and around all, in units of the picture."""

STYLE = (
    "text { font-family: ui-monospace, monospace; font-size: 13px; fill: #d6dde6; }"
    " .bold { font-weight: bold; fill: #ffffff; } .dim { fill: #8fa1b8; }"
    " .reverse { fill: #12181f; }"
)


class Line(NamedTuple):
    """A line, and its style: "", "bold", "dim" or "reverse"."""

    text: str
    style: str = ""


def drawn(title: str, lines: Sequence[Line]) -> str:
    """Returns a picture of lines.

    Args:
        title: what the picture shows, for readers who do not see it.
        lines: from the top.
    """
    width = 2 * EDGE + WIDE * max(len(line.text) for line in lines)
    height = 2 * EDGE + HIGH * len(lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#1b232d"/>',
    ]
    for number, (text, style) in enumerate(lines):
        top = EDGE + HIGH * number
        if style == "reverse":
            parts.append(
                f'<rect x="{EDGE}" y="{top}" width="{width - 2 * EDGE}"'
                f' height="{HIGH}" fill="#d6dde6"/>'
            )
        if text.strip():
            start = len(text) - len(text.lstrip())
            # Not all that draw such pictures heed `white-space`.
            shown = text.strip().replace(" ", "\u00a0")
            kind = f' class="{style}"' if style else ""
            parts.append(
                f'<text x="{EDGE + WIDE * start}" y="{top + 13}"'
                f' textLength="{WIDE * len(shown)}"{kind}>{escape(shown)}</text>'
            )
    return "\n".join([*parts, "</svg>\n"])
