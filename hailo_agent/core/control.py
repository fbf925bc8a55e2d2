"""The firmware's control protocol: what we ask, as bytes, and what the answers mean.

Pure. `host.probe` hands the bytes to the kernel driver's firmware-control ioctl and gives back what
came; nothing here opens anything. Layouts are those of `control_protocol.h` and of libhailort's
`control.cpp`, read for library 4.17 to 5.3. Everything is big endian but what the firmware copies
out of its memory as it is: its version, floats and throttling levels.

Not decoded: the red overcurrent threshold, whose bytes the library itself converts in a way that
cannot be checked without a chip, and the extended device information, which says nothing of health.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final

from hailo_agent.core.chip import (
    Architecture,
    ChipState,
    Firmware,
    Temperatures,
    ThrottlingLevel,
    Zone,
)
from hailo_agent.errors import HailoAgentError

TIMEOUT_MILLISECONDS: Final = 1000
"""How long the kernel driver waits for the firmware; libhailort gives it as long."""

_ARGUMENT: Final = struct.Struct("<16sI1500sIi")
"""struct hailo_fw_control: MD5 of the message, its length, the message, timeout, CPU."""
ARGUMENT_BYTES: Final = _ARGUMENT.size

_MAX_MESSAGE_BYTES: Final = 1500
_PROTOCOL: Final = 2
_ACK: Final = 1
_REQUEST: Final = struct.Struct(">5I")
"""Version, flags, sequence, opcode, number of parameters. libhailort's sequence is always 0."""
_RESPONSE: Final = struct.Struct(">7I")
"""Version, flags, sequence, opcode, major status, minor status, number of parameters."""
_STATUS_END: Final = 24
"""A refusal may end before the number of parameters."""
_LENGTH: Final = struct.Struct(">I")


class FrameInvalid(HailoAgentError):
    """Raised when bytes from the other side of the ioctl cannot be what they are meant to be."""

    def __init__(self, reason: str) -> None:
        """Say in words what is wrong with them."""
        super().__init__(reason)
        self.reason = reason


class ControlRefused(HailoAgentError):
    """Raised when the firmware understood, and answered that it will not or cannot."""

    def __init__(self, opcode: Opcode, major: int, minor: int) -> None:
        """Take what was asked, and the two statuses of the answer."""
        super().__init__(f"{opcode.words} was refused with status {major:#010x}, {minor:#010x}")
        self.opcode = opcode
        self.major = major
        self.minor = minor


class Opcode(IntEnum):
    """What we ask. These read; there is no other opcode here, so that none can be sent."""

    IDENTIFY = 0
    CORE_IDENTIFY = 42
    GET_CHIP_TEMPERATURE = 46
    GET_HEALTH_INFORMATION = 62

    @property
    def words(self) -> str:
        """The name, as a person reads it."""
        return self.name.lower().removeprefix("get_").replace("_", " ")

    @property
    def cpu(self) -> int:
        """Which of the chip's processors answers: the application's, 0, or the core's, 1."""
        return 1 if self is Opcode.CORE_IDENTIFY else 0


def request(opcode: Opcode, *, timeout_milliseconds: int = TIMEOUT_MILLISECONDS) -> bytes:
    """Write the argument of the firmware-control ioctl, `ARGUMENT_BYTES` long."""
    message = _REQUEST.pack(_PROTOCOL, 0, 0, opcode, 0)
    return _ARGUMENT.pack(_digest(message), len(message), message, timeout_milliseconds, opcode.cpu)


def read_identity(argument: bytes) -> Firmware:
    """Read the answer to IDENTIFY, as the ioctl left it in its argument.

    Raises FrameInvalid or ControlRefused, as all readers here do.
    """
    # A board that carries firmware of its own may run an old one, which knows no texts at the end.
    protocol, version, logger, board, architecture, *rest = _parameters(
        argument, Opcode.IDENTIFY, at_least=5
    )
    _exactly("protocol version", protocol, 4)
    _exactly("logger version", logger, 4)
    texts = (board, *rest, b"", b"", b"")[: len(_TEXTS)]
    board_name, serial, part_number, product_name = (
        _text(name, data, longest) for (name, longest), data in zip(_TEXTS, texts, strict=True)
    )
    return Firmware(
        version=_version(version, core=False),
        architecture=_architecture(architecture),
        board_name=board_name,
        serial=serial,
        part_number=part_number,
        product_name=product_name,
    )


def read_core_identity(argument: bytes) -> str:
    """Read the answer to CORE_IDENTIFY: the version of the core processor's firmware."""
    (version, *_) = _parameters(argument, Opcode.CORE_IDENTIFY, at_least=1)
    return _version(version, core=True)


