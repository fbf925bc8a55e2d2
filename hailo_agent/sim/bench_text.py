"""The words of the benchmark: its table for people, its line of JSON for the next run.

Pure. `sim.bench` prints what this makes of figures.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

from hailo_agent.sim.bench_figures import TITLES, Figure, Key, Measurement

FORMAT: Final = 1
"""Of the line of JSON; figures of another format are not compared with."""

_TITLE_WIDTH: Final = 38
_HEAD = f"{'':{_TITLE_WIDTH}} {'p50':>10} {'p99':>10} {'worst':>10} {'n':>5}  target"


def table(devices: int, measured: Iterable[Measurement], found: Sequence[Figure]) -> Iterator[str]:
    """Say what was measured on a node of one size."""
    yield f"{devices} devices".upper().ljust(_TITLE_WIDTH) + _HEAD[_TITLE_WIDTH:]
    for measurement in sorted(measured, key=lambda one: list(TITLES).index(one.name)):
        title = f"{TITLES[measurement.name]:{_TITLE_WIDTH}}"
        if not measurement.samples:
            yield f"{title} not measured: {measurement.missing}"
            continue
        mine = [figure for figure in found if figure.name == measurement.name]
        values = {figure.statistic: _amount(figure.value, figure.unit) for figure in mine}
        columns = (values.get("p50", values.get("value", "")), values.get("p99", ""))
        numbers = f"{columns[0]:>10} {columns[1]:>10} {values.get('worst', ''):>10}"
        yield f"{title} {numbers} {len(measurement.samples):>5}  {_remarks(mine)}".rstrip()
    yield ""


def growth_table(found: Sequence[Figure], sizes: Sequence[int]) -> Iterator[str]:
    """Say how figures grew from the second largest node to the largest."""
    if not found:
        return
    factor = sizes[-1] / sizes[-2]
    yield f"GROWTH, {sizes[-2]} to {sizes[-1]} devices: {factor:g} times as many"
    for figure in found:
        title = TITLES[figure.name.removeprefix("growth.")].strip()
        yield f"{title:{_TITLE_WIDTH}} {figure.value:>9g}x {'':>27}  {_remarks([figure])}".rstrip()
    yield ""


def document(found: Iterable[Figure], about: Mapping[str, Any]) -> bytes:
    """Say everything in one line of JSON."""
    said = list(found)
    missed = [f"{f.name}.{f.statistic} at {f.devices}" for f in said if f.is_missed]
    return orjson.dumps(
        {
            "format": FORMAT,
            **about,
            "missed": missed,
            "figures": [figure.to_document() for figure in said],
        }
    )


def stored(text: bytes) -> Mapping[Key, float]:
    """Read the figures of another run.

    Raises:
        ValueError: this is no run, or one of another format.
    """
    # A whole output may have been stored, table and all.
    said = orjson.loads(text.strip().rpartition(b"\n")[2])
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise ValueError(f"no figures of format {FORMAT}")
    return {(f["devices"], f["name"], f["statistic"]): f["value"] for f in said["figures"]}


def _amount(value: float, unit: str) -> str:
    if unit == "MB":
        return f"{value:.1f} MB"
    if unit == "s":
        return f"{value:.3f} s"
    return f"{value:.2f} {unit}" if unit in {"ms", "%"} else f"{value:g}{unit}"


def _remarks(mine: Iterable[Figure]) -> str:
    """Compare a row with its targets, and with the run before."""
    remarks = []
    for figure in mine:
        statistic = "" if figure.statistic == "value" else f"{figure.statistic} "
        if figure.target is not None:
            limit = f"{figure.target:g} {figure.unit}".strip()
            remarks.append(f"{statistic}≤ {limit}: {figure.verdict}")
        if figure.before and figure.statistic in {"p50", "value"}:
            change = 100 * (figure.value / figure.before - 1)
            remarks.append(f"{statistic}{change:+.0f} % against {figure.before:g}")
    return ", ".join(remarks)
