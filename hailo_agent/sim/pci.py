"""What sysfs shows of one PCI function, and of the bridges above it, byte by byte.

Called by `kernel.py` and `machine.py`; pure. The list of attributes is that of
drivers/pci/pci-sysfs.c for a PCIe endpoint with AER.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

GEN1: Final = "2.5 GT/s PCIe"
GEN2: Final = "5.0 GT/s PCIe"
GEN3: Final = "8.0 GT/s PCIe"

_BRIDGE: Final = "8086:a110"
_ADDRESS: Final = re.compile(
    r"(?P<domain>[0-9a-f]{4,8}):(?P<bus>[0-9a-f]{2}):(?P<slot>[01][0-9a-f])\.[0-7]"
)

_CORRECTABLE: Final = [
    "RxErr",
    "BadTLP",
    "BadDLLP",
    "Rollover",
    "Timeout",
    "NonFatalErr",
    "CorrIntErr",
    "HeaderOF",
]
_UNCORRECTABLE: Final = [
    "Undefined",
    "DLP",
    "SDES",
    "TLP",
    "FCP",
    "CmpltTO",
    "CmpltAbrt",
    "UnxCmplt",
    "RxOF",
    "MalfTLP",
    "ECRC",
    "UnsupReq",
    "ACSViol",
    "UncorrIntErr",
    "BlockedTLP",
    "AtomicOpBlocked",
    "TLPBlockedErr",
    "PoisonTLPBlocked",
]


ErrorKind = Literal["correctable", "nonfatal", "fatal"]

# The file of each kind: its counters, what its total is called, and the error that we let happen.
_AER: Final[Mapping[ErrorKind, tuple[Sequence[str], str, str]]] = {
    "correctable": (_CORRECTABLE, "TOTAL_ERR_COR", "BadTLP"),
    "fatal": (_UNCORRECTABLE, "TOTAL_ERR_FATAL", "MalfTLP"),
    "nonfatal": (_UNCORRECTABLE, "TOTAL_ERR_NONFATAL", "CmpltTO"),
}


def aer_files(errors: Mapping[ErrorKind, int]) -> dict[str, bytes]:
    """Render the error counters as aer_dev_*_show() does: each error, then the total."""
    return {f"aer_dev_{kind}": _aer(kind, errors.get(kind, 0)) for kind in get_args(ErrorKind)}


def _aer(kind: ErrorKind, count: int) -> bytes:
    names, total, happening = _AER[kind]
    lines = [f"{name} {count if name == happening else 0}\n" for name in names]
    return "".join([*lines, f"{total} {count}\n"]).encode()


# Three memory BARs of 16K, 4K and 16K, 64-bit, so that every other line is empty.
_RESOURCE: Final = "".join(
    f"0x{start:016x} 0x{end:016x} 0x{flags:016x}\n"
    for start, end, flags in (
        (0x6000000000, 0x6000003FFF, 0x14220C),
        (0, 0, 0),
        (0x6000008000, 0x6000008FFF, 0x14220C),
        (0, 0, 0),
        (0x6000004000, 0x6000007FFF, 0x14220C),
        *(((0, 0, 0),) * 8),
    )
).encode()

# The same for every function that has just been found on the bus.
_COMMON: Final = {
    **aer_files({}),
    "ari_enabled": b"0\n",
    "broken_parity_status": b"0\n",
    "consistent_dma_mask_bits": b"64\n",
    "d3cold_allowed": b"1\n",
    "dma_mask_bits": b"64\n",
    "driver_override": b"(null)\n",
    "enable": b"0\n",
    "irq": b"0\n",
    "local_cpulist": b"0-3\n",
    "local_cpus": b"f\n",
    "msi_bus": b"1\n",
    "power/control": b"on\n",
    "power/runtime_active_time": b"0\n",
    "power/runtime_status": b"active\n",
    "power/runtime_suspended_time": b"0\n",
    "power_state": b"D0\n",
    "remove": b"",
    "rescan": b"",
    "reset": b"",
    "reset_method": b"bus\n",
    "resource": _RESOURCE,
    "revision": b"0x01\n",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The PCIe link of a function: what was negotiated, and what it could be."""

    speed: str = GEN3
    width: int = 4
    max_speed: str = GEN3
    max_width: int = 4

    def attributes(self) -> dict[str, bytes]:
        """Render the four link attributes."""
        return {
            "current_link_speed": f"{self.speed}\n".encode(),
            "current_link_width": f"{self.width}\n".encode(),
            "max_link_speed": f"{self.max_speed}\n".encode(),
            "max_link_width": f"{self.max_width}\n".encode(),
        }


