"""What a workload says of its own work: networks, frames, queues, as HailoRT writes it down.

`host.monitor` reads the files, `decode` takes one apart. The workload can write anything in there,
so nothing is believed: it is taken apart here, under bounds and strictly, and not by the compiled
messages of `wire.monitor`, which take a file that was cut short for a whole one and any number of
fields. A figure that cannot be is absent, never zero; a name that cannot be spoils its file.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, TypeVar

from hailo_agent.core.device import Holder, PciAddress
from hailo_agent.errors import HailoAgentError

MAX_BYTES: Final = 64 * 1024
"""A queue takes some 90 bytes, so that a real file has a few thousand."""

MAX_NETWORKS: Final = 32
MAX_QUEUES: Final = 128
MAX_DEVICES: Final = 16
MAX_NAME_CHARACTERS: Final = 128

FRESH_SECONDS: Final = 3.0
"""For so long after it was written a file tells of now.

HailoRT writes once a second, and its own reader stops believing after 1.5. The method differs, the
age does not: 4.17 to 4.21 write in place, 4.22 and later put a new file into the place of the old.
"""

TEMPORARY_SUFFIX: Final = ".tmp"
"""How a file is called that 4.22 and later have not finished."""

_N = TypeVar("_N", int, float)

_MAX_FIELDS: Final = 2048
_MAX_FRAMES_PER_SECOND: Final = 1e6
_MAX_PERCENT: Final = 110.0
"""HailoRT divides two clocks' readings, so that a full device may come out a little above 100."""
_MAX_FRAMES: Final = 1_000_000


class UsageInvalid(HailoAgentError):
    """Raised when a file is none of HailoRT's, or was read while it was being written."""


