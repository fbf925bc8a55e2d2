"""Nodes in every state that an alert or a panel is meant for, and what they tell when scraped.

A state is a row of nodes, each a function from how often it was scraped to what it tells. The
figures of counters grow with the scrapes, so that rates have something to see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from hailo_agent.aio.latest import Latest
from hailo_agent.aio.supervise import Roster, State, Status
from hailo_agent.aio.tally import Tally
from hailo_agent.core.chip import Chip, ChipState, Firmware, Temperatures, ThrottlingLevel, Zone
from hailo_agent.core.device import (
    HAILO_VENDOR,
    Device,
    DeviceId,
    DeviceNumber,
    Devnode,
    Holder,
    Model,
    PciAddress,
    PciId,
    Topology,
)
from hailo_agent.core.health import PRESENCE, RULES, Fault, FaultCode, Health, History, Sensor
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.offer import ResourceNames
from hailo_agent.core.usage import DeviceUsage, Direction, NetworkUsage, QueueUsage
from hailo_agent.core.vitals import Aer, Link, Vitals
from hailo_agent.web.exposition import Exposition
from hailo_agent.web.metrics import About, DeviceCollector

CLOCK: Final = 1_000_000.0
"""The time of each look, in seconds of the observation's clock."""

DAY: Final = 86_400.0
RESOURCE: Final = "hailo.ai/npu"
FULL_LINK: Final = Link(speed_gts=8.0, width=4, max_speed_gts=8.0, max_width=4)
QUIET_LINK: Final = Aer(correctable=0, nonfatal=0, fatal=0)
PARTS: Final = (
    *("inotify", f"plugin {RESOURCE}", "pod-resources", "queries", "reconciler", "spec-guard"),
    *("subscribers", "uevents", "vitals", "web"),
)
_LEVELS: Final = (
    ThrottlingLevel(from_celsius=104.0, until_celsius=100.0, clock_hertz=300_000_000),
    ThrottlingLevel(from_celsius=108.0, until_celsius=104.0, clock_hertz=200_000_000),
)


def fault(code: FaultCode, subject: str = "") -> Fault:
    """Make up a fault that weighs what its rule says."""
    severity = RULES.get(code, PRESENCE).severity
    return Fault(code=code, subject=subject, message="as it says", remedy="", severity=severity)


def chip(
    celsius: float, *, level: int = 0, overcurrent: bool = False, seconds: float = 0.02
) -> Chip:
    """Make up what the firmware answers."""
    state = ChipState(
        temperature_zone=Zone.GREEN,
        orange_celsius=104,
        orange_until_celsius=99,
        red_celsius=120,
        red_until_celsius=115,
        throttling_level=level - 1 if level else None,
        throttling_levels=_LEVELS,
        overcurrent_zone=Zone.RED if overcurrent else Zone.GREEN,
        throttles_when_hot=True,
        throttles_on_overcurrent=True,
        protects_from_overcurrent=True,
        temperature_clock_hertz=400_000_000,
        overcurrent_clock_hertz=400_000_000,
    )
    temperatures = Temperatures(ts0_celsius=celsius, ts1_celsius=celsius - 0.75)
    return Chip(at=CLOCK, temperatures=temperatures, state=state, seconds=seconds)


