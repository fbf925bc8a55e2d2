"""What a check says, and what many checks amount to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What one check says; the order is that of badness."""

    OK = "ok"
    UNSEEN = "unseen"
    """It could not be looked at: neither health nor a fault."""
    DEGRADED = "degraded"
    """It works, but not as it could, or not for everybody."""
    BROKEN = "broken"
    """Something that should work does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of one check."""

    check: str
    """Stable name, for programs and for the reference."""
    looked_at: str
    found: str
    verdict: Verdict = Verdict.OK
    why: str = ""
    """Why it matters; never empty unless all is well."""
    next_step: str = ""
    """Exactly what to do; never empty unless there is nothing to do."""


def worst(findings: Iterable[Finding]) -> Verdict:
    """Sum findings up; what could not be seen does not make a node ill."""
    verdict = max((finding.verdict for finding in findings), key=_badness, default=Verdict.OK)
    return Verdict.OK if verdict is Verdict.UNSEEN else verdict


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort by verdict; findings of one verdict keep their order."""
    return tuple(sorted(findings, key=lambda finding: -_badness(finding.verdict)))


def _badness(verdict: Verdict) -> int:
    return list(Verdict).index(verdict)
