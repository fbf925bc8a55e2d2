"""Every metric by name: its type, its unit, its labels, and what it tells in one line.

Only data. `device_metrics`, `usage_metrics` and `agent_metrics` fill them in; a test holds
docs/reference/metrics.md to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Type(StrEnum):
    """What a metric's figures mean; the words are OpenMetrics'."""

    INFO = "info"
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"
    SUMMARY = "summary"


_SUFFIXES: Final = {Type.INFO: "_info", Type.COUNTER: "_total"}
_UNITS: Final = (
    *("transfers_per_second", "frames_per_second", "seconds", "celsius", "bytes", "lanes"),
    *("frames", "ratio"),
)


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric, by the name that queries use."""

    name: str
    type: Type
    help: str
    labels: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """The name without what its type appends to it."""
        return self.name.removesuffix(_SUFFIXES.get(self.type, ""))

    @property
    def unit(self) -> str:
        """The unit, which ends the name; empty where there is none."""
        return next((unit for unit in _UNITS if self.family.endswith(f"_{unit}")), "")


# --- devices -------------------------------------------------------------------------------------

_DEVICE: Final = ("device",)

DEVICE_INFO: Final = Definition(
    "hailo_device_info",
    Type.INFO,
    "What a device is and where.",
    (
        *("device", "resource", "model", "product", "part_number", "serial", "firmware"),
        *("driver", "driver_version", "pci_address", "numa_node", "pcie_root", "devnode"),
    ),
)
DEVICE_PRESENT: Final = Definition(
    "hailo_device_present", Type.GAUGE, "Whether the machine has the device.", _DEVICE
)
DEVICE_USABLE: Final = Definition(
    "hailo_device_usable", Type.GAUGE, "Whether a container may be granted the device.", _DEVICE
)
DEVICE_HEALTH: Final = Definition(
    "hailo_device_health",
    Type.GAUGE,
    "The verdict on a device: 1 for its health, 0 for the others.",
    ("device", "health"),
)
DEVICE_HEALTH_CHANGED: Final = Definition(
    "hailo_device_health_changed_timestamp_seconds",
    Type.GAUGE,
    "When the device's present health began, in Unix time.",
    _DEVICE,
)
DEVICE_FAULT: Final = Definition(
    "hailo_device_fault",
    Type.GAUGE,
    "1 for each fault that stands against a device.",
    ("device", "code", "severity"),
)
DEVICE_HELD: Final = Definition(
    "hailo_device_held", Type.GAUGE, "Whether a pod holds the device.", _DEVICE
)
DEVICE_ALLOCATION: Final = Definition(
    "hailo_device_allocation",
    Type.GAUGE,
    "1 for each container that holds the device.",
    ("device", "resource", "namespace", "pod", "container"),
)
DEVICE_IN_USE: Final = Definition(
    "hailo_device_in_use", Type.GAUGE, "Whether some process has the device open.", _DEVICE
)
DEVICE_POWER_STATE: Final = Definition(
    "hailo_device_power_state",
    Type.GAUGE,
    "1 for the PCI power state that the device is in.",
    ("device", "state"),
)
DEVICE_TEMPERATURE: Final = Definition(
    "hailo_device_temperature_celsius",
    Type.GAUGE,
    "Temperature of the chip by each of its sensors.",
    ("device", "sensor"),
)
DEVICE_TEMPERATURE_LIMIT: Final = Definition(
    "hailo_device_temperature_limit_celsius",
    Type.GAUGE,
    "Temperature at which the firmware's orange and red zone begin.",
    ("device", "zone"),
)
DEVICE_THROTTLING_LEVEL: Final = Definition(
    "hailo_device_throttling_level",
    Type.GAUGE,
    "How many steps the firmware has slowed the chip down for heat; 0 is full clock.",
    _DEVICE,
)
DEVICE_OVERCURRENT: Final = Definition(
    "hailo_device_overcurrent",
    Type.GAUGE,
    "Whether the chip draws more current than its firmware allows.",
    _DEVICE,
)
DEVICE_LINK: Final = Definition(
    "hailo_device_link_transfers_per_second",
    Type.GAUGE,
    "Speed of the PCIe link now, for each lane.",
    _DEVICE,
)
DEVICE_LINK_MAX: Final = Definition(
    "hailo_device_link_max_transfers_per_second",
    Type.GAUGE,
    "Speed of the PCIe link that device and slot could do, for each lane.",
    _DEVICE,
)
DEVICE_LANES: Final = Definition(
    "hailo_device_link_lanes", Type.GAUGE, "Width of the PCIe link now.", _DEVICE
)
DEVICE_LANES_MAX: Final = Definition(
    "hailo_device_link_max_lanes",
    Type.GAUGE,
    "Width of the PCIe link that device and slot could do.",
    _DEVICE,
)
DEVICE_AER_ERRORS: Final = Definition(
    "hailo_device_aer_errors_total",
    Type.COUNTER,
    "PCIe errors that the kernel has counted since it found the device.",
    ("device", "severity"),
)
DEVICE_NOTIFICATIONS: Final = Definition(
    "hailo_device_notifications_total",
    Type.COUNTER,
    "What the firmware has said by itself.",
    ("device", "kind"),
)
DEVICE_QUERY_DURATION: Final = Definition(
    "hailo_device_query_duration_seconds",
    Type.GAUGE,
    "How long the slowest answer of the newest query took.",
    _DEVICE,
)
DEVICE_READING: Final = Definition(
    "hailo_device_reading_timestamp_seconds",
    Type.GAUGE,
    "When each sensor last read the device, in Unix time.",
    ("device", "sensor"),
)

