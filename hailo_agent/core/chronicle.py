"""What happened lately: the newest changes, each in a line of its own, and never too many of them.

The reconciler records what it publishes, subscribers are told it (`ListRecent`), and nothing is
decided by it. It is memory only: with the agent it is gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hailo_agent.core.change import Change, Kind
from hailo_agent.core.device import Device, Holder
from hailo_agent.core.health import FaultCode, Health

MOST_ENTRIES: Final = 256
"""How many changes are remembered."""

_MOST_CHARACTERS: Final = 500
"""Of one change's words: a fault may quote whatever stands in sysfs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One change: when on the observations' clock, of what, and how it was after it."""

    at: float
    kind: Kind
    subject: str
    """The device's id, or what the fault is about."""
    words: str
    codes: tuple[FaultCode, ...] = ()
    """Of the faults that were there after the change, or of the one that is over."""
    health: Health | None = None
    """The device's, after the change; None if this is about no device."""
    held: bool | None = None
    """Whether a pod held the device then; None if nobody could tell."""
    holders: tuple[Holder, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chronicle:
    """The newest changes, the oldest of them first."""

    entries: tuple[Entry, ...] = ()
    forgotten: int = 0
    """How many changes there have been that are not among the entries any more."""


def recorded(
    chronicle: Chronicle, changes: Iterable[Change], *, at: float, most: int = MOST_ENTRIES
) -> Chronicle:
    """Write changes down, and forget what is too much.

    Whoever has the most entries loses its oldest: a device that flaps washes away its own past, and
    not that of the others.
    """
    entries = [*chronicle.entries, *(_entry(change, at) for change in changes)]
    counts = Counter(entry.subject for entry in entries)
    forgotten = max(len(entries) - most, 0)
    for _ in range(forgotten):
        loudest = max(counts.values())
        place = next(i for i, entry in enumerate(entries) if counts[entry.subject] == loudest)
        counts[entries.pop(place).subject] -= 1
    return Chronicle(entries=tuple(entries), forgotten=chronicle.forgotten + forgotten)


def _entry(change: Change, at: float) -> Entry:
    if change.device is None:
        return _of_fault(change, at)
    device = change.device
    return Entry(
        at=at,
        kind=change.kind,
        subject=device.id,
        words=_shortened(_of_device(change.kind, device)),
        codes=tuple(fault.code for fault in device.faults),
        health=device.health,
        held=device.held,
        holders=device.holders,
    )


def _of_fault(change: Change, at: float) -> Entry:
    fault = change.fault
    if fault is None:
        return Entry(at=at, kind=change.kind, subject="", words="")
    over = "over: " if change.kind is Kind.FAULT_CLEARED else ""
    return Entry(
        at=at,
        kind=change.kind,
        subject=_shortened(fault.subject),
        words=_shortened(f"{over}{fault.message}"),
        codes=(fault.code,),
    )


def _of_device(kind: Kind, device: Device) -> str:
    name = "no devnode" if device.devnode is None else device.devnode.name
    words = {
        Kind.ADDED: f"found as {name}, {_health(device)}",
        Kind.REMOVED: "forgotten",
        Kind.MOVED: f"is {name} now",
        Kind.FAULTED: _health(device),
        Kind.RECOVERED: _health(device),
        Kind.HELD: f"held by {_holders(device.holders)}",
        Kind.FREED: "held by no pod any more",
    }
    return words.get(kind, "details changed")


def _health(device: Device) -> str:
    reasons = "; ".join(fault.message for fault in device.faults)
    word = device.health.value.lower()
    return f"{word}: {reasons}" if reasons else word


def _holders(holders: Iterable[Holder]) -> str:
    named = ", ".join(f"{h.namespace}/{h.pod} ({h.container})" for h in holders)
    return named or "a pod that the kubelet does not name yet"


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"
