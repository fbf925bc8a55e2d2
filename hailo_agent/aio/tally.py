"""What has happened so far, counted and timed, for whoever asks.

It knows neither what is counted nor in which format it is told. Everything belongs to one event
loop; reading takes no lock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

BOUNDS_SECONDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds of the classes that durations are sorted into; one more is without bound."""

MAX_LABELS: Final = 256
"""How many sets of labels one name may have; further ones are counted as `other`."""

Labels = tuple[str, ...]
"""Values alone, in an order that is fixed for each name."""


@dataclass(slots=True)
class Durations:
    """How long something took, sorted into classes."""

    classes: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_SECONDS) + 1))
    """How many were at most each bound and above the one before; the last one is without bound."""
    sum_seconds: float = 0.0

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.classes)

    def add(self, seconds: float) -> None:
        """Sort in one more."""
        self.classes[bisect_left(BOUNDS_SECONDS, seconds)] += 1
        self.sum_seconds += seconds


@dataclass(slots=True)
class Tally:
    """Counts and durations by name and labels; bounded, whatever is put into labels."""

    _counts: dict[str, dict[Labels, float]] = field(default_factory=dict)
    _durations: dict[str, dict[Labels, Durations]] = field(default_factory=dict)

    def count(self, name: str, *labels: str, by: float = 1.0) -> None:
        """Count something that happened."""
        counts = self._counts.setdefault(name, {})
        labels = _bounded(labels, counts)
        counts[labels] = counts.get(labels, 0.0) + by

    def time(self, name: str, *labels: str, seconds: float) -> None:
        """Note how long something took."""
        durations = self._durations.setdefault(name, {})
        durations.setdefault(_bounded(labels, durations), Durations()).add(seconds)

    def counts(self, name: str) -> Mapping[Labels, float]:
        """Tell what was counted under a name."""
        return MappingProxyType(self._counts.get(name, {}))

    def durations(self, name: str) -> Mapping[Labels, Durations]:
        """Tell how long things took that were noted under a name."""
        return MappingProxyType(self._durations.get(name, {}))


def _bounded(labels: Labels, known: Mapping[Labels, object]) -> Labels:
    if labels in known or len(known) < MAX_LABELS:
        return labels
    return ("other",) * len(labels)
