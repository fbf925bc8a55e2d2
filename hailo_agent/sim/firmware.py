"""A chip that answers: firmware speaking the control protocol, and the kernel driver before it.

`SimulatedChip.ioctl` is what the simulator answers an ioctl with, `ChipFirmware.control` what then
stands in the mailbox, both byte for byte. They restate the vendor's headers with struct code of
their own and must not know `core.control` or `core.ioctls`: two independent tellings are what makes
a comparison worth something.
"""

from __future__ import annotations

import errno
import hashlib
import math
import random
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Final

# --- the firmware --------------------------------------------------------------------------------

IDENTIFY, CORE_IDENTIFY, TEMPERATURE, HEALTH = 0, 42, 46, 62

_ARCHITECTURES: Final = (
    "hailo-8-a0",
    "hailo-8",
    "hailo-8l",
    "hailo-15h",
    "hailo-15l",  # PLUTO in the protocol
    "hailo-12l",  # MARS
)
_APPLICATION, _CORE = 0, 1
_CORE_BUILD: Final = 1 << 27
_MAILBOX: Final = 1500

# Component 4, module "control"; the vendor counts the statuses of a module from 0.
_UNSUPPORTED_OPCODE: Final = 0x4003_000E
_INVALID_VERSION: Final = 0x4003_0002
_OVERRUN: Final = 0x4003_0003


class ChipFault(StrEnum):
    """What can be wrong with a simulated chip, by name."""

    HUNG = "hung"  # a control never returns from the kernel driver
    SLOW = "slow"  # each answer takes `slow_seconds`
    SILENT = "silent"  # the kernel driver gives the firmware up: ETIMEDOUT
    NOISE = "noise"  # random bytes, under an MD5 that fits them
    WRONG_MD5 = "wrong-md5"
    SHORT = "short"  # cut off in the middle, under an MD5 that fits the rest
    WRONG_OPCODE = "wrong-opcode"  # the answer to somebody else's question
    TOO_LONG = "too-long"  # the mailbox claims more than it holds: EINVAL
    REFUSING = "refusing"  # every control is refused
    NOT_LOADED = "not-loaded"  # the chip has lost its firmware
    LOST = "lost"  # the board is gone, the devnode not yet
    HOT = "hot"  # orange
    SCORCHING = "scorching"  # red
    THROTTLING = "throttling"
    OVERCURRENT = "overcurrent"


GARBAGE: Final = frozenset(
    {ChipFault.NOISE, ChipFault.WRONG_MD5, ChipFault.SHORT, ChipFault.WRONG_OPCODE}
)


class Misbehaviour(Enum):
    """What the firmware does instead of answering."""

    SILENT = "silent"
    NEVER_RETURNS = "never-returns"


