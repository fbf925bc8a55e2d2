"""How each generation of Hailo's kernel driver names things: rows of data, and nothing else.

The simulated machine (`machine.py`, `kernel.py`) goes by the rows; tests and the demo pick one by
its key in `GENERATIONS`. They restate the vendor's source: names of class, devnode and attributes,
what is bound, when the class appears. They must not know the agent's own idea of these things: two
independent tellings are what makes a comparison worth something.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

HAILO_8 = "1e60:2864"
HAILO_10H = "1e60:45c4"
HAILO_15L = "1e60:43a2"
HAILO_12L = "1e60:26a2"

# HAILO_ACCELERATOR_TYPE_SOC is 1: chips that run their own Linux. The others are NNC, 0.
_SOC_PCI_IDS = frozenset({HAILO_10H, HAILO_12L})

Content = Literal[
    "address", "pci-id", "accelerator", "[integrated_nnc]", "[integrated]", "counter", "monitor"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One generation of the kernel driver, as its source has it."""

    name: str
    version: str  # MODULE_VERSION
    module: str  # /sys/module/<module>
    kernel_driver: str  # /sys/bus/<bus>/drivers/<kernel_driver>
    class_name: str  # /sys/class/<class_name>
    entry: str  # str.format pattern over the board index; no field for the one board of an SoC
    pci_ids: frozenset[str]  # empty: a platform driver, on the SoC itself
    attributes: tuple[tuple[str, Content], ...]  # in the order of the driver's attribute group
    class_made: Literal["at-init", "at-first-board"]
    parent: Literal["none", "function"]  # the parent given to device_create_with_groups()
    firmware: Literal["optional", "mandatory"]  # missing: a node without firmware, or no node
    devnode_mode: int  # as udev leaves it with the rules of the driver's source tree
    parameters: tuple[str, ...]

    @property
    def integrated(self) -> bool:
        """Whether the board is part of the SoC this kernel runs on."""
        return not self.pci_ids

    def entry_name(self, index: int) -> str:
        """Name the class entry, and with it the devnode, of the board with that index."""
        return self.entry.format(index=index)

    def attribute_bytes(self, *, address: str, pci_id: str, accelerator: int) -> dict[str, bytes]:
        """Render the driver's own attributes: sprintf without a newline, but for the counters."""
        vendor, _, device = pci_id.partition(":")
        rendered = {
            "address": address.encode(),
            "pci-id": b"%x:%x" % (int(vendor, 16), int(device, 16)) if device else b"",
            "accelerator": b"%d" % accelerator,
            "[integrated_nnc]": b"[integrated_nnc]",
            "[integrated]": b"[integrated]",
            "counter": b"0\n",
            "monitor": b"INUSE\tTOTAL\n0\t0\n",
        }
        return {name: rendered[kind] for name, kind in self.attributes}


def accelerator_type(pci_id: str) -> int:
    """Tell what `accelerator_type` says for a PCI id, unless the chip is in a legacy mode."""
    return int(pci_id in _SOC_PCI_IDS)


_BEFORE_4_18: tuple[tuple[str, Content], ...] = (
    ("board_location", "address"),
    ("device_id", "pci-id"),
)
_UP_TO_5_2: tuple[tuple[str, Content], ...] = (
    *_BEFORE_4_18,
    ("accelerator_type", "accelerator"),
)
_SINCE_5_3: tuple[tuple[str, Content], ...] = (("device_id", "address"),)

_HAILO_4 = ("force_allocation_from_driver", "force_desc_page_size", "no_power_mode", "o_dbg")
_HAILO_5 = ("force_desc_page_size", "no_power_mode", "o_dbg", "support_soft_reset")


def _pcie(
    name: str,
    version: str,
    pci_ids: frozenset[str],
    *,
    class_made: Literal["at-init", "at-first-board"],
    module: str = "hailo_pci",
    kernel_driver: str = "hailo",
    class_name: str = "hailo_chardev",
    entry: str = "hailo{index}",
    attributes: tuple[tuple[str, Content], ...] = _UP_TO_5_2,
    firmware: Literal["optional", "mandatory"] = "mandatory",
    devnode_mode: int = 0o666,
    parameters: tuple[str, ...] = _HAILO_5,
) -> Generation:
    return Generation(
        name=name,
        version=version,
        module=module,
        kernel_driver=kernel_driver,
        class_name=class_name,
        entry=entry,
        pci_ids=pci_ids,
        attributes=attributes,
        class_made=class_made,
        # one change of the source brought both: with the lazy class came a parent
        parent="function" if class_made == "at-first-board" else "none",
        firmware=firmware,
        devnode_mode=devnode_mode,
        parameters=parameters,
    )


