"""With every sensor, with one, with none: what is missing is said once, and all stays correct.

The agent is a process of its own, because what it may not have is taken from the process: in a user
namespace no uevent arrives, and the limit of inotify instances can be set to nothing.
"""

import asyncio
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hailo_agent.runtime import reader
from hailo_agent.sim.machine import Machine
from hailo_agent.sim.node import AgentProcess, Node, temporary_root

FIRST, SECOND, THIRD = "0000:01:00.0", "0000:02:00.0", "0000:03:00.0"
NEVER = "--host.resync-seconds=3600"
SOON_SECONDS = 12.0
SETTLED_SECONDS = 1.3  # lists are folded to one a second
IDLE_SECONDS = 2.0
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may announce uevents")
pytestmark = pytest.mark.timeout(90)
MAY_UNSHARE = not subprocess.run(["unshare", "-U", "-r", "true"], check=False).returncode


@asynccontextmanager
async def one_device() -> AsyncIterator[Node]:
    async with temporary_root() as root, Node.build(root, fsync=False) as node:
        node.machine.load("4.23")
        node.machine.plug(FIRST)
        yield node


@asynccontextmanager
async def poor_agent(
    node: Node, *flags: str, inotify_instances: int = 0
) -> AsyncIterator[AgentProcess]:
    """Run the agent in a user namespace of its own, which may have so many inotify instances."""
    if not MAY_UNSHARE:
        pytest.skip("user namespaces are not permitted here")
    limit = f'echo {inotify_instances} > /proc/sys/user/max_inotify_instances && exec "$@"'
    prefix = ("unshare", "-U", "-r", "sh", "-c", limit, "sh")
    agent = await AgentProcess.start(*node.flags(), *flags, prefix=prefix)
    try:
        yield agent
    finally:
        assert await agent.stop() == 0


def said(agent: AgentProcess, event: str) -> Counter[str]:
    """Count the lines of an event by the part they are about."""
    return Counter(str(line.fields["part"]) for line in agent.events(event))


async def quiet(agent: AgentProcess) -> list[str]:
    """Tell what an agent says while nothing happens, once it has said what there was to say."""
    async with asyncio.timeout(SOON_SECONDS):
        before = -1
        while len(agent.lines) != before:
            before = len(agent.lines)
            await asyncio.sleep(SETTLED_SECONDS)
    await asyncio.sleep(IDLE_SECONDS)  # what does not happen takes time to see
    return [f"{line.event} {dict(line.fields)}" for line in agent.lines[before:]]


async def changes_are_seen(node: Node) -> float:
    """Plug and pull, each seen by the kubelet; returns how long the slower one took."""
    started_at = time.monotonic()
    node.machine.plug(SECOND)
    await node.listed(2, within=SOON_SECONDS)
    plugged = time.monotonic() - started_at
    started_at = time.monotonic()
    node.machine.pull(SECOND)
    await node.listed(1, within=SOON_SECONDS)
    return max(plugged, time.monotonic() - started_at)


# --- which sensors there are --------------------------------------------------------------------


async def test_inotify_alone_is_enough() -> None:
    async with one_device() as node, node.agent(NEVER, "--host.uevents=false") as agent:
        await node.listed(1)
        await changes_are_seen(node)
        assert said(agent, "part.limping")["inotify"] == 0


@needs_root
async def test_uevents_alone_are_enough() -> None:
    async with temporary_root() as root, Node.build(root, fsync=False) as node:
        node.machine = Machine(root / "announcing", uevents=True)
        node.machine.load("4.23")
        node.machine.plug(FIRST)
        try:
            async with node.agent(NEVER, "--host.inotify=false") as agent:
                await node.listed(1)
                await changes_are_seen(node)
                assert said(agent, "part.limping")["uevents"] == 0
        finally:
            node.machine.close()


async def test_without_any_sensor_the_resync_sees_all_in_its_period() -> None:
    flags = ["--host.inotify=false", "--host.uevents=false", "--host.resync-seconds=1"]
    async with one_device() as node, node.agent(*flags) as agent:
        await node.listed(1)
        await changes_are_seen(node)
        await delete_spec_and_see_it_return(node)
        await node.kubelet.restart()
        await node.listed(1, within=SOON_SECONDS)
        assert said(agent, "part.limping") == Counter()


async def delete_spec_and_see_it_return(node: Node) -> None:
    await asyncio.to_thread(node.spec_path.unlink)
    started_at = time.monotonic()
    async with asyncio.timeout(SOON_SECONDS):
        while not node.spec_path.exists():  # noqa: ASYNC110 - seen from outside
            await asyncio.sleep(0.02)
    assert time.monotonic() - started_at < 5.0
    assert "all" in reader.load(node.spec_path).devices


async def test_what_a_limping_part_waits_for_may_come_and_that_is_said_once_too() -> None:
    async with one_device() as node, poor_agent(node, NEVER) as agent:
        await agent.wait_for("part.limping", lambda f: f["part"] == "inotify")
        await allow_inotify(agent)
        await agent.wait_for("part.recovered", lambda f: f["part"] == "inotify", within=30.0)
        await node.listed(1)
        await changes_are_seen(node)
        assert said(agent, "part.recovered")["inotify"] == 1
        assert said(agent, "part.limping")["inotify"] == 1


