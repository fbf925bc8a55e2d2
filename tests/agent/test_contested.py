"""Another plugin for our resource: noticed, named, never fought, and outlived.

The kubelet goes by the newest registration and tells the older plugin nothing. What it counts is
asked every 0.2 s here, and believed of lists that are a second old.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import aiohttp
import pytest

from hailo_agent.core.cordon import Cordon, serialise
from hailo_agent.core.device import DeviceId
from hailo_agent.sim.node import RESOURCE, AgentProcess, Node, temporary_root
from tests.support.another_plugin import another_plugin

FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"
ONE, TWO = "pci-0000-01-00-0", "pci-0000-02-00-0"
EIGHT = "hailo.ai/h8"
PLUGIN = f"plugin {RESOURCE}"
OFTEN = "--kubelet.pod-resources-seconds=0.2"
NO_SHOW_SECONDS = 2.5
"""Longer than it takes to notice another plugin: a list settles, and two answers agree."""
pytestmark = pytest.mark.timeout(60)


@asynccontextmanager
async def node_with(*addresses: str) -> AsyncIterator[Node]:
    async with temporary_root() as root, Node.build(root, fsync=False) as node:
        node.machine.load("4.23")
        for address in addresses:
            node.machine.plug(address)
        yield node


async def readyz(node: Node) -> tuple[int, str]:
    connector = aiohttp.UnixConnector(str(node.root / "run" / "web.sock"))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get("http://agent/readyz") as response,
    ):
        return response.status, await response.text()


async def until_readyz(node: Node, status: int, *words: str, within: float = 10.0) -> None:
    """Wait until the probe says so; it tells nobody when to ask."""
    said = None
    try:
        async with asyncio.timeout(within):
            while True:
                try:
                    said = await readyz(node)
                except aiohttp.ClientError:
                    said = None
                if said and said[0] == status and all(word in said[1] for word in words):
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise TimeoutError(f"{status} {words}: {said}") from None


def registrations(node: Node, resource: str = RESOURCE, *, ours: bool = True) -> int:
    endpoint = f"{resource.replace('/', '_')}.sock"
    return sum(
        one.resource == resource and (one.endpoint == endpoint) is ours and not one.refusal
        for one in node.kubelet.registrations
    )


def said(agent: AgentProcess) -> list[str]:
    """Name what the agent said of its registrations, in order."""
    told = {"plugin.registered", "plugin.lost", "plugin.contested"}
    return [line.event for line in agent.lines if line.event in told]


async def test_another_plugin_is_named_once_and_not_fought_and_outlived() -> None:
    async with node_with(FIRST, SECOND) as node, node.agent(OFTEN) as agent:
        await node.listed(2)
        async with another_plugin(node.kubelet):
            await node.kubelet.wait_for(lambda: "hailo0" in node.kubelet.resource(RESOURCE).devices)
            told = (await agent.wait_for("plugin.contested")).fields
            assert told["log.level"] == "warning"
            assert (told["resource"], told["devices"]) == (RESOURCE, ["hailo0"])
            assert "another plugin serves hailo.ai/npu" in told["reason"]
            assert "remove the other plugin" in told["remedy"]
            assert str(node.plugin_dir) in told["remedy"]
            await until_readyz(node, 503, PLUGIN, "hailo0", "remove the other plugin")
            await asyncio.sleep(NO_SHOW_SECONDS)
            assert registrations(node) == 1
            assert list(node.kubelet.resource(RESOURCE).devices) == ["hailo0"]
        await agent.wait_for("plugin.lost", lambda f: "counts no device" in f["reason"])
        await node.listed(2, capacity=2)
        await until_readyz(node, 200)
        container = await node.kubelet.admit("default/a", {RESOURCE: 2})
        assert set(container.device_ids[RESOURCE]) == {ONE, TWO}
        await asyncio.sleep(NO_SHOW_SECONDS)
        assert registrations(node) == 2
        assert said(agent) == [
            "plugin.registered",
            "plugin.contested",
            "plugin.lost",
            "plugin.registered",
        ]


async def test_another_plugin_that_came_and_went_unseen_is_noticed_by_what_is_missing() -> None:
    async with node_with(FIRST) as node, node.agent(OFTEN) as agent:
        await node.listed(1)
        async with another_plugin(node.kubelet):
            await node.kubelet.wait_for(lambda: "hailo0" in node.kubelet.resource(RESOURCE).devices)
        await node.listed(0)
        await node.listed(1, capacity=1)
        lost = await agent.wait_for("plugin.lost")
        assert lost.fields["log.level"] == "warning"
        assert "our list says 1" in lost.fields["reason"]
        await until_readyz(node, 200)
        assert registrations(node) == 2
        assert "plugin.contested" not in said(agent)


async def test_each_time_it_comes_and_goes_it_is_said_anew() -> None:
    async with node_with(FIRST) as node, node.agent(OFTEN) as agent:
        for time_ in (1, 2):
            await node.listed(1)
            await until_readyz(node, 200)
            await asyncio.sleep(NO_SHOW_SECONDS)  # long enough to be trusted again
            (node.plugin_dir / "hailo.sock").unlink(missing_ok=True)
            async with another_plugin(node.kubelet):
                await node.kubelet.wait_for(partial(has_registered, node, time_))
            lost_at = time.monotonic()
            await agent.wait_for("plugin.registered", since=lost_at)
        assert said(agent) == ["plugin.registered", *["plugin.lost", "plugin.registered"] * 2]


def has_registered(node: Node, times: int) -> bool:
    return registrations(node, ours=False) == times


async def test_a_list_of_ours_over_another_plugins_is_followed_by_one_registration() -> None:
    """The kubelet counts our devices then, and would ask the other plugin to allocate them."""
    async with node_with(FIRST) as node, node.agent(OFTEN) as agent:
        await node.listed(1)
        async with another_plugin(node.kubelet):
            await agent.wait_for("plugin.contested")
            node.machine.plug(SECOND)
            await agent.wait_for("plugin.lost", lambda f: "meanwhile" in f["reason"])
            await node.kubelet.wait_for(lambda: registrations(node) == 2)
            await node.listed(2, capacity=2)
            await until_readyz(node, 200)
            container = await node.kubelet.admit("default/a", {RESOURCE: 2})
            assert set(container.device_ids[RESOURCE]) == {ONE, TWO}
            await asyncio.sleep(NO_SHOW_SECONDS)
            assert registrations(node) == 2


async def test_without_a_device_of_ours_another_plugin_is_named_and_outlived_all_the_same() -> None:
    async with node_with() as node, node.agent(OFTEN) as agent:
        await until_readyz(node, 200)
        async with another_plugin(node.kubelet):
            await agent.wait_for("plugin.contested", lambda f: f["devices"] == ["hailo0"])
            await until_readyz(node, 503, PLUGIN)
        await agent.wait_for("plugin.lost", lambda f: "meanwhile" in f["reason"])
        await until_readyz(node, 200)
        node.machine.plug(FIRST)
        await node.listed(1, capacity=1)
        assert (await node.kubelet.admit("default/a", {RESOURCE: 1})).cdi_devices


async def test_only_the_resource_that_is_contested_suffers() -> None:
    names = '--resource.names={"hailo-8": "hailo.ai/h8"}'
    async with node_with(FIRST) as node, node.agent(OFTEN, names) as agent:
        await node.listed(1, resource=EIGHT)
        async with another_plugin(node.kubelet):
            told = await agent.wait_for("plugin.contested")
            assert told.fields["resource"] == RESOURCE
            await until_readyz(node, 503, PLUGIN)
            _, text = await readyz(node)
            (other,) = (line for line in text.splitlines() if line.startswith(f"plugin {EIGHT}"))
            assert other.split() == ["plugin", EIGHT, "running"]
        await until_readyz(node, 200)
        assert registrations(node, EIGHT) == 1


# --- what proves nothing ------------------------------------------------------------------------


async def test_devices_that_come_go_and_are_cordoned_all_the_time_prove_nothing() -> None:
    async with node_with(FIRST) as node, node.agent("--kubelet.pod-resources-seconds=0.1") as agent:
        await node.listed(1)
        cordon = Cordon(device_id=DeviceId(ONE), reason="x", since="2026-11-22T18:30:00Z")
        cordons = node.root / "state" / "cordons.json"
        cordons.parent.mkdir(exist_ok=True)
        until = time.monotonic() + 6.0
        while time.monotonic() < until:
            node.machine.plug(SECOND)
            cordons.write_bytes(serialise([cordon]))
            await asyncio.sleep(0.4)
            node.machine.pull(SECOND)
            cordons.unlink()
            await asyncio.sleep(0.4)
        assert said(agent) == ["plugin.registered"]
        told = [tuple(line.fields["list"].values()) for line in agent.events("list.sent")]
        assert len(told) >= 6
        assert len(set(told)) >= 3


async def test_a_kubelet_that_restarts_or_holds_its_tongue_proves_nothing() -> None:
    async with node_with(FIRST) as node, node.agent("--kubelet.pod-resources-seconds=0.1") as agent:
        server = node.kubelet.pod_resources
        assert server is not None
        for _ in range(4):
            await node.listed(1)
            await asyncio.sleep(1.2)
            await node.kubelet.restart()
        await node.listed(1)
        server.allocatable_fault = "unimplemented"
        await node.kubelet.restart()
        await node.listed(1)
        await asyncio.sleep(NO_SHOW_SECONDS)
        assert "plugin.contested" not in said(agent)
        reasons = [line.fields["reason"] for line in agent.events("plugin.lost")]
        assert len(reasons) == 5
        assert [r for r in reasons if "socket" not in r and "listen" not in r] == []
        assert agent.events("part.limping") == []


# --- two of us ----------------------------------------------------------------------------------


async def test_of_two_agents_the_older_one_waits_for_the_end_of_the_newer() -> None:
    """Both would serve at one path; were each to take it back, they would do nothing else."""
    async with node_with(FIRST) as node, AsyncExitStack() as stack:
        older = await stack.enter_async_context(node.agent(OFTEN))
        await node.listed(1)
        elsewhere = f"--web.listen=unix:{node.root}/run/other.sock"
        socket = f"--subscribers.socket={node.root}/run/other-agent.sock"
        async with node.agent(OFTEN, elsewhere, socket) as newer:
            await older.wait_for("plugin.lost", lambda f: "another process" in f["reason"])
            await until_readyz(node, 503, PLUGIN, "another process put its socket")
            await newer.wait_for("plugin.registered")
            await node.listed(1)
            await asyncio.sleep(NO_SHOW_SECONDS)
            assert said(older) == ["plugin.registered", "plugin.lost"]
            assert said(newer) == ["plugin.registered"]
            ended_at = time.monotonic()
        await older.wait_for("plugin.registered", since=ended_at)
        await node.listed(1, capacity=1)
        await until_readyz(node, 200)


# --- what another plugin gave away --------------------------------------------------------------


async def test_a_board_that_a_pod_has_from_another_plugin_is_not_given_a_second_time() -> None:
    async with node_with(FIRST, SECOND) as node:
        async with another_plugin(node.kubelet):
            await node.listed(1)
            await node.kubelet.admit("default/old", {RESOURCE: 1})
        async with node.agent(OFTEN) as agent:
            await node.listed(1, capacity=3)
            kept = await agent.wait_for("device.added", lambda f: f["device"]["id"] == ONE)
            (fault,) = kept.fields["device"]["faults"]
            assert fault["code"] == "device.held-elsewhere"
            assert fault["evidence"] == "default/old/main holds hailo0"
            assert not node.kubelet.resource(RESOURCE).devices["hailo0"].healthy
            new = await node.kubelet.admit("default/new", {RESOURCE: 1})
            assert set(new.device_ids[RESOURCE]) == {TWO}
            await node.kubelet.remove("default/old")
            await node.listed(2, within=15.0)
            late = await node.kubelet.admit("default/late", {RESOURCE: 1})
            assert set(late.device_ids[RESOURCE]) == {ONE}


async def test_a_board_that_another_plugin_gives_away_while_we_run_is_kept_back_too() -> None:
    async with node_with(FIRST) as node, node.agent(OFTEN) as agent:
        await node.listed(1)
        async with another_plugin(node.kubelet):
            await agent.wait_for("plugin.contested")
            await node.kubelet.admit("default/old", {RESOURCE: 1})
        await node.kubelet.wait_for(lambda: ONE in node.kubelet.resource(RESOURCE).devices)
        await node.listed(0, capacity=2)
        faulted = await agent.wait_for("device.faulted", lambda f: f["device"]["id"] == ONE)
        assert [f["code"] for f in faulted.fields["device"]["faults"]] == ["device.held-elsewhere"]
