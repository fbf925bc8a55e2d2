"""What `hailortcli` prints, and what it proves: a second opinion, never more.

Pure. `host.hailortcli` runs the vendor's command and hands its words to this module. It prints for
people: lines come and go between versions, warnings stand in between, and a board may have no
serial number. So lines are looked for, and whatever else there is is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from hailo_agent.core.chip import Architecture, Firmware
from hailo_agent.core.device import PciAddress
from hailo_agent.core.drivers import Version
from hailo_agent.core.health import Evidence, Fault, FaultCode, Sensor, Severity
from hailo_agent.errors import HailoAgentError

MAX_BYTES: Final = 64 * 1024
"""Of what the command prints. Eight boards take four."""

_MAX_DEVICES: Final = 256
_MAX_LENGTH: Final = 80
_NOT_CONFIGURED: Final = "<N/A>"
"""How 4.x prints a text that the board does not have; 5.x leaves the line out."""

# Colours and cursor movements (ECMA-48), window titles, and whatever else begins with an escape.
_ESCAPE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|.)?")
_LINE_END: Final = re.compile(r"[\r\n]+")

_VERSION: Final = re.compile(r"HailoRT-CLI version (?P<version>[0-9.]{5,14})")
_LISTED: Final = re.compile(r"\[-\] Device(?: BDF)?: (?P<id>.+)")
"""A line of `scan`; up to 4.8 it says `Device BDF`."""
_NONE_FOUND: Final = re.compile(r"Hailo .*\bnot found\b.*")
_FIRMWARE: Final = re.compile(r"(?P<version>[0-9.]+)(?: \((?P<build>[^)]*)\))?")

_ON_DEVICE: Final = "Executing on device"

_ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "HAILO8": Architecture.HAILO_8,
    "HAILO8L": Architecture.HAILO_8L,
    "HAILO15H": Architecture.HAILO_15H,
    "HAILO15L": Architecture.HAILO_15L,
    "PLUTO": Architecture.HAILO_15L,
    "MARS": Architecture.HAILO_12L,
}
"""What `identify` calls what the firmware names too. A 10H has no firmware that could be asked."""


class OutputInvalid(HailoAgentError):
    """Raised when the command printed something else; says in one line what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identified:
    """What `fw-control identify` printed of one device. A text is empty where there is none."""

    address: PciAddress | None
    firmware: Version | None = None
    build: str = ""
    """How the firmware was built: `release,app`."""
    architecture: str = ""
    """In the command's own word: `HAILO8L`, `Unknown`."""
    board_name: str = ""
    serial: str = ""
    part_number: str = ""
    product_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the command told at one time, or why it did not."""

    at: float
    """When it was asked, in seconds of the observation's clock."""
    version: Version | None = None
    devices: tuple[PciAddress, ...] | None = None
    """What `scan` lists; None if it was not run, or failed."""
    identified: tuple[Identified, ...] = ()
    reason: str = ""
    """Why it is not used, or what went wrong; empty if nothing did. The same for the same cause."""


def parse_version(text: str) -> Version | None:
    """Read what `hailortcli --version` prints; None if that is something else."""
    for line in _lines(text):
        match = _VERSION.search(line)
        if match is not None:
            return Version.parse(match["version"])
    return None


def parse_scan(text: str) -> tuple[PciAddress, ...]:
    """Read the PCI addresses that `hailortcli scan` lists; devices without one are left out.

    Raises:
        OutputInvalid: it neither lists devices nor says that there are none.
    """
    listed: list[str] = []
    says_none = False
    for line in _lines(text):
        match = _LISTED.fullmatch(line)
        if match is not None:
            listed.append(match["id"])
        says_none = says_none or _NONE_FOUND.fullmatch(line) is not None
    if not listed and not says_none:
        raise OutputInvalid(f"it neither lists devices nor says that there are none: {_head(text)}")
    if len(listed) > _MAX_DEVICES:
        raise OutputInvalid(f"it lists {len(listed)} devices")
    addresses = (PciAddress.parse(id_) for id_ in listed)
    return tuple(sorted({address for address in addresses if address is not None}))


def parse_identify(text: str) -> tuple[Identified, ...]:
    """Read what `hailortcli fw-control identify` prints, of one device or several.

    Raises:
        OutputInvalid: it tells of no device what firmware it runs.
    """
    found = []
    for device, told in _sections(text):
        match = _FIRMWARE.fullmatch(told.get("Firmware Version", ""))
        if match is not None:
            found.append(
                Identified(
                    address=PciAddress.parse(device),
                    firmware=Version.parse(match["version"]),
                    build=match["build"] or "",
                    architecture=told.get("Device Architecture", ""),
                    board_name=told.get("Board Name", ""),
                    serial=told.get("Serial Number", ""),
                    part_number=told.get("Part Number", ""),
                    product_name=told.get("Product Name", ""),
                )
            )
    if not found:
        raise OutputInvalid(f"it tells of no device what firmware it runs: {_head(text)}")
    if len(found) > _MAX_DEVICES:
        raise OutputInvalid(f"it tells of {len(found)} devices")
    return tuple(found)


