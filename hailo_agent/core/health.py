"""Evidence and verdict: what a fault is, when it counts, and when a device is trusted again.

Pure. Sensors make readings, `core` makes evidence of them, and `judge` weighs it. Each fault has a
rule: how often it must be seen before it counts, and how long it must be gone before it is
forgotten. `judge` is called by `inventory.decide` with everything it may know; it never looks at a
clock itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final


class Health(StrEnum):
    """The verdict. The kubelet knows the first and the last; what is degraded is still offered."""

    HEALTHY = "Healthy"
    DEGRADED = "Degraded"
    UNKNOWN = "Unknown"
    UNHEALTHY = "Unhealthy"

    @property
    def rank(self) -> int:
        """How bad it is, from 0."""
        return _RANKS[self]


_RANKS: Final = {health: rank for rank, health in enumerate(Health)}


class Severity(StrEnum):
    """What a fault does to its device, from nothing to taking it away."""

    INFO = "info"
    DEGRADED = "degraded"
    UNKNOWN = "unknown"
    FATAL = "fatal"

    @property
    def health(self) -> Health:
        """The best verdict that a device with such a fault can get."""
        return _HEALTH_OF[self]


_HEALTH_OF: Final = {
    Severity.INFO: Health.HEALTHY,
    Severity.DEGRADED: Health.DEGRADED,
    Severity.UNKNOWN: Health.UNKNOWN,
    Severity.FATAL: Health.UNHEALTHY,
}


class Sensor(StrEnum):
    """Who made a reading. Nobody clears what another one found."""

    LOOK = "look"
    """The look at class entries, devnodes and PCI functions: whether the device is there."""
    VITALS = "vitals"
    """What the kernel tells of a PCI function without anything being opened."""
    QUERY = "query"
    """What the kernel driver and the firmware answer."""
    NOTIFICATION = "notification"
    """What the firmware says by itself."""
    HAILORTCLI = "hailortcli"
    OPERATOR = "operator"


class FaultCode(StrEnum):
    """The names of what can be wrong; stable, because logs, alerts and people refer to them."""

    VANISHED = "device.vanished"
    UNKNOWN_TO_MACHINE = "device.unknown-to-machine"
    DENIED = "device.denied"
    CORDONED = "device.cordoned"
    HELD_ELSEWHERE = "device.held-elsewhere"
    RECOVERING = "device.recovering"
    UNRESPONSIVE = "device.unresponsive"
    DUPLICATE = "device.duplicate"
    DEVICE_LOST = "device.lost"
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
    PCI_DEAD = "pci.dead"
    PCI_UNBOUND = "pci.unbound"
    PCI_DISABLED = "pci.disabled"
    LINK_DEGRADED = "link.degraded"
    AER_CORRECTABLE = "aer.correctable"
    AER_NONFATAL = "aer.nonfatal"
    AER_FATAL = "aer.fatal"
    FIRMWARE_NOT_LOADED = "firmware.not-loaded"
    FIRMWARE_HUNG = "firmware.hung"
    FIRMWARE_GARBAGE = "firmware.garbage"
    FIRMWARE_REFUSED = "firmware.refused"
    FIRMWARE_MISMATCH = "firmware.mismatch"
    QUERY_HUNG = "query.hung"
    QUERY_SLOW = "query.slow"
    QUERY_FAILED = "query.failed"
    TEMPERATURE_HIGH = "temperature.high"
    TEMPERATURE_CRITICAL = "temperature.critical"
    THROTTLED = "chip.throttled"
    OVERCURRENT = "chip.overcurrent"
    NOTIFIED_TEMPERATURE = "notification.temperature"
    NOTIFIED_OVERCURRENT = "notification.overcurrent"
    NOTIFIED_DATAFLOW = "notification.dataflow-shutdown"
    NOTIFIED_ECC = "notification.ecc-correctable"
    NOTIFIED_ECC_FATAL = "notification.ecc-uncorrectable"
    NOTIFIED_CPU_ECC = "notification.cpu-ecc"
    NOTIFIED_CPU_ECC_FATAL = "notification.cpu-ecc-fatal"
    NOTIFIED_CLOCK = "notification.clock-changed"
    NOTIFIED_THROTTLING = "notification.throttling"
    NOTIFIED_RUNTIME = "notification.run-time-error"
    NOTIFIED_CRC = "notification.crc-error"
    NOTIFIED_RX = "notification.rx-error"
    CLI_DISAGREES = "hailortcli.disagrees"
    SENSOR_FAILED = "sensor.failed"
    HOST_CMA = "host.cma-exhausted"
    CORDONS_UNREADABLE = "cordons.unreadable"
    SPEC_UNWRITTEN = "spec.unwritten"
    SPEC_CONFLICT = "spec.conflict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong: which, with what, in words, and what to do about it.

    The message stays the same as long as the condition lasts; what was measured goes into
    `evidence`. Otherwise each reading would be a change that everybody is told of.
    """

    code: FaultCode
    subject: str
    """The device id, class entry, path or PCI address concerned."""
    message: str
    remedy: str
    severity: Severity = Severity.FATAL
    evidence: str = field(default="", compare=False)
    """What was measured last, in words."""
    since: float = field(default=0.0, compare=False)
    """When it was first seen, in seconds of the observation's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What one reading of one sensor says of one device.

    Any fault this sensor has found before and that is in neither field is thereby shown to be gone.
    """

    sensor: Sensor
    at: float
    """When the reading was made, in seconds of the observation's clock."""
    faults: tuple[Fault, ...] = ()
    unread: frozenset[FaultCode] = frozenset()
    """What this reading can say nothing about. Missing data is not a failure, nor a cure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How one kind of fault is weighed."""

    severity: Severity
    strikes: int = 1
    """How many readings must show it before it counts; one that does not show it starts anew."""
    patience_seconds: float = 0.0
    """How long it must have been there before it counts."""
    recovery_seconds: float = 0.0
    """How long readings must not show it before it is forgotten."""
    severity_in_use: Severity | None = None
    """What it weighs while somebody uses the device, if that differs: work may make it slow."""


