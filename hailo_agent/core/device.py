"""What an accelerator is: its address, its names, its place in the machine.

Everyone speaks in these values; they know nothing of files, sockets or the kubelet. Driver
generations differ only in naming, so a generation is a row of data (`Family`), never a branch in
code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

from hailo_agent.core.chip import Architecture, Chip, Firmware
from hailo_agent.core.health import Fault, Health, History
from hailo_agent.core.vitals import Link, Vitals

_DEVICE_ID = re.compile(
    r"pci-[0-9a-f]{4,8}-[0-9a-f]{2}-[0-9a-f]{2}-[0-7]|soc-[a-z0-9][a-z0-9-]{0,58}", re.ASCII
)

HAILO_VENDOR = 0x1E60
"""PCI vendor id of Hailo Technologies."""

_MAX_PCI_SLOT = 0x1F
_MAX_NUMBER = 0xFFFFFFFF

MAX_ID_LENGTH = 63
"""The kubelet documents 63 characters for a device id; a DNS label (DRA) has the same limit."""

ALL = "all"
"""The CDI device that stands for every device of the node; no id can be spelled so."""

DeviceId = NewType("DeviceId", str)

_ADDRESS = re.compile(
    r"(?:(?P<domain>[0-9a-f]{4,8}):)?(?P<bus>[0-9a-f]{2})"
    r":(?P<slot>[0-9a-f]{2})\.(?P<function>[0-7])",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, order=True)
class PciAddress:
    """Domain, bus, device and function of one PCI function."""

    domain: int
    bus: int
    slot: int
    function: int

    @classmethod
    def parse(cls, text: str) -> PciAddress | None:
        """Read `0000:01:00.0` (the domain may be missing); None if the text is something else."""
        match = _ADDRESS.fullmatch(text.strip().lower())
        if match is None or int(match["slot"], 16) > _MAX_PCI_SLOT:
            return None
        return cls(
            domain=int(match["domain"] or "0", 16),
            bus=int(match["bus"], 16),
            slot=int(match["slot"], 16),
            function=int(match["function"], 16),
        )

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.slot:02x}.{self.function}"

    @property
    def device_id(self) -> DeviceId:
        """The stable device id: a DNS label, letter first, which CDI 0.3.0 and DRA accept."""
        return DeviceId(f"pci-{self.domain:04x}-{self.bus:02x}-{self.slot:02x}-{self.function}")


def soc_device_id(sysfs_path: str) -> DeviceId:
    """Name a device without PCI address after its place in sysfs (`soc-platform-h1x`)."""
    words = re.sub(r"[^a-z0-9]+", "-", sysfs_path.removeprefix("/devices").lower()).strip("-")
    return DeviceId(f"soc-{words[-(MAX_ID_LENGTH - 4) :].strip('-')}")


class Identity(StrEnum):
    """Where the devices of a family take their identity from."""

    PCI = "pci"
    SYSFS = "sysfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kernel driver's naming: its class, its devnodes, and where it tells the PCI address."""

    class_name: str
    devnode: str
    """Regular expression for the whole name of the class entry, which the devnode shares."""
    identity: Identity = Identity.PCI
    address_attributes: tuple[str, ...] = ("board_location", "device_id")
    """Attributes that may hold the PCI address, in order; what is no address is passed over."""
    exclusive: bool = True
    """Whether the class is Hailo's alone, so that an entry of another name in it is a fault."""

    def owns(self, entry: str) -> bool:
        """Whether a class entry of this name is one of this family's accelerators."""
        return re.fullmatch(self.devnode, entry) is not None


FAMILIES: tuple[Family, ...] = (
    # Driver 4.6 to 5.2. `device_id` is vendor:device there, which never parses as an address.
    Family(class_name="hailo_chardev", devnode=r"hailo[0-9]+"),
    # The SoC's own driver, 4.15 to 5.2: `board_location` is `[integrated]` or `[integrated_nnc]`.
    Family(class_name="hailo_chardev", devnode=r"hailo_integrated_nnc", identity=Identity.SYSFS),
    # Driver 5.3: `board_location` is gone and `device_id` has become the address.
    Family(class_name="hailo1x", devnode=r"h1x-[0-9]+"),
    Family(class_name="hailo1x_integrated", devnode=r"h1x", identity=Identity.SYSFS),
)


class Model(StrEnum):
    """What it is. 8, 8R and 8L share one PCI id: only the firmware knows them apart."""

    HAILO_8 = "hailo-8"
    HAILO_8L = "hailo-8l"
    HAILO_8R = "hailo-8r"
    HAILO_10H = "hailo-10h"
    HAILO_12L = "hailo-12l"
    HAILO_15H = "hailo-15h"
    HAILO_15L = "hailo-15l"
    UNKNOWN = "unknown"


_MODELS = {
    0x2864: Model.HAILO_8,
    0x45C4: Model.HAILO_10H,
    0x43A2: Model.HAILO_15L,
    0x26A2: Model.HAILO_12L,
}