class Direction(StrEnum):
    """Which way the frames of a queue go."""

    INPUT = "input"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueUsage:
    """The queue of one input or output of a network, in frames."""

    stream: str
    direction: Direction
    capacity: int | None = None
    pending: int | None = None
    pending_min: int | None = None
    """The fewest, the most and the mean since the file before."""
    pending_max: int | None = None
    pending_mean: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkUsage:
    """What one network does; None where HailoRT does not know."""

    network: str
    frames_per_second: float | None = None
    utilisation: float | None = None
    """Its share of the device's time, 0 to 1."""
    queues: tuple[QueueUsage, ...] = ()

    def pending(self, direction: Direction) -> int | None:
        """Count the frames that wait on this side, over all its queues."""
        return _total(q.pending for q in self.queues if q.direction is direction)

    def capacity(self, direction: Direction) -> int | None:
        """Count the frames that have room on this side, over all its queues."""
        return _total(q.capacity for q in self.queues if q.direction is direction)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy one device is, as its workload says."""

    address: PciAddress
    utilisation: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one file says."""

    networks: tuple[NetworkUsage, ...] = ()
    """Ordered by name, each once."""
    loads: tuple[Load, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUsage:
    """What is known of the use of one device."""

    written_at: float
    """When the workload said so, in seconds since the epoch."""
    holders: tuple[Holder, ...] = ()
    """Who held the device then, as far as was known."""
    utilisation: float | None = None
    """Its busy share of the time, 0 to 1."""
    networks: tuple[NetworkUsage, ...] = ()
    """Those that were told for this device. A container with several devices tells all its networks
    once, for the last device that was injected."""


def is_fresh(changed_at: float, now: float) -> bool:
    """Tell whether a file still tells of now; one from the future does not either."""
    return abs(now - changed_at) <= FRESH_SECONDS


def decode(data: bytes) -> Usage:
    """Read a file.

    Raises:
        UsageInvalid: it is no report, is not whole, or has more in it than any real one.
    """
    if len(data) > MAX_BYTES:
        raise UsageInvalid(f"more than {MAX_BYTES} bytes")
    budget = _Budget()
    networks: list[NetworkUsage] = []
    loads: list[Load] = []
    has_pid = False
    for number, value in _fields(memoryview(data), _REPORT, budget):
        match number, value:
            case 1, _:
                has_pid = True
            case 2, memoryview() as part:
                networks.append(_network(part, budget))
            case 3, memoryview() as part:
                networks.append(_frames(part, budget))
            case 4, memoryview() as part:
                loads.extend(_load(part, budget))
    if not has_pid:
        raise UsageInvalid("it does not say whose it is")  # nothing of it is written yet
    if len(loads) > MAX_DEVICES:
        raise UsageInvalid(f"more than {MAX_DEVICES} devices")
    return Usage(networks=together(networks), loads=tuple(loads))


def together(networks: Iterable[NetworkUsage]) -> tuple[NetworkUsage, ...]:
    """Make one of all that is said of a network, ordered by name.

    Raises:
        UsageInvalid: there are more networks or queues than any real workload has.
    """
    by_name: dict[str, NetworkUsage] = {}
    for one in networks:
        other = by_name.get(one.network)
        by_name[one.network] = one if other is None else _added(other, one)
        if len(by_name) > MAX_NETWORKS:
            raise UsageInvalid(f"more than {MAX_NETWORKS} networks")
    if sum(len(one.queues) for one in by_name.values()) > MAX_QUEUES:
        raise UsageInvalid(f"more than {MAX_QUEUES} queues")
    return tuple(by_name[name] for name in sorted(by_name))


def known(networks: Iterable[NetworkUsage], names: Collection[str]) -> tuple[NetworkUsage, ...]:
    """Leave out networks of other names."""
    return tuple(one for one in networks if one.network in names)


def _added(one: NetworkUsage, other: NetworkUsage) -> NetworkUsage:
    share = _total((one.utilisation, other.utilisation))
    return replace(
        one,
        frames_per_second=_total((one.frames_per_second, other.frames_per_second)),
        utilisation=None if share is None else min(share, 1.0),
        queues=(*one.queues, *other.queues),
    )


def _total(numbers: Iterable[_N | None]) -> _N | None:
    there = [number for number in numbers if number is not None]
    return sum(there[1:], there[0]) if there else None


# --- messages ------------------------------------------------------------------------------------

_VARINT: Final = 0
_FIXED64: Final = 1
_LENGTH: Final = 2
_FIXED32: Final = 5
_DOUBLE: Final = struct.Struct("<d")

# The wire type of each field of protos/hailo/monitor/v1/monitor.proto, by its number.
_REPORT: Final = {1: _LENGTH, 2: _LENGTH, 3: _LENGTH, 4: _LENGTH}
_NETWORK: Final = {1: _LENGTH, 2: _FIXED64, 3: _FIXED64}
_FRAMES: Final = {1: _LENGTH, 2: _LENGTH}
_QUEUE: Final = {
    1: _LENGTH,
    **dict.fromkeys((2, 3, 4, 5, 6), _VARINT),
    7: _FIXED64,
}
_LOAD: Final = {1: _LENGTH, 2: _FIXED64, 3: _LENGTH}

_DIRECTIONS: Final = {0: Direction.INPUT, 1: Direction.OUTPUT}


@dataclass(slots=True)
class _Budget:
    """How many fields may still come: a field may be of two bytes, and costs more than those."""

    fields: int = _MAX_FIELDS

    def spend(self) -> None:
        self.fields -= 1
        if self.fields < 0:
            raise UsageInvalid(f"more than {_MAX_FIELDS} fields")


_Value = int | float | memoryview


def _network(data: memoryview, budget: _Budget) -> NetworkUsage:
    fields = dict(_fields(data, _NETWORK, budget))
    return NetworkUsage(
        network=_name(fields.get(1)),
        frames_per_second=_between(fields.get(2, 0.0), _MAX_FRAMES_PER_SECOND),
        utilisation=_share(fields.get(3, 0.0)),
    )


def _frames(data: memoryview, budget: _Budget) -> NetworkUsage:
    name: _Value | None = None
    queues: list[QueueUsage] = []
    for number, value in _fields(data, _FRAMES, budget):
        if number == 1:
            name = value
        elif isinstance(value, memoryview):
            queues.append(_queue(value, budget))
    return NetworkUsage(network=_name(name), queues=tuple(queues))


def _queue(data: memoryview, budget: _Budget) -> QueueUsage:
    fields = dict(_fields(data, _QUEUE, budget))
    direction = _DIRECTIONS.get(int(_number(fields.get(2, 0))))
    if direction is None:
        raise UsageInvalid("frames that go neither in nor out")
    return QueueUsage(
        stream=_name(fields.get(1)),
        direction=direction,
        capacity=_count(fields.get(3, 0)),
        pending=_count(fields.get(4, 0)),
        pending_min=_count(fields.get(5, 0)),
        pending_max=_count(fields.get(6, 0)),
        pending_mean=_between(fields.get(7, 0.0), _MAX_FRAMES),
    )


def _load(data: memoryview, budget: _Budget) -> tuple[Load, ...]:
    """Read the load of a device; none of one without a PCI address, which we could not name."""
    fields = dict(_fields(data, _LOAD, budget))
    address = PciAddress.parse(_name(fields.get(1)))
    if address is None:
        return ()
    return (Load(address=address, utilisation=_share(fields.get(2, 0.0))),)


# --- values --------------------------------------------------------------------------------------


def _number(value: _Value) -> int | float:
    if isinstance(value, memoryview):
        raise UsageInvalid("text where a number belongs")
    return value


def _name(value: _Value | None) -> str:
    if not isinstance(value, memoryview):
        raise UsageInvalid("something without a name")
    if len(value) > 4 * MAX_NAME_CHARACTERS:
        raise UsageInvalid("a name that is too long")
    try:
        name = str(value, "utf-8")
    except UnicodeDecodeError as error:
        raise UsageInvalid("a name that is no text") from error
    if not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        raise UsageInvalid("a name that is empty, too long or not printable")
    return name


def _between(value: _Value, most: float) -> float | None:
    """Take a figure from 0 to `most`.

    HailoRT says -1 for "not available", and the largest double for the frame rate of a network
    without outputs; whatever else cannot be is treated alike. NaN is in no order.
    """
    number = float(_number(value))
    return number if 0.0 <= number <= most else None


def _share(percent: _Value) -> float | None:
    number = _between(percent, _MAX_PERCENT)
    return None if number is None else min(number / 100, 1.0)


def _count(value: _Value) -> int | None:
    """Take an int32, which is a varint of 64 bits in two's complement."""
    number = int(_number(value)) & 0xFFFFFFFF
    return number if number <= _MAX_FRAMES else None  # as unsigned, a negative one is too large


# --- bytes ---------------------------------------------------------------------------------------


def _fields(
    data: memoryview, shape: Mapping[int, int], budget: _Budget
) -> Iterator[tuple[int, _Value]]:
    """Go through the known fields of a message; unknown ones are passed over.

    Raises:
        UsageInvalid: it ends too early, or a field is of another type than ours.
    """
    at = 0
    while at < len(data):
        budget.spend()
        tag, at = _varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        value: _Value
        if wire_type == _VARINT:
            value, at = _varint(data, at)
        elif wire_type == _FIXED64:
            (value,), at = _DOUBLE.unpack(_cut(data, at, 8)), at + 8
        elif wire_type == _LENGTH:
            size, at = _varint(data, at)
            value, at = _cut(data, at, size), at + size
        elif wire_type == _FIXED32:  # there is none of ours
            value, at = _cut(data, at, 4), at + 4
        else:
            raise UsageInvalid("a field of unknown type")
        if number == 0 or shape.get(number, wire_type) != wire_type:
            raise UsageInvalid("a field of another type")
        if number in shape:
            yield number, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Read a number of up to 64 bits; returns it and where the next thing begins."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise UsageInvalid("it ends in the middle")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the top bit says that more follows
            return number, at
    raise UsageInvalid("a number without end")


def _cut(data: memoryview, at: int, size: int) -> memoryview:
    if size > len(data) - at:
        raise UsageInvalid("it ends in the middle")
    return data[at : at + size]
