"""What is known of Hailo's kernel drivers: which chips each version serves, and what these need.

Rows of data, read from the drivers' own sources. What is not in these tables is said to be unknown,
never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from hailo_agent.core.device import HAILO_VENDOR, PciAddress, PciId

_VERSION = re.compile(r"(?P<major>[0-9]{1,4})\.(?P<minor>[0-9]{1,4})\.(?P<revision>[0-9]{1,4})")

PCIE_MODULES: Final = ("hailo_pci", "hailo1x_pci")
"""Kernel modules for PCIe functions, by their names below /sys/module. Both may be loaded."""

MODULES: Final = (*PCIE_MODULES, "hailo_integrated_nnc")
"""These, and the one for a chip that is part of the SoC this kernel runs on."""

PCI_DRIVERS: Final = ("hailo", "hailo1x")
"""Names below /sys/bus/pci/drivers; the second one since 5.1."""


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A driver's version. Library and service must equal it in all three parts."""

    major: int
    minor: int
    revision: int

    @classmethod
    def parse(cls, text: str | None) -> Version | None:
        """Read `4.23.0`; None if the text is something else."""
        match = _VERSION.fullmatch((text or "").strip())
        return None if match is None else cls(*(int(part) for part in match.groups()))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.revision}"


_READ: Final = frozenset(
    Version(*parts)
    for parts in (
        (4, 6, 0),
        (4, 7, 0),
        (4, 8, 1),
        (4, 10, 0),
        *((4, minor, 0) for minor in range(12, 24)),
        (5, 0, 0),
        (5, 0, 1),
        (5, 1, 0),
        (5, 1, 1),
        (5, 2, 0),
        (5, 3, 0),
    )
)
"""The versions whose sources these tables were made from."""

_HAILO_8: Final = 0x2864
_HAILO_10H: Final = 0x45C4
_HAILO_15L: Final = 0x43A2
_HAILO_12L: Final = 0x26A2

_BINDS: Final[tuple[tuple[Version, frozenset[int]], ...]] = (
    (Version(4, 6, 0), frozenset({_HAILO_8, _HAILO_10H})),
    (Version(4, 15, 0), frozenset({_HAILO_8, _HAILO_10H, _HAILO_15L})),
    (Version(4, 21, 0), frozenset({_HAILO_8, _HAILO_10H, _HAILO_15L, _HAILO_12L})),
    (Version(4, 23, 0), frozenset({_HAILO_8})),
    (Version(5, 0, 0), frozenset({_HAILO_8, _HAILO_10H, _HAILO_15L, _HAILO_12L})),
    (Version(5, 0, 1), frozenset({_HAILO_10H, _HAILO_15L, _HAILO_12L})),
)
"""From which version on a driver binds which PCI device ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of drivers, and how to come by it."""

    major: int
    name: str
    branch: str
    """Of the vendor's repository hailort-drivers."""
    module: str
    """What to modprobe, in its newest release."""
    package: str
    """What Raspberry Pi OS calls it."""


LINES: Final = (
    Line(major=4, name="4.x", branch="hailo8", module="hailo_pci", package="hailo-all"),
    Line(major=5, name="5.x", branch="master", module="hailo1x_pci", package="hailo-h10-all"),
)

_LINE_OF: Final[Mapping[int, Line]] = {
    _HAILO_8: LINES[0],
    _HAILO_10H: LINES[1],
    _HAILO_15L: LINES[1],
    _HAILO_12L: LINES[1],
}

_FIRMWARE: Final[Mapping[int, tuple[str, ...]]] = {
    _HAILO_8: ("hailo/hailo8_fw.bin",),
    _HAILO_10H: (
        "hailo/hailo10h/customer_certificate.bin",
        "hailo/hailo10h/scu_fw.bin",
        "hailo/hailo10h/u-boot-spl.bin",
        "hailo/hailo10h/u-boot-tfa.itb",
        "hailo/hailo10h/fitImage",
        "hailo/hailo10h/image-fs",
    ),
    _HAILO_15L: ("hailo/hailo15l_fw.bin",),
    _HAILO_12L: (
        "hailo/hailo12l/customer_certificate.bin",
        "hailo/hailo12l/scu_fw.bin",
        "hailo/hailo12l/u-boot-spl.bin",
        "hailo/hailo12l/u-boot-tfa.itb",
        "hailo/hailo12l/fitImage",
        "hailo/hailo12l/image-fs",
    ),
}
"""What the host's kernel reads below /lib/firmware; containers never need it.

`u-boot-<sku>.dtb.signed` is missing here, for the name depends on the board.
"""

OPTIONAL_FIRMWARE: Final = frozenset({"hailo/hailo8_board_cfg.bin", "hailo/hailo8_fw_cfg.bin"})
"""What the driver also asks for, complains about, and does very well without."""

PROBE_NEEDS_FIRMWARE: Final = Version(4, 19, 0)
"""Before, the driver warned, made the node all the same, and left a device that does nothing."""

RESET_LOADS_FIRMWARE: Final = Version(5, 0, 1)
"""Before, a reset of the PCI function left the node in place and the chip without firmware."""

_CLASS_RENAMED: Final = Version(5, 3, 0)


def is_known(version: Version) -> bool:
    """Whether these tables speak of a version; its last digit alone never changed what they say."""
    return any((v.major, v.minor) == (version.major, version.minor) for v in _READ)


def binds(version: Version, pci_id: PciId) -> bool | None:
    """Tell whether a driver of this version serves a chip; None for what nobody has read."""
    if version.major not in {line.major for line in LINES} or pci_id.vendor != HAILO_VENDOR:
        return None
    ids = [ids for since, ids in _BINDS if since <= version and since.major == version.major]
    return pci_id.device in ids[-1] if ids else None


def line_of(pci_id: PciId | None) -> Line | None:
    """Name the line of drivers that a chip belongs to; None for an unknown chip."""
    if pci_id is None or pci_id.vendor != HAILO_VENDOR:
        return None
    return _LINE_OF.get(pci_id.device)


def firmware_of(pci_id: PciId | None) -> tuple[str, ...]:
    """Name the firmware files that the driver asks for, below /lib/firmware."""
    return () if line_of(pci_id) is None or pci_id is None else _FIRMWARE[pci_id.device]


def class_of(version: Version) -> str:
    """Name the class in which a driver of this version lists its devices."""
    return "hailo1x" if version >= _CLASS_RENAMED else "hailo_chardev"


def rebind(address: PciAddress | None, driver: str | None) -> str:
    """Say how to have a driver start one device anew, which leaves the others alone."""
    if address is None or driver not in PCI_DRIVERS:
        return "reload the driver"
    return f"`cd /sys/bus/pci/drivers/{driver} && echo {address} > unbind && echo {address} > bind`"


def collide(versions: Iterable[Version]) -> bool:
    """Whether two loaded drivers want to make the same class, which only one of them can."""
    names = [class_of(version) for version in versions]
    return len(set(names)) < len(names)
