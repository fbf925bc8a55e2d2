"""Figures that pages give away are those of the benchmark's targets, or of the code."""

import re
from collections.abc import Iterator
from typing import Final

import pytest

from tests.house.pages import DOCS, name, pages, prose
from tests.house.repository import ROOT

BENCHMARKS: Final = (DOCS / "reference" / "benchmarks.md").read_text()
FIGURE: Final = re.compile(
    r"(?<![\w.+])(\d+(?:[.,]\d+)?) (ms|µs|s|KiB|MiB|GiB|kB|MB|GB|%)(?![\w/])"
)
PAGES: Final = [
    page
    for page in pages()
    if page.parent == DOCS / "how-to"
    or page.parent == DOCS / "tutorial"
    or name(page) in {"README.md", "docs/index.md", "docs/troubleshooting.md"}
]

ELSEWHERE: Final = {
    ("docs/how-to/alerts.md", "90 %"): ("manifests/prometheus/rules.yaml", "> 0.9\n"),
    ("docs/how-to/ask-for-help.md", "1 MiB"): (
        "hailo_agent/support/bundle.py",
        "MAX_FILE_BYTES: Final = 1024 * 1024\n",
    ),
    ("docs/how-to/ask-for-help.md", "16 MiB"): (
        "hailo_agent/support/bundle.py",
        "= 16 * MAX_FILE_BYTES",
    ),
    ("docs/how-to/read-the-log.md", "16 KiB"): (
        "hailo_agent/log.py",
        "LINE_BYTES: Final = 16 * 1024",
    ),
    ("docs/how-to/ship-the-log.md", "16 KiB"): (
        "hailo_agent/log.py",
        "LINE_BYTES: Final = 16 * 1024",
    ),
    ("docs/how-to/see-use-per-pod.md", "3000 ms"): (
        "hailo_agent/core/usage.py",
        "FRESH_SECONDS: Final = 3.0\n",
    ),
    ("docs/troubleshooting.md", "30 s"): ("hailo_agent/core/health.py", "_HOT: Final = 30.0"),
    ("docs/troubleshooting.md", "300 s"): ("hailo_agent/core/health.py", "_NOISY: Final = 300.0"),
}
"""Figures of the code: page and figure, and where it stands how."""

NOT_OURS: Final = {
    ("docs/troubleshooting.md", "16 KiB"): "the pages of a Raspberry Pi's kernel",
}
"""Figures that nothing here could compare: page and figure, and whose it is."""


def figures() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for number, unit in FIGURE.findall(prose(page)):
            yield name(page), f"{number} {unit}"


FOUND: Final = sorted(set(figures()))


@pytest.mark.parametrize("figure", FOUND, ids=" ".join)
def test_a_figure_is_a_target_of_the_benchmark_or_of_the_code(figure: tuple[str, str]) -> None:
    page, value = figure
    if figure in ELSEWHERE:
        path, text = ELSEWHERE[figure]
        assert text in (ROOT / path).read_text()
    elif figure not in NOT_OURS:
        assert re.search(rf"(?<![\d.]){re.escape(value)}(?!\w)", BENCHMARKS), f"{page}: {value}"


def test_no_row_is_stale_and_figures_are_found() -> None:
    assert {*ELSEWHERE, *NOT_OURS} <= set(FOUND)
    assert ("README.md", "30 ms") in FOUND


def test_what_the_readme_says_of_speed_and_size_is_a_target() -> None:
    # The row of each target, as benchmarks.md has it.
    for row in (
        r"plug or unplug → list, inotify alone \| p50 ≤ 30 ms",
        r"memory, everything on \| ≤ 72 MB",
        r"idle CPU \| ≤ 1 % of a core",
    ):
        assert re.search(row, BENCHMARKS), row
