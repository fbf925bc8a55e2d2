"""What one look at the machine found, verbatim and without judgement.

Made by `host.scan` (and, for holdings, by the kubelet's pod-resources), weighed by
`inventory.decide`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from hailo_agent.core.chip import Chip
from hailo_agent.core.cordon import Cordons
from hailo_agent.core.device import (
    DeviceId,
    DeviceNumber,
    Family,
    Holder,
    Identity,
    PciAddress,
    PciId,
    Topology,
    soc_device_id,
)
from hailo_agent.core.health import Evidence, Fault
from hailo_agent.core.vitals import Link, Vitals


class NodeKind(StrEnum):
    """What stands in `/dev` under a class entry's name; only a character device is ever offered."""

    CHARACTER = "character device"
    SYMLINK = "symlink"
    MISSING = "missing"
    OTHER = "something else"


@dataclass(frozen=True, slots=True, kw_only=True)
class PciFunction:
    """One PCI function of the vendor, as `/sys/bus/pci/devices` shows it."""

    address: PciAddress
    pci_id: PciId | None = None
    topology: Topology = field(default_factory=Topology)
    link: Link | None = None
    driver: str | None = None
    driver_version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """One class entry that a family claims, its devnode and its PCI function."""

    family: Family
    entry: str
    sysfs_path: str
    """The entry's place below sysfs, e.g. `/devices/virtual/hailo_chardev/hailo0`."""
    number: DeviceNumber | None = None
    node: NodeKind = NodeKind.MISSING
    node_number: DeviceNumber | None = None
    address: PciAddress | None = None
    accelerator_type: str | None = None
    function: PciFunction | None = None
    """What stands behind the address; None if it cannot be read, or is gone."""
    function_is_gone: bool = False
    """Whether the bus has nothing at the address any more."""
    faults: tuple[Fault, ...] = ()
    """What of it could not be read."""

    @property
    def device_id(self) -> DeviceId | None:
        """The stable id; None while what it is made of cannot be read."""
        if self.address is not None:
            return self.address.device_id
        if self.family.identity is Identity.SYSFS and self.sysfs_path:
            return soc_device_id(self.sysfs_path)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One device in the hands of one container."""

    resource: str
    device_id: DeviceId
    holder: Holder


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """Everything the kubelet says is held, and when, on the observation's clock."""

    at: float = field(compare=False)
    entries: tuple[Holding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """The newest reading of each sensor that has looked at one device."""

    vitals: Vitals | None = None
    chip: Chip | None = None
    others: tuple[Evidence, ...] = ()
    """What further sensors have found out, weighed already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Everything seen in one look, and in `faults` what could not be looked at."""

    at: float
    sightings: tuple[Sighting, ...] = ()
    functions: tuple[PciFunction, ...] = ()
    class_names: tuple[str, ...] = ()
    """The classes that have an entry, which a container must not see unless it holds it.

    An empty class hides nothing, and may go at any time: where a mask's mountpoint is gone, no
    container starts.
    """
    faults: tuple[Fault, ...] = ()
    holdings: Holdings | None = None
    foreign_names: tuple[tuple[str, str], ...] = ()
    """Devices of our kind that CDI files of others define, as (path, device name)."""
    granted_at: tuple[tuple[DeviceId, float], ...] = ()
    """What this process granted, and when; the kubelet's list may be older."""
    readings: Mapping[DeviceId, Readings] = field(default_factory=dict)
    cordons: Cordons = field(default_factory=Cordons)
    """What an operator set aside."""