def _integrated(
    name: str,
    version: str,
    attributes: tuple[tuple[str, Content], ...],
    *,
    parent: Literal["none", "function"],
    class_name: str = "hailo_chardev",
    entry: str = "hailo_integrated_nnc",
    devnode_mode: int = 0o666,
) -> Generation:
    return Generation(
        name=name,
        version=version,
        module="hailo_integrated_nnc",
        kernel_driver="hailort-core-driver",
        class_name=class_name,
        entry=entry,
        pci_ids=frozenset(),
        attributes=attributes,
        class_made="at-first-board",  # and gone with it: both are in driver_probe/_remove()
        parent=parent,
        firmware="mandatory",
        devnode_mode=devnode_mode,
        parameters=("o_dbg",),
    )


_UP_TO_4_20_IDS = frozenset({HAILO_8, HAILO_10H, HAILO_15L})
_ALL_IDS = _UP_TO_4_20_IDS | {HAILO_12L}
_HAILO_1X_IDS = _ALL_IDS - {HAILO_8}

_ROWS = (
    _pcie(
        "4.17",
        "4.17.0",
        _UP_TO_4_20_IDS,
        class_made="at-init",
        attributes=_BEFORE_4_18,
        firmware="optional",
        parameters=_HAILO_4,
    ),
    _pcie(
        "4.20",
        "4.20.0",
        _UP_TO_4_20_IDS,
        class_made="at-init",
        parameters=(*_HAILO_4, "support_soft_reset"),
    ),
    _pcie(
        "4.22",
        "4.22.0",
        _ALL_IDS,
        class_made="at-init",
        parameters=(*_HAILO_4, "support_soft_reset"),
    ),
    _pcie(
        "4.23",
        "4.23.0",
        frozenset({HAILO_8}),
        class_made="at-first-board",
        parameters=(*_HAILO_4, "support_soft_reset"),
    ),
    _pcie(
        "5.0.0",
        "5.0.0",
        _ALL_IDS,
        class_made="at-init",
        parameters=(*_HAILO_4, "support_soft_reset"),
    ),
    _pcie("5.0.1", "5.0.1", _HAILO_1X_IDS, class_made="at-first-board"),
    _pcie(
        "5.1",
        "5.1.0",
        _HAILO_1X_IDS,
        class_made="at-first-board",
        module="hailo1x_pci",
        kernel_driver="hailo1x",
    ),
    _pcie(
        "5.2",
        "5.2.0",
        _HAILO_1X_IDS,
        class_made="at-first-board",
        module="hailo1x_pci",
        kernel_driver="hailo1x",
    ),
    _pcie(
        "5.3",
        "5.3.0",
        _HAILO_1X_IDS,
        class_made="at-first-board",
        module="hailo1x_pci",
        kernel_driver="hailo1x",
        class_name="hailo1x",
        entry="h1x-{index}",
        attributes=_SINCE_5_3,
        devnode_mode=0o600,  # devtmpfs' own: the source tree has no udev rule any more
    ),
    _integrated(
        "integrated-4.17", "4.17.0", (("board_location", "[integrated_nnc]"),), parent="none"
    ),
    _integrated(
        "integrated-5.2",
        "5.2.0",
        (
            ("board_location", "[integrated]"),
            ("accelerator_type", "accelerator"),
            ("cma_in_use", "counter"),
            ("desc_cma_in_use", "counter"),
        ),
        parent="function",
    ),
    _integrated(
        "integrated-5.3",
        "5.3.0",
        (
            ("device_id", "[integrated]"),
            ("cma_in_use", "counter"),
            ("desc_cma_in_use", "counter"),
            ("vdma_monitor", "monitor"),
        ),
        parent="function",
        class_name="hailo1x_integrated",
        entry="h1x",
        devnode_mode=0o600,
    ),
)

GENERATIONS: Mapping[str, Generation] = MappingProxyType({row.name: row for row in _ROWS})
