"""Metrics as text: Prometheus' format 0.0.4, or OpenMetrics 1.0 for who asks for it.

What prometheus_client's own encoders write, in a fraction of their time: they look at each letter
of each name, and a scrape holds up whoever waits for an Allocate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_OPENMETRICS_VERSIONS: Final = frozenset({"", "0.0.1", "1.0.0"})
"""What may be asked for and gets 1.0.0; a higher one gets the text format, as nobody knows it."""

_GAUGES: Final = frozenset({"info", "stateset"})
"""Types that the text format does not have."""

_QUALITY: Final = re.compile(r"[01](?:\.[0-9]{0,3})?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposition:
    """What is told at `/metrics`: everything that these collectors collect."""

    collectors: Sequence[Collector]

    def render(self, accept: str) -> tuple[bytes, str]:
        """Write everything as it is now; returns the body and its content type."""
        metrics = (metric for collector in self.collectors for metric in collector.collect())
        if prefers_openmetrics(accept):
            return openmetrics(metrics), OPENMETRICS
        return text(metrics), TEXT


def prefers_openmetrics(accept: str) -> bool:
    """Tell from an Accept header whether OpenMetrics is wanted more than plain text is."""
    wanted = plain = 0.0
    for entry in accept.lower().split(","):
        media, *rest = (part.strip() for part in entry.split(";"))
        parameters = dict(part.partition("=")[::2] for part in rest)
        quality = _quality(parameters.get("q", "1"))
        if media == "application/openmetrics-text":
            if parameters.get("version", "").strip('"') in _OPENMETRICS_VERSIONS:
                wanted = max(wanted, quality)
        elif media == "text/plain":
            plain = max(plain, quality)
    return wanted > 0.0 and wanted >= plain


def _quality(written: str) -> float:
    return float(written) if _QUALITY.fullmatch(written) else 0.0


def text(metrics: Iterable[Metric]) -> bytes:
    """Write Prometheus' text format 0.0.4."""
    parts: list[str] = []
    for metric in metrics:
        name, kind = metric.name, metric.type
        if kind == "counter":
            name = f"{name}_total"
        elif kind == "info":
            name = f"{name}_info"
        kind = "gauge" if kind in _GAUGES else kind
        told = metric.documentation.replace("\\", r"\\").replace("\n", r"\n")
        parts.append(f"# HELP {name} {told}\n# TYPE {name} {kind}\n")
        parts.extend(_lines(metric.samples))
    return "".join(parts).encode()


def openmetrics(metrics: Iterable[Metric]) -> bytes:
    """Write OpenMetrics 1.0."""
    parts: list[str] = []
    for metric in metrics:
        name = metric.name
        parts.append(f"# HELP {name} {_escaped(metric.documentation)}\n")
        parts.append(f"# TYPE {name} {metric.type}\n")
        if metric.unit:
            parts.append(f"# UNIT {name} {metric.unit}\n")
        parts.extend(_lines(metric.samples))
    parts.append("# EOF\n")
    return "".join(parts).encode()


def figure(value: float) -> str:
    """Write a figure; a whole one in fewest letters."""
    return repr(value).removesuffix(".0")


def _lines(samples: Iterable[Sample]) -> Iterator[str]:
    for sample in samples:
        value = figure(sample.value)
        if not sample.labels:
            yield f"{sample.name} {value}\n"
            continue
        labels = ",".join([f'{name}="{_escaped(text)}"' for name, text in sample.labels.items()])
        yield f"{sample.name}{{{labels}}} {value}\n"


def _escaped(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value
