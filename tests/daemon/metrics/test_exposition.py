"""Metrics as text, in both formats."""

from pathlib import Path

from daemon.metrics.conftest import needs_promtool, promtool, write_to
from lockd.daemon.activity.counts import Histogram
from lockd.daemon.metrics.exposition import Family, render
from support.daemon_process import DaemonProcess
from support.exposition import read

TIMES = Histogram((0.5, 1.0))
for seconds in (0.25, 1.0, 1.0, 2.0):
    TIMES.observe(seconds)


FAMILIES = [
    Family("a", "counter", "One.", [({}, 1), ({"x": 'a"\\\nb'}, 2)]),
    Family("b_seconds", "gauge", "Two.", [({}, 1e-07)]),
    Family("c", "info", "Three.", [({"v": "1"}, 1)]),
    Family("d_seconds", "histogram", "Four.", [({"y": "z"}, TIMES)]),
]


def test_openmetrics_is_as_it_is_specified() -> None:
    assert render(FAMILIES, "openmetrics").splitlines() == [
        "# TYPE a counter",
        "# HELP a One.",
        "a_total 1",
        r'a_total{x="a\"\\\nb"} 2',
        "# TYPE b_seconds gauge",
        "# UNIT b_seconds seconds",
        "# HELP b_seconds Two.",
        "b_seconds 1e-07",
        "# TYPE c info",
        "# HELP c Three.",
        'c_info{v="1"} 1',
        "# TYPE d_seconds histogram",
        "# UNIT d_seconds seconds",
        "# HELP d_seconds Four.",
        'd_seconds_bucket{y="z",le="0.5"} 1',
        'd_seconds_bucket{y="z",le="1.0"} 3',
        'd_seconds_bucket{y="z",le="+Inf"} 4',
        'd_seconds_sum{y="z"} 4.25',
        'd_seconds_count{y="z"} 4',
        "# EOF",
    ]
    assert read(render(FAMILIES, "openmetrics"))("a_total", x='a"\\\nb') == 2


def test_older_format_has_the_names_of_the_samples() -> None:
    text = render(FAMILIES, "plain")
    assert "# TYPE a_total counter\n# HELP a_total One.\na_total 1\n" in text
    assert "# TYPE c_info gauge\n" in text
    assert "# UNIT" not in text
    assert "# EOF" not in text


@needs_promtool
def test_older_format_pleases_promtool(lockd: DaemonProcess, tmp_path: Path) -> None:
    path = tmp_path / "lockd.prom"
    write_to(lockd, path)
    promtool("check", "metrics", text=path.read_text())
