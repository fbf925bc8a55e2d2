"""The agent as a process on a whole simulated node: what an operator and a kubelet see of it."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from hailo_agent.runtime import reader
from hailo_agent.sim.kubelet import AdmissionFailed
from hailo_agent.sim.node import RESOURCE, AgentProcess, Node, temporary_root

FIRST, SECOND, THIRD = "0000:01:00.0", "0000:02:00.0", "0000:03:00.0"
ONE, TWO = "pci-0000-01-00-0", "pci-0000-02-00-0"
HAILO_10H = "1e60:45c4"
NO_SENSOR = ("--host.inotify=false", "--host.uevents=false", "--host.resync-seconds=3600")
STOP_SECONDS = 5.0
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="hung attributes need CAP_SYS_ADMIN")
pytestmark = pytest.mark.timeout(90)


@asynccontextmanager
async def node_with(*addresses: str, kubelet: bool = True) -> AsyncIterator[Node]:
    async with temporary_root() as root, Node.build(root, kubelet=kubelet, fsync=False) as node:
        node.machine.load("4.23")
        node.machine.load("5.3")
        for address in addresses:
            node.machine.plug(address)
        yield node


async def stopped_in_time(agent: AgentProcess, number: signal.Signals = signal.SIGTERM) -> None:
    """Ask it to stop, and see that it does in time and with success."""
    started_at = time.monotonic()
    agent.process.send_signal(number)
    assert await agent.wait(within=20.0) == 0
    assert time.monotonic() - started_at < STOP_SECONDS
    assert agent.lines[-1].event == "agent.stopped"
    assert agent.garbage == []


# --- the whole way ------------------------------------------------------------------------------


async def test_a_pod_gets_the_device_it_was_promised() -> None:
    quickly = "--kubelet.pod-resources-seconds=0.2"
    async with node_with(FIRST, SECOND) as node, node.agent(quickly) as agent:
        await node.listed(2, capacity=2)
        container = await node.kubelet.admit("default/a", {RESOURCE: 1})
        view = node.runtime.inject(container.cdi_devices, devices=container.devices)
        (held,) = container.device_ids[RESOURCE]
        entry = node.machine.entry(FIRST if held == ONE else SECOND)
        assert view.opens(f"/dev/{entry}")
        assert view.class_entries("hailo_chardev") == (entry,)
        told = await agent.wait_for("device.held")
        assert told.fields["device"]["id"] == held
        granted = agent.events("allocation.granted")[0]
        assert granted.fields["devices"] == [held]
        await agent.wait_for("device.held", lambda f: f["device"]["holders"] == ["default/a/main"])


async def test_every_line_of_the_log_is_one_json_object_with_the_names_of_the_house() -> None:
    async with node_with(FIRST) as node, node.agent("--node.name=node-7") as agent:
        await node.listed(1)
        node.machine.pull(FIRST)
        await node.listed(0)
        await stopped_in_time(agent)
        assert agent.garbage == []
        for line in agent.lines:
            assert {"@timestamp", "log.level", "message", "service.name"} <= set(line.fields)
            assert line.fields["k8s.node.name"] == "node-7"
            noun, dot, participle = line.event.partition(".")
            assert noun.islower()
            assert dot
            assert participle


async def test_a_machine_without_devices_is_registered_with_an_empty_list_and_no_spec() -> None:
    async with node_with() as node, node.agent() as agent:
        await agent.wait_for("plugin.registered")
        await node.listed(0, capacity=0)
        assert await names_in(node.cdi_dir) == []


async def names_in(directory: Path) -> list[str]:
    return sorted(await asyncio.to_thread(os.listdir, directory))


async def test_each_model_may_have_a_resource_of_its_own() -> None:
    async with node_with(FIRST) as node:
        node.machine.plug(SECOND, pci_id=HAILO_10H)
        names = "--resource.names=hailo-8=hailo.ai/hailo-8,1e60:45c4=hailo.ai/hailo-10h"
        async with node.agent(names):
            await node.listed(1, resource="hailo.ai/hailo-8")
            await node.listed(1, resource="hailo.ai/hailo-10h")
            await node.listed(0, capacity=0)
            container = await node.kubelet.admit(
                "default/both", {"hailo.ai/hailo-8": 1, "hailo.ai/hailo-10h": 1}
            )
            view = node.runtime.inject(container.cdi_devices, devices=container.devices)
            assert set(view.nodes) >= {"/dev/hailo0", "/dev/h1x-0"}


async def test_a_denied_device_is_not_offered_and_is_named_with_the_setting() -> None:
    async with node_with(FIRST, SECOND) as node, node.agent(f"--devices.deny={FIRST}") as agent:
        await node.listed(1, capacity=1)
        assert set(node.kubelet.resource(RESOURCE).devices) == {TWO}
        told = await agent.wait_for("fault.found", lambda f: f["fault"]["subject"] == ONE)
        assert "devices.deny" in told.fields["fault"]["message"]


async def test_without_cdi_there_are_plain_device_nodes_and_no_spec() -> None:
    async with node_with(FIRST) as node, node.agent("--runtime.delivery=devicespec"):
        await node.listed(1)
        container = await node.kubelet.admit("default/a", {RESOURCE: 1})
        assert container.cdi_devices == ()
        assert len(container.devices) == 1
        view = node.runtime.inject(devices=container.devices)
        assert node.machine.number(FIRST) in {n.number for n in view.nodes.values()}
        assert await names_in(node.cdi_dir) == []


# --- devices that pods hold ---------------------------------------------------------------------


async def test_a_device_pulled_from_under_a_pod_stays_listed_and_comes_back_elsewhere() -> None:
    async with node_with(FIRST, SECOND) as node, node.agent():
        await node.listed(2)
        await node.kubelet.admit("default/both", {RESOURCE: 2})
        node.machine.pull(FIRST)
        await node.listed(1, capacity=2)
        assert node.kubelet.status("default/both")[RESOURCE][ONE] == "Unhealthy"
        node.machine.plug(THIRD)  # takes hailo0
        node.machine.plug(FIRST)
        await node.listed(3, capacity=3)
        assert node.machine.entry(FIRST) == "hailo2"
        container = await node.kubelet.restart_container("default/both")
        view = node.runtime.inject(container.cdi_devices)
        assert set(view.class_entries("hailo_chardev")) == {"hailo1", "hailo2"}
        assert all(set(m.health) >= {ONE, TWO} for m in list(node.kubelet.messages)[1:])


async def test_what_a_pod_held_when_the_agent_was_killed_is_in_its_first_list_again() -> None:
    async with node_with(FIRST, SECOND) as node, AsyncExitStack() as stack:
        agent = await stack.enter_async_context(node.agent())
        await node.listed(2)
        await node.kubelet.admit("default/a", {RESOURCE: 2})
        await agent.kill()
        node.machine.pull(FIRST)
        messages = node.kubelet.message_count
        await stack.enter_async_context(node.agent())
        await node.listed(1, capacity=2)
        assert all(
            set(message.health) == {ONE, TWO} for message in list(node.kubelet.messages)[messages:]
        )


async def test_a_kubelet_that_comes_after_the_agent_is_asked_who_holds_what_before_it_is_told() -> (
    None
):
    """The device went while neither ran; a list without it would tell the pod that all is well."""
    async with node_with(FIRST, SECOND) as node, AsyncExitStack() as stack:
        agent = await stack.enter_async_context(node.agent())
        await node.listed(2)
        await node.kubelet.admit("default/a", {RESOURCE: 2})
        await agent.kill()
        await node.kubelet.stop()
        node.machine.pull(FIRST)
        messages = node.kubelet.message_count
        again = await stack.enter_async_context(node.agent())
        await again.wait_for("plugin.unregistered")
        await node.kubelet.start()
        await node.listed(1, within=30.0)
        told = [sorted(m.health) for m in list(node.kubelet.messages)[messages:]]
        assert told
        assert all(ids == [ONE, TWO] for ids in told), told


async def test_a_vanished_device_is_refused_by_name_and_reason() -> None:
    async with node_with(FIRST) as node, node.agent() as agent:
        await node.listed(1)
        node.kubelet.drop_stream(RESOURCE)  # so that the kubelet believes in what is gone
        node.machine.pull(FIRST)
        await agent.wait_for("device.faulted")
        with pytest.raises(AdmissionFailed):
            await node.kubelet.admit("default/a", {RESOURCE: 1})


# --- the disk -----------------------------------------------------------------------------------


async def test_a_device_is_offered_only_once_its_spec_is_on_disk_and_recovers_by_itself() -> None:
    async with node_with(FIRST) as node:
        await asyncio.to_thread(node.spec_path.mkdir)  # which no write can replace
        async with node.agent("--runtime.delivery=cri") as agent:
            await node.listed(0, capacity=1)
            refused = await agent.wait_for("spec.refused")
            assert (
                "a directory stands in its place; remove it" in refused.fields["error"]["message"]
            )
            told = await agent.wait_for("device.added")
            assert told.fields["device"]["faults"][0]["code"] == "spec.unwritten"
            await asyncio.to_thread(node.spec_path.rmdir)
            await node.listed(1, within=30.0)
            assert ONE in reader.load(node.spec_path).devices
            assert len(agent.events("spec.refused")) == 1


async def test_bad_news_travels_while_the_disk_refuses_everything() -> None:
    async with node_with(FIRST, SECOND) as node, node.agent("--runtime.delivery=cri") as agent:
        await node.listed(2)
        await asyncio.to_thread(put_in_the_way, node.spec_path)
        await agent.wait_for("spec.refused")
        node.machine.pull(FIRST)
        await node.listed(0, within=10.0)
        assert set(node.kubelet.resource(RESOURCE).health.values()) == {"Unhealthy"}


def put_in_the_way(path: Path) -> None:
    path.unlink()
    path.mkdir()


async def test_the_same_device_in_a_file_of_others_is_reported_with_both_paths() -> None:
    async with node_with(FIRST) as node, node.agent() as agent:
        await node.listed(1)
        other = node.cdi_dir / "vendor.json"
        await asyncio.to_thread(shutil.copy, node.spec_path, other)
        told = await agent.wait_for("fault.found")
        assert told.fields["fault"]["code"] == "spec.conflict"
        assert str(other) in told.fields["fault"]["message"]
        assert str(node.spec_path) in told.fields["fault"]["message"]
        await asyncio.to_thread(other.unlink)
        await agent.wait_for("fault.cleared")


async def test_a_deleted_or_edited_spec_is_back_within_five_seconds_and_that_is_said() -> None:
    async with node_with(FIRST) as node, node.agent() as agent:
        await node.listed(1)
        text = await asyncio.to_thread(node.spec_path.read_bytes)
        for times, disturb in enumerate((delete, scribble), start=1):
            await asyncio.to_thread(disturb, node.spec_path)
            async with asyncio.timeout(5.0):
                while len(agent.events("spec.restored")) < times:  # noqa: ASYNC110 - its log
                    await asyncio.sleep(0.02)
            assert await asyncio.to_thread(node.spec_path.read_bytes) == text


def delete(path: Path) -> None:
    path.unlink()


def scribble(path: Path) -> None:
    path.write_text("oops")


# --- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_stops_in_time_when_all_is_well(number: signal.Signals) -> None:
    async with node_with(FIRST) as node, node.agent() as agent:
        await node.listed(1)
        await stopped_in_time(agent, number)
        assert await names_in(node.cdi_dir) == [
            "hailo.ai-npu.json"
        ]  # containers restart without us
        assert "hailo.ai_npu.sock" not in await names_in(node.plugin_dir)
        assert not node.agent_socket.exists()


async def test_it_stops_in_time_when_there_is_no_kubelet() -> None:
    async with node_with(FIRST, kubelet=False) as node, node.agent() as agent:
        await agent.wait_for("plugin.waiting")
        await stopped_in_time(agent)


@pytest.mark.parametrize("fault", ["hang_dial", "register_delay", "never_list"])
async def test_it_stops_in_time_whatever_the_kubelet_does(fault: str) -> None:
    async with node_with(FIRST) as node:
        setattr(node.kubelet.faults, fault, 60.0 if fault == "register_delay" else True)
        async with node.agent() as agent:
            await agent.wait_for("device.added")
            if fault == "never_list":
                await agent.wait_for("plugin.registered")
            await stopped_in_time(agent)


async def test_it_stops_in_time_while_pod_resources_hangs() -> None:
    async with node_with(FIRST) as node:
        assert node.kubelet.pod_resources is not None
        node.kubelet.pod_resources.fault = "hang"
        async with node.agent() as agent:
            await node.listed(1)
            await stopped_in_time(agent)


@needs_root
async def test_it_stops_in_time_during_a_first_look_at_devices_that_hang() -> None:
    addresses = [f"0000:{bus:02x}:00.0" for bus in range(1, 6)]
    async with node_with(*addresses) as node:
        with ExitStack() as wedges:
            for address in addresses:
                wedges.enter_context(node.machine.wedge(address))
            async with node.agent() as agent:
                await agent.wait_for("agent.started")
                await stopped_in_time(agent)


async def test_it_stops_in_time_right_after_its_start() -> None:
    async with node_with(FIRST) as node, node.agent() as agent:
        await agent.wait_for("agent.started")
        await stopped_in_time(agent)


async def test_a_hangup_looks_again() -> None:
    async with node_with(FIRST) as node, node.agent(*NO_SENSOR) as agent:
        await node.listed(1)
        node.machine.plug(SECOND)  # nobody hears it
        agent.process.send_signal(signal.SIGHUP)
        await node.listed(2, within=5.0)


async def test_a_hangup_takes_over_the_log_level_of_the_file_and_refuses_a_bad_one() -> None:
    async with node_with(FIRST) as node:
        config = node.root / "config.yaml"
        await write(config, "log:\n  level: warning\n")
        async with node.agent(f"--config={config}") as agent:
            await node.listed(1)
            assert agent.events("device.added") == []
            await write(config, "log:\n  level: loud\n")
            agent.process.send_signal(signal.SIGHUP)
            refused = await agent.wait_for("config.refused")
            assert "log.level = 'loud'" in refused.fields["error"]["message"]
            await write(config, "log:\n  level: debug\n")
            agent.process.send_signal(signal.SIGHUP)
            await agent.wait_for("machine.reconciled")
            node.machine.plug(SECOND)
            await agent.wait_for("device.added")
            await write(config, "log:\n  level: error\n")
            agent.process.send_signal(signal.SIGHUP)
            node.machine.plug(THIRD)
            await node.listed(3)
            assert len(agent.events("device.added")) <= 2
            assert await agent.stop() == 0


async def write(path: Path, text: str) -> None:
    await asyncio.to_thread(path.write_text, text)


# --- the kubelet --------------------------------------------------------------------------------


async def test_a_restarted_kubelet_has_the_devices_again_at_once() -> None:
    async with node_with(FIRST) as node, node.agent() as agent:
        await node.listed(1)
        for _ in range(3):
            started_at = time.monotonic()
            await node.kubelet.restart()
            await node.listed(1)
            assert time.monotonic() - started_at < 3.0
        assert agent.process.returncode is None


async def test_a_replaced_plugin_directory_asks_for_a_new_process() -> None:
    async with node_with(FIRST) as node, node.agent() as agent:
        await node.listed(1)
        await node.kubelet.stop()
        await asyncio.to_thread(replace_directory, node.plugin_dir)
        assert await agent.wait(within=10.0) == 75
        displaced = agent.events("agent.displaced")
        assert len(displaced) == 1
        assert str(node.plugin_dir) in displaced[0].fields["reason"]
        assert agent.garbage == []


def replace_directory(path: Path) -> None:
    path.rename(path.with_name("old"))
    path.mkdir()


async def test_a_kubelet_that_refuses_is_asked_again_and_its_words_are_in_the_log() -> None:
    async with node_with(FIRST) as node:
        node.kubelet.faults.refuse_register = "not today"
        async with node.agent() as agent:
            rejected = await agent.wait_for("plugin.rejected")
            assert "not today" in rejected.fields["error"]["message"]
            node.kubelet.faults.refuse_register = ""
            await node.listed(1, within=30.0)


@needs_root
async def test_a_device_that_hangs_while_all_runs_costs_itself_and_no_answer_to_the_kubelet() -> (
    None
):
    async with node_with(FIRST, SECOND) as node, node.agent("--host.resync-seconds=1") as agent:
        await node.listed(2)
        with node.machine.wedge(FIRST):
            await node.listed(1, capacity=2, within=15.0)
            container = await node.kubelet.admit("default/a", {RESOURCE: 1})
            assert container.device_ids[RESOURCE] == (TWO,)
            assert node.kubelet.allocations[-1].seconds < 1.0
            told = await agent.wait_for("device.faulted")
            assert told.fields["device"]["faults"][0]["code"] == "device.unresponsive"
        await node.listed(2, within=20.0)
        assert agent.garbage == []


# --- two things nobody should do ----------------------------------------------------------------


async def test_a_log_reader_that_went_away_does_not_take_the_agent_with_it() -> None:
    async with node_with(FIRST) as node:
        reading, writing = os.pipe()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "hailo_agent",
            "run",
            *node.flags(),
            stdin=subprocess.DEVNULL,
            stderr=writing,
        )
        os.close(writing)
        os.close(reading)
        try:
            await node.listed(1)
            node.machine.plug(SECOND)
            await node.listed(2)
            process.terminate()
            assert await asyncio.wait_for(process.wait(), STOP_SECONDS) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_a_second_agent_on_one_node_does_not_silence_the_devices() -> None:
    async with node_with(FIRST) as node, node.agent("--subscribers.socket="):
        await node.listed(1)
        async with node.agent("--subscribers.socket="):
            await node.kubelet.wait_for(lambda: len(node.kubelet.registrations) > 1, within=10.0)
            await node.listed(1)
        await node.listed(1, within=15.0)
        assert node.kubelet.crashes == []
