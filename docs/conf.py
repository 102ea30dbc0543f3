"""How `make docs` makes a site of these pages.

The pages are Markdown, and link to each other by file, so that they can be read where
they lie, too. What is written elsewhere is brought in here: docstrings, manual pages,
the example of the configuration, CONTRIBUTING.md, CHANGELOG.md and SECURITY.md.
"""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import SphinxError

TOP = Path(__file__).parents[1]
sys.path[:0] = [str(TOP / "src"), str(TOP / "tools")]

import lockd  # noqa: E402
from manual import markdown  # noqa: E402

project = "lockd"
author = "the authors of lockd"
copyright = author  # noqa: A001
version = release = lockd.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["requirements.lock"]
# A Makefile may have another prefix than a tab, which the highlighter does not know.
suppress_warnings = ["misc.highlighting_failure"]
# Options have dashes and programs print quotes: both stay as they are typed.
smartquotes = False

myst_enable_extensions = ["deflist"]
# GitHub knows three, too; links to them are tested in tests/test_docs.py.
myst_heading_anchors = 3

# Names in docstrings stand between single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False

html_theme = "furo"
html_title = f"lockd {release}"
html_copy_source = False
html_show_sphinx = False

MANUAL = {
    "reference/lockctl": "lockctl.1",
    "reference/lockd": "lockd.8",
    "reference/lockd.toml": "lockd.toml.5",
}
"""Which page of the site is which manual page."""

OUTSIDE = re.compile(
    r"""<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^>]*>"""
    r"""|url\(\s*["']?(?:https?:)?//[^)]*\)|@import[^;]*//[^;]*;"""
)
"""What makes a browser ask another host."""


def setup(app: Sphinx) -> None:
    """Has pages read, and the site checked."""
    app.connect("source-read", _read_manual)
    app.connect("autodoc-process-signature", _leave_out_constructors)
    app.connect("build-finished", _check_site)


def _read_manual(_app: Sphinx, page: str, source: list[str]) -> None:
    if page in MANUAL:
        source[0] = markdown((TOP / "man" / MANUAL[page]).read_text())


def _leave_out_constructors(
    _app: Sphinx,
    what: str,
    _name: str,
    _object: object,
    _options: object,
    signature: str | None,
    _returns: str | None,
) -> tuple[str, None] | None:
    """Nobody calls the constructor of a lock or an error: functions return them."""
    return ("", None) if signature and what in ("class", "exception") else None


def _check_site(app: Sphinx, failed: Exception | None) -> None:
    """Fails if a browser would load a part of the site from elsewhere."""
    if failed:
        return
    for file in Path(app.outdir).rglob("*.*"):
        if file.suffix in (".html", ".css", ".svg"):
            for found in OUTSIDE.finditer(file.read_text()):
                raise SphinxError(f"{file} loads from outside: {found[0][:200]}")
