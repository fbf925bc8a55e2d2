"""A real Prometheus scrapes the whole agent, from plug to fault, recovery, grant and release."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import anyio.to_thread

from hailo_agent.sim.machine import Ailment
from hailo_agent.sim.node import RESOURCE, Node, temporary_root
from tests.web.test_metrics_prometheus import Ask, Vector, free_port, scraping

FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"
ILL = "pci-0000-01-00-0"
SOON_SECONDS = 40.0


async def until(query: Ask, expression: str, holds: Callable[[Vector], bool]) -> None:
    """Ask Prometheus until its newest samples are as expected."""

    def is_so() -> bool:
        try:
            return holds(query(expression))
        except URLError:
            return False  # still starting

    async with asyncio.timeout(SOON_SECONDS):
        while not await anyio.to_thread.run_sync(is_so):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def values(found: Vector) -> set[str]:
    return {series["value"] for series in found}


async def test_prometheus_follows_a_device_through_its_life(tmp_path: Path) -> None:
    port = free_port()
    quick = "--health.vitals-seconds=0.1", "--kubelet.pod-resources-seconds=0.2"
    unhealthy = f'hailo_device_health{{device="{ILL}",health="Unhealthy"}}'
    async with temporary_root() as root, Node.build(root, fsync=False) as node:
        node.machine.load("4.23")
        node.machine.plug(FIRST)
        async with node.agent(*quick, f"--web.listen=127.0.0.1:{port}"):
            await node.listed(1)
            with scraping(port, tmp_path) as query:
                await until(query, "count(hailo_device_info)", lambda v: values(v) == {"1"})
                node.machine.plug(SECOND)
                await until(query, "count(hailo_device_info)", lambda v: values(v) == {"2"})
                node.machine.ail(FIRST, Ailment.DEAD_LINK)
                await until(query, unhealthy, lambda v: values(v) == {"1"})
                await until(query, 'hailo_device_fault{code="pci.dead"}', bool)
                node.machine.cure(FIRST)
                await until(query, unhealthy, lambda v: values(v) == {"0"})
                await node.kubelet.admit("default/camera", {RESOURCE: 1})
                await until(
                    query, "hailo_device_allocation", lambda v: {s["pod"] for s in v} == {"camera"}
                )
                await node.kubelet.remove("default/camera")
                await until(query, "hailo_device_allocation", lambda v: v == [])
                allocations = "hailo_agent_allocation_duration_seconds_count"
                await until(query, allocations, lambda v: values(v) == {"1"})
                assert query("up")[0]["value"] == "1"
