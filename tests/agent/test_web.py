"""HTTP of the whole agent: what it tells, and that a wedged service is noticed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import anyio

from hailo_agent.sim.machine import Ailment
from hailo_agent.sim.node import RESOURCE, Node, temporary_root

FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"
SOON_SECONDS = 20.0


@asynccontextmanager
async def a_node() -> AsyncIterator[Node]:
    async with temporary_root() as root, Node.build(root, fsync=False) as node:
        node.machine.load("4.23")
        node.machine.plug(FIRST)
        node.machine.plug(SECOND)
        yield node


async def get(node: Node, path: str) -> tuple[int, str]:
    connector = aiohttp.UnixConnector(str(node.root / "run" / "web.sock"))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"http://agent{path}") as response,
    ):
        return response.status, await response.text()


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again: HTTP tells nobody when to look."""
    async with asyncio.timeout(SOON_SECONDS):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def until_served(node: Node) -> None:
    async def is_there() -> bool:
        return await anyio.Path(node.root / "run" / "web.sock").exists()

    await eventually(is_there)


async def until(node: Node, line: str, *, there: bool = True) -> None:
    """Wait until the metrics have a line that begins like this, or have none."""

    async def is_so() -> bool:
        _, text = await get(node, "/metrics")
        return any(one.startswith(line) for one in text.splitlines()) is there

    await eventually(is_so)


async def until_ok(node: Node, path: str) -> None:
    async def is_ok() -> bool:
        return (await get(node, path))[0] == 200

    await eventually(is_ok)


async def test_a_device_is_told_from_plug_to_fault_recovery_grant_and_release() -> None:
    ill = 'hailo_device_health{device="pci-0000-01-00-0",health="Unhealthy"}'
    quick = "--health.vitals-seconds=0.1", "--kubelet.pod-resources-seconds=0.2"
    async with a_node() as node, node.agent(*quick):
        await node.listed(2)
        await until_served(node)
        await until(node, f"{ill} 0")
        node.machine.ail(FIRST, Ailment.DEAD_LINK)
        await until(node, f"{ill} 1")
        await until(node, 'hailo_device_fault{device="pci-0000-01-00-0",code="pci.dead"')
        _, text = await get(node, "/status")
        device = json.loads(text)["inventory"]["devices"][0]
        assert (device["id"], device["health"]) == ("pci-0000-01-00-0", "HEALTH_UNHEALTHY")
        assert device["faults"][0]["code"] == "pci.dead"
        node.machine.cure(FIRST)
        await until(node, f"{ill} 0")
        await node.kubelet.admit("default/camera", {RESOURCE: 1})
        await until(node, "hailo_device_allocation{")
        await node.kubelet.remove("default/camera")
        await until(node, "hailo_device_allocation{", there=False)
