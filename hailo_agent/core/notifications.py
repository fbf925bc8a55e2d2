"""What the firmware says by itself: alarms, errors, and what they prove.

Pure. `host.notifications` hears, this module understands. A notification is news, not a state: of
most kinds there is never an all-clear, so silence has to do.

The frame is the argument of READ_NOTIFICATION. Its message is little-endian from header to
payload: libhailort copies the driver's buffer over a packed struct as it is, and reads that
(`VdmaDevice::read_notification`, `d2h_events_parser.cpp`), unlike the control protocol, whose
words it swaps. The events' own numbers differ from the public notification ids.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from hailo_agent.core.chip import Zone
from hailo_agent.core.control import FrameInvalid
from hailo_agent.core.drivers import Version
from hailo_agent.core.health import RULES_BY_SENSOR, Evidence, Fault, FaultCode, Sensor
from hailo_agent.core.ioctls import Ioctls

_HEADER: Final = struct.Struct("<7I")
"""Version, sequence, priority, module, event, number of parameters, bytes of payload."""

CODES: Final = frozenset(RULES_BY_SENSOR[Sensor.NOTIFICATION])
"""What a notification can prove."""

ALARM_SECONDS: Final = 3600.0
"""How long an alarm stands without an all-clear.

The kernel driver keeps only the last notification, so an all-clear may be lost.
"""

_THROTTLING_STATES: Final = (
    "none",
    "light",
    "medium",
    "heavy",
    "severe",
    "streams off",
    "overheat",
)
_STREAMS_OFF: Final = 5


class Kind(StrEnum):
    """What a notification is about."""

    RX_ERROR = "rx-error"
    HOST_INFO = "host-info"
    TEMPERATURE = "temperature"
    DATAFLOW_SHUTDOWN = "dataflow-shutdown"
    OVERCURRENT = "overcurrent"
    ECC_CORRECTABLE = "ecc-correctable"
    ECC_UNCORRECTABLE = "ecc-uncorrectable"
    CPU_ECC = "cpu-ecc"
    CPU_ECC_FATAL = "cpu-ecc-fatal"
    BREAKPOINT = "breakpoint"
    CLOCK_CHANGED = "clock-changed"
    INFER_DONE = "infer-done"
    RUN_TIME_ERROR = "run-time-error"
    CACHE_OFFSET = "cache-offset"
    CRC_ERROR = "crc-error"
    THROTTLING = "throttling"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """One notification, understood."""

    kind: Kind
    critical: bool
    sequence: int
    zone: Zone | None = None
    """How bad it is; None for the kinds that have no all-clear."""
    detail: str = ""
    """What was measured, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """The last notification of one kind."""

    notification: Notification
    at: float
    """When it came, in seconds of the observation's clock."""
    times: int = 1
    """How many of its kind have come since the device is listened to."""


def decode(argument: bytes, ioctls: Ioctls) -> Notification:
    """Understand what READ_NOTIFICATION handed out.

    Raises:
        FrameInvalid: it is no notification, or of no kind that this driver's firmware has.
    """
    message = ioctls.read_notification(argument)
    if len(message) < _HEADER.size:
        raise FrameInvalid(f"the notification is only {len(message)} bytes long")
    _, sequence, priority, _, event, _, payload_length = _HEADER.unpack_from(message)
    if priority not in {0, 1}:
        raise FrameInvalid(f"the notification has priority {priority}")
    payload = message[_HEADER.size :][:payload_length]
    if len(payload) < payload_length:
        raise FrameInvalid(f"the notification claims {payload_length} bytes of {len(payload)}")
    kind = _kind(event, ioctls.version)
    zone, detail = _READERS[kind](payload)
    return Notification(
        kind=kind, critical=priority == 1, sequence=sequence, zone=zone, detail=detail
    )


def remember(
    before: Mapping[Kind, Heard], notification: Notification, at: float
) -> Mapping[Kind, Heard]:
    """Add a notification to what was heard; only the last one of its kind is kept."""
    known = before.get(notification.kind)
    times = 1 if known is None else known.times + 1
    return {**before, notification.kind: Heard(notification=notification, at=at, times=times)}


def evidence(
    subject: str,
    heard: Iterable[Heard],
    *,
    at: float,
    since: float | None,
    silence_seconds: float,
) -> Evidence:
    """Say what has been heard of a device, which is listened to `since`.

    What has no all-clear stands for `silence_seconds` of listening. While nobody listens (`since`
    is None) silence proves nothing.
    """
    if since is None:
        return Evidence(sensor=Sensor.NOTIFICATION, at=at, unread=CODES)
    faults: list[Fault] = []
    for one in sorted(heard, key=_kind_of):
        has_all_clear = one.notification.zone is not None
        stands_seconds = max(silence_seconds, ALARM_SECONDS) if has_all_clear else silence_seconds
        if at - max(one.at, since) < stands_seconds:
            faults.extend(_faults(subject, one))
    return Evidence(sensor=Sensor.NOTIFICATION, at=at, faults=tuple(faults))


