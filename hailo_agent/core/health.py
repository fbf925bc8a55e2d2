"""Evidence and verdict: what a fault is, and when a device that had one is trusted again.

Pure. `judge` is called by `inventory.decide` with everything it may know; it never looks at a clock
itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Health(StrEnum):
    """The verdict, in the two words the kubelet knows; it takes any other for unhealthy."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"


class FaultCode(StrEnum):
    """The names of what can be wrong; stable, because logs, alerts and people refer to them."""

    VANISHED = "device.vanished"
    UNKNOWN_TO_MACHINE = "device.unknown-to-machine"
    DENIED = "device.denied"
    HELD_ELSEWHERE = "device.held-elsewhere"
    RECOVERING = "device.recovering"
    UNRESPONSIVE = "device.unresponsive"
    DUPLICATE = "device.duplicate"
    DEVNODE_MISSING = "devnode.missing"
    DEVNODE_FOREIGN = "devnode.not-a-character-device"
    DEVNODE_LINK = "devnode.is-a-symlink"
    DEVNODE_NUMBER = "devnode.wrong-number"
    ENTRY_UNEXPECTED = "entry.unexpected"
    ENTRY_VANISHED = "entry.vanished"
    ENTRY_BROKEN = "entry.broken"
    ENTRY_INCOMPLETE = "entry.incomplete"
    IDENTITY_UNREADABLE = "identity.unreadable"
    CLASS_UNREADABLE = "class.unreadable"
    PCI_MISSING = "pci.missing"
    PCI_UNSERVED = "pci.unserved"
    SPEC_UNWRITTEN = "spec.unwritten"
    SPEC_CONFLICT = "spec.conflict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong: which, with what, in words, and what to do about it."""

    code: FaultCode
    subject: str
    """The device id, class entry, path or PCI address concerned."""
    message: str
    remedy: str
    since: float = field(default=0.0, compare=False)
    """When it was first seen, in seconds of the observation's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How soon a device that faulted is trusted again, in seconds.

    The first fault is forgiven as soon as its cause is gone. A second one within
    `flap_window_seconds` makes the device wait until it has been well for `recovery_seconds`, so
    flapping reads as one transition instead of many.
    """

    recovery_seconds: float
    flap_window_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What patience is judged by: times in seconds of the observation's clock."""

    since: float = 0.0
    """When the present health began."""
    well_since: float | None = None
    """Since when nothing has been wrong with a device that is not trusted yet."""
    faulted_at: tuple[float, ...] = ()
    """When it lately turned unhealthy, at most the last two times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What `judge` says of one device."""

    health: Health
    faults: tuple[Fault, ...]
    history: History
    review_at: float | None = None
    """When the verdict changes by itself if nothing else happens."""


def judge(
    subject: str,
    evidence: tuple[Fault, ...],
    *,
    at: float,
    before: Health | None,
    history: History,
    patience: Patience,
) -> Verdict:
    """Weigh the evidence of one look; `before` is None for a device never seen."""
    recent = history.faulted_at
    if evidence:
        if before is Health.HEALTHY or history.well_since is not None:
            # A new fault, or a relapse: only now do old ones age, so that neither a long illness
            # nor the wait itself shortens the wait.
            young = tuple(t for t in recent if at - t < patience.flap_window_seconds)
            recent = (*young, at)[-2:]
        since = history.since if before is Health.UNHEALTHY else at
        return Verdict(
            health=Health.UNHEALTHY,
            faults=evidence,
            history=History(since=since, faulted_at=recent),
        )
    if before is not Health.UNHEALTHY:
        since = history.since if before is Health.HEALTHY else at
        return Verdict(
            health=Health.HEALTHY, faults=(), history=History(since=since, faulted_at=recent)
        )
    well_since = at if history.well_since is None else history.well_since
    trusted_at = well_since + (patience.recovery_seconds if len(recent) > 1 else 0.0)
    if at >= trusted_at:
        return Verdict(
            health=Health.HEALTHY, faults=(), history=History(since=at, faulted_at=recent)
        )
    recovering = Fault(
        code=FaultCode.RECOVERING,
        subject=subject,
        message=f"faulted repeatedly within {patience.flap_window_seconds:g} s",
        remedy=f"none: trusted again once it has been well for {patience.recovery_seconds:g} s",
        since=well_since,
    )
    return Verdict(
        health=Health.UNHEALTHY,
        faults=(recovering,),
        history=History(since=history.since, well_since=well_since, faulted_at=recent),
        review_at=trusted_at,
    )
