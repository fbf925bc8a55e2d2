"""What a chip and its kernel driver say of themselves, and what is wrong with that.

Pure. `core.ioctls` and `core.control` read these values from bytes, `host.probe` puts one reading
together as a `Chip`, and `inventory.decide` has `evidence` made of it. What a reading could not
tell is None here, and neither a fault nor a cure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from hailo_agent.core.health import RULES_BY_SENSOR, Evidence, Fault, FaultCode, Sensor

_MAX_DETAIL: Final = 160
"""Of what a fault shows as measured: a line for a person, whatever the other side had to say."""


class Architecture(StrEnum):
    """What the firmware says it runs on. An 8R says it is an 8."""

    HAILO_8_A0 = "hailo-8-a0"
    HAILO_8 = "hailo-8"
    HAILO_8L = "hailo-8l"
    HAILO_15H = "hailo-15h"
    HAILO_15L = "hailo-15l"
    HAILO_12L = "hailo-12l"
    UNKNOWN = "unknown"


class BoardType(StrEnum):
    """What the kernel driver takes a device for. Its numbers mean something else in each release.

    A *legacy* board is one that the driver found booted the old way.
    """

    HAILO_8 = "hailo-8"
    HAILO_10H = "hailo-10h"
    HAILO_10H_LEGACY = "hailo-10h-legacy"
    HAILO_12L = "hailo-12l"
    HAILO_12L_LEGACY = "hailo-12l-legacy"
    HAILO_15 = "hailo-15"
    HAILO_15H_ACCELERATOR = "hailo-15h-accelerator"
    HAILO_15L = "hailo-15l"
    UNKNOWN = "unknown"

    @property
    def has_firmware_control(self) -> bool:
        """Whether the host talks to its firmware; a 10H and a 12L run a Linux of their own."""
        return self in _CONTROLLED


_CONTROLLED: Final = frozenset(
    {
        BoardType.HAILO_8,
        BoardType.HAILO_15,
        BoardType.HAILO_15H_ACCELERATOR,
        BoardType.HAILO_15L,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Properties:
    """What the kernel driver holds a device to be, without asking the chip."""

    board_type: BoardType
    firmware_loaded: bool | None = None
    """None before 4.12, where the kernel driver does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """What the firmware says it is. A text is empty where the board has nothing to tell."""

    version: str
    """Three numbers, `4.23.0`."""
    architecture: Architecture = Architecture.UNKNOWN
    board_name: str = ""
    serial: str = ""
    part_number: str = ""
    product_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Temperatures:
    """What the chip's two sensors read."""

    ts0_celsius: float
    ts1_celsius: float

    @property
    def highest_celsius(self) -> float:
        """The one that counts."""
        return max(self.ts0_celsius, self.ts1_celsius)


class Zone(StrEnum):
    """How the firmware judges a temperature or a current itself; a current is never orange."""

    GREEN = "green"
    ORANGE = "orange"
    RED = "red"


@dataclass(frozen=True, slots=True, kw_only=True)
class ThrottlingLevel:
    """One step of running slower: from when, until when, at which clock."""

    from_celsius: float
    until_celsius: float
    clock_hertz: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipState:
    """What the firmware watches over. Thresholds are None where it tells none that can be."""

    temperature_zone: Zone
    orange_celsius: int | None
    orange_until_celsius: int | None
    red_celsius: int | None
    """Where the firmware stops all streams."""
    red_until_celsius: int | None
    throttling_level: int | None
    """Index of the level it runs at; None while it runs at full clock."""
    throttling_levels: tuple[ThrottlingLevel, ...]
    overcurrent_zone: Zone
    throttles_when_hot: bool
    """Whether it would. Though the protocol calls it active, a cool chip says yes as well."""
    throttles_on_overcurrent: bool
    protects_from_overcurrent: bool
    temperature_clock_hertz: int
    overcurrent_clock_hertz: int


class Trouble(StrEnum):
    """Why a reading ended early."""

    TIMED_OUT = "timed-out"
    """The firmware was silent until the kernel driver gave it up."""
    HUNG = "hung"
    """A call did not come back from the kernel."""
    GARBAGE = "garbage"
    REFUSED = "refused"
    """The firmware answered that it will not say what it is."""
    LOST = "lost"
    DENIED = "denied"
    """We may not open the devnode."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """One reading of one device: what was answered, and why it ended early if it did."""

    at: float
    """When it was made, in seconds of the observation's clock."""
    driver: str | None = None
    """The kernel driver's version as it says itself, `4.23.0`."""
    properties: Properties | None = None
    firmware: Firmware | None = None
    temperatures: Temperatures | None = None
    state: ChipState | None = None
    trouble: Trouble | None = None
    detail: str = ""
    """What exactly went wrong, for a person."""
    seconds: float = 0.0
    """How long the slowest answer took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a reading is held against."""

    temperature_high_celsius: float = 95.0
    temperature_critical_celsius: float = 110.0
    """These two count only where the chip tells no thresholds of its own."""
    slow_seconds: float = 0.5