def read_temperatures(argument: bytes) -> Temperatures:
    """Read the answer to GET_CHIP_TEMPERATURE."""
    (info, *_) = _parameters(argument, Opcode.GET_CHIP_TEMPERATURE, at_least=1)
    _exactly("temperatures", info, _TEMPERATURES.size)
    ts0, ts1 = _TEMPERATURES.unpack(info)
    return Temperatures(ts0_celsius=_sensor("ts0", ts0), ts1_celsius=_sensor("ts1", ts1))


def read_state(argument: bytes) -> ChipState:
    """Read the answer to GET_HEALTH_INFORMATION."""
    told = _parameters(argument, Opcode.GET_HEALTH_INFORMATION, at_least=len(_HEALTH))
    for (name, size), data in zip(_HEALTH, told, strict=False):
        _exactly(name, data, size)
    levels = tuple(_levels(told[7]))
    return ChipState(
        protects_from_overcurrent=_flag(told[0]),
        overcurrent_zone=_zone("overcurrent zone", told[1], _CURRENT_ZONES),
        throttles_on_overcurrent=_flag(told[3]),
        throttles_when_hot=_flag(told[4]),
        temperature_zone=_zone("temperature zone", told[5], _TEMPERATURE_ZONES),
        throttling_level=_level(told[6]),
        throttling_levels=levels,
        orange_celsius=_threshold(told[8]),
        orange_until_celsius=_threshold(told[9]),
        red_celsius=_threshold(told[10]),
        red_until_celsius=_threshold(told[11]),
        overcurrent_clock_hertz=_number(told[12]),
        temperature_clock_hertz=_number(told[13]),
    )


# --- the frame -----------------------------------------------------------------------------------


def _digest(message: bytes) -> bytes:
    return hashlib.md5(message, usedforsecurity=False).digest()


def _message(argument: bytes) -> bytes:
    if len(argument) != ARGUMENT_BYTES:
        raise FrameInvalid(f"the answer is {len(argument)} bytes instead of {ARGUMENT_BYTES}")
    digest, length, buffer, _, _ = _ARGUMENT.unpack(argument)
    if length > _MAX_MESSAGE_BYTES:
        raise FrameInvalid(f"the message claims {length} bytes, of {_MAX_MESSAGE_BYTES} at most")
    if length < _STATUS_END:
        raise FrameInvalid(f"the message of {length} bytes is shorter than its header")
    message = bytes(buffer[:length])
    if digest != _digest(message):
        raise FrameInvalid("the message does not have the MD5 that came with it")
    return message


def _parameters(argument: bytes, opcode: Opcode, *, at_least: int) -> Sequence[bytes]:
    """Open the frame and the envelope, and hand out the parameters."""
    message = _message(argument)
    version, flags, _, answered, major, minor = struct.unpack_from(">6I", message)
    if version != _PROTOCOL:
        raise FrameInvalid(f"it speaks protocol {version} instead of {_PROTOCOL}")
    if not flags & _ACK:
        raise FrameInvalid("it is not marked as an answer")
    # As libhailort does: a refusal need not repeat what was asked, nor has the minor status a
    # meaning of its own.
    if major != 0:
        raise ControlRefused(opcode, major, minor)
    if answered != opcode:
        raise FrameInvalid(f"it answers opcode {answered} instead of {int(opcode)}")
    parameters = tuple(_split(message))
    if len(parameters) < at_least:
        raise FrameInvalid(f"it has {len(parameters)} parameters, and needs {at_least}")
    return parameters


def _split(message: bytes) -> Iterator[bytes]:
    if len(message) < _RESPONSE.size:
        raise FrameInvalid("it ends before the number of parameters")
    *_, count = _RESPONSE.unpack_from(message)
    rest = memoryview(message)[_RESPONSE.size :]
    for number in range(count):
        if len(rest) < _LENGTH.size:
            raise FrameInvalid(f"it ends before parameter {number + 1} of {count}")
        (length,) = _LENGTH.unpack_from(rest)
        rest = rest[_LENGTH.size :]
        if length > len(rest):
            raise FrameInvalid(f"it ends within parameter {number + 1} of {count}")
        yield bytes(rest[:length])
        rest = rest[length:]
    if rest:
        raise FrameInvalid(f"{len(rest)} bytes follow its last parameter")


def _exactly(name: str, data: bytes, size: int) -> None:
    if len(data) != size:
        raise FrameInvalid(f"{name} of {len(data)} bytes instead of {size}")


