"""Whether the kubelet counts what it was told, or goes by another plugin of the same resource.

The newest registration of a resource wins, and nobody tells the older plugin: its list stays open
and unheard. What the kubelet counts is the only sign of it. One answer proves nothing, for lists
and answers travel at their own pace; that is why a standing counts how often it was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

SETTLE_SECONDS: Final = 1.0
"""How much older than a question a list must be: the kubelet writes to disk as it takes one in."""
NAMED: Final = 5
"""How many ids of others are named; a plugin that offers shares may have thousands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The ids that the kubelet was last told are healthy, and when it had been told."""

    healthy: frozenset[str]
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The ids that the kubelet counts as healthy, by resource, and when it was asked."""

    by_resource: Mapping[str, frozenset[str]]
    asked_at: float


class Verdict(StrEnum):
    """What one answer says of a registration."""

    UNPROVEN = "unproven"
    COUNTED = "counted"
    """The kubelet counts what it was told."""
    UNCOUNTED = "uncounted"
    """It counts nothing at all, though it was told of healthy devices."""
    CONTESTED = "contested"
    """It counts what it was not told by us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the answers to one list say, and how often in a row they have said it."""

    verdict: Verdict = Verdict.UNPROVEN
    times: int = 0
    told: Told | None = None
    others: tuple[str, ...] = field(default=(), compare=False)
    """Ids that are counted and not ours."""


def weigh(before: Standing, resource: str, told: Told | None, counted: Counted) -> Standing:
    """Weigh one more answer. `told` is None while a list is under way or nobody listens."""
    if told is None or counted.asked_at < told.at + SETTLE_SECONDS:
        return Standing()
    ids = counted.by_resource.get(resource, frozenset())
    others = ids - told.healthy
    if others:
        verdict = Verdict.CONTESTED
    elif ids == told.healthy:
        verdict = Verdict.COUNTED
    elif not ids:
        verdict = Verdict.UNCOUNTED
    else:
        return Standing()  # some of ours: whoever it goes by, it is nobody else
    is_more = before.verdict is verdict and before.told == told
    return Standing(
        verdict=verdict,
        times=before.times + 1 if is_more else 1,
        told=told,
        others=tuple(sorted(others)),
    )


def named(ids: tuple[str, ...]) -> str:
    """Name ids for people: the first few, and how many there are besides."""
    more = len(ids) - NAMED
    return ", ".join(ids[:NAMED]) + (f" and {more} more" if more > 0 else "")
