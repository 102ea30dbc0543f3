"""Metrics as text: OpenMetrics 1.0, and the older text format of Prometheus.

node_exporter's textfile collector and `promtool check metrics` read the older format
(0.0.4). It differs in the names of counters and in the end of the text.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Final, Literal, NamedTuple

from lockd.daemon.activity.counts import Histogram

Format = Literal["openmetrics", "plain"]

CONTENT_TYPES: Final[dict[Format, str]] = {
    "openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
    "plain": "text/plain; version=0.0.4; charset=utf-8",
}

UNITS: Final = ("seconds", "bytes")

Kind = Literal["counter", "gauge", "histogram", "info"]
Value = int | float | Histogram
Labels = Mapping[str, str]


class Family(NamedTuple):
    """A metric: name, kind, help, and a value for each set of labels.

    The name has no `_total`, `_bucket` or `_info`; the kind adds them.
    """

    name: str
    kind: Kind
    help: str
    samples: Sequence[tuple[Labels, Value]]


def render(families: Iterable[Family], wanted: Format) -> str:
    """Returns metrics as text."""
    lines: list[str] = []
    for family in families:
        lines += _head(family, wanted)
        for labels, value in family.samples:
            if isinstance(value, Histogram):
                lines += _histogram(family.name, labels, value)
            else:
                name = _name_of_sample(family)
                lines.append(f"{name}{_shown(labels)} {_number(value)}")
    if wanted == "openmetrics":
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _name_of_sample(family: Family) -> str:
    suffix = {"counter": "_total", "info": "_info"}.get(family.kind, "")
    return family.name + suffix


def _head(family: Family, wanted: Format) -> list[str]:
    name, kind = family.name, family.kind
    if wanted == "plain":
        name, kind = _name_of_sample(family), "gauge" if kind == "info" else kind
    found = [f"# TYPE {name} {kind}", f"# HELP {name} {family.help}"]
    unit = next((x for x in UNITS if name.endswith(f"_{x}")), None)
    if unit is not None and wanted == "openmetrics":
        found.insert(1, f"# UNIT {name} {unit}")
    return found


def _histogram(name: str, labels: Labels, value: Histogram) -> list[str]:
    heads = _heads(name, tuple(labels.items()), value.bounds)
    numbers = [*accumulate(value.counts), _number(value.total)]
    numbers.append(numbers[-2])
    return [f"{head}{number}" for head, number in zip(heads, numbers, strict=True)]


@lru_cache(maxsize=1024)
def _heads(
    name: str, labels: tuple[tuple[str, str], ...], bounds: tuple[float, ...]
) -> list[str]:
    """Returns the lines of a histogram without their numbers, which never change."""
    others = dict(labels)
    shown = [*map(repr, bounds), "+Inf"]
    buckets = [f"{name}_bucket{_shown(others | {'le': bound})} " for bound in shown]
    return [*buckets, f"{name}_sum{_shown(others)} ", f"{name}_count{_shown(others)} "]


def _shown(labels: Labels) -> str:
    return _show(tuple(labels.items())) if labels else ""


@lru_cache(maxsize=4096)
def _show(labels: tuple[tuple[str, str], ...]) -> str:
    inner = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
    return f"{{{inner}}}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return repr(value) if isinstance(value, float) else str(value)
