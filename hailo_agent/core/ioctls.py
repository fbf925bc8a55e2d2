"""The kernel driver's ioctls that only read: their numbers and structs in each release.

Pure. The numbers move from release to release, and what reads in one of them may do something else
in the next. So they are picked by the exact version of the loaded module, and a version that is not
in these tables is asked nothing. Computed from `hailo_ioctl_common.h` of each tag, for 64 bit and
little endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from hailo_agent.core.chip import BoardType, Properties
from hailo_agent.core.control import FrameInvalid, Opcode
from hailo_agent.core.drivers import Version

_DRIVER_INFO: Final = struct.Struct("<III")
_NOTIFICATION: Final = struct.Struct("<Q1500s")
_MAX_NUMBER: Final = 9999


@dataclass(frozen=True, slots=True, kw_only=True)
class Ioctls:
    """What one release of the kernel driver can be asked, by which number."""

    version: Version
    driver_info: int
    properties: int
    control: int
    notification: int
    properties_format: str
    """In the words of `struct`; the fields in `properties_fields`, in this order."""
    properties_fields: tuple[str, ...]
    board_types: tuple[BoardType, ...]
    """What the numbers of `board_type` mean, from 0."""
    opcodes: tuple[Opcode, ...]
    """What firmware of this release may be asked through `control`."""

    @property
    def numbers(self) -> frozenset[int]:
        """All of them."""
        return frozenset({self.driver_info, self.properties, self.control, self.notification})

    def opcodes_for(self, properties: Properties) -> tuple[Opcode, ...]:
        """Name what to ask the firmware of one device, in this order; nothing if it has none."""
        if properties.firmware_loaded is False or not properties.board_type.has_firmware_control:
            return ()
        return self.opcodes

    def read_driver_info(self, argument: bytes) -> str:
        """Read the kernel driver's version, `4.23.0`; raises FrameInvalid."""
        numbers = _unpack(_DRIVER_INFO.format, argument, "driver info")
        if max(numbers) > _MAX_NUMBER:
            raise FrameInvalid(f"the driver info tells no version: {argument.hex()}")
        return ".".join(map(str, numbers))

    def read_properties(self, argument: bytes) -> Properties:
        """Read what the kernel driver holds the device to be; raises FrameInvalid."""
        values = _unpack(self.properties_format, argument, "device properties")
        told = dict(zip(self.properties_fields, values, strict=True))
        number = told["board_type"]
        is_known = 0 <= number < len(self.board_types)
        loaded = told.get("is_fw_loaded")
        return Properties(
            board_type=self.board_types[number] if is_known else BoardType.UNKNOWN,
            firmware_loaded=None if loaded is None else bool(loaded),
        )

    def read_notification(self, argument: bytes) -> bytes:
        """Read the message of the firmware that a notification carries; raises FrameInvalid."""
        if len(argument) != _NOTIFICATION.size:
            raise FrameInvalid(f"the notification is {len(argument)} bytes long")
        length, message = _NOTIFICATION.unpack(argument)
        if length > len(message):
            raise FrameInvalid(f"the notification claims {length} bytes of {len(message)}")
        return bytes(message[:length])


def table(version_text: str | None) -> Ioctls | None:
    """Find the ioctls of the kernel driver of exactly this version; None if nobody has read it."""
    version = Version.parse(version_text)
    return None if version is None else _TABLES.get(version)


def size_of(number: int) -> int:
    """Tell how many bytes the argument of an ioctl has, which its number says."""
    return number >> 16 & 0x3FFF


def is_forbidden(number: int) -> bool:
    """Whether an ioctl does anything but read, in any release that we know."""
    return number in FORBIDDEN or (number >> 8 & 0xFF) in FORBIDDEN_TYPES


FORBIDDEN: Final = frozenset(
    {
        # Claims the device; a process that merely holds it open may then not use it.
        *(0x40017609, 0x4001760A, 0x4001760C, 0x4001760E, 0x4001760F),
        # Resets the network core, up to 4.17 and since.
        *(0x6707, 0x6E04),
        # Ends the notifications of an application, up to 4.17 and since.
        *(0x6703, 0x6E02),
        # Takes the firmware's log away from whoever else reads it.
        *(0xC01C6706, 0xC2146706, 0xC2146E03),
        # Reads and writes the chip's memory, up to 5.0.
        0xD0186700,
        # Writes what the network core is to do.
        0x40186E05,
        # Takes a session of a chip with a Linux of its own, or turns it off.
        *(0xC0127300, 0xC0147300, 0x7302),
    }
)
"""Numbers that must never be issued, whatever the release."""

FORBIDDEN_TYPES: Final = frozenset(b"vsp")
"""Whole families of ioctls: data transfer, sessions with a SoC, the SoC's own end."""