NNC_ACCELERATOR = "0"
"""`accelerator_type` of a part whose network core the host drives itself (driver 4.18 to 5.2)."""


@dataclass(frozen=True, slots=True)
class PciId:
    """Vendor and device id of a PCI function, written `1e60:2864`."""

    vendor: int
    device: int

    def __str__(self) -> str:
        return f"{self.vendor:04x}:{self.device:04x}"


FIRMWARE_MODELS = frozenset({Model.HAILO_8L, Model.HAILO_8R})
"""What is known only once the firmware has been asked."""

_ARCHITECTURES = {
    Architecture.HAILO_8_A0: Model.HAILO_8,
    Architecture.HAILO_8: Model.HAILO_8,
    Architecture.HAILO_8L: Model.HAILO_8L,
    Architecture.HAILO_15H: Model.HAILO_15H,
    Architecture.HAILO_15L: Model.HAILO_15L,
    Architecture.HAILO_12L: Model.HAILO_12L,
}
_8R = re.compile(r"hailo-?8r", re.IGNORECASE)


def model_of(
    pci_id: PciId | None, accelerator_type: str | None = None, firmware: Firmware | None = None
) -> Model:
    """Tell the model from the firmware if it has spoken, else from what the kernel shows.

    Never guessed. An 8R says of itself that it is an 8; only its product name tells.
    """
    if pci_id is None or pci_id.vendor != HAILO_VENDOR:
        return Model.UNKNOWN
    model = _MODELS.get(pci_id.device, Model.UNKNOWN)
    if model is Model.HAILO_10H and accelerator_type == NNC_ACCELERATOR:
        return Model.HAILO_15H  # the same PCI id, in its accelerator mode
    if firmware is None:
        return model
    model = _ARCHITECTURES.get(firmware.architecture, model)
    names = f"{firmware.product_name} {firmware.board_name}"
    return Model.HAILO_8R if model is Model.HAILO_8 and _8R.search(names) else model


@dataclass(frozen=True, slots=True)
class DeviceNumber:
    """Major and minor. The major is given out anew each time a driver loads."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> DeviceNumber | None:
        """Read `507:0`; None if the text is something else."""
        major, colon, minor = text.strip().partition(":")
        if not (colon and _is_number(major) and _is_number(minor)):
            return None
        return cls(int(major), int(minor)) if max(int(major), int(minor)) <= _MAX_NUMBER else None

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= len(str(_MAX_NUMBER))


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Where a device hangs. Unknown stays unknown: a NUMA node of -1 is None here, never 0."""

    numa_node: int | None = None
    bridges: tuple[str, ...] = ()
    """The way down from the PCIe root, e.g. `("pci0000:00", "0000:00:01.0")`."""

    @property
    def pcie_root(self) -> str | None:
        """The root complex, spelled as Kubernetes' `pcieRoot` attribute does."""
        return self.bridges[0] if self.bridges else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Devnode:
    """The `/dev` entry that opens a device: its name, which may change, and its number."""

    name: str
    number: DeviceNumber
    class_name: str
    is_sound: bool = field(default=True, compare=False)
    """Whether `/dev` really has it under this number; what is not sound is in no spec."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Holder:
    """The container that holds a device; the kubelet does not tell the pod's uid."""

    namespace: str
    pod: str
    container: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator, held to be true: what it is, where it is, how it is, who has it."""

    id: DeviceId
    model: Model = Model.UNKNOWN
    devnode: Devnode | None = None
    """None while the machine does not have it."""
    address: PciAddress | None = None
    pci_id: PciId | None = None
    topology: Topology = field(default_factory=Topology)
    link: Link | None = None
    driver: str | None = None
    driver_version: str | None = None
    present_since: float = field(default=0.0, compare=False)
    """Since when the machine has had it without a break; infinite while it has not.

    What was read before may have been another card.
    """
    firmware: Firmware | None = None
    """What the firmware says it is; None until it has been asked."""
    vitals: Vitals | None = field(default=None, compare=False)
    """The newest reading of what the kernel tells of it."""
    chip: Chip | None = field(default=None, compare=False)
    """The newest answer of driver and firmware."""
    health: Health = Health.HEALTHY
    fit: bool = True
    """Whether its health permits handing it out."""
    faults: tuple[Fault, ...] = ()
    held: bool | None = None
    """Whether a pod holds it; None while nobody can tell."""
    holders: tuple[Holder, ...] = ()
    denied: bool = False
    """Set aside by configuration: listed only while a pod may still hold it."""
    resource: str | None = None
    """The resource it is held under, or was while the machine could not tell what it is."""
    history: History = field(default=History(), compare=False)

    @property
    def is_usable(self) -> bool:
        """Whether a container may be granted this device now."""
        return self.fit and self.devnode is not None and not self.denied


def is_device_id(text: str) -> bool:
    """Tell whether a text is spelled as our device ids are."""
    return _DEVICE_ID.fullmatch(text) is not None