def evidence(
    subject: str,
    reading: Reading,
    *,
    address: PciAddress | None,
    driver_version: str | None,
    firmware: Firmware | None,
) -> Evidence:
    """Say whether the command agrees about one device that we see.

    It is not asked about devices of another kernel driver than its own, nor of what has no address.
    """
    is_asked = reading.version is not None and driver_version == str(reading.version)
    if address is None or reading.devices is None or not is_asked:
        return Evidence(
            sensor=Sensor.HAILORTCLI, at=reading.at, unread=frozenset({FaultCode.CLI_DISAGREES})
        )
    faults: tuple[Fault, ...] = ()
    if address not in reading.devices:
        faults = (_unlisted(subject, reading.devices),)
    elif firmware is not None:
        told = next((one for one in reading.identified if one.address == address), None)
        faults = () if told is None else tuple(_contradictions(subject, told, firmware))
    return Evidence(sensor=Sensor.HAILORTCLI, at=reading.at, faults=faults)


def strangers(reading: Reading, seen: Collection[PciAddress]) -> tuple[Fault, ...]:
    """Name what the command lists and we do not see; these are no device's faults."""
    return tuple(
        Fault(
            code=FaultCode.CLI_DISAGREES,
            subject=str(address),
            message="hailortcli lists a device there that the agent does not see",
            remedy="check that the agent is given the host's own /sys and /dev",
            severity=Severity.INFO,
        )
        for address in reading.devices or ()
        if address not in seen
    )


def _unlisted(subject: str, devices: tuple[PciAddress, ...]) -> Fault:
    return Fault(
        code=FaultCode.CLI_DISAGREES,
        subject=subject,
        message="hailortcli does not list it, so applications may not find it either",
        remedy="run `hailortcli scan` on the node, and read what it says of the kernel driver",
        severity=Severity.INFO,
        evidence=f"it lists {', '.join(map(str, devices[:8])) or 'nothing'}",
    )


def _contradictions(subject: str, told: Identified, firmware: Firmware) -> Iterator[Fault]:
    """Compare what both know; what either leaves empty contradicts nothing."""
    known_as = _ARCHITECTURES.get(told.architecture)
    pairs = (
        ("firmware version", told.firmware and str(told.firmware), firmware.version),
        ("architecture", known_as, _revealed(firmware.architecture)),
        ("serial number", told.serial, firmware.serial),
        ("part number", told.part_number, firmware.part_number),
    )
    differing = [(name, ours, its) for name, its, ours in pairs if its and ours and its != ours]
    if differing:
        yield Fault(
            code=FaultCode.CLI_DISAGREES,
            subject=subject,
            message="hailortcli and the firmware disagree on its "
            + " and ".join(name for name, _, _ in differing),
            remedy="read both again: if they still differ, another library than the kernel driver's"
            " is installed, or the module was exchanged",
            severity=Severity.INFO,
            evidence="; ".join(f"{name}: {its}, not {ours}" for name, ours, its in differing),
        )


def _revealed(architecture: Architecture) -> Architecture | None:
    """Leave out what the command has no word for: it says `Unknown` of an A0."""
    return architecture if architecture in _ARCHITECTURES.values() else None


# --- lines ---------------------------------------------------------------------------------------


def _lines(text: str) -> Iterator[str]:
    """Yield each line without what is meant for a terminal."""
    for line in _LINE_END.split(_ESCAPE.sub("", text[:MAX_BYTES])):
        shown = "".join(c for c in line if c.isprintable()).strip()
        if shown:
            yield shown


def _sections(text: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield of each device its id, and the first value that is told under each name."""
    device, told = "", dict[str, str]()
    for line in _lines(text):
        name, colon, value = line.partition(":")
        if name == _ON_DEVICE:
            yield device, told
            device, told = value.strip(), {}
        elif colon:
            value = value.strip()
            told.setdefault(name.strip(), "" if value == _NOT_CONFIGURED else value[:_MAX_LENGTH])
    yield device, told


def _head(text: str) -> str:
    """Show how it begins, in one line."""
    first = next(_lines(text), "")
    return f"{first[:_MAX_LENGTH]!r}" if first else "it is empty"