def device(
    n: int = 0,
    *codes: FaultCode,
    pod: str = "",
    namespace: str = "vision",
    in_use: bool | None = None,
    celsius: float = 61.5,
    level: int = 0,
    overcurrent: bool = False,
    link: Link = FULL_LINK,
    aer: Aer = QUIET_LINK,
    model: Model = Model.HAILO_8,
    firmware: str = "4.23.0",
    changed_seconds_ago: float = 4 * DAY,
) -> Device:
    """Make up a device that is well but for its faults; a pod that is named holds and uses it."""
    address = PciAddress(0, 1 + n, 0, 0)
    faults = tuple(fault(code, address.device_id) for code in codes)
    health = max((f.severity.health for f in faults), key=_rank, default=Health.HEALTHY)
    is_open = bool(pod) if in_use is None else in_use
    return Device(
        id=address.device_id,
        model=model,
        devnode=Devnode(name=f"hailo{n}", number=DeviceNumber(507, n), class_name="hailo_chardev"),
        address=address,
        pci_id=PciId(HAILO_VENDOR, 0x2864),
        topology=Topology(numa_node=n // 2, bridges=("pci0000:00",)),
        link=link,
        driver="hailo",
        driver_version="4.23.0",
        firmware=Firmware(
            version=firmware,
            board_name="Hailo-8",
            serial=f"HLLWM2B2331027{84 + n}",
            part_number="HM218B1C2FAE",
            product_name="HAILO-8 AI ACC M.2 M KEY MODULE",
        ),
        vitals=Vitals(
            at=CLOCK,
            config_vendor=HAILO_VENDOR,
            driver="hailo",
            driver_known=True,
            enabled=True,
            link=link,
            power_state="D0" if is_open else "D3hot",
            power_managed=True,
            aer=aer,
        ),
        chip=chip(celsius, level=level, overcurrent=overcurrent),
        health=health,
        fit=health is not Health.UNHEALTHY,
        faults=faults,
        held=bool(pod),
        holders=(Holder(namespace=namespace, pod=pod, container="main"),) if pod else (),
        history=History(
            since=CLOCK - changed_seconds_ago,
            weighed=((Sensor.VITALS, CLOCK), (Sensor.QUERY, CLOCK)),
        ),
    )


def usage(network: str, frames: float, utilisation: float, waiting: int = 2) -> DeviceUsage:
    """Make up what the workload of a device says, of which one network runs."""
    queues = (
        QueueUsage(stream="in", direction=Direction.INPUT, capacity=16, pending=waiting),
        QueueUsage(stream="out", direction=Direction.OUTPUT, capacity=16, pending=1),
    )
    told = NetworkUsage(
        network=network, frames_per_second=frames, utilisation=utilisation, queues=queues
    )
    return DeviceUsage(written_at=0.0, utilisation=utilisation, networks=(told,))


def gone(n: int, *, pod: str) -> Device:
    """Make up a device that the machine does not have any more, and that a pod still holds."""
    return replace(
        device(n, FaultCode.VANISHED, pod=pod),
        devnode=None,
        vitals=None,
        chip=None,
        firmware=None,
        link=None,
    )


def _rank(health: Health) -> int:
    return health.rank


@dataclass(slots=True)
class Node:
    """What one node tells at one scrape."""

    devices: tuple[Device, ...]
    faults: tuple[Fault, ...] = ()
    parts: dict[str, Status] = field(
        default_factory=lambda: {
            name: Status(name=name, state=State.RUNNING, essential=name == "reconciler")
            for name in PARTS
        }
    )
    tally: Tally = field(default_factory=Tally)
    version: str = "1.0.0"
    looked_seconds_ago: float = 0.0
    process: dict[str, Callable[[float], float]] = field(default_factory=dict)
    """What is told of the process instead of what is so, by metric, from the time of the scrape."""
    is_down: bool = False
    usage: dict[DeviceId, DeviceUsage] = field(default_factory=dict)
    """What workloads say, but for when and for whom: that is at the scrape, for who has it."""

    def exposition(self, unix_time: float) -> Exposition:
        """Put together what is told at /metrics at a time."""
        roster = Roster()
        for status in self.parts.values():
            roster.post(status)
        inventory = Inventory(
            devices=self.devices, faults=self.faults, at=CLOCK - self.looked_seconds_ago
        )
        devices = DeviceCollector(
            inventory=Latest(inventory),
            roster=roster,
            tally=self.tally,
            resources=ResourceNames(default=RESOURCE),
            about=About(version=self.version, python="3.13.1"),
            unix_offset=lambda: unix_time - CLOCK,
            usage=lambda: {
                device.id: replace(
                    self.usage[device.id], written_at=unix_time, holders=device.holders
                )
                for device in self.devices
                if device.id in self.usage
            },
        )
        process = {name: figure(unix_time) for name, figure in self.process.items()}
        return Exposition(collectors=(devices, _Process(process)))

    def part(self, name: str, state: State, restarts: int = 0) -> None:
        """Put a part into a state."""
        self.parts[name] = replace(self.parts[name], state=state, restarts=restarts)


class _Process(Collector):
    """What this very process costs, unless somebody says otherwise."""

    def __init__(self, figures: Mapping[str, float]) -> None:
        self._figures = figures
        self._process = ProcessCollector(registry=None)

    def collect(self) -> Iterator[Metric]:
        for metric in self._process.collect():
            metric.samples = [
                sample._replace(value=self._figures.get(sample.name, sample.value))
                for sample in metric.samples
            ]
            yield metric


Told = Callable[[int], Node]
"""A node as it is at its n-th scrape."""


def busy(node: Node, scrapes: int) -> Node:
    """Let a node have done what every agent does."""
    tally = node.tally
    tally.count("registrations", RESOURCE, "accepted")
    tally.count("lists", RESOURCE, by=1 + scrapes // 4)
    tally.count("spec_writes", "replaced")
    for reason, by in (("resync", scrapes + 1), ("vitals", 3 * scrapes), ("grant", scrapes)):
        tally.count("reconcile_reasons", reason, by=by)
    for n in range(scrapes + 1):
        tally.time("allocations", RESOURCE, seconds=0.002 + 0.004 * (n % 5))
        tally.time("reconciles", seconds=0.003 + 0.002 * (n % 3))
        tally.time("rpcs", "Allocate", "OK", seconds=0.002)
        tally.time("rpcs", "GetPreferredAllocation", "OK", seconds=0.001)
        if n % 4 == 0:
            tally.time("hotplug", seconds=0.03)
    return node


def well(scrapes: int) -> Node:
    """Have two devices, one of which is held."""
    return busy(Node(devices=(device(0, pod="detector-0"), device(1))), scrapes)


def _with(*devices: Device) -> Told:
    return lambda scrapes: busy(Node(devices=devices), scrapes)


def _changed(change: Callable[[Node, int], object]) -> Told:
    def told(scrapes: int) -> Node:
        node = well(scrapes)
        change(node, scrapes)
        return node

    return told


def _counting(name: str, *labels: str, by: int) -> Told:
    return _changed(lambda node, scrapes: node.tally.count(name, *labels, by=by * scrapes))


def _flapping(scrapes: int) -> Node:
    codes = (FaultCode.PCI_DEAD,) if scrapes % 2 else ()
    return busy(Node(devices=(device(0, *codes),)), scrapes)


def _losing(scrapes: int) -> Node:
    return _with(*(device(n) for n in range(2 if scrapes < 3 else 1)))(scrapes)


def _stale(scrapes: int) -> Node:
    old = device(0)
    assert old.vitals is not None
    weighed = ((Sensor.VITALS, CLOCK - 900.0), (Sensor.QUERY, CLOCK))
    read = replace(old.vitals, at=CLOCK - 900.0)
    return _with(replace(old, vitals=read, history=replace(old.history, weighed=weighed)))(scrapes)


def _erring(scrapes: int) -> Node:
    few = min(scrapes, 30)
    aer = Aer(correctable=few, nonfatal=few, fatal=few // 2)
    return _with(device(0, FaultCode.AER_NONFATAL, pod="detector-0", aer=aer))(scrapes)


def _noisy(scrapes: int) -> Node:
    aer = Aer(correctable=400 * scrapes, nonfatal=0, fatal=0)
    return _with(device(0, FaultCode.AER_CORRECTABLE, aer=aer))(scrapes)


def _bare(scrapes: int) -> Node:
    """No sensor but the look, and nobody who tells of holders."""
    blind = replace(device(0), vitals=None, chip=None, firmware=None, held=None)
    return busy(Node(devices=(replace(blind, history=History()),)), scrapes)


def _slow(node: Node, scrapes: int) -> None:
    for _ in range(20 * scrapes):
        node.tally.time("allocations", RESOURCE, seconds=3.0)


def _mixed(scrapes: int) -> Node:
    """Have something of everything, so that every panel has something to show."""
    few = min(scrapes, 30)
    aer = Aer(correctable=2 * few, nonfatal=few, fatal=0)
    half = replace(FULL_LINK, width=2)
    node = Node(
        devices=(
            device(0, pod="detector-0"),
            device(1, FaultCode.TEMPERATURE_HIGH, pod="detector-1", celsius=106.5, level=1),
            device(2, FaultCode.LINK_DEGRADED, pod="speech-0", namespace="audio", link=half),
            device(3, FaultCode.AER_NONFATAL, aer=aer),
            device(4, FaultCode.PCI_DEAD),
            device(5, FaultCode.QUERY_FAILED, model=Model.HAILO_8L),
            gone(6, pod="tracker-0"),
            device(7),
        ),
        faults=(fault(FaultCode.PCI_UNSERVED, "0000:09:00.0"),),
    )
    node.part("queries", State.BACKING_OFF, 3)
    for n, (network, frames) in enumerate((("yolov8m", 58.0), ("yolov8m", 31.5), ("whisper", 4.0))):
        node.usage[node.devices[n].id] = usage(network, frames, 0.9 - 0.25 * n)
    tally = node.tally
    tally.count("changes", "device.faulted", by=2 * scrapes)
    tally.count("refusals", RESOURCE, "DeviceUnavailable", by=scrapes)
    tally.count("refusals", RESOURCE, "UnknownOffer", by=scrapes // 2)
    tally.count("notifications", node.devices[1].id, "throttling", by=scrapes)
    tally.time("rpcs", "Allocate", "FAILED_PRECONDITION", seconds=0.01)
    return busy(node, scrapes)


def _working(frames: float, waiting: int) -> Told:
    def told(scrapes: int) -> Node:
        node = well(scrapes)
        node.usage[node.devices[0].id] = usage("yolov8m", frames, 0.97, waiting)
        return node

    return told


STATES: Final[Mapping[str, Mapping[str, Told]]] = {
    "healthy": {"edge-1": well, "edge-2": well},
    "mixed": {"edge-1": _mixed, "edge-2": well},
    "bare": {"edge-1": _bare},
    "dead": {"edge-1": _with(device(0, FaultCode.PCI_DEAD, pod="detector-0"), device(1))},
    "gone": {"edge-1": _with(gone(0, pod="detector-0"), device(1))},
    "degraded": {"edge-1": _with(device(0, FaultCode.FIRMWARE_REFUSED))},
    "unknown": {"edge-1": _with(device(0, FaultCode.QUERY_FAILED))},
    "flapping": {"edge-1": _flapping},
    "cordoned": {
        "edge-1": _with(
            device(0, FaultCode.CORDONED, pod="detector-0", changed_seconds_ago=2 * DAY), device(1)
        )
    },
    "cordoned-lately": {
        "edge-1": _with(device(0, FaultCode.CORDONED, changed_seconds_ago=60.0), device(1))
    },
    "losing": {"edge-1": _losing},
    "stale": {"edge-1": _stale},
    "mismatch": {"edge-1": _with(device(0, FaultCode.FIRMWARE_MISMATCH, firmware="4.22.0"))},
    "memory": {
        "edge-1": _counting("notifications", device(0).id, "ecc-correctable", by=20),
    },
    "overheated": {"edge-1": _with(device(0, FaultCode.TEMPERATURE_CRITICAL, celsius=121.0))},
    "hot": {
        "edge-1": _with(
            device(0, FaultCode.TEMPERATURE_HIGH, FaultCode.THROTTLED, celsius=107.4, level=2)
        )
    },
    "warm": {"edge-1": _with(device(0, celsius=101.5))},
    "overcurrent": {"edge-1": _with(device(0, FaultCode.OVERCURRENT, overcurrent=True))},
    "narrow": {
        "edge-1": _with(device(0, FaultCode.LINK_DEGRADED, link=replace(FULL_LINK, width=1)))
    },
    "erring": {"edge-1": _erring},
    "noisy": {"edge-1": _noisy},
    "working": {"edge-1": _working(60.0, 3)},
    "stalled": {"edge-1": _working(0.0, 0)},
    "swamped": {"edge-1": _working(60.0, 16)},
    "exhausted": {"edge-1": _with(device(0, pod="detector-0"), device(1, pod="detector-1"))},
    "idle": {"edge-1": _with(device(0, pod="detector-0", in_use=False), device(1))},
    "refusing": {"edge-1": _counting("refusals", RESOURCE, "DeviceUnavailable", by=1)},
    "slow": {"edge-1": _changed(_slow)},
    "unserved": {
        "edge-1": _changed(
            lambda node, _: setattr(node, "faults", (fault(FaultCode.PCI_UNSERVED),))
        )
    },
    "conflict": {
        "edge-1": _changed(
            lambda node, _: setattr(node, "faults", (fault(FaultCode.SPEC_CONFLICT),))
        )
    },
    "down": {"edge-1": _changed(lambda node, _: setattr(node, "is_down", True))},
    "unregistered": {
        "edge-1": _counting("registrations", RESOURCE, "rejected", by=2),
    },
    "not-ready": {"edge-1": _changed(lambda node, _: node.part("reconciler", State.FAILED))},
    "limping": {"edge-1": _changed(lambda node, _: node.part("vitals", State.BACKING_OFF, 3))},
    "stumbling": {
        "edge-1": _changed(lambda node, n: node.part("vitals", State.RUNNING, 4 * n)),
    },
    "restarting": {
        "edge-1": _changed(
            lambda node, _: node.process.update(process_start_time_seconds=lambda at: at - 1.0)
        )
    },
    "blind": {"edge-1": _changed(lambda node, _: setattr(node, "looked_seconds_ago", 900.0))},
    "unwritable": {"edge-1": _counting("spec_writes", "refused", by=1)},
    "updating": {
        "edge-1": well,
        "edge-2": _changed(lambda node, _: setattr(node, "version", "1.1.0")),
    },
}
"""By name, and by node."""

ALERTS: Final[Mapping[str, frozenset[str]]] = {
    alert: frozenset(states)
    for alert, states in {
        "HailoDeviceUnhealthy": {"dead", "gone", "overheated", "mixed"},
        "HailoDeviceGoneWhileHeld": {"gone", "mixed"},
        "HailoDeviceDegraded": {
            *("degraded", "mismatch", "hot", "overcurrent", "narrow", "erring", "mixed"),
        },
        "HailoDeviceHealthUnknown": {"unknown", "mixed"},
        "HailoDeviceFlapping": {"flapping"},
        "HailoDeviceCordonedForLong": {"cordoned"},
        "HailoDevicesFewer": {"losing"},
        "HailoDeviceReadingsOld": {"stale"},
        "HailoFirmwareMismatch": {"mismatch"},
        "HailoMemoryErrors": {"memory"},
        "HailoDeviceOverheated": {"overheated"},
        "HailoDeviceHot": {"hot", "mixed"},
        "HailoDeviceHeadroomLow": {"warm"},
        "HailoDeviceThrottled": {"hot", "mixed"},
        "HailoDeviceOvercurrent": {"overcurrent"},
        "HailoLinkDegraded": {"narrow", "mixed"},
        "HailoPcieErrors": {"erring", "mixed"},
        "HailoPcieErrorsCorrected": {"noisy"},
        "HailoCapacityExhausted": {"exhausted", "erring"},
        "HailoDeviceHeldIdle": {"idle"},
        "HailoNetworkStalled": {"stalled"},
        "HailoNetworkSwamped": {"swamped"},
        "HailoPodOnUnhealthyDevice": {"dead", "gone", "mixed"},
        "HailoAllocationsRefused": {"refusing", "mixed"},
        "HailoAllocationsSlow": {"slow"},
        "HailoBoardUnserved": {"unserved", "mixed"},
        "HailoNodeFault": {"conflict"},
        "HailoAgentDown": {"down"},
        "HailoAgentNotReady": {"not-ready"},
        "HailoAgentRestarting": {"restarting"},
        "HailoAgentBlind": {"blind"},
        "HailoAgentPartDown": {"not-ready", "limping", "mixed"},
        "HailoAgentPartRestarting": {"stumbling"},
        "HailoRegistrationFailing": {"unregistered"},
        "HailoSpecRefused": {"unwritable"},
        "HailoAgentVersionsDiffer": {"updating"},
    }.items()
}
"""By alert: in which states what it asks for is so, and in no other."""
