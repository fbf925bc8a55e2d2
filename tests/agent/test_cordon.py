"""A device that an operator sets aside while the agent runs, by the command a person types."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from grpclib.exceptions import GRPCError

from hailo_agent.runtime import reader
from hailo_agent.sim.kubelet import AdmissionFailed
from hailo_agent.sim.node import RESOURCE, AgentProcess, Node, temporary_root
from hailo_agent.wire import deviceplugin

FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"
ONE, TWO = "pci-0000-01-00-0", "pci-0000-02-00-0"
QUICKLY = "--kubelet.pod-resources-seconds=0.2"
SECONDS = 30
pytestmark = pytest.mark.timeout(90)


@asynccontextmanager
async def node_with(*addresses: str) -> AsyncIterator[Node]:
    async with temporary_root() as root, Node.build(root, fsync=False) as node:
        node.machine.load("4.23")
        for address in addresses:
            node.machine.plug(address)
        yield node


def cordon_file(node: Node) -> Path:
    return node.root / "state" / "cordons.json"


def flags(node: Node) -> list[str]:
    return [f"--host.cordon-file={cordon_file(node)}", QUICKLY]


async def hailo_agent(node: Node, *arguments: str) -> str:
    """Type a command on this node; returns what it prints."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "hailo_agent", *arguments, *node.flags(), *flags(node)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def faults_of(fields: dict[str, object], device_id: str) -> dict[str, str]:
    """List the faults of a log line's device, by code, if it is about this one."""
    device = fields.get("device")
    if not isinstance(device, dict) or device["id"] != device_id:
        return {}
    return {fault["code"]: fault["message"] for fault in device["faults"]}


async def cordoned(agent: AgentProcess, device_id: str) -> str:
    """Wait until the log says that a device is cordoned; returns the message."""
    line = await agent.wait_for(
        "device.faulted", lambda f: "device.cordoned" in faults_of(dict(f), device_id)
    )
    return faults_of(dict(line.fields), device_id)["device.cordoned"]


# --- as asked -----------------------------------------------------------------------------------


async def test_a_cordoned_device_is_unhealthy_and_says_why_and_the_others_are_untouched() -> None:
    async with node_with(FIRST, SECOND) as node, node.agent(*flags(node)) as agent:
        await node.listed(2, capacity=2)
        await hailo_agent(node, "cordon", FIRST, "--reason", "fan is loud")
        await node.listed(1, capacity=2)
        assert node.kubelet.resource(RESOURCE).health == {ONE: "Unhealthy", TWO: "Healthy"}
        message = await cordoned(agent, ONE)
        assert message.startswith("cordoned since 20")
        assert message.endswith("Z: fan is loud")
        assert [line.fields["device"]["id"] for line in agent.events("device.faulted")] == [ONE]
        shown = await hailo_agent(node, "devices")
        (row,) = (line for line in shown.splitlines() if line.startswith(ONE))
        assert message in row
        await hailo_agent(node, "uncordon", ONE)
        await node.listed(2, capacity=2)
        assert agent.garbage == []


async def test_no_pod_gets_it_and_an_allocation_by_id_is_refused_with_the_reason() -> None:
    async with node_with(FIRST, SECOND) as node, node.agent(*flags(node)):
        await node.listed(2)
        await hailo_agent(node, "cordon", ONE, "--reason=fan is loud")
        await node.listed(1, capacity=2)
        container = await node.kubelet.admit("default/a", {RESOURCE: 1})
        assert container.device_ids[RESOURCE] == (TWO,)
        with pytest.raises(AdmissionFailed):
            await node.kubelet.admit("default/b", {RESOURCE: 1})
        with pytest.raises(GRPCError, match=rf"{ONE} is not available: .*fan is loud"):
            await allocate(node, ONE)


async def allocate(node: Node, device_id: str) -> None:
    """Ask for one device as a kubelet would that has not heard the news."""
    request = deviceplugin.ContainerAllocateRequest(device_ids=[device_id])
    stub = node.kubelet._endpoints[RESOURCE].stub
    assert stub is not None
    await stub.allocate(deviceplugin.AllocateRequest(container_requests=[request]))


async def test_a_pod_that_has_it_keeps_it_and_its_container_can_restart() -> None:
    async with node_with(FIRST, SECOND) as node, node.agent(*flags(node)) as agent:
        await node.listed(2)
        await node.kubelet.admit("default/both", {RESOURCE: 2})
        await agent.wait_for("device.held", lambda f: f["device"]["holders"])
        await hailo_agent(node, "cordon", ONE, "--reason=to be replaced")
        await node.listed(1, capacity=2)
        assert set(node.kubelet.holders(RESOURCE)) == {ONE, TWO}
        assert {ONE, TWO} <= set(reader.load(node.spec_path).devices)
        container = await node.kubelet.restart_container("default/both")
        view = node.runtime.inject(container.cdi_devices, devices=container.devices)
        assert {"/dev/hailo0", "/dev/hailo1"} <= set(view.nodes)
        assert agent.events("device.freed") == []


async def test_it_is_heard_without_inotify_too() -> None:
    deaf = ("--host.inotify=false", "--host.uevents=false", "--host.resync-seconds=0.5")
    async with node_with(FIRST) as node, node.agent(*flags(node), *deaf):
        await node.listed(1)
        await hailo_agent(node, "cordon", ONE, "--reason=fan is loud")
        await node.listed(0, capacity=1)
        await hailo_agent(node, "uncordon", ONE)
        await node.listed(1, capacity=1)


