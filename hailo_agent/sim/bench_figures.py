"""What the benchmark's numbers are called, what they ought to be, and how they are worded.

Pure. `sim.bench_stand` makes measurements, `sim.bench` prints the figures; only here stands which
of them are good enough.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

Statistic = Literal["p50", "p99", "worst", "value"]
"""`value` where there is but one: a sum over a while, not a sample of many."""

Key = tuple[int, str, str]
"""Devices, name and statistic: what a figure of another run is found by."""

_MODULES: Final = 8
"""As many as a big node has."""
_LARGE: Final = 1024

TITLES: Final[Mapping[str, str]] = {
    "start.register": "exec → Register",
    "start.list": "exec → first list",
    "change.inotify": "plug or unplug → list, inotify alone",
    "plug.inotify": "  of these, plug",
    "unplug.inotify": "  of these, unplug",
    "change.both": "plug or unplug → list, and uevents",
    "change.uevents": "plug or unplug → list, uevents alone",
    "allocate": "Allocate, pods back to back",
    "allocate.paced": "Allocate, a pod now and then",
    "allocate.asking": "  back to back, chips are asked",
    "allocate.hung": "  back to back, one of them hangs",
    "empty.paced": "  an empty call, now and then",
    "restart": "kubelet restart → registered",
    "memory.start": "memory after start",
    "memory.events": "memory after the events",
    "memory.all": "memory, everything on",
    "memory.asking": "  of this, asking chips",
    "idle.cpu": "idle: CPU, of one core",
    "idle.asking": "  and more, asking chips every 5 s",
    "idle.wakeups": "idle: wakeups",
    "idle.messages": "idle: messages to the kubelet",
}
"""Every measurement, in the order of the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One thing measured on a node of so many devices: every sample of it, or why there is none."""

    devices: int
    name: str
    unit: str
    samples: tuple[float, ...] = ()
    missing: str = ""
    is_single: bool = False

    @property
    def statistics(self) -> Sequence[Statistic]:
        """Tell what can be said of these samples."""
        if not self.samples:
            return ()
        return ("value",) if self.is_single else ("p50", "p99", "worst")

    def of(self, statistic: Statistic) -> float:
        """Take a sample by nearest rank: of fewer than a hundred, the p99 is the worst."""
        rank = {"p50": 0.5, "p99": 0.99}.get(statistic, 1.0)
        ordered = sorted(self.samples)
        return ordered[max(math.ceil(rank * len(ordered)), 1) - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What one figure may be at most, on nodes of which size."""

    name: str
    statistic: Statistic
    at_most: float
    fewest: int = 0
    most: int = _LARGE - 1

    def concerns(self, measurement: Measurement, statistic: Statistic) -> bool:
        """Whether this is what that figure is held against."""
        is_size = self.fewest <= measurement.devices <= self.most
        return is_size and (measurement.name, statistic) == (self.name, self.statistic)


TARGETS: Final = (
    Target(name="start.register", statistic="worst", at_most=1.0),
    Target(name="change.inotify", statistic="p50", at_most=30.0, most=_MODULES),
    Target(name="change.inotify", statistic="p99", at_most=100.0, most=_MODULES),
    Target(name="change.inotify", statistic="p50", at_most=250.0, fewest=_LARGE, most=_LARGE),
    Target(name="allocate", statistic="p50", at_most=1.5, most=_MODULES),
    Target(name="allocate", statistic="p99", at_most=5.0, most=_MODULES),
    Target(name="restart", statistic="worst", at_most=1.0),
    Target(name="memory.start", statistic="value", at_most=56.0),
    Target(name="memory.start", statistic="value", at_most=90.0, fewest=_LARGE, most=_LARGE),
    Target(name="memory.events", statistic="value", at_most=56.0),
    Target(name="memory.events", statistic="value", at_most=90.0, fewest=_LARGE, most=_LARGE),
    Target(name="memory.all", statistic="value", at_most=72.0),
    Target(name="memory.asking", statistic="value", at_most=12.0, most=_MODULES),
    Target(name="idle.cpu", statistic="value", at_most=1.0, most=_MODULES),
    Target(name="idle.asking", statistic="value", at_most=1.0, most=_MODULES),
    Target(name="idle.messages", statistic="value", at_most=0.0, most=_LARGE),
)

_GROWING: Final[Sequence[tuple[str, Statistic]]] = (
    ("start.list", "p50"),
    ("change.inotify", "p50"),
    ("allocate", "p50"),
    ("restart", "p50"),
    ("memory.events", "value"),
    ("idle.cpu", "value"),
)
"""What may grow with the number of devices, but no faster than that number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number, how many samples it stands on, and how it compares."""

    devices: int
    name: str
    statistic: Statistic
    unit: str
    value: float
    samples: int
    target: float | None = None
    before: float | None = None
    """What the run said that this one is compared with."""

    @property
    def key(self) -> Key:
        """What this figure is found by in another run."""
        return self.devices, self.name, self.statistic

    @property
    def is_missed(self) -> bool:
        """Whether there is a target, and this is beyond it."""
        return self.target is not None and self.value > self.target

    @property
    def verdict(self) -> str:
        """Say so in a word; nothing where there is no target."""
        return "" if self.target is None else "MISSED" if self.is_missed else "ok"

    def to_document(self) -> dict[str, Any]:
        """Say this figure as it stands in the line of JSON."""
        said = {key: value for key, value in asdict(self).items() if value is not None}
        return said | ({"verdict": self.verdict} if self.verdict else {})


def figures(measurements: Iterable[Measurement], before: Mapping[Key, float]) -> Iterator[Figure]:
    """Reduce measurements to the numbers worth telling, each with its target."""
    for measurement in measurements:
        for statistic in measurement.statistics:
            targets = (t.at_most for t in TARGETS if t.concerns(measurement, statistic))
            yield Figure(
                devices=measurement.devices,
                name=measurement.name,
                statistic=statistic,
                unit=measurement.unit,
                value=round(measurement.of(statistic), 4),
                samples=len(measurement.samples),
                target=next(targets, None),
                before=before.get((measurement.devices, measurement.name, statistic)),
            )


def growth(found: Sequence[Figure], before: Mapping[Key, float]) -> Iterator[Figure]:
    """Compare the largest node with the next smaller one; linear is as many times as devices."""
    sizes = sorted({figure.devices for figure in found})[-2:]
    by_key = {figure.key: figure for figure in found}
    for name, statistic in _GROWING:
        ends = [by_key.get((size, name, statistic)) for size in sizes]
        small, large = ends if len(ends) == 2 else (None, None)
        if small is None or large is None or small.value <= 0:
            continue
        yield Figure(
            devices=large.devices,
            name=f"growth.{name}",
            statistic="value",
            unit="times",
            value=round(large.value / small.value, 2),
            samples=min(small.samples, large.samples),
            target=large.devices / small.devices,
            before=before.get((large.devices, f"growth.{name}", "value")),
        )
