"""Definitions and figures put together, as prometheus_client wants them.

Here labels are bounded and figures that are none are left out, so that whoever fills a metric in
need not think of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Final

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from hailo_agent.aio.tally import BOUNDS_SECONDS, Durations
from hailo_agent.web.definitions import Definition, Type

MAX_TEXT: Final = 128
"""Of a label's value that others choose, in characters."""

MAX_NAME: Final = 253
"""Of a name that Kubernetes has checked; it must stay whole, or it joins with nothing."""

Labels = tuple[str, ...]
Row = tuple[Labels, float]
"""Values of the labels in the order of the definition, and a figure."""

_BOUNDS: Final = (*map(repr, BOUNDS_SECONDS), "+Inf")


def bounded(value: str, most: int = MAX_TEXT) -> str:
    """Make a value fit to be a label: printable, and not too long."""
    if len(value) > most:
        value = value[:most]
    if value.isprintable():
        return value
    return "".join(letter if letter.isprintable() else "?" for letter in value)


def metric(definition: Definition, rows: Iterable[Row]) -> Metric:
    """Fill in figures; what is not finite is not known, and has no series.

    Rows that tell of the same are told as one: counts are added, of anything else the most counts.
    """
    figures: dict[Labels, float] = {}
    for labels, figure in rows:
        if not math.isfinite(figure):
            continue
        known = figures.get(labels)
        if known is None:
            figures[labels] = figure
        elif definition.type is Type.COUNTER:
            figures[labels] = known + figure
        else:
            figures[labels] = max(known, figure)
    filled = _empty(definition)
    name, keys = definition.name, definition.labels
    filled.samples = [
        Sample(name, dict(zip(keys, labels, strict=True)), figure)
        for labels, figure in figures.items()
    ]
    return filled


def histogram(definition: Definition, durations: Mapping[Labels, Durations]) -> Metric:
    """Fill in durations that are sorted into classes already."""
    filled = _empty(definition)
    name = definition.name
    for labels, sorted_in in durations.items():
        named = dict(zip(definition.labels, labels, strict=True))
        counts = tuple(accumulate(sorted_in.classes))
        filled.samples += [
            Sample(f"{name}_bucket", {**named, "le": bound}, float(count))
            for bound, count in zip(_BOUNDS, counts, strict=True)
        ]
        filled.samples += [
            Sample(f"{name}_count", named, float(counts[-1])),
            Sample(f"{name}_sum", named, sorted_in.sum_seconds),
        ]
    return filled


def summary(definition: Definition, durations: Mapping[Labels, Durations]) -> Metric:
    """Fill in how many durations there are, and their sum."""
    filled = _empty(definition)
    for labels, sorted_in in durations.items():
        named = dict(zip(definition.labels, labels, strict=True))
        filled.samples += [
            Sample(f"{definition.name}_count", named, float(sorted_in.count)),
            Sample(f"{definition.name}_sum", named, sorted_in.sum_seconds),
        ]
    return filled


def _empty(definition: Definition) -> Metric:
    return Metric(definition.family, definition.help, definition.type.value, definition.unit)