def evidence(subject: str, chip: Chip, limits: Limits, *, driver_version: str | None) -> Evidence:
    """Tell what a reading of a device shows to be wrong, to be right, and what it leaves open."""
    running = (chip.driver or driver_version or "").strip() or None
    findings = dict(_findings(chip, limits, running))
    faults = tuple(
        _fault(code, subject, chip, limits, running) for code, is_so in findings.items() if is_so
    )
    return Evidence(
        sensor=Sensor.QUERY,
        at=chip.at,
        faults=faults,
        unread=_CODES - {code for code, is_so in findings.items() if is_so is not None},
    )


# --- what is so, what is not, and what nobody knows ----------------------------------------------

_CODES: Final = frozenset(RULES_BY_SENSOR[Sensor.QUERY])

_Finding = tuple[FaultCode, bool | None]


def _findings(chip: Chip, limits: Limits, running: str | None) -> Iterator[_Finding]:
    trouble = chip.trouble
    if trouble is Trouble.DENIED:
        return
    yield FaultCode.SENSOR_FAILED, False
    yield FaultCode.QUERY_HUNG, trouble is Trouble.HUNG
    yield FaultCode.FIRMWARE_NOT_LOADED, _is_firmware_missing(chip)
    if _is_firmware_missing(chip):
        # The kernel driver answers ENODEV to a control then, and before 4.18 waits in vain: that
        # the firmware says nothing has its reason, and is no further fault.
        if trouble is not Trouble.HUNG:
            yield FaultCode.DEVICE_LOST, False
        return
    yield from _of_the_call(chip, limits)
    yield from _of_the_firmware(chip, running)
    yield from _of_the_heat(chip, limits)
    if chip.state is not None:
        yield FaultCode.THROTTLED, chip.state.throttling_level is not None
        yield FaultCode.OVERCURRENT, chip.state.overcurrent_zone is not Zone.GREEN


def _is_firmware_missing(chip: Chip) -> bool | None:
    if chip.firmware is not None:
        return False
    if chip.properties is None or chip.properties.firmware_loaded is None:
        return None
    return not chip.properties.firmware_loaded


_ANSWERED: Final = frozenset({None, Trouble.GARBAGE, Trouble.REFUSED})
"""How a reading ends in which the kernel driver did all it was asked for."""


def _of_the_call(chip: Chip, limits: Limits) -> Iterator[_Finding]:
    trouble = chip.trouble
    yield FaultCode.DEVICE_LOST, None if trouble is Trouble.HUNG else trouble is Trouble.LOST
    if trouble is Trouble.FAILED or trouble in _ANSWERED:
        yield FaultCode.QUERY_FAILED, trouble is Trouble.FAILED
    if trouble in _ANSWERED:
        yield FaultCode.QUERY_SLOW, chip.seconds > limits.slow_seconds


def _of_the_firmware(chip: Chip, running: str | None) -> Iterator[_Finding]:
    # What it says of its temperature alone clears nothing here: to be trusted again, it must say
    # what it is.
    trouble, firmware = chip.trouble, chip.firmware
    if trouble is Trouble.TIMED_OUT:
        yield FaultCode.FIRMWARE_HUNG, True
    elif trouble in {Trouble.GARBAGE, Trouble.REFUSED} or (
        firmware is not None and trouble in {None, Trouble.FAILED}
    ):
        yield FaultCode.FIRMWARE_HUNG, False
    if trouble is Trouble.GARBAGE:
        yield FaultCode.FIRMWARE_GARBAGE, True
    elif trouble is Trouble.REFUSED or (firmware is not None and trouble is None):
        yield FaultCode.FIRMWARE_GARBAGE, False
    if trouble is Trouble.REFUSED or firmware is not None:
        yield FaultCode.FIRMWARE_REFUSED, trouble is Trouble.REFUSED
    if firmware is not None and running is not None:
        yield FaultCode.FIRMWARE_MISMATCH, firmware.version != running


def _of_the_heat(chip: Chip, limits: Limits) -> Iterator[_Finding]:
    if chip.temperatures is None and chip.state is None:
        return
    zone = _zone(chip, limits)
    yield FaultCode.TEMPERATURE_CRITICAL, zone is Zone.RED
    yield FaultCode.TEMPERATURE_HIGH, zone is Zone.ORANGE


def _zone(chip: Chip, limits: Limits) -> Zone:
    """Take the worse of what the firmware says and of what the thresholds say."""
    told = Zone.GREEN if chip.state is None else chip.state.temperature_zone
    if chip.temperatures is None:
        return told
    highest = chip.temperatures.highest_celsius
    orange, red = _thresholds(chip, limits)
    if told is Zone.RED or highest >= red:
        return Zone.RED
    return Zone.ORANGE if told is Zone.ORANGE or highest >= orange else Zone.GREEN