_INFO, _DEGRADED, _FATAL = Severity.INFO, Severity.DEGRADED, Severity.FATAL
_HOT: Final = 30.0
_NOISY: Final = 300.0

RULES_BY_SENSOR: Final[Mapping[Sensor, Mapping[FaultCode, Rule]]] = {
    Sensor.VITALS: {
        FaultCode.PCI_DEAD: Rule(severity=_FATAL, strikes=2, recovery_seconds=5.0),
        FaultCode.PCI_UNBOUND: Rule(severity=_FATAL, strikes=2),
        FaultCode.PCI_DISABLED: Rule(severity=_FATAL, strikes=2, recovery_seconds=5.0),
        FaultCode.LINK_DEGRADED: Rule(severity=_DEGRADED, strikes=2, recovery_seconds=10.0),
        FaultCode.AER_CORRECTABLE: Rule(severity=_INFO, recovery_seconds=_NOISY),
        FaultCode.AER_NONFATAL: Rule(severity=_DEGRADED, recovery_seconds=_NOISY),
        FaultCode.AER_FATAL: Rule(severity=_DEGRADED, recovery_seconds=_NOISY),
    },
    Sensor.QUERY: {
        FaultCode.FIRMWARE_NOT_LOADED: Rule(severity=_FATAL),
        FaultCode.FIRMWARE_HUNG: Rule(severity=_FATAL, strikes=2, severity_in_use=_DEGRADED),
        FaultCode.FIRMWARE_GARBAGE: Rule(severity=_FATAL, strikes=3),
        FaultCode.FIRMWARE_REFUSED: Rule(severity=_DEGRADED, strikes=2),
        FaultCode.FIRMWARE_MISMATCH: Rule(severity=_DEGRADED),
        FaultCode.QUERY_HUNG: Rule(severity=_FATAL, severity_in_use=_DEGRADED),
        FaultCode.QUERY_SLOW: Rule(severity=_DEGRADED, strikes=3, severity_in_use=_INFO),
        FaultCode.QUERY_FAILED: Rule(severity=Severity.UNKNOWN, strikes=3, severity_in_use=_INFO),
        FaultCode.DEVICE_LOST: Rule(severity=_FATAL, strikes=2),
        FaultCode.TEMPERATURE_HIGH: Rule(severity=_DEGRADED, strikes=2, recovery_seconds=_HOT),
        FaultCode.TEMPERATURE_CRITICAL: Rule(severity=_FATAL, strikes=2, recovery_seconds=_HOT),
        FaultCode.THROTTLED: Rule(severity=_DEGRADED, recovery_seconds=_HOT),
        FaultCode.OVERCURRENT: Rule(severity=_DEGRADED, recovery_seconds=_HOT),
        FaultCode.SENSOR_FAILED: Rule(severity=Severity.UNKNOWN),
    },
    Sensor.NOTIFICATION: {
        FaultCode.NOTIFIED_TEMPERATURE: Rule(severity=_DEGRADED),
        FaultCode.NOTIFIED_OVERCURRENT: Rule(severity=_DEGRADED),
        FaultCode.NOTIFIED_DATAFLOW: Rule(severity=_FATAL),
        FaultCode.NOTIFIED_ECC: Rule(severity=_INFO),
        FaultCode.NOTIFIED_ECC_FATAL: Rule(severity=_FATAL),
        FaultCode.NOTIFIED_CPU_ECC: Rule(severity=_INFO),
        FaultCode.NOTIFIED_CPU_ECC_FATAL: Rule(severity=_FATAL),
        FaultCode.NOTIFIED_CLOCK: Rule(severity=_INFO),
        FaultCode.NOTIFIED_THROTTLING: Rule(severity=_DEGRADED),
        FaultCode.NOTIFIED_RUNTIME: Rule(severity=_INFO),
        FaultCode.NOTIFIED_CRC: Rule(severity=_DEGRADED),
        FaultCode.NOTIFIED_RX: Rule(severity=_INFO),
    },
    Sensor.HAILORTCLI: {FaultCode.CLI_DISAGREES: Rule(severity=_INFO, strikes=2)},
}

