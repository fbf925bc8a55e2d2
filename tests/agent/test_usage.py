"""The whole agent with `monitor.enabled`: what a pod's workload writes is told at /metrics as its.

The workloads are the simulator's, and write where their containers see `/tmp/hmon_files`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from hailo_agent.core.cdi import MONITOR_IN_CONTAINER
from hailo_agent.core.device import PciAddress
from hailo_agent.core.usage import MAX_BYTES, MAX_NETWORKS
from hailo_agent.sim.monitor import MonitorWriter, Network
from hailo_agent.sim.node import RESOURCE, Node, temporary_root

ADDRESSES = tuple(PciAddress(domain=0, bus=bus, slot=0, function=0) for bus in (1, 2))
HOST_DIR = "/run/hailo-agent/monitor"
SOON_SECONDS = 20.0
WRITE_SECONDS = 0.2
pytestmark = pytest.mark.timeout(90)

Series = dict[tuple[str, ...], float]
"""By name and the values of the labels, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A pod that holds one device."""

    pod: str
    address: PciAddress
    directory: Path

    @property
    def device(self) -> str:
        return self.address.device_id

    @asynccontextmanager
    async def telling(
        self, *networks: Network, of: tuple[PciAddress, ...] = ()
    ) -> AsyncIterator[None]:
        """Write within the block as HailoRT does, and be killed at its end."""
        writer = MonitorWriter(
            directory=self.directory, networks=networks, devices=[*map(str, of or (self.address,))]
        )

        async def write() -> None:
            while True:
                writer.write()
                await asyncio.sleep(WRITE_SECONDS)

        task = asyncio.create_task(write())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def running(*, monitored: bool) -> AsyncIterator[Node]:
    async with temporary_root() as root, Node.build(root, fsync=False) as node:
        node.machine.load("4.23")
        for address in ADDRESSES:
            node.machine.plug(str(address))
        flags = [
            "--kubelet.pod-resources-seconds=0.2",
            f"--monitor.enabled={monitored}",
            f"--monitor.dir={node.machine.root}{HOST_DIR}",
            f"--monitor.host-dir={HOST_DIR}",
        ]
        async with node.agent(*flags) as agent:
            await node.listed(len(ADDRESSES))
            yield node
            assert await agent.stop() == 0
            assert agent.garbage == []
            limping = {line.fields["part"] for line in agent.events("part.limping")}
            assert not limping & {"monitor", "web"}


async def metrics(node: Node) -> str:
    connector = aiohttp.UnixConnector(str(node.root / "run" / "web.sock"))
    async with (
        aiohttp.ClientSession("http://agent", connector=connector) as session,
        session.get("/metrics") as response,
    ):
        assert response.status == 200
        return await response.text()


def read(text: str) -> Series:
    return {
        (sample.name.removeprefix("hailo_"), *sample.labels.values()): sample.value
        for family in parse(text)
        for sample in family.samples
    }


async def shown(node: Node, holds: Callable[[Series], object]) -> Series:
    """Scrape until this holds; returns what was told then."""
    series: Series = {}
    try:
        async with asyncio.timeout(SOON_SECONDS):
            while True:
                with suppress(aiohttp.ClientConnectionError):  # HTTP comes after the kubelet
                    series = read(await metrics(node))
                    if holds(series):
                        return series
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"not told: {sorted(of_use(series))}")


def of_use(series: Series) -> Series:
    """Keep what tells of use."""
    names = ("network_", "device_utilisation_", "device_usage_")
    return {key: value for key, value in series.items() if key[0].startswith(names)}


def of_device(series: Series, device: str) -> Series:
    return {key: value for key, value in of_use(series).items() if key[1] == device}


def frames(series: Series) -> Series:
    """Tell frames per second by pod and network."""
    return {
        (key[3], key[5]): value
        for key, value in series.items()
        if key[0] == "network_frames_per_second"
    }


async def started(node: Node, pod: str) -> Workload:
    """Start a pod with a device, and wait until the agent knows whose that is."""
    container = await node.kubelet.admit(f"default/{pod}", {RESOURCE: 1})
    (device,) = container.device_ids[RESOURCE]
    allocation = ("device_allocation", device, RESOURCE, "default", pod, "main")
    await shown(node, lambda series: allocation in series)  # sooner than any runtime starts it
    view = node.runtime.inject(container.cdi_devices, devices=container.devices)
    assert view.env["HAILO_MONITOR"] == "1"
    directory = Path(f"{node.machine.root}{HOST_DIR}/{device}")
    assert view.listdir(MONITOR_IN_CONTAINER) == ()
    (directory / "mark").touch()
    assert view.listdir(MONITOR_IN_CONTAINER) == ("mark",)  # that is where its workload writes
    (directory / "mark").unlink()
    address = next(address for address in ADDRESSES if address.device_id == device)
    return Workload(pod=pod, address=address, directory=directory)


def make_trouble(hostile: Workload, victim: Workload) -> None:
    """Leave what a container could leave that means ill."""
    directory = hostile.directory
    (theirs,) = victim.directory.iterdir()
    (directory / "link").symlink_to(theirs)
    (directory / "up").symlink_to(victim.directory)
    os.mkfifo(directory / "pipe")
    with (directory / "huge").open("wb") as huge:
        huge.truncate(1 << 40)
    (directory / "junk").write_bytes(os.urandom(MAX_BYTES))
    (directory / "deep" / "deeper" / "deepest").mkdir(parents=True)
    for n in range(2000):
        (directory / f"many-{n}").touch()


def assert_own(series: Series, workload: Workload) -> None:
    """See that exactly what this workload says is told of its device."""
    told = of_device(series, workload.device)
    del told["device_usage_timestamp_seconds", workload.device]
    whose = (workload.device, "default", workload.pod, "main", "yolov8m")
    assert told == {
        ("device_utilisation_ratio", workload.device): 0.25,
        ("network_frames_per_second", *whose): 29.5,
        ("network_utilisation_ratio", *whose): 0.25,
        ("network_queue_frames", *whose, "input"): 1.0,
        ("network_queue_frames", *whose, "output"): 0.0,
        ("network_queue_capacity_frames", *whose, "input"): 4.0,
        ("network_queue_capacity_frames", *whose, "output"): 4.0,
    }


async def test_a_pods_work_is_told_as_its_own_until_it_is_gone_whatever_its_neighbour_does() -> (
    None
):
    async with running(monitored=True) as node:
        victim, hostile = await started(node, "camera"), await started(node, "neighbour")
        evil = '"} 1 {pod="camera",network="yolov8m"'
        async with hostile.telling(
            Network(name="yolov8m", frames_per_second=999.0, utilisation_percent=80.0),
            Network(name=evil, frames_per_second=888.0, utilisation_percent=10.0),
            of=(victim.address, hostile.address),
        ):
            async with victim.telling(Network(name="yolov8m", frames_per_second=29.5)):
                series = await shown(node, lambda series: len(frames(series)) > 2)
                assert frames(series) == {
                    ("camera", "yolov8m"): 29.5,
                    ("neighbour", "yolov8m"): 999.0,
                    ("neighbour", evil): 888.0,
                }
                assert_own(series, victim)

                make_trouble(hostile, victim)
                later = time.time() + 1.0
                written = ("device_usage_timestamp_seconds", victim.device)
                series = await shown(node, lambda series: series.get(written, 0.0) > later)
                assert_own(series, victim)
                assert {pod for pod, _ in frames(series)} <= {"camera", "neighbour"}

            await node.kubelet.remove("default/camera")  # killed: its file stays
            await shown(node, lambda series: not of_device(series, victim.device))
            assert "camera" not in (await metrics(node)).replace(escaped(evil), "")

        next_one = await started(node, "next")
        assert next_one.device == victim.device
        assert not of_device(read(await metrics(node)), victim.device)
        async with next_one.telling(Network(name="resnet", frames_per_second=7.0)):
            series = await shown(node, lambda series: ("next", "resnet") in frames(series))
            assert {key[3] for key in of_device(series, victim.device) if len(key) > 2} == {"next"}


def escaped(name: str) -> str:
    return name.replace('"', r"\"")


async def test_a_workload_with_too_many_networks_has_none_and_costs_its_neighbour_none() -> None:
    async with running(monitored=True) as node:
        honest, greedy = await started(node, "honest"), await started(node, "greedy")
        few = [[Network(name=f"{process}-{n}") for n in range(20)] for process in "ab"]
        assert sum(map(len, few)) > MAX_NETWORKS
        async with honest.telling(Network(name="resnet")), greedy.telling(*few[0]):
            await shown(node, lambda series: len(frames(series)) == 1 + 20)
            async with greedy.telling(*few[1]):  # a second process
                only = {("honest", "resnet")}
                await shown(node, lambda series: frames(series).keys() == only)


async def test_where_it_is_off_nothing_is_asked_of_containers_and_nothing_is_told() -> None:
    async with running(monitored=False) as node:
        container = await node.kubelet.admit("default/a", {RESOURCE: 1})
        view = node.runtime.inject(container.cdi_devices, devices=container.devices)
        assert "HAILO_MONITOR" not in view.env
        assert MONITOR_IN_CONTAINER not in dict(view.mounts)
        series = await shown(node, lambda series: any(k[0] == "device_allocation" for k in series))
        assert of_use(series) == {}