def _thresholds(chip: Chip, limits: Limits) -> tuple[float, float]:
    orange, red = limits.temperature_high_celsius, limits.temperature_critical_celsius
    if chip.state is None:
        return orange, red
    own_orange, own_red = chip.state.orange_celsius, chip.state.red_celsius
    return orange if own_orange is None else own_orange, red if own_red is None else own_red


# --- in words ------------------------------------------------------------------------------------

_REBIND: Final = "unbind the device from its kernel driver and bind it again"
_COOL: Final = "look after the chip's cooling, or give it less to do"

_WORDS: Final[Mapping[FaultCode, tuple[str, str]]] = {
    FaultCode.QUERY_HUNG: (
        "a call into the kernel driver does not return",
        "read the kernel log; if it stays stuck, nothing but power-cycling the machine frees it",
    ),
    FaultCode.QUERY_FAILED: (
        "the kernel driver does not answer queries",
        "read the kernel log for what it says of this device",
    ),
    FaultCode.DEVICE_LOST: (
        "the kernel driver has lost the chip",
        "check that the module is seated and powered, then rescan the PCI bus",
    ),
    FaultCode.FIRMWARE_NOT_LOADED: (
        "the chip runs no firmware",
        f"read the kernel log for why it was not loaded, then {_REBIND}",
    ),
    FaultCode.FIRMWARE_HUNG: (
        "the firmware does not answer",
        f"end what uses the device, then {_REBIND}; if it stays silent, power-cycle the machine",
    ),
    FaultCode.FIRMWARE_GARBAGE: (
        "the firmware's answers make no sense",
        f"end what uses the device, then {_REBIND}; if it goes on, power-cycle the machine",
    ),
    FaultCode.FIRMWARE_REFUSED: (
        "the firmware refuses to say what it is",
        f"end what uses the device, then {_REBIND}",
    ),
    FaultCode.TEMPERATURE_HIGH: ("the chip is hot", _COOL),
    FaultCode.TEMPERATURE_CRITICAL: (
        "the chip is too hot to work on",
        f"{_COOL}; the firmware stops every stream until it is cooler",
    ),
    FaultCode.THROTTLED: ("the chip runs slower because it is hot", _COOL),
    FaultCode.OVERCURRENT: (
        "the chip draws too much current",
        "check the power supply of slot and machine, or give the chip less to do",
    ),
}


def _fault(code: FaultCode, subject: str, chip: Chip, limits: Limits, running: str | None) -> Fault:
    message, remedy = _words(code, chip, limits, running)
    return Fault(
        code=code,
        subject=subject,
        message=message,
        remedy=remedy,
        evidence=_measured(code, chip)[:_MAX_DETAIL],
    )


def _words(code: FaultCode, chip: Chip, limits: Limits, running: str | None) -> tuple[str, str]:
    if code is FaultCode.QUERY_SLOW:
        return (
            f"answers take longer than {limits.slow_seconds:g} s",
            "none while it is busy; else read the kernel log",
        )
    if code is FaultCode.FIRMWARE_MISMATCH and chip.firmware is not None:
        return (
            f"firmware {chip.firmware.version} runs under kernel driver {running}",
            f"install the firmware that came with kernel driver {running}, then {_REBIND}",
        )
    return _WORDS[code]


def _measured(code: FaultCode, chip: Chip) -> str:
    if code in {FaultCode.TEMPERATURE_HIGH, FaultCode.TEMPERATURE_CRITICAL}:
        return "; ".join(_heat(chip))
    if code is FaultCode.QUERY_SLOW:
        return f"the slowest took {chip.seconds:.3f} s"
    state = chip.state
    if code is FaultCode.THROTTLED and state is not None and state.throttling_level is not None:
        return "; ".join((f"level {state.throttling_level}", *_clock(state), *_heat(chip)))
    if code is FaultCode.OVERCURRENT and state is not None:
        return f"{state.overcurrent_zone} zone"
    return "" if code is FaultCode.FIRMWARE_MISMATCH else chip.detail


def _heat(chip: Chip) -> Iterator[str]:
    if chip.temperatures is not None:
        both = chip.temperatures
        yield f"{both.ts0_celsius:.1f} and {both.ts1_celsius:.1f} °C"
    if chip.state is not None:
        yield f"{chip.state.temperature_zone} zone"


def _clock(state: ChipState) -> Iterator[str]:
    level = state.throttling_level
    if level is not None and level < len(state.throttling_levels):
        yield f"{state.throttling_levels[level].clock_hertz / 1e6:.0f} MHz"