RULES: Final[Mapping[FaultCode, Rule]] = {
    code: rule for rules in RULES_BY_SENSOR.values() for code, rule in rules.items()
}
"""The rules by default."""

PRESENCE: Final = Rule(severity=Severity.FATAL)
"""The rule of every other fault: whether a device is there, and whether it may be used.

It cannot be changed: an unseen device is never healthy.
"""


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
class Standards:
    """What evidence is held against."""

    patience: Patience
    rules: Mapping[FaultCode, Rule] = field(default_factory=lambda: RULES)
    offers_unknown: bool = True
    """Whether a device may be handed out of which nobody knows how it is."""

    def of(self, code: FaultCode) -> Rule:
        """Find the rule for a fault."""
        return self.rules.get(code, PRESENCE)

    def permits(self, health: Health) -> bool:
        """Whether a device of this health may be handed out."""
        return health in {Health.HEALTHY, Health.DEGRADED} or (
            health is Health.UNKNOWN and self.offers_unknown
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """One fault of one device, from the first reading that shows it to when it is forgotten."""

    sensor: Sensor
    fault: Fault
    strikes: int
    seen_at: float
    """When the last reading was made that shows it."""
    stands: bool
    """Whether it counts."""
    well_since: float | None = None
    """When the first reading was made that does not show it any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What patience is judged by: times in seconds of the observation's clock."""

    since: float = 0.0
    """When the present health began."""
    well_since: float | None = None
    """Since when nothing has been wrong with a device that is not trusted yet."""
    faulted_at: tuple[float, ...] = ()
    """When it lately turned unhealthy, at most the last two times."""
    tracks: tuple[Track, ...] = ()
    """What is wrong, or may turn out to be."""
    weighed: tuple[tuple[Sensor, float], ...] = ()
    """The newest reading of each sensor that has been weighed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What `judge` says of one device."""

    health: Health
    faults: tuple[Fault, ...]
    """What stands against it, worst first. A healthy device may have faults that only inform."""
    history: History
    review_at: float | None = None
    """When the verdict changes by itself if nothing else happens."""


def judge(
    subject: str,
    evidence: Iterable[Evidence],
    *,
    at: float,
    before: Health | None,
    history: History,
    standards: Standards,
    in_use: bool = False,
    present_since: float = -math.inf,
) -> Verdict:
    """Weigh the evidence about one device; `before` is None for a device never seen.

    The same evidence weighed again changes nothing, and its order does not matter. What was found
    out before `present_since` was another card's: it is void. Infinite, the device is away.
    """
    history = _weighed(history, evidence, standards, present_since)
    faults = tuple(_standing(history.tracks, standards, in_use=in_use))
    worst = max((fault.severity.health for fault in faults), key=_rank, default=Health.HEALTHY)
    patience = standards.patience
    if worst is Health.UNHEALTHY:
        is_new = before not in {None, Health.UNHEALTHY} or history.well_since is not None
        if is_new and any(_is_grave(fault) for fault in faults):
            history = _faulted(history, at, patience)
        since = history.since if before is Health.UNHEALTHY else at
        history = replace(history, since=since, well_since=None)
        return Verdict(health=worst, faults=faults, history=history)
    if before is Health.UNHEALTHY:
        well_since = at if history.well_since is None else history.well_since
        repeatedly = len(history.faulted_at) > 1
        trusted_at = well_since + (patience.recovery_seconds if repeatedly else 0.0)
        if at < trusted_at:
            return Verdict(
                health=Health.UNHEALTHY,
                faults=(_distrust(subject, well_since, patience), *faults),
                history=replace(history, well_since=well_since),
                review_at=trusted_at,
            )
    if before is not worst or history.well_since is not None:
        since = history.since if before is worst else at
        history = replace(history, since=since, well_since=None)
    return Verdict(health=worst, faults=faults, history=history)


_WILLED: Final = frozenset({FaultCode.CORDONED, FaultCode.DENIED})


def _is_grave(fault: Fault) -> bool:
    """Whether it makes the device ill; what an operator wants of it is no sign of that."""
    return fault.severity is Severity.FATAL and fault.code not in _WILLED


def _faulted(history: History, at: float, patience: Patience) -> History:
    """Remember a new fault, or a relapse: only now do old ones age.

    So neither a long illness nor the wait itself shortens the wait.
    """
    young = tuple(t for t in history.faulted_at if at - t < patience.flap_window_seconds)
    return replace(history, faulted_at=(*young, at)[-2:])


def _distrust(subject: str, since: float, patience: Patience) -> Fault:
    return Fault(
        code=FaultCode.RECOVERING,
        subject=subject,
        message=f"faulted repeatedly within {patience.flap_window_seconds:g} s",
        remedy=f"none: trusted again once it has been well for {patience.recovery_seconds:g} s",
        since=since,
    )


# --- weighing ------------------------------------------------------------------------------------


def _weighed(
    history: History, evidence: Iterable[Evidence], standards: Standards, present_since: float
) -> History:
    """Follow each fault through the readings; an old reading, or a known one, says nothing new."""
    readings = sorted(evidence, key=_first_the_look)
    if not history.tracks and all(r.sensor in _TIMELESS and not r.faults for r in readings):
        return history  # the usual case, of a thousand devices
    tracks = {
        (track.sensor, track.fault.code, track.fault.subject): track
        for track in history.tracks
        if track.sensor in _TIMELESS or track.seen_at >= present_since
    }
    weighed = dict(history.weighed)
    for reading in readings:
        if reading.sensor not in _TIMELESS:
            newest = weighed.get(reading.sensor, -math.inf)
            if reading.at < present_since or reading.at <= newest:
                continue
            weighed[reading.sensor] = reading.at
        tracks = dict(_followed(tracks, reading, standards))
    return replace(
        history,
        tracks=tuple(tracks[key] for key in sorted(tracks)),
        weighed=tuple(sorted(weighed.items())),
    )


_Key = tuple[Sensor, FaultCode, str]

_TIMELESS: Final = frozenset({Sensor.LOOK, Sensor.OPERATOR})
"""These speak in each pass, and of the device's place rather than of the card in it."""


def _first_the_look(reading: Evidence) -> tuple[bool, float]:
    return reading.sensor is not Sensor.LOOK, reading.at


def _followed(
    tracks: Mapping[_Key, Track], reading: Evidence, standards: Standards
) -> Iterator[tuple[_Key, Track]]:
    shown = {(reading.sensor, fault.code, fault.subject): fault for fault in reading.faults}
    for key, track in tracks.items():
        if key in shown:
            continue
        if track.sensor is not reading.sensor or track.fault.code in reading.unread:
            yield key, track
        elif (kept := _gone(track, reading.at, standards)) is not None:
            yield key, kept
    for key, fault in shown.items():
        yield key, _seen(tracks.get(key), fault, reading, standards)


def _seen(track: Track | None, fault: Fault, reading: Evidence, standards: Standards) -> Track:
    rule = standards.of(fault.code)
    strikes = 1
    since = fault.since or reading.at
    if track is not None:
        strikes = track.strikes + (1 if reading.at > track.seen_at else 0)
        since = track.fault.since
    is_grave = strikes >= rule.strikes and reading.at - since >= rule.patience_seconds
    return Track(
        sensor=reading.sensor,
        fault=replace(fault, since=since),
        strikes=strikes,
        seen_at=reading.at,
        stands=is_grave or (track is not None and track.stands),
    )


def _gone(track: Track, at: float, standards: Standards) -> Track | None:
    """Forget what did not count yet at once, and what did after its recovery time."""
    well_since = at if track.well_since is None else track.well_since
    rule = standards.of(track.fault.code)
    if not track.stands or at - well_since >= rule.recovery_seconds:
        return None
    return replace(track, well_since=well_since)


def _standing(tracks: Iterable[Track], standards: Standards, *, in_use: bool) -> Iterator[Fault]:
    found = []
    for track in tracks:
        if track.stands:
            rule = standards.of(track.fault.code)
            relief = rule.severity_in_use if in_use else None
            found.append(replace(track.fault, severity=relief or rule.severity))
    yield from sorted(found, key=_worst_first)


def _worst_first(fault: Fault) -> tuple[int, str, str]:
    return -fault.severity.health.rank, fault.code, fault.subject


def _rank(health: Health) -> int:
    return health.rank