def _unpack(layout: str, argument: bytes, name: str) -> tuple[int, ...]:
    size = struct.calcsize(layout)
    if len(argument) != size:
        raise FrameInvalid(f"the {name} are {len(argument)} bytes instead of {size}")
    return struct.unpack(layout, argument)


# --- the tables ----------------------------------------------------------------------------------

_PROTOCOL_READ_FROM: Final = Version(4, 17, 0)
_OPCODES: Final = (
    Opcode.IDENTIFY,
    Opcode.GET_CHIP_TEMPERATURE,
    Opcode.GET_HEALTH_INFORMATION,
)

_TO_4_8: Final = ("<Hiii", ("desc_max_page_size", "board_type", "allocation_mode", "dma_type"))
_IN_4_10: Final = (_TO_4_8[0] + "Q", (*_TO_4_8[1], "dma_engines_count"))
_TO_5_0_0: Final = (_IN_4_10[0] + "?", (*_IN_4_10[1], "is_fw_loaded"))
_TO_5_3: Final = (
    "<HiiQ?",
    ("desc_max_page_size", "board_type", "dma_type", "dma_engines_count", "is_fw_loaded"),
)

_BOARDS_4: Final = (
    BoardType.HAILO_8,
    BoardType.HAILO_15,
    BoardType.HAILO_15L,
    BoardType.HAILO_10H,
    BoardType.HAILO_10H_LEGACY,
    BoardType.HAILO_12L,
)
_BOARDS_5_0_0: Final = (
    *_BOARDS_4[:5],
    BoardType.HAILO_15H_ACCELERATOR,
    BoardType.HAILO_12L,
    BoardType.HAILO_12L_LEGACY,
)
_BOARDS_5: Final = (
    BoardType.HAILO_15,
    BoardType.HAILO_15L,
    BoardType.HAILO_10H,
    BoardType.HAILO_15H_ACCELERATOR,
    BoardType.HAILO_12L,
)


_Layout = tuple[str, tuple[str, ...]]
_Boards = tuple[BoardType, ...]


def _rows() -> Iterator[Ioctls]:
    for version in (Version(4, 6, 0), Version(4, 7, 0), Version(4, 8, 1)):
        yield _general(version, 0x400E6704, _TO_4_8, ())
    yield _general(Version(4, 10, 0), 0x40166704, _IN_4_10, _BOARDS_4[:2])
    for minor in range(12, 15):
        yield _general(Version(4, minor, 0), 0x40176704, _TO_5_0_0, _BOARDS_4[:2])
    for minor in range(15, 18):
        yield _general(Version(4, minor, 0), 0x40176704, _TO_5_0_0, _BOARDS_4[:3])
    for minor in range(18, 21):
        yield _apart(Version(4, minor, 0), 0x40176701, 0x400C6702, _TO_5_0_0, _BOARDS_4[:5])
    for minor in range(21, 24):
        yield _apart(Version(4, minor, 0), 0x40176701, 0x400C6702, _TO_5_0_0, _BOARDS_4)
    yield _apart(Version(5, 0, 0), 0x40176701, 0x400C6702, _TO_5_0_0, _BOARDS_5_0_0)
    yield _apart(Version(5, 0, 1), 0x40136701, 0x400C6702, _TO_5_3, _BOARDS_5)
    for minor, revision in ((1, 0), (1, 1), (2, 0), (3, 0)):
        yield _apart(Version(5, minor, revision), 0x40136700, 0x400C6701, _TO_5_3, _BOARDS_5)


def _general(version: Version, properties: int, layout: _Layout, boards: _Boards) -> Ioctls:
    """Up to 4.17 everything is of the general type, `g`."""
    return Ioctls(
        version=version,
        driver_info=0x400C6705,
        properties=properties,
        control=0xC5F86701,
        notification=0x45E46702,
        properties_format=layout[0],
        properties_fields=layout[1],
        board_types=boards,
        # What earlier firmware speaks has not been read: its health information, for one, had
        # another layout.
        opcodes=_OPCODES if version >= _PROTOCOL_READ_FROM else (),
    )


def _apart(
    version: Version, properties: int, driver_info: int, layout: _Layout, boards: _Boards
) -> Ioctls:
    """Since 4.18 what is said to the firmware has a type of its own, `n`."""
    return Ioctls(
        version=version,
        driver_info=driver_info,
        properties=properties,
        control=0xC5F86E00,
        notification=0x45E46E01,
        properties_format=layout[0],
        properties_fields=layout[1],
        board_types=boards,
        opcodes=_OPCODES,
    )


_TABLES: Final[Mapping[Version, Ioctls]] = {row.version: row for row in _rows()}

KNOWN: Final = tuple(_TABLES.values())
"""Every release there is a table for, the oldest first."""