# --- identity ------------------------------------------------------------------------------------

_VERSION: Final = struct.Struct("<3I")
_CORE: Final = 1 << 27
"""Bits 29 to 31 of the revision are about the build; this one marks the core's firmware."""
_REVISION: Final = (1 << 27) - 1
_MAX_NUMBER: Final = 9999
_TEXTS: Final = (("board name", 32), ("serial", 16), ("part number", 16), ("product name", 42))
_ABSENT: Final = "<N/A>"

_ARCHITECTURES: Final = (
    Architecture.HAILO_8_A0,
    Architecture.HAILO_8,
    Architecture.HAILO_8L,
    Architecture.HAILO_15H,
    Architecture.HAILO_15L,
    Architecture.HAILO_12L,
)


def _version(data: bytes, *, core: bool) -> str:
    _exactly("firmware version", data, _VERSION.size)
    major, minor, revision = _VERSION.unpack(data)
    if bool(revision & _CORE) is not core:
        raise FrameInvalid("the answer comes from the other processor's firmware")
    revision &= _REVISION
    if max(major, minor, revision) > _MAX_NUMBER:
        raise FrameInvalid(f"{major}.{minor}.{revision} is no version")
    return f"{major}.{minor}.{revision}"


def _architecture(data: bytes) -> Architecture:
    _exactly("architecture", data, 4)
    number = _number(data)
    return _ARCHITECTURES[number] if number < len(_ARCHITECTURES) else Architecture.UNKNOWN


def _text(name: str, data: bytes, longest: int) -> str:
    """Read a text up to its NUL. What was never written reads as 0xff, and tells nothing."""
    if len(data) > longest:
        raise FrameInvalid(f"{name} of {len(data)} bytes, which has {longest} at most")
    text = data.partition(b"\0")[0].decode("latin-1").strip()
    return text if text.isascii() and text.isprintable() and text != _ABSENT else ""


# --- temperatures and health ---------------------------------------------------------------------

_TEMPERATURES: Final = struct.Struct("<ff2x")
"""Two floats; how many samples they are made of matters to nobody."""
_LEVEL: Final = struct.Struct("<ffI")
_LEVELS: Final = 4
_COLDEST, _HOTTEST = -60.0, 200.0
"""No sensor of a working chip reads beyond."""

_TEMPERATURE_ZONES: Final = (Zone.GREEN, Zone.ORANGE, Zone.RED)
_CURRENT_ZONES: Final = (Zone.GREEN, Zone.RED)

_HEALTH: Final = (
    ("overcurrent protection", 1),
    ("overcurrent zone", 1),
    ("red overcurrent threshold", 4),
    ("overcurrent throttling", 1),
    ("temperature throttling", 1),
    ("temperature zone", 1),
    ("throttling level", 1),
    ("throttling levels", _LEVELS * _LEVEL.size),
    ("orange threshold", 4),
    ("orange hysteresis", 4),
    ("red threshold", 4),
    ("red hysteresis", 4),
    ("overcurrent clock", 4),
    ("temperature clock", 4),
)


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _flag(data: bytes) -> bool:
    return data != b"\0"


def _sensor(name: str, celsius: float) -> float:
    if not _is_possible(celsius):
        raise FrameInvalid(f"sensor {name} reads {celsius:g} °C")
    return celsius


def _is_possible(celsius: float) -> bool:
    return math.isfinite(celsius) and _COLDEST <= celsius <= _HOTTEST


def _zone(name: str, data: bytes, zones: Sequence[Zone]) -> Zone:
    number = _number(data)
    if number >= len(zones):
        raise FrameInvalid(f"{number} is no {name}")
    return zones[number]


def _level(data: bytes) -> int | None:
    """Read the level: -1 is full clock."""
    level = int.from_bytes(data, "big", signed=True)
    if not -1 <= level < _LEVELS:
        raise FrameInvalid(f"{level} is no throttling level")
    return None if level < 0 else level


def _levels(data: bytes) -> Iterator[ThrottlingLevel]:
    """Read the levels up to the first that cannot be one; not every board has all four."""
    for above, below, hertz in _LEVEL.iter_unpack(data):
        if not (_is_possible(above) and _is_possible(below) and hertz):
            return
        yield ThrottlingLevel(from_celsius=above, until_celsius=below, clock_hertz=hertz)


def _threshold(data: bytes) -> int | None:
    """Read a threshold in whole degrees; a board without one says 0, or nonsense."""
    celsius = int.from_bytes(data, "big", signed=True)
    return celsius if 0 < celsius <= _HOTTEST else None
