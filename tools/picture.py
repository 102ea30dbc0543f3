"""Draws the house into docs/explanation/: its rooms, and the folders of the large ones.

    make picture

Boxes, arrows and what is written in a box come from the source: from the imports, and
from the first sentence of each docstring. Graphviz lays them out. Each picture contains
the text that Graphviz was given: `tests/test_picture.py` needs no Graphviz to tell
whether a picture is stale.
"""

import re
import subprocess
import textwrap
from collections.abc import Iterable, Iterator
from html import escape, unescape
from pathlib import Path

from house import Arrow, House, Module, reduced
from plan import may_know

HERE = Path(__file__).parents[1] / "docs" / "explanation"

PICTURES = {"rooms.svg": "lockd", "daemon.svg": "daemon", "ctl.svg": "ctl"}
"""Each picture, and the folder of which it shows what is in it."""

WIDTH = 34
"""Of the text in a box, in characters."""

STYLE = """\
bgcolor=white pad=0.2 nodesep=0.25 ranksep=0.45
node [shape=box style="rounded,filled" fillcolor="#eef3fa" color="#4a6a94" \
fontname="Helvetica,Arial,sans-serif" fontsize=11 margin="0.14,0.08"]
edge [color="#5b6778" arrowsize=0.7]
"""


def source_of(house: House, folder: str) -> str:
    """Returns what a picture is drawn from, in the language of Graphviz.

    An arrow that follows from others is left out, and so are those to the package
    itself, for its version. One that goes up is red.
    """
    boxes = _boxes(house, folder)
    names = {module: name for name, modules in boxes.items() for module in modules}
    arrows = {
        (names[one], names[other])
        for one, other in house.boxes
        if one in names and other in names and names[one] != names[other]
        if other != house.package
    }
    up = {arrow for arrow in arrows if not may_know(*arrow)}
    return "".join(
        [
            *("digraph {\n", STYLE),
            *_drawn_boxes(house, boxes),
            *_drawn_arrows(reduced(arrows - up), ""),
            *_drawn_arrows(up, ' [color="#c03030" style=dashed constraint=false]'),
            "}\n",
        ]
    )


def _boxes(house: House, folder: str) -> dict[str, list[str]]:
    """Returns the boxes of a picture, each with what it stands for.

    The modules of the package that need no folder stand together: all others use them.
    """
    depth = 0 if folder == house.package else folder.count(".") + 1
    inside = sorted(
        {
            ".".join(name.split(".")[: depth + 1])
            for name in house.modules
            if depth == 0 or name.startswith(f"{folder}.")
        }
    )
    if depth:
        return {name: [name] for name in inside}
    folders = {x for x in inside if house.modules[x].is_folder}
    lone = [x for x in inside if x not in folders and not folders & _below(house, x)]
    return {
        **{name: [name] for name in inside if name not in lone},
        " ".join(lone): lone,
    }


def _below(house: House, box: str) -> set[str]:
    return {other for one, other in house.boxes if one == box}


def _drawn_boxes(house: House, boxes: dict[str, list[str]]) -> Iterator[str]:
    for name, modules in boxes.items():
        if len(modules) > 1:
            title, subject = ", ".join(modules), "What several rooms share."
        else:
            module = house.modules[name]
            title, subject = _title(module), module.subject.replace("`", "")
        lines = [
            *(f"<b>{escape(x)}</b>" for x in _wrapped(title)),
            *(escape(x) for x in _wrapped(subject)),
        ]
        yield f'"{name}" [label=<{"<br/>".join(lines)}>]\n'


def _wrapped(text: str) -> list[str]:
    """Returns as few lines as fit, and these about equally long."""
    fewest = len(textwrap.wrap(text, WIDTH))
    widths = range(WIDTH // 2, WIDTH + 1)
    lines = (textwrap.wrap(text, width) for width in widths)
    return next(x for x in lines if len(x) == fewest)


def _title(module: Module) -> str:
    name = module.name.rpartition(".")[2]
    return f"{name}/" if module.is_folder and name != "lockd" else name


def _drawn_arrows(arrows: Iterable[Arrow], style: str) -> Iterator[str]:
    yield from (f'"{one}" -> "{other}"{style}\n' for one, other in sorted(arrows))


def drawn(source: str) -> str:
    """Returns the picture, as SVG with its source in it."""
    result = subprocess.run(
        ["dot", "-Tsvg"], input=source, capture_output=True, text=True, check=True
    )
    # Neither the version of Graphviz, nor names that are of no use to who looks.
    svg = re.sub(r"<!--.*?-->\n?", "", result.stdout, flags=re.DOTALL)
    return re.sub(
        "(?=<g id)", f"<metadata>\n{escape(source)}</metadata>\n", svg, count=1
    )


def source_in(picture: str) -> str:
    """Returns what a picture was drawn from."""
    _, _, rest = picture.partition("<metadata>\n")
    return unescape(rest.partition("</metadata>")[0])


def main() -> None:
    """Draws all pictures anew."""
    house = House()
    for name, folder in PICTURES.items():
        (HERE / name).write_text(drawn(source_of(house, folder)))


if __name__ == "__main__":
    main()