def _faults(subject: str, heard: Heard) -> Iterator[Fault]:
    said = heard.notification
    code = CODE_OF.get(said.kind)
    if code is None or said.zone is Zone.GREEN:
        return
    message, remedy = _WORDS[said.kind, said.zone]
    times = "once" if heard.times == 1 else f"{heard.times} times"
    yield Fault(
        code=code,
        subject=subject,
        message=message,
        remedy=remedy,
        evidence=f"{said.detail}; heard {times}" if said.detail else f"heard {times}",
    )


def _kind_of(heard: Heard) -> str:
    return heard.notification.kind


# --- kinds, by their numbers on the wire ---------------------------------------------------------

_EVENTS: Final = (
    Kind.RX_ERROR,
    Kind.HOST_INFO,
    Kind.TEMPERATURE,
    Kind.DATAFLOW_SHUTDOWN,
    Kind.OVERCURRENT,
    Kind.ECC_CORRECTABLE,
    Kind.ECC_UNCORRECTABLE,
    Kind.CPU_ECC,
    Kind.CPU_ECC_FATAL,
    Kind.BREAKPOINT,
    Kind.CLOCK_CHANGED,
    Kind.INFER_DONE,
    Kind.RUN_TIME_ERROR,
)
_EVENTS_4: Final = (*_EVENTS, Kind.CACHE_OFFSET)
_EVENTS_5: Final = (*_EVENTS, Kind.CRC_ERROR, Kind.THROTTLING)
_REDEFINED: Final = Version(5, 0, 0)
"""Since then, number 13 means something else."""


def _kind(event: int, version: Version) -> Kind:
    events = _EVENTS_5 if version >= _REDEFINED else _EVENTS_4
    if event >= len(events):
        raise FrameInvalid(f"notification {event} is none that driver {version} has")
    return events[event]


# --- payloads: packed structs, which newer firmware may make longer ------------------------------

_Read = tuple[Zone | None, str]

_TEMPERATURE_ALARM: Final = struct.Struct("<IIff")
_TEMPERATURES: Final = struct.Struct("<ff")
_OVERCURRENT: Final = struct.Struct("<If?")
_RX_ERROR: Final = struct.Struct("<III")
_CLOCKS: Final = struct.Struct("<II")
_WORD: Final = struct.Struct("<I")
_HALF: Final = struct.Struct("<H")


def _unpack(layout: struct.Struct, payload: bytes) -> tuple[Any, ...]:
    if len(payload) < layout.size:
        raise FrameInvalid(f"the notification tells {len(payload)} bytes instead of {layout.size}")
    return layout.unpack_from(payload)


def _nothing(_: bytes) -> _Read:
    return None, ""


def _temperature_alarm(payload: bytes) -> _Read:
    zone, sensor, *temperatures = _unpack(_TEMPERATURE_ALARM, payload)
    zones = tuple(Zone)
    if zone >= len(zones):
        raise FrameInvalid(f"the notification tells temperature zone {zone}")
    return zones[zone], f"sensor {sensor}; {_celsius(*temperatures)}"


def _temperatures(payload: bytes) -> _Read:
    return None, _celsius(*_unpack(_TEMPERATURES, payload))


def _celsius(first: float, second: float) -> str:
    return f"{first:.1f} and {second:.1f} °C"


def _overcurrent(payload: bytes) -> _Read:
    """Read zone and threshold; versions differ in whether there is an orange between 0 and red."""
    zone, milliamperes, is_last = _unpack(_OVERCURRENT, payload)
    if zone > len(Zone) - 1:
        raise FrameInvalid(f"the notification tells overcurrent zone {zone}")
    detail = f"the threshold is {milliamperes:.0f} mA"
    # The firmware sends one of these, whatever the zone, when it has no patience left.
    return (Zone.RED if zone or is_last else Zone.GREEN), detail


def _rx_error(payload: bytes) -> _Read:
    error, queue, count = _unpack(_RX_ERROR, payload)
    return None, f"error {error:#x} in queue {queue}, {count} so far"


def _clusters(payload: bytes) -> _Read:
    return None, f"clusters {_unpack(_HALF, payload)[0]:#x}"


def _memories(payload: bytes) -> _Read:
    return None, f"memories {_unpack(_WORD, payload)[0]:#x}"


def _clocks(payload: bytes) -> _Read:
    before, now = _unpack(_CLOCKS, payload)
    return None, f"from {before} to {now}"


def _run_time_error(payload: bytes) -> _Read:
    # What follows the status was reordered within 5.x.
    return None, f"firmware status {_unpack(_WORD, payload)[0]:#x}"


