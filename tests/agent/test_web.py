"""HTTP of the whole agent: what it tells, and that a wedged service is noticed."""

from __future__ import annotations

import json

from hailo_agent.sim.machine import Ailment
from hailo_agent.sim.node import RESOURCE
from tests.support.pages import FIRST, a_node, get, until, until_served


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