async def test_it_is_heard_by_inotify_alone_once_its_directory_is_there_and_before() -> None:
    deaf = ("--host.uevents=false", "--host.resync-seconds=3600")
    async with node_with(FIRST) as node, node.agent(*flags(node), *deaf):
        await node.listed(1)
        assert not cordon_file(node).parent.exists()
        await hailo_agent(node, "cordon", ONE, "--reason=fan is loud")
        await node.listed(0, capacity=1)
        await hailo_agent(node, "uncordon", ONE)
        await node.listed(1, capacity=1)


# --- it stays -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_it_outlives_the_agent_and_is_in_the_first_list_of_the_next_one(how: str) -> None:
    async with node_with(FIRST, SECOND) as node:
        async with node.agent(*flags(node)) as agent:
            await node.listed(2)
            await hailo_agent(node, "cordon", ONE, "--reason=fan is loud")
            await node.listed(1, capacity=2)
            await (agent.kill() if how == "kill" else agent.stop())
        messages = node.kubelet.message_count
        async with node.agent(*flags(node)) as agent:
            await agent.wait_for("plugin.registered")
            await node.listed(1, capacity=2)
            told = [message.health for message in list(node.kubelet.messages)[messages:]]
            assert told
            assert all(health[ONE] == "Unhealthy" for health in told)
            added = await agent.wait_for("device.added", lambda f: f["device"]["id"] == ONE)
            assert "fan is loud" in faults_of(dict(added.fields), ONE)["device.cordoned"]


async def test_a_device_that_is_cordoned_before_it_comes_is_never_offered() -> None:
    async with node_with(SECOND) as node, node.agent(*flags(node)):
        await node.listed(1)
        await asyncio.to_thread(
            subprocess.run,
            [
                *(sys.executable, "-m", "hailo_agent", "cordon", FIRST, "--reason=not yet"),
                *node.flags(),
                *flags(node),
            ],
            check=True,
            capture_output=True,
            timeout=SECONDS,
        )
        node.machine.plug(FIRST)
        await node.listed(1, capacity=2)
        told = [m.health for m in node.kubelet.messages if ONE in m.health]
        assert told
        assert all(health[ONE] == "Unhealthy" for health in told)


async def test_a_device_unplugged_and_plugged_in_again_is_still_cordoned() -> None:
    async with node_with(FIRST, SECOND) as node, node.agent(*flags(node)) as agent:
        await node.listed(2)
        await hailo_agent(node, "cordon", ONE, "--reason=fan is loud")
        await cordoned(agent, ONE)
        node.machine.pull(FIRST)
        await agent.wait_for(
            "device.faulted", lambda f: "device.vanished" in faults_of(dict(f), ONE)
        )
        seen = node.kubelet.message_count
        node.machine.plug(FIRST)
        await agent.wait_for(
            "device.faulted", lambda f: set(faults_of(dict(f), ONE)) == {"device.cordoned"}
        )
        await node.listed(1)
        told = [m.health for m in list(node.kubelet.messages)[seen:] if ONE in m.health]
        assert all(health[ONE] == "Unhealthy" for health in told)


# --- broken files -------------------------------------------------------------------------------


async def write(path: Path, text: str) -> None:
    await asyncio.to_thread(path.write_text, text)


async def test_a_file_broken_by_hand_takes_nothing_back_and_is_told_until_it_is_repaired() -> None:
    async with node_with(FIRST, SECOND) as node, node.agent(*flags(node)) as agent:
        await node.listed(2)
        await hailo_agent(node, "cordon", ONE, "--reason=fan is loud")
        await node.listed(1, capacity=2)
        good = await asyncio.to_thread(cordon_file(node).read_text)
        await write(cordon_file(node), good[:-5])
        found = await agent.wait_for(
            "fault.found", lambda f: f["fault"]["code"] == "cordons.unreadable"
        )
        assert found.fields["fault"]["subject"] == str(cordon_file(node))
        assert "repair the file" in found.fields["fault"]["remedy"]
        assert node.kubelet.resource(RESOURCE).health == {ONE: "Unhealthy", TWO: "Healthy"}
        await write(cordon_file(node), good)
        await agent.wait_for("fault.cleared")
        assert node.kubelet.resource(RESOURCE).health == {ONE: "Unhealthy", TWO: "Healthy"}
        assert agent.events("device.recovered") == []


async def test_an_agent_that_starts_with_a_broken_file_offers_nothing_until_it_is_repaired() -> (
    None
):
    async with node_with(FIRST, SECOND) as node:
        await hailo_agent(node, "cordon", ONE, "--reason=fan is loud")
        good = await asyncio.to_thread(cordon_file(node).read_text)
        await write(cordon_file(node), good[:-5])
        async with node.agent(*flags(node)) as agent:
            await agent.wait_for(
                "fault.found", lambda f: f["fault"]["subject"] == str(cordon_file(node))
            )
            await node.listed(0, capacity=2)  # of the other nobody can tell
            told = [message.health for message in node.kubelet.messages]
            assert all(set(health.values()) <= {"Unhealthy"} for health in told)
            await write(cordon_file(node), good)
            await node.listed(1, capacity=2)
            assert node.kubelet.resource(RESOURCE).health == {ONE: "Unhealthy", TWO: "Healthy"}
