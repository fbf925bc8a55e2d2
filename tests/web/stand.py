"""An agent's worth of state without an agent, served by the real web room."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
from structlog.testing import capture_logs

from hailo_agent.aio.latest import Latest
from hailo_agent.aio.supervise import Roster, State, Status
from hailo_agent.core.chip import Architecture, Chip, Firmware, Temperatures
from hailo_agent.core.device import (
    Device,
    DeviceNumber,
    Devnode,
    Holder,
    Model,
    PciAddress,
    PciId,
    Topology,
)
from hailo_agent.core.health import Fault, FaultCode, Health, Severity
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.offer import ResourceNames
from hailo_agent.core.vitals import Link, Vitals
from hailo_agent.errors import EdgeError
from hailo_agent.subscribers.mapping import About
from hailo_agent.subscribers.service import DeviceEvents
from hailo_agent.web.exposition import OPENMETRICS, prefers_openmetrics
from hailo_agent.web.server import Site, serve
from hailo_agent.wire import agentapi

METRICS = b"# TYPE hailo_up gauge\nhailo_up 1\n"
METRICS_TYPE = "text/plain; version=1.0.0; charset=utf-8"
NODE = "edge-7"
SECONDS = 20.0
"""How long anything may take here; nothing should come near it."""

ABOUT = About(
    node=NODE,
    version="0.5.0",
    instance="c0ffee",
    names=ResourceNames(default="hailo.ai/npu"),
    host_dev="/dev",
    epoch=time.time() - 90.0,
)

_LINK = Link(speed_gts=8.0, width=4, max_speed_gts=8.0, max_width=4)


def device(bus: int, *, celsius: float = 44.0) -> Device:
    """Make a healthy Hailo-8 that nobody holds."""
    address = PciAddress(domain=0, bus=bus, slot=0, function=0)
    return Device(
        id=address.device_id,
        model=Model.HAILO_8,
        devnode=Devnode(
            name=f"hailo{bus}",
            number=DeviceNumber(major=507, minor=bus),
            class_name="hailo_chardev",
        ),
        address=address,
        pci_id=PciId(vendor=0x1E60, device=0x2864),
        topology=Topology(numa_node=0, bridges=("pci0000:00",)),
        link=_LINK,
        driver="hailo",
        driver_version="4.23.0",
        firmware=Firmware(
            version="4.23.0", architecture=Architecture.HAILO_8, serial=f"HLDDLBB23460008{bus}"
        ),
        vitals=Vitals(at=1.0, link=_LINK, power_state="D0"),
        chip=Chip(
            at=1.0,
            temperatures=Temperatures(ts0_celsius=celsius, ts1_celsius=celsius + 0.7),
        ),
        held=False,
    )


def held(by: Device, *, pod: str = "detector", container: str = "main") -> Device:
    """Have a pod hold it."""
    holder = Holder(namespace="cameras", pod=pod, container=container)
    return replace(by, held=True, holders=(holder,))


def vanished(which: Device) -> Device:
    """Pull it."""
    return replace(which, health=Health.UNHEALTHY, fit=False, devnode=None, faults=(VANISHED,))


VANISHED = Fault(
    code=FaultCode.VANISHED,
    subject="pci-0000-01-00-0",
    message="the machine does not have this device any more",
    remedy="if nobody pulled it, look for PCIe errors in the kernel's log",
)
WARM = Fault(
    code=FaultCode.TEMPERATURE_HIGH,
    subject="pci-0000-02-00-0",
    message="the chip is hot",
    remedy="improve the airflow; at the red threshold the firmware stops all streams",
    severity=Severity.DEGRADED,
    evidence="97.4 °C",
)
UNSERVED = Fault(
    code=FaultCode.PCI_UNSERVED,
    subject="0000:07:00.0",
    message="no kernel driver serves this Hailo PCI function (1e60:45c4)",
    remedy="install a Hailo driver of the 5.x branch for this kernel, then reload it",
)


@dataclass
class Stand:
    """State to be shown, which a test moves."""

    inventory: Latest[Inventory] = field(default_factory=lambda: Latest(Inventory()))
    roster: Roster = field(default_factory=Roster)
    checks: dict[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    metrics: Callable[[], bytes] = lambda: METRICS
    page: bool = False
    instance: str = ABOUT.instance
    reports: Latest[tuple[str, ...]] = field(default_factory=lambda: Latest(()))

    def __post_init__(self) -> None:
        self.roster.post(Status(name="reconciler", state=State.RUNNING))
        self._service = DeviceEvents(
            self.inventory, self.roster, replace(ABOUT, instance=self.instance)
        )

    def show(self, *devices: Device, faults: tuple[Fault, ...] = ()) -> None:
        """Hold these devices to be there."""
        self.inventory.publish(
            Inventory(devices=tuple(sorted(devices, key=lambda d: d.id)), faults=faults)
        )

    def _exposed(self, accept: str) -> tuple[bytes, str]:
        return self.metrics(), OPENMETRICS if prefers_openmetrics(accept) else METRICS_TYPE

    @property
    def site(self) -> Site:
        """Everything, as the agent hands it over."""
        service = self._service
        return Site(
            inventory=service.whole,
            watch=lambda: service.watch(agentapi.WatchRequest()),
            statuses=lambda: self.roster.statuses.value,
            checks=self.checks,
            metrics=self._exposed,
            extra=lambda: {"versions": {"agent": "0.5.0"}, "path": Path("/dev")},
        )

    @asynccontextmanager
    async def serving(self, listen: str) -> AsyncIterator[asyncio.Task[None]]:
        """Serve inside the block."""
        known = self.reports.version

        def report(reason: str) -> None:
            self.reports.publish((*self.reports.value, reason))

        task = asyncio.create_task(serve(listen, self.site, page=self.page, report=report))
        started = asyncio.create_task(self._reported(known))
        try:
            async with asyncio.timeout(SECONDS):
                await asyncio.wait({task, started}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            yield task
        finally:
            started.cancel()
            task.cancel()
            with suppress(asyncio.CancelledError, EdgeError):
                await task

    async def _reported(self, known: int) -> None:
        async for _ in self.reports.follow():
            if self.reports.version > known:
                return


@asynccontextmanager
async def calling(path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """Call what is served at a unix socket."""
    timeout = aiohttp.ClientTimeout(total=SECONDS)
    async with aiohttp.ClientSession(
        "http://agent",
        connector=aiohttp.UnixConnector(str(path), limit=0),
        timeout=timeout,
        auto_decompress=False,
    ) as session:
        yield session


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(SECONDS):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def served(stand: Stand, listen: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Serve by TCP inside the block; tells where, as a browser is told."""
    with capture_logs() as written:
        async with stand.serving(listen):
            [line] = [line for line in written if line["event"] == "web.started"]
            yield f"http://{line['address']}/"


def crowd(stand: Stand) -> None:
    """Show one of everything: well, hot, gone, on a slow link, unserved, and parts that limp."""
    slow = Link(speed_gts=5.0, width=1, max_speed_gts=8.0, max_width=4)
    hot = held(device(2, celsius=97.4), pod="line-inspection-7d9c5b8f6d-x2k4q")
    stand.show(
        held(device(1)),
        replace(hot, health=Health.DEGRADED, faults=(WARM,)),
        vanished(held(device(3), pod="counter")),
        replace(device(4), link=slow),
        replace(
            device(5, celsius=51.2),
            model=Model.HAILO_10H,
            pci_id=PciId(vendor=0x1E60, device=0x45C4),
        ),
        held(device(6, celsius=58.9), pod="counter", container="tracker"),
        faults=(UNSERVED,),
    )
    for status in (
        Status(name="inotify", state=State.RUNNING, essential=False),
        Status(name="plugin hailo.ai/npu", state=State.RUNNING),
        Status(
            name="uevents",
            state=State.BACKING_OFF,
            reason="kernel events cannot be heard: not permitted in this user namespace",
            essential=False,
        ),
    ):
        stand.roster.post(status)
