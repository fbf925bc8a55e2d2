"""Devices with everything that a sensor can tell, and places to read them from, for metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

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
from hailo_agent.core.health import History, Sensor
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.offer import ResourceNames
from hailo_agent.core.usage import DeviceUsage, Direction, NetworkUsage, QueueUsage
from hailo_agent.core.vitals import Aer, Link, Vitals
from hailo_agent.web.exposition import Exposition
from hailo_agent.web.metrics import About, DeviceCollector, exposition

LINK = Link(speed_gts=5.0, width=2, max_speed_gts=8.0, max_width=4)
VITALS = Vitals(
    at=110.0,
    config_vendor=HAILO_VENDOR,
    driver="hailo",
    driver_known=True,
    enabled=True,
    link=LINK,
    power_state="D0",
    power_managed=True,
    aer=Aer(correctable=7, nonfatal=1, fatal=0),
)
STATE = ChipState(
    temperature_zone=Zone.ORANGE,
    orange_celsius=104,
    orange_until_celsius=99,
    red_celsius=120,
    red_until_celsius=115,
    throttling_level=1,
    throttling_levels=(
        ThrottlingLevel(from_celsius=104.0, until_celsius=100.0, clock_hertz=300_000_000),
        ThrottlingLevel(from_celsius=108.0, until_celsius=104.0, clock_hertz=200_000_000),
    ),
    overcurrent_zone=Zone.RED,
    throttles_when_hot=True,
    throttles_on_overcurrent=True,
    protects_from_overcurrent=True,
    temperature_clock_hertz=400_000_000,
    overcurrent_clock_hertz=400_000_000,
)
CHIP = Chip(
    at=120.0,
    driver="4.23.0",
    temperatures=Temperatures(ts0_celsius=109.25, ts1_celsius=108.5),
    state=STATE,
    seconds=0.03125,
)
FIRMWARE = Firmware(
    version="4.23.0",
    board_name="Hailo-8",
    serial="HLLWM2B233102784",
    part_number="HM218B1C2FAE",
    product_name="HAILO-8 AI ACC M.2 M KEY MODULE",
)
RESOURCE = "hailo.ai/npu"
UNIX_OFFSET = 1_790_000_000.0
USAGE = DeviceUsage(
    written_at=UNIX_OFFSET + 128.25,
    utilisation=0.75,
    networks=(
        NetworkUsage(
            network="yolov8m",
            frames_per_second=29.5,
            utilisation=0.5,
            queues=(
                QueueUsage(stream="in1", direction=Direction.INPUT, capacity=4, pending=3),
                QueueUsage(stream="in2", direction=Direction.INPUT, capacity=4, pending=2),
                QueueUsage(stream="out", direction=Direction.OUTPUT, capacity=8, pending=0),
            ),
        ),
    ),
)


def holder(pod: str) -> Holder:
    """Make up the one container of a pod."""
    return Holder(namespace="vision", pod=pod, container="inference")


def board(n: int = 0) -> Device:
    """Make up a device that has everything, and that a pod holds."""
    address = PciAddress(0, 1 + n % 250, n // 250, 0)
    return Device(
        id=address.device_id,
        model=Model.HAILO_8,
        devnode=Devnode(name=f"hailo{n}", number=DeviceNumber(507, n), class_name="hailo_chardev"),
        address=address,
        pci_id=PciId(HAILO_VENDOR, 0x2864),
        topology=Topology(numa_node=1, bridges=("pci0000:00", "0000:00:01.0")),
        link=LINK,
        driver="hailo",
        driver_version="4.23.0",
        present_since=100.0,
        firmware=FIRMWARE,
        vitals=VITALS,
        chip=CHIP,
        held=True,
        holders=(holder(f"detector-{n}"),),
        history=History(
            since=100.0,
            weighed=(
                (Sensor.VITALS, 110.0),
                (Sensor.QUERY, 120.0),
                (Sensor.NOTIFICATION, 105.0),
                (Sensor.HAILORTCLI, 101.5),
            ),
        ),
    )


class Place:
    """Where a collector reads, to be changed between scrapes."""

    def __init__(self, *devices: Device, resources: ResourceNames | None = None) -> None:
        """Begin with these devices, and parts that run."""
        self.inventory = Latest(Inventory(devices=devices, at=130.0))
        self.roster = Roster()
        for name in ("reconciler", "vitals", f"plugin {RESOURCE}"):
            self.roster.post(Status(name=name, state=State.RUNNING))
        self.tally = Tally()
        self.usage: Mapping[DeviceId, DeviceUsage] = {}
        self.collector = DeviceCollector(
            inventory=self.inventory,
            roster=self.roster,
            tally=self.tally,
            resources=resources or ResourceNames(default=RESOURCE),
            about=About(version="1.2.3", python="3.13.1"),
            unix_offset=lambda: UNIX_OFFSET,
            usage=lambda: self.usage,
        )

    def show(self, *devices: Device) -> None:
        """Put other devices in the inventory."""
        self.inventory.publish(replace(self.inventory.value, devices=devices))

    @property
    def exposition(self) -> Exposition:
        """What is told at /metrics."""
        return exposition(self.collector)

    def text(self) -> str:
        """Scrape as plain text."""
        return self.exposition.render("")[0].decode()
