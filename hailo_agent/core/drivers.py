"""What is known of Hailo's kernel drivers: which chips each version serves, and what these need.

Rows of data, read from the drivers' own sources. What is not in these tables is said to be unknown,
never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hailo_agent.core.device import PciId

_VERSION = re.compile(r"(?P<major>[0-9]{1,4})\.(?P<minor>[0-9]{1,4})\.(?P<revision>[0-9]{1,4})")

MODULES: Final = ("hailo_pci", "hailo1x_pci", "hailo_integrated_nnc")
"""Kernel modules, by their names below /sys/module. The first two may be loaded together."""

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


READ: Final = frozenset(
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

_NEEDS: Final[Mapping[int, str]] = {
    _HAILO_8: "4.x (4.23 is its newest line; packages named hailo-all)",
    _HAILO_10H: "5.x (packages named hailo-h10-all)",
    _HAILO_15L: "5.x",
    _HAILO_12L: "5.x",
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
"""What the host's kernel reads below /lib/firmware; containers never need it."""

PROBE_FAILS_WITHOUT_FIRMWARE: Final = Version(4, 19, 0)
"""Before, the driver warned, made the node all the same, and left a device that does nothing."""


def binds(version: Version, pci_id: PciId) -> bool | None:
    """Tell whether a driver of this version serves a chip; None for what nobody has read."""
    if version.major not in {4, 5}:
        return None
    ids = [ids for since, ids in _BINDS if since <= version and since.major == version.major]
    return pci_id.device in ids[-1] if ids else None


def needed_driver(pci_id: PciId) -> str | None:
    """Name the line of drivers that a chip needs; None for an unknown chip."""
    return _NEEDS.get(pci_id.device)


def firmware_of(pci_id: PciId) -> tuple[str, ...]:
    """Name the firmware files that the driver asks for, below /lib/firmware."""
    return _FIRMWARE.get(pci_id.device, ())