def _throttling(payload: bytes) -> _Read:
    (state,) = _unpack(_HALF, payload)
    if state >= len(_THROTTLING_STATES):
        raise FrameInvalid(f"the notification tells throttling state {state}")
    worst = Zone.RED if state >= _STREAMS_OFF else Zone.ORANGE
    return (worst if state else Zone.GREEN), f"throttling: {_THROTTLING_STATES[state]}"


_READERS: Final[Mapping[Kind, Callable[[bytes], _Read]]] = {
    **dict.fromkeys(Kind, _nothing),
    Kind.RX_ERROR: _rx_error,
    Kind.TEMPERATURE: _temperature_alarm,
    Kind.DATAFLOW_SHUTDOWN: _temperatures,
    Kind.OVERCURRENT: _overcurrent,
    Kind.ECC_CORRECTABLE: _clusters,
    Kind.ECC_UNCORRECTABLE: _clusters,
    Kind.CPU_ECC: _memories,
    Kind.CPU_ECC_FATAL: _memories,
    Kind.CLOCK_CHANGED: _clocks,
    Kind.RUN_TIME_ERROR: _run_time_error,
    Kind.THROTTLING: _throttling,
}


# --- faults, in words ----------------------------------------------------------------------------

CODE_OF: Final[Mapping[Kind, FaultCode]] = {
    Kind.RX_ERROR: FaultCode.NOTIFIED_RX,
    Kind.TEMPERATURE: FaultCode.NOTIFIED_TEMPERATURE,
    Kind.DATAFLOW_SHUTDOWN: FaultCode.NOTIFIED_DATAFLOW,
    Kind.OVERCURRENT: FaultCode.NOTIFIED_OVERCURRENT,
    Kind.ECC_CORRECTABLE: FaultCode.NOTIFIED_ECC,
    Kind.ECC_UNCORRECTABLE: FaultCode.NOTIFIED_ECC_FATAL,
    Kind.CPU_ECC: FaultCode.NOTIFIED_CPU_ECC,
    Kind.CPU_ECC_FATAL: FaultCode.NOTIFIED_CPU_ECC_FATAL,
    Kind.CLOCK_CHANGED: FaultCode.NOTIFIED_CLOCK,
    Kind.RUN_TIME_ERROR: FaultCode.NOTIFIED_RUNTIME,
    Kind.CRC_ERROR: FaultCode.NOTIFIED_CRC,
    Kind.THROTTLING: FaultCode.NOTIFIED_THROTTLING,
}
"""What each kind is a fault of; the kinds that are missing are an application's business."""

_COOL: Final = "cool it better (heat sink, fan, airflow), or give it less to do"
_POWER: Final = (
    "check the power supply of the slot or adapter, and that the module may draw as much"
)
_REPLACE: Final = "reset it; if this comes again, have the module replaced"

_WORDS: Final[Mapping[tuple[Kind, Zone | None], tuple[str, str]]] = {
    (Kind.RX_ERROR, None): (
        "the firmware reports errors on receiving over Ethernet",
        "none if they are few; else check cable and switch",
    ),
    (Kind.TEMPERATURE, Zone.ORANGE): ("the firmware reports that the chip is hot", _COOL),
    (Kind.TEMPERATURE, Zone.RED): (
        "the firmware reports that the chip is too hot: it will stop inference",
        _COOL,
    ),
    (Kind.DATAFLOW_SHUTDOWN, None): (
        "the firmware has stopped inference because the chip was too hot",
        f"{_COOL}; then restart what was using it",
    ),
    (Kind.OVERCURRENT, Zone.RED): (
        "the firmware reports that the chip draws too much current, and slows it down",
        _POWER,
    ),
    (Kind.ECC_CORRECTABLE, None): (
        "the firmware reports memory errors of the network core, which were corrected",
        "none if they are few; else cool it better, or have the module replaced",
    ),
    (Kind.ECC_UNCORRECTABLE, None): (
        "the firmware reports memory errors of the network core that it could not correct",
        _REPLACE,
    ),
    (Kind.CPU_ECC, None): (
        "the firmware reports memory errors of its processor, which were corrected",
        "none if they are few; else cool it better, or have the module replaced",
    ),
    (Kind.CPU_ECC_FATAL, None): (
        "the firmware reports memory errors of its processor that it could not correct",
        _REPLACE,
    ),
    (Kind.CLOCK_CHANGED, None): (
        "the firmware has changed the clock of the network core",
        "none: it does so to protect the chip; see its temperature and current",
    ),
    (Kind.RUN_TIME_ERROR, None): (
        "the firmware reports an error while it ran a network",
        "read the application's log; a model compiled for another version does this too",
    ),
    (Kind.CRC_ERROR, None): (
        "the network core reports checksum errors",
        "reset it; if this comes again, check the seating, or have the module replaced",
    ),
    (Kind.THROTTLING, Zone.ORANGE): ("the chip is throttled: it is hot", _COOL),
    (Kind.THROTTLING, Zone.RED): (
        "the chip is throttled so far that it has stopped inference: it is too hot",
        _COOL,
    ),
}