async def allow_inotify(agent: AgentProcess) -> None:
    namespace = ["nsenter", "--user", "--preserve-credentials", "-t", str(agent.pid)]
    command = [*namespace, "sh", "-c", "echo 100 > /proc/sys/user/max_inotify_instances"]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=10)


async def test_what_happened_before_a_sensor_came_back_is_not_missed() -> None:
    async with one_device() as node, poor_agent(node, NEVER) as agent:
        await node.listed(1)
        await agent.wait_for("part.limping", lambda f: f["part"] == "inotify")
        node.machine.plug(SECOND)  # nobody hears it
        await allow_inotify(agent)
        await node.listed(2, within=30.0)


# --- what is watched goes and comes -------------------------------------------------------------


async def test_a_replaced_dev_directory_is_noticed_and_heard_again() -> None:
    async with one_device() as node, node.agent(NEVER, "--host.uevents=false"):
        await node.listed(1)
        await asyncio.to_thread(remake, node.machine.dev)
        async with asyncio.timeout(SOON_SECONDS):
            while True:  # until the new directory is listened to, nothing tells of a change in it
                node.machine.plug(SECOND)
                try:
                    await node.listed(2, within=3.0)
                except TimeoutError:
                    node.machine.pull(SECOND)
                else:
                    break
        assert node.kubelet.resource("hailo.ai/npu").health["pci-0000-01-00-0"] == "Healthy"


def remake(dev: Path) -> None:
    """Put another directory in its place, with the same nodes."""
    other = dev.with_name("other")
    subprocess.run(["cp", "-a", str(dev), str(other)], check=True)
    dev.rename(dev.with_name("old"))
    other.rename(dev)


async def test_a_dev_directory_that_goes_costs_its_devices_until_it_comes_back() -> None:
    async with one_device() as node, node.agent(NEVER, "--host.uevents=false") as agent:
        await node.listed(1)
        away = node.machine.dev.with_name("away")
        await asyncio.to_thread(node.machine.dev.rename, away)
        await node.listed(0, within=SOON_SECONDS)
        await asyncio.to_thread(away.rename, node.machine.dev)
        await node.listed(1, within=SOON_SECONDS)
        assert await agent.stop() == 0


async def test_a_cdi_directory_that_is_not_there_yet_comes_with_the_first_device() -> None:
    async with temporary_root() as root, Node.build(root, fsync=False) as node:
        node.machine.load("4.23")
        await asyncio.to_thread(node.cdi_dir.rmdir)
        async with node.agent(NEVER) as agent:
            await node.listed(0)
            assert await asyncio.to_thread(os.path.lexists, node.cdi_dir) is False
            node.machine.plug(FIRST)
            await node.listed(1)
            await asyncio.to_thread(shutil.rmtree, node.cdi_dir)
            await agent.wait_for("spec.restored", within=5.0)
            assert "pci-0000-01-00-0" in reader.load(node.spec_path).devices
            assert [e for e in agent.events("part.limping") if e.fields["part"] == "inotify"] == []


async def test_a_plugin_directory_that_is_not_there_yet_is_awaited_and_said_once() -> None:
    async with temporary_root() as root, Node.build(root, kubelet=False, fsync=False) as node:
        node.machine.load("4.23")
        node.machine.plug(FIRST)
        async with node.agent() as agent:
            await agent.wait_for("plugin.waiting")
            await asyncio.sleep(1.2)  # more than twice as long as it waits between two looks
            assert len(agent.events("plugin.waiting")) == 1
            await node.kubelet.start()
            await node.listed(1, within=SOON_SECONDS)


# --- nothing at all -----------------------------------------------------------------------------


async def test_with_everything_missing_that_may_be_missing_it_still_serves_the_kubelet() -> None:
    async with (
        temporary_root() as root,
        Node.build(root, pod_resources=False, fsync=False) as node,
    ):
        node.machine.load("4.23")
        node.machine.plug(FIRST)
        await asyncio.to_thread((root / "run").rmdir)
        await asyncio.to_thread((root / "run").touch)  # the socket's directory cannot be made
        async with poor_agent(node, "--host.resync-seconds=1") as agent:
            await node.listed(1)
            await changes_are_seen(node)
            await agent.wait_for("part.limping", lambda f: f["part"] == "subscribers")
            await agent.wait_for("part.limping", lambda f: f["part"] == "pod-resources")
            await delete_spec_and_see_it_return(node)
            await node.kubelet.restart()
            await node.listed(1, within=SOON_SECONDS)
            assert await quiet(agent) == []
            assert set(said(agent, "part.limping").values()) == {1}
            assert said(agent, "part.recovered") == Counter()
            assert set(said(agent, "part.limping")) == {
                "inotify",
                "uevents",
                "subscribers",
                "pod-resources",
                "web",
            }
            reasons = {
                line.fields["part"]: line.fields["reason"] for line in agent.events("part.limping")
            }
            assert "fs.inotify.max_user_instances" in reasons["inotify"]
            assert "user namespace" in reasons["uevents"]
            assert str(node.agent_socket.parent) in reasons["subscribers"]
            assert str(root / "kubelet") in reasons["pod-resources"]
            assert agent.garbage == []


async def test_an_idle_agent_says_nothing_and_sends_nothing() -> None:
    async with one_device() as node, node.agent() as agent:
        await node.listed(1)
        await agent.wait_for("plugin.registered")
        sent = node.kubelet.message_count
        assert await quiet(agent) == []
        assert node.kubelet.message_count == sent