@dataclass(slots=True, kw_only=True)
class ChipFirmware:
    """What runs on the chip. Change a field, or `plant` a fault, and the next answer is different.

    Temperatures and zones follow from the faults; the defaults are those of a Hailo-8.
    """

    version: str = "4.23.0"
    architecture: str = "hailo-8"
    build_bits: int = 0
    board_name: str = "Hailo-8"
    serial: str = "HLLWMB0214600123"
    part_number: str = "HM218B1C2FA"
    product_name: str = "HAILO-8 AI ACC M.2 B+M KEY MODULE"
    celsius: tuple[float, float] = (47.5, 46.25)
    orange_celsius: tuple[int, int] = (104, 94)
    red_celsius: tuple[int, int] = (120, 110)
    full_clock_hertz: int = 400_000_000
    throttling_levels: tuple[tuple[float, float, int], ...] = (
        (104.0, 94.0, 350_000_000),
        (107.0, 97.0, 300_000_000),
        (110.0, 100.0, 250_000_000),
        (113.0, 103.0, 200_000_000),
    )
    unsupported: frozenset[int] = frozenset()
    """Opcodes this firmware was built without."""
    slow_seconds: float = 0.8
    faults: set[ChipFault] = field(default_factory=set)
    noise: random.Random = field(default_factory=lambda: random.Random(8))

    def plant(self, fault: ChipFault | str) -> None:
        """Let something be wrong from now on."""
        self.faults.add(ChipFault(fault))

    def heal(self, fault: ChipFault | str | None = None) -> None:
        """Let one thing be well again, or everything."""
        self.faults.difference_update(list(ChipFault) if fault is None else [ChipFault(fault)])

    def control(self, mailbox: bytes, cpu: int) -> bytes | Misbehaviour:
        """Answer what stands in the mailbox: MD5, length, message; the answer is laid out alike."""
        if ChipFault.HUNG in self.faults:
            return Misbehaviour.NEVER_RETURNS
        if self.faults & {ChipFault.SILENT, ChipFault.NOT_LOADED}:
            return Misbehaviour.SILENT
        digest, (length,) = mailbox[:16], struct.unpack_from("<I", mailbox, 16)
        message = mailbox[20 : 20 + length]
        if digest != _md5(message):
            return Misbehaviour.SILENT  # what does not add up is dropped
        return self._in_mailbox(self._answer(message, cpu))

    def _in_mailbox(self, message: bytes) -> bytes:
        if ChipFault.NOISE in self.faults:
            message = self.noise.randbytes(self.noise.randrange(_MAILBOX + 1))
        if ChipFault.SHORT in self.faults:
            message = message[: len(message) // 2]
        if ChipFault.WRONG_OPCODE in self.faults:
            message = message[:12] + struct.pack(">I", 0x2A2A) + message[16:]
        digest = _md5(message)
        if ChipFault.WRONG_MD5 in self.faults:
            digest = bytes(byte ^ 0xFF for byte in digest)
        length = 0xFFFF if ChipFault.TOO_LONG in self.faults else len(message)
        return digest + struct.pack("<I", length) + message

    def _answer(self, message: bytes, cpu: int) -> bytes:
        if len(message) < 20:
            return _refusal(0, 0, _OVERRUN)
        version, _, sequence, opcode, _ = struct.unpack_from(">IIIII", message)
        if version != 2:
            return _refusal(sequence, opcode, _INVALID_VERSION)
        answers: Mapping[tuple[int, int], Callable[[], tuple[bytes, ...]]] = {
            (IDENTIFY, _APPLICATION): self._identity,
            (CORE_IDENTIFY, _CORE): self._core_identity,
            (TEMPERATURE, _APPLICATION): self._temperature,
            (HEALTH, _APPLICATION): self._health,
        }
        answer = answers.get((opcode, cpu))
        if answer is None or opcode in self.unsupported or ChipFault.REFUSING in self.faults:
            return _refusal(sequence, opcode, _UNSUPPORTED_OPCODE)
        return _acknowledgement(sequence, opcode, 0, answer())

    # --- what it knows

    @property
    def zone(self) -> int:
        """0 is green, 1 orange, 2 red."""
        highest = max(self.present_celsius)
        return (highest >= self.orange_celsius[0]) + (highest >= self.red_celsius[0])

    @property
    def present_celsius(self) -> tuple[float, float]:
        """What the two sensors read, faults considered."""
        if ChipFault.SCORCHING in self.faults:
            return self.red_celsius[0] + 2.5, self.red_celsius[0] + 1.75
        if self.faults & {ChipFault.HOT, ChipFault.THROTTLING}:
            return self.orange_celsius[0] + 2.5, self.orange_celsius[0] + 1.75
        return self.celsius

    @property
    def throttling_level(self) -> int:
        """-1 is full clock."""
        if ChipFault.SCORCHING in self.faults:
            return len(self.throttling_levels) - 1
        return 0 if ChipFault.THROTTLING in self.faults else -1

    def _numbers(self) -> tuple[int, int, int]:
        major, minor, revision = (int(part) for part in self.version.split("."))
        return major, minor, revision | self.build_bits

    def _identity(self) -> tuple[bytes, ...]:
        return (
            struct.pack(">I", 2),
            struct.pack("<III", *self._numbers()),
            struct.pack(">I", 0),
            struct.pack("32s", self.board_name.encode("latin-1")),
            struct.pack(">I", _ARCHITECTURES.index(self.architecture)),
            struct.pack("16s", self.serial.encode("latin-1")),
            struct.pack("16s", self.part_number.encode("latin-1")),
            struct.pack("42s", self.product_name.encode("latin-1")),
        )

    def _core_identity(self) -> tuple[bytes, ...]:
        major, minor, revision = self._numbers()
        return (struct.pack("<III", major, minor, revision | _CORE_BUILD),)

    def _temperature(self) -> tuple[bytes, ...]:
        return (struct.pack("<ff", *self.present_celsius) + struct.pack(">H", 16),)

    def _health(self) -> tuple[bytes, ...]:
        levels = b"".join(struct.pack("<ffI", *level) for level in self.throttling_levels)
        level = self.throttling_level
        clock = self.full_clock_hertz if level < 0 else self.throttling_levels[level][2]
        return (
            b"\1",  # it protects itself from overcurrent
            struct.pack("B", int(ChipFault.OVERCURRENT in self.faults)),
            # A float whose value is the threshold with its bytes swapped: what the vendor's
            # library undoes, as far as one can tell without a chip.
            struct.pack("<f", float(int.from_bytes((8000).to_bytes(4, "little"), "big"))),
            b"\1",  # it would throttle on overcurrent
            b"\1",  # and when hot
            struct.pack("B", self.zone),
            struct.pack("b", level),
            levels,
            *(struct.pack(">i", celsius) for celsius in self.orange_celsius),
            *(struct.pack(">i", celsius) for celsius in self.red_celsius),
            struct.pack(">I", self.full_clock_hertz),
            struct.pack(">I", clock),
        )


def _acknowledgement(
    sequence: int, opcode: int, status: int, parameters: tuple[bytes, ...]
) -> bytes:
    body = b"".join(struct.pack(">I", len(data)) + data for data in parameters)
    return struct.pack(">IIIIIII", 2, 1, sequence, opcode, status, status, len(parameters)) + body


def _refusal(sequence: int, opcode: int, status: int) -> bytes:
    return _acknowledgement(sequence, opcode, status, ())


def _md5(message: bytes) -> bytes:
    return hashlib.md5(message, usedforsecurity=False).digest()


# --- the kernel driver ---------------------------------------------------------------------------

FOR_EVER: Final = math.inf

_CONTROL: Final = "<16sI1500sIi"
_NOTIFICATION: Final = "<Q1500s"

_Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an ioctl comes to: an errno or 0, the argument as it is left, and after how long."""

    error: int = 0
    data: bytes = b""
    seconds: float = 0.0
    """`FOR_EVER` is a call that does not return; for a notification, until there is one."""


class SimulatedChip:
    """One chip behind one release of the kernel driver."""

    def __init__(
        self, driver_version: str, firmware: ChipFirmware, *, board: str = "hailo-8"
    ) -> None:
        """Take a release, `4.23.0`, and what it calls the board (`BOARDS` has the names)."""
        major, minor, revision = (int(part) for part in driver_version.split("."))
        self._version: _Version = (major, minor, revision)
        self.firmware = firmware
        self.board = board
        self.asked: list[int] = []
        """Every number that was ever asked for, in order, known or not."""
        self.pending: bytes | None = None
        """The message of the last notification, until somebody has read it."""
        self._ioctls = self._numbers()

    @property
    def counts(self) -> Counter[int]:
        """How often each number was asked for."""
        return Counter(self.asked)

    def notify(self, message: bytes) -> None:
        """Let the firmware say something; the kernel driver keeps but the last."""
        self.pending = message

    def open(self) -> Outcome:
        """Let somebody open the devnode."""
        if ChipFault.LOST in self.firmware.faults:
            return Outcome(error=errno.ENXIO)
        return Outcome()

    def ioctl(self, number: int, argument: bytes) -> Outcome:
        """Let somebody ask; `argument` is what the caller's buffer holds."""
        self.asked.append(number)
        if ChipFault.LOST in self.firmware.faults:
            return Outcome(error=errno.ENXIO if self._version >= (5, 0, 1) else errno.ENODEV)
        if number >> 8 & 0xFF == ord("n") and self._is_soc():
            return Outcome(error=errno.EINVAL)
        answer = self._ioctls.get(number)
        if answer is None:
            return Outcome(error=errno.ENOTTY)
        if len(argument) < number >> 16 & 0x3FFF:
            return Outcome(error=errno.EFAULT)
        return answer(argument)

    def _numbers(self) -> Mapping[int, Callable[[bytes], Outcome]]:
        """Count the codes as the enums of this release's header do."""
        version = self._version
        if version < (4, 18, 0):
            general = _codes("g", "memory control notification disable properties info log reset")
            firmware = general
        else:
            general = _codes(
                "g", "properties info" if version >= (5, 1, 0) else "memory properties info"
            )
            firmware = _codes("n", "control notification disable log reset")
        layout, _ = self._properties_layout()
        return {
            _iow(*general["properties"], layout): self._properties,
            _iow(*general["info"], "<III"): self._driver_info,
            _iowr(*firmware["control"], _CONTROL): self._firmware_control,
            _iow(*firmware["notification"], _NOTIFICATION): self._read_notification,
        }

    def _properties_layout(self) -> tuple[str, tuple[int, ...]]:
        """Pack struct hailo_device_properties: page size, board, [allocation], DMA, engines, fw."""
        board = _board_number(self._version, self.board)
        loaded = ChipFault.NOT_LOADED not in self.firmware.faults
        if self._version >= (5, 0, 1):
            return "<HiiQ?", (4096, board, 0, 1, loaded)
        if self._version >= (4, 12, 0):
            return "<HiiiQ?", (4096, board, 0, 0, 1, loaded)
        if self._version >= (4, 10, 0):
            return "<HiiiQ", (4096, board, 0, 0, 1)
        return "<Hiii", (4096, board, 0, 0)

    def _is_soc(self) -> bool:
        return self.board in {"hailo-10h", "hailo-12l"}

    def _properties(self, _argument: bytes) -> Outcome:
        layout, values = self._properties_layout()
        return Outcome(data=struct.pack(layout, *values))

    def _driver_info(self, _argument: bytes) -> Outcome:
        return Outcome(data=struct.pack("<III", *self._version))

    def _read_notification(self, _argument: bytes) -> Outcome:
        message, self.pending = self.pending, None
        if message is None:
            return Outcome(seconds=FOR_EVER)
        return Outcome(data=struct.pack(_NOTIFICATION, len(message), message))

    def _firmware_control(self, argument: bytes) -> Outcome:
        *_, timeout_milliseconds, cpu = struct.unpack(_CONTROL, argument)
        timeout = timeout_milliseconds / 1000
        faults = self.firmware.faults
        # Read in 4.19 and later; earlier ones ask firmware that is not there, and wait.
        if ChipFault.NOT_LOADED in faults and self._version >= (4, 18, 0):
            return Outcome(error=errno.ENODEV)
        mailbox = self.firmware.control(argument[:1520], cpu)
        if mailbox is Misbehaviour.NEVER_RETURNS:
            return Outcome(seconds=FOR_EVER)
        seconds = self.firmware.slow_seconds if ChipFault.SLOW in faults else 0.0
        if isinstance(mailbox, Misbehaviour) or seconds > timeout:
            return Outcome(error=errno.ETIMEDOUT, data=argument, seconds=timeout)
        (length,) = struct.unpack_from("<I", mailbox, 16)
        if length > _MAILBOX:
            return Outcome(error=errno.EINVAL, data=argument, seconds=seconds)
        # Only as much as was answered is copied over the request; the rest stays what it was.
        return Outcome(data=mailbox + argument[len(mailbox) :], seconds=seconds)


BOARDS: Final[tuple[tuple[_Version, tuple[str, ...]], ...]] = (
    ((4, 6, 0), ("hailo-8", "hailo-15")),
    ((4, 15, 0), ("hailo-8", "hailo-15", "hailo-15l")),
    ((4, 18, 0), ("hailo-8", "hailo-15", "hailo-15l", "hailo-10h", "hailo-10h-legacy")),
    (
        (4, 21, 0),
        ("hailo-8", "hailo-15", "hailo-15l", "hailo-10h", "hailo-10h-legacy", "hailo-12l"),
    ),
    (
        (5, 0, 0),
        (
            "hailo-8",
            "hailo-15",
            "hailo-15l",
            "hailo-10h",
            "hailo-10h-legacy",
            "hailo-15h-accelerator",
            "hailo-12l",
            "hailo-12l-legacy",
        ),
    ),
    (
        (5, 0, 1),
        ("hailo-15", "hailo-15l", "hailo-10h", "hailo-15h-accelerator", "hailo-12l"),
    ),
)
"""enum hailo_board_type, from which release on."""


def _board_number(version: _Version, board: str) -> int:
    return [names for since, names in BOARDS if since <= version][-1].index(board)


def _codes(kind: str, names: str) -> dict[str, tuple[str, int]]:
    return {name: (kind, code) for code, name in enumerate(names.split())}


def _ioc(direction: int, kind: str, code: int, layout: str) -> int:
    """Do as _IOC() of asm-generic/ioctl.h does."""
    return direction << 30 | struct.calcsize(layout) << 16 | ord(kind) << 8 | code


def _iow(kind: str, code: int, layout: str) -> int:
    return _ioc(1, kind, code, layout)


def _iowr(kind: str, code: int, layout: str) -> int:
    return _ioc(3, kind, code, layout)