# All that reads of a function that no longer answers bring home, and what the kernel makes of link
# registers full of ones (pcie_get_speed_cap() up to Linux 6.12; it remembers the speeds since).
# Error counters are the kernel's own, and stay as they were.
DEAD_CONFIG: Final = b"\xff" * 64
DEAD_LINK: Final = Link(speed="Unknown", width=63, max_speed="64.0 GT/s PCIe", max_width=63)


def split_address(address: str) -> tuple[str, int, int]:
    """Take a PCI address apart into domain, bus and slot, or say what is wrong with it."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        message = (
            f"{address!r} is not a PCI address such as 0000:01:00.0 (lower case, with its domain)"
        )
        raise ValueError(message)
    return match["domain"], int(match["bus"], 16), int(match["slot"], 16)


def slot_address(number: int) -> str:
    """Name the n-th free slot of a big machine: one bus for each, 255 buses a domain."""
    return f"{number // 255:04x}:{number % 255 + 1:02x}:00.0"


def bridges_above(address: str, root_port: str | None) -> tuple[str, ...]:
    """Name the directories between /sys/devices and a function, the host bridge first.

    A bus has a root port of its own unless told otherwise; a function on the root bus has none.
    """
    domain, bus, _slot = split_address(address)
    root = f"pci{domain}:00"
    if root_port is not None:
        return (root, *root_port.strip("/").removeprefix(f"{root}/").split("/"))
    return (root, f"{domain}:00:{bus % 32:02x}.{bus // 32}") if bus else (root,)


def uevent_bytes(
    address: str, pci_id: str, kernel_driver: str | None, device_class: int = 0x0B4000
) -> bytes:
    """Render `uevent` as pci_uevent() does; DRIVER is there only while one is bound."""
    vendor, device = pci_id.upper().split(":")
    modalias = _modalias(pci_id, device_class)
    bound = f"DRIVER={kernel_driver}\n" if kernel_driver else ""
    return (
        f"{bound}PCI_CLASS={device_class:X}\nPCI_ID={vendor}:{device}\nPCI_SUBSYS_ID={vendor}:{device}\n"
        f"PCI_SLOT_NAME={address}\nMODALIAS={modalias}\n"
    ).encode()


def endpoint_files(address: str, pci_id: str) -> dict[str, bytes]:
    """Render what only one accelerator's PCI function can show."""
    return {"uevent": uevent_bytes(address, pci_id, None)}


def endpoint_files_alike(pci_id: str, numa_node: int, link: Link) -> dict[str, bytes]:
    """Render the rest, which a thousand may have in common."""
    vendor, device = pci_id.split(":")
    return {
        "vendor": f"0x{vendor}\n".encode(),
        "device": f"0x{device}\n".encode(),
        "subsystem_vendor": f"0x{vendor}\n".encode(),
        "subsystem_device": f"0x{device}\n".encode(),
        "class": b"0x0b4000\n",
        "modalias": f"{_modalias(pci_id, 0x0B4000)}\n".encode(),
        "config": config_bytes(pci_id),
        "numa_node": b"%d\n" % numa_node,
        **link.attributes(),
        **_COMMON,
    }


def bridge_files(address: str) -> dict[str, bytes]:
    """Render what only one root port or switch port can show."""
    return {"uevent": uevent_bytes(address, _BRIDGE, "pcieport", 0x060400)}


def bridge_files_alike(numa_node: int) -> dict[str, bytes]:
    """Render the rest that a look at a port needs."""
    return {
        "vendor": b"0x8086\n",
        "device": b"0xa110\n",
        "class": b"0x060400\n",
        "numa_node": b"%d\n" % numa_node,
        "power_state": b"D0\n",
        **Link().attributes(),
    }


def _modalias(pci_id: str, device_class: int) -> str:
    vendor, device = pci_id.upper().split(":")
    base, sub, interface = device_class >> 16, device_class >> 8 & 0xFF, device_class & 0xFF
    ids = f"v0000{vendor}d0000{device}sv0000{vendor}sd0000{device}"
    return f"pci:{ids}bc{base:02X}sc{sub:02X}i{interface:02X}"


def config_bytes(pci_id: str) -> bytes:
    """Render the part of configuration space that everybody may read."""
    vendor, device = (int(part, 16).to_bytes(2, "little") for part in pci_id.split(":"))
    header = bytearray(64)
    header[0x00:0x04] = vendor + device
    header[0x04:0x08] = b"\x06\x00\x10\x00"  # memory and bus master on; a capability list
    header[0x08:0x0C] = b"\x01\x00\x40\x0b"  # revision, class 0b4000
    header[0x2C:0x30] = vendor + device
    header[0x34] = 0x40
    return bytes(header)
