"""Reads metrics as strictly as the specification of OpenMetrics 1.0 is written.

https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md
"""

import re
from typing import NamedTuple

from prometheus_client.openmetrics.parser import text_string_to_metric_families

LABEL = r'[a-zA-Z_]\w*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"([a-z_:]\w*)(?:\{{({LABEL}(?:,{LABEL})*)\}})? (\S+)")
NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]\d+)?")
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "info": ("_info",),
    "histogram": ("_bucket", "_sum", "_count"),
}

Key = tuple[str, frozenset[tuple[str, str]]]


class Metrics(NamedTuple):
    """What was read: the kind of each family, and the value of each sample."""

    kinds: dict[str, str]
    values: dict[Key, float]

    def __call__(self, name: str, **labels: str) -> float:
        return self.values[name, frozenset(labels.items())]

    def labelled(self, name: str, label: str) -> dict[str, float]:
        """Returns the values of a metric by one of its labels."""
        return {dict(k)[label]: v for (x, k), v in self.values.items() if x == name}


def read(text: str) -> Metrics:
    """Reads metrics, or fails: by our own rules, and by prometheus_client's parser."""
    assert list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]
    *lines, last, rest = text.split("\n")
    assert (last, rest) == ("# EOF", "")
    found = Metrics({}, {})
    family = kind = ""
    described: list[str] = []
    for line in lines:
        if line.startswith("# "):
            _, what, name, about = line.split(" ", 3)
            if what == "TYPE":
                family, kind = name, about
                assert family not in found.kinds, "one family after the other"
                found.kinds[family] = kind
                described = []
            assert name == family
            assert what not in described
            described.append(what)
            if what == "UNIT":
                assert name.endswith(f"_{about}")
            if what == "HELP":
                assert about[0].isupper()
                assert about.endswith(".")
        else:
            assert {"TYPE", "HELP"} <= {*described}, line
            _read_sample(line, family, kind, found)
    _check_histograms(found)
    return found


def _read_sample(line: str, family: str, kind: str, found: Metrics) -> None:
    match = SAMPLE.fullmatch(line)
    assert match is not None, line
    name, labels, value = match.groups()
    assert name in [family + suffix for suffix in SUFFIXES[kind]], line
    assert NUMBER.fullmatch(value), line
    pairs = re.findall(LABEL, labels or "")
    split = [pair.partition("=")[::2] for pair in pairs]
    unescaped = [(n, _unescaped(v[1:-1])) for n, v in split]
    assert len(dict(unescaped)) == len(unescaped)
    key = name, frozenset(unescaped)
    assert key not in found.values, line
    found.values[key] = float(value)


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], text)


def _check_histograms(found: Metrics) -> None:
    for family, kind in found.kinds.items():
        if kind != "histogram":
            continue
        series: dict[frozenset[tuple[str, str]], dict[float, float]] = {}
        for (name, labels), value in found.values.items():
            if name == f"{family}_bucket":
                bound = float(dict(labels)["le"])
                rest = frozenset(x for x in labels if x[0] != "le")
                series.setdefault(rest, {})[bound] = value
        assert series
        for labels, buckets in series.items():
            assert sorted(buckets) == list(buckets)
            assert sorted(buckets.values()) == list(buckets.values())
            assert found.values[f"{family}_count", labels] == buckets[float("inf")]
            assert found.values[f"{family}_sum", labels] >= 0
