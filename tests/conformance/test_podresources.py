"""Conformance H, statement 77: how the kubelet is asked who holds what.

The agent is `hailo-agent run` as its own process; the kubelet's socket is the simulated one's, with
its rate limit of 100 queries a second and bursts of 10 for all callers of the node. How the client
behaves in every corner is tested in `tests/edges/test_podresources.py`; here it is that the agent
as a whole goes by it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from grpclib.exceptions import GRPCError

from hailo_agent.settings import Settings
from hailo_agent.sim.node import RESOURCE, Node
from hailo_agent.sim.podresources import Holding, PodResources
from tests.conformance.support import (
    a_node,
    an_agent,
    attentive,
    eventually,
    inventory,
    is_ready,
    part,
    says,
)

ONE = "pci-0000-01-00-0"
OFTEN = "--kubelet.pod-resources-seconds=0.2"
MIB = 1024 * 1024


def lister(node: Node) -> PodResources:
    """The kubelet's side of the socket."""
    found = attentive(node).pod_resources
    assert found is not None
    return found


async def held_by(node: Node, *holders: str, within: float = 10.0) -> None:
    """Wait until the agent says that its first device is held by these and nobody else."""
    async with asyncio.timeout(within):
        while True:
            said = await inventory(node)
            for device in said.devices:
                names = [f"{h.namespace}/{h.pod}/{h.container}" for h in device.holders]
                if device.id == ONE and names == list(holders):
                    return
            await asyncio.sleep(0.05)


def holding(pod: str, *, container: str = "main", nodes: tuple[int, ...] = (-1,)) -> Holding:
    ids: tuple[str, ...] = (ONE,)
    devices = {RESOURCE: dict.fromkeys(nodes, ids)}
    return Holding(namespace="default", pod=pod, container=container, devices=devices)


async def test_77_the_kubelet_is_asked_every_ten_seconds_at_most_and_by_one_connection() -> None:
    """Its rate limit is the node's, so a client that asks all the time takes from all others."""
    assert Settings().kubelet.pod_resources_seconds >= 10.0
    async with a_node(boards=1) as node, an_agent(node, OFTEN) as agent:
        await node.listed(1)
        await agent.wait_for("web.started")
        await eventually(lambda: lister(node).lists >= 8, "it is asked")
        descriptors, lists, since = agent.descriptors(), lister(node).lists, time.monotonic()
        await eventually(lambda: lister(node).lists >= lists + 6, "it is asked again")
        assert time.monotonic() - since >= 6 * 0.2 * 0.8
        assert agent.descriptors() <= descriptors


async def test_77_a_device_that_is_repeated_for_each_numa_node_has_one_holder() -> None:
    """The kubelet makes one entry for each device and each of its NUMA nodes."""
    async with a_node(boards=1) as node, an_agent(node, OFTEN):
        await node.listed(1)
        lister(node)._holdings = lambda: [holding("detector", nodes=(0, 1))]
        await held_by(node, "default/detector/main")


async def test_77_an_answer_of_many_mebibytes_is_read() -> None:
    """A server does not bound what it sends, and 4 MiB is not where a client may stop."""
    async with a_node(boards=1) as node, an_agent(node, OFTEN):
        await node.listed(1)
        others = [
            Holding(namespace="x" * MIB, pod=f"p{number}", container="main", devices={})
            for number in range(6)
        ]
        lister(node)._holdings = lambda: [*others, holding("detector")]
        await held_by(node, "default/detector/main")


async def test_77_after_a_restart_of_the_kubelet_its_new_socket_is_asked() -> None:
    async with a_node(boards=1) as node, an_agent(node, OFTEN):
        await node.listed(1)
        await node.kubelet.admit("default/first", {RESOURCE: 1})
        await held_by(node, "default/first/main")
        await node.kubelet.restart()
        await node.listed(1)
        lister(node)._holdings = lambda: [holding("second")]
        await held_by(node, "default/second/main")


async def test_77_a_rate_limit_is_backed_off_from_and_costs_no_device() -> None:
    async with a_node(boards=1) as node, an_agent(node, OFTEN):
        await node.listed(1)
        greed = asyncio.create_task(use_up(lister(node)))
        await says(node, "pod-resources", "rejected by rate limit")
        lists, since = lister(node).lists, time.monotonic()
        await asyncio.sleep(1.0)  # what does not happen takes time to see
        asked = lister(node).lists - lists
        assert asked <= (time.monotonic() - since) / 0.2 + 1
        assert await is_ready(node)
        greed.cancel()
        lister(node)._holdings = lambda: [holding("detector")]
        await held_by(node, "default/detector/main", within=20.0)


async def use_up(server: PodResources) -> None:
    """Be another client of the node, which takes all that the limit has."""
    while True:
        with suppress(GRPCError):
            await server.admit_query()
        await asyncio.sleep(0)


async def test_77_without_the_socket_devices_are_offered_and_granted() -> None:
    """Where nobody can tell, only what is gone is listed longer."""
    async with a_node(boards=1) as node:
        await lister(node).vanish()
        async with an_agent(node, OFTEN):
            await node.listed(1)
            await says(node, "pod-resources", "the socket does not exist")
            assert (await part(node, "pod-resources")).reason
            container = await node.kubelet.admit("default/detector", {RESOURCE: 1})
            assert container.device_ids == {RESOURCE: (ONE,)}
            assert await is_ready(node)
