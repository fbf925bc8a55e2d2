"""Measured figures on their way to the end of pytest's output. They are printed, never judged."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Figures:
    """What was measured in this run, a line each."""

    lines: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        """Add a line as it is to be printed."""
        self.lines.append(line)

    def latency(self, what: str, seconds: Sequence[float]) -> None:
        """Add the percentiles of a latency."""
        if seconds:
            p50, p99, most = (1000 * percentile(seconds, p) for p in (50, 99, 100))
            self.note(
                f"{what:<48} p50 {p50:6.1f} ms   p99 {p99:6.1f} ms   max {most:6.1f} ms"
                f"   n={len(seconds)}"
            )


def percentile(values: Sequence[float], percent: int) -> float:
    """Tell the smallest value that so many percent do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = -(-percent * len(ordered) // 100)  # ceiling
    return ordered[max(rank, 1) - 1]