# --- what workloads say of their use of devices --------------------------------------------------

_NETWORK: Final = ("device", "namespace", "pod", "container", "network")

DEVICE_UTILISATION: Final = Definition(
    "hailo_device_utilisation_ratio",
    Type.GAUGE,
    "The share of the time that the device is busy, as its workload says.",
    _DEVICE,
)
DEVICE_USAGE: Final = Definition(
    "hailo_device_usage_timestamp_seconds",
    Type.GAUGE,
    "When the workload wrote what is told of the use of the device, in Unix time.",
    _DEVICE,
)
NETWORK_FRAMES: Final = Definition(
    "hailo_network_frames_per_second",
    Type.GAUGE,
    "Frames that a network completes, as its workload says.",
    _NETWORK,
)
NETWORK_UTILISATION: Final = Definition(
    "hailo_network_utilisation_ratio",
    Type.GAUGE,
    "The share of the device's time that a network takes, as its workload says.",
    _NETWORK,
)
NETWORK_QUEUE: Final = Definition(
    "hailo_network_queue_frames",
    Type.GAUGE,
    "Frames that wait in a network's queues, as its workload says.",
    (*_NETWORK, "direction"),
)
NETWORK_QUEUE_CAPACITY: Final = Definition(
    "hailo_network_queue_capacity_frames",
    Type.GAUGE,
    "Frames that a network's queues have room for, as its workload says.",
    (*_NETWORK, "direction"),
)

# --- the agent -----------------------------------------------------------------------------------

_RESOURCE: Final = ("resource",)

AGENT_BUILD: Final = Definition(
    "hailo_agent_build_info",
    Type.INFO,
    "Which agent runs, on which Python.",
    ("version", "python"),
)
AGENT_READY: Final = Definition(
    "hailo_agent_ready", Type.GAUGE, "Whether every essential part runs."
)
AGENT_PART_STATE: Final = Definition(
    "hailo_agent_part_state",
    Type.GAUGE,
    "The state of a part: 1 for the one it is in, 0 for the others.",
    ("part", "state"),
)
AGENT_PART_RESTARTS: Final = Definition(
    "hailo_agent_part_restarts_total",
    Type.COUNTER,
    "How often a part was started again after it had failed.",
    ("part",),
)
AGENT_DEVICES: Final = Definition(
    "hailo_agent_devices", Type.GAUGE, "How many devices a resource has.", _RESOURCE
)
AGENT_FAULTS: Final = Definition(
    "hailo_agent_faults",
    Type.GAUGE,
    "How many faults there are that belong to no device.",
    ("code", "severity"),
)
AGENT_LOOK: Final = Definition(
    "hailo_agent_look_timestamp_seconds",
    Type.GAUGE,
    "When the machine was looked at last, in Unix time.",
)
AGENT_REGISTRATIONS: Final = Definition(
    "hailo_agent_registrations_total",
    Type.COUNTER,
    "Registrations with the kubelet, by what became of them.",
    ("resource", "outcome"),
)
AGENT_DEVICE_LISTS: Final = Definition(
    "hailo_agent_device_lists_total", Type.COUNTER, "Device lists sent to the kubelet.", _RESOURCE
)
AGENT_ALLOCATION_DURATION: Final = Definition(
    "hailo_agent_allocation_duration_seconds",
    Type.HISTOGRAM,
    "How long the answers to Allocate took.",
    _RESOURCE,
)
AGENT_REFUSALS: Final = Definition(
    "hailo_agent_allocation_refusals_total",
    Type.COUNTER,
    "Allocations that were refused, and why.",
    ("resource", "reason"),
)
AGENT_RECONCILE_DURATION: Final = Definition(
    "hailo_agent_reconcile_duration_seconds",
    Type.HISTOGRAM,
    "How long passes took: look, decide, write, speak.",
)
AGENT_RECONCILE_REASONS: Final = Definition(
    "hailo_agent_reconcile_reasons_total", Type.COUNTER, "Why there were passes.", ("reason",)
)
AGENT_HOTPLUG_DURATION: Final = Definition(
    "hailo_agent_hotplug_duration_seconds",
    Type.HISTOGRAM,
    "From the kernel's hint to the list that tells of what it was.",
)
AGENT_SPEC_WRITES: Final = Definition(
    "hailo_agent_spec_writes_total", Type.COUNTER, "What became of the CDI spec.", ("outcome",)
)
AGENT_CHANGES: Final = Definition(
    "hailo_agent_changes_total", Type.COUNTER, "Changes of the inventory.", ("kind",)
)
AGENT_RPC_DURATION: Final = Definition(
    "hailo_agent_rpc_duration_seconds",
    Type.SUMMARY,
    "How long gRPC calls took.",
    ("method", "status"),
)

DEFINITIONS: Final = tuple(
    definition for definition in globals().copy().values() if isinstance(definition, Definition)
)
"""All of them, in the order above."""
