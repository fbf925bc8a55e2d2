"""Conformance B, statements 17 to 25: what the kubelet is told of devices, when, and how often.

The agent is `hailo-agent run` as its own process; the kubelet, the machine and its faults are the
simulated node's. Each docstring restates its statement and why the kubelet makes it one.
"""

import asyncio
import json
import random
import re
import signal
import statistics
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from itertools import pairwise
from typing import Final

import pytest
from grpclib.client import Channel, UnaryStreamMethod
from grpclib.encoding.base import CodecBase

from hailo_agent.sim.kubelet import Kubelet, Message
from hailo_agent.sim.litter import LitterKind
from hailo_agent.sim.machine import CannotWedge, Machine, Wedge, slot_address
from hailo_agent.sim.node import RESOURCE, AgentProcess, Node, temporary_root
from hailo_agent.wire import agentapi, deviceplugin

HAILO_8: Final = "1e60:2864"
HAILO_10H: Final = "1e60:45c4"
LITTER: Final[tuple[LitterKind, ...]] = LitterKind.__args__  # type: ignore[attr-defined]
A, B, C, D, E = (slot_address(number) for number in range(5))

# Verdicts follow the evidence at once, for tests that are about something else than patience.
NO_PATIENCE: Final = ("--health.flap-window-seconds=0.01", "--health.recovery-seconds=0.01")


def device_id(address: str) -> str:
    return "pci-" + re.sub(r"[:.]", "-", address)


@asynccontextmanager
async def a_node(
    *slots: str, generation: str = "4.23", pod_resources: bool = True
) -> AsyncIterator[Node]:
    """A node with one kernel driver loaded and these slots taken."""
    async with temporary_root() as root, Node.build(root, pod_resources=pod_resources) as node:
        node.machine.load(generation)
        for slot in slots:
            node.machine.plug(slot)
        yield node


@asynccontextmanager
async def dialled(node: Node, codec: CodecBase | None = None) -> AsyncIterator[Channel]:
    """A connection of our own to the plugin's socket, beside the kubelet's."""
    channel = Channel(path=str(node.plugin_dir / "hailo.ai_npu.sock"), codec=codec)
    try:
        yield channel
    finally:
        channel.close()


@contextmanager
def wedged(machine: Machine, address: str) -> Iterator[Wedge]:
    """A device whose kernel driver does not return from open()."""
    with ExitStack() as stack:
        try:
            wedge = stack.enter_context(machine.wedge(address))
        except CannotWedge as error:
            pytest.skip(str(error))
        yield wedge


def look_again(agent: AgentProcess) -> None:
    """Nothing tells of a changed attribute, in life as here: ask for a look."""
    agent.process.send_signal(signal.SIGHUP)


def health(node: Node) -> dict[str, str]:
    return node.kubelet.resource(RESOURCE).health


def told(kubelet: Kubelet, start: int = 0) -> list[Message]:
    return list(kubelet.messages)[start:]


async def known(
    node: Node, holds: Callable[[agentapi.Inventory], object], *, within: float = 10.0
) -> agentapi.Inventory:
    """What the agent holds to be true, as soon as it satisfies."""
    channel = Channel(path=str(node.agent_socket))
    stub = agentapi.DeviceEventsStub(channel)
    try:
        async with asyncio.timeout(within):
            async for _ in stub.watch(agentapi.WatchRequest()):
                inventory = (await stub.get_inventory(agentapi.GetInventoryRequest())).inventory
                assert inventory is not None
                if holds(inventory):
                    return inventory
    finally:
        channel.close()
    raise AssertionError("the agent ended its stream")


async def seconds_to_first_list(
    channel: Channel,
) -> tuple[float, deviceplugin.ListAndWatchResponse]:
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    stream = deviceplugin.DevicePluginStub(channel).list_and_watch()
    try:
        first = await anext(aiter(stream))
    finally:
        await stream.aclose()  # type: ignore[attr-defined]
    return loop.time() - started_at, first


# --- 17: the first list ---


async def test_17_a_new_stream_has_the_whole_list_at_once_though_a_look_at_the_machine_hangs(
    record_property: Callable[[str, object], None],
) -> None:
    """Whoever opens ListAndWatch gets everything within 100 ms, from memory.

    Until then every admission fails. Here no look at the machine can end, so that memory is all
    there is.
    """
    async with a_node(A, B) as node:
        node.kubelet.faults.never_list = True  # the streams are ours
        flags = ("--host.resync-seconds=0.1", "--host.scan-timeout-seconds=30")
        async with node.agent(*flags) as agent, dialled(node) as channel:
            await agent.wait_for("plugin.registered")
            with wedged(node.machine, A) as wedge:
                await asyncio.to_thread(wedge.wait)
                taken = []
                for _ in range(10):
                    seconds, first = await seconds_to_first_list(channel)
                    taken.append(seconds)
                    assert [d.id for d in first.devices] == [device_id(A), device_id(B)]
            record_property("median_ms", 1000 * statistics.median(taken))
            assert statistics.median(taken) <= 0.1
            node.kubelet.drop_stream(RESOURCE)  # else the agent waits for it to hang up


async def test_17_a_node_without_devices_is_listed_as_empty_and_learns_of_the_first_one() -> None:
    """No device is a list, too: an empty one, sent at once over a stream that stays.

    What is plugged in later comes over the same stream, from the same process.
    """
    async with a_node() as node:
        async with node.agent() as agent:
            await node.kubelet.wait_for(lambda: node.kubelet.messages, within=10)
            first = node.kubelet.messages[0]
            assert first.devices == ()
            assert first.at - node.kubelet.registrations[0].answered_at <= 0.5
            assert node.kubelet.resource(RESOURCE).connected
            node.machine.plug(A)
            await node.listed(1, capacity=1)
        assert len(agent.events("plugin.registered")) == 1
        assert len(node.kubelet.registrations) == 1
        assert [len(message.devices) for message in node.kubelet.messages] == [0, 1]


# --- 18: device ids ---


async def test_18_an_id_is_the_slot_whatever_happens_to_driver_index_machine_and_agent() -> None:
    """A device keeps its id over driver reload, agent restart and reboot, under any resource.

    The kubelet remembers grants by id alone, and looks the health of an id up without asking to
    which resource it belongs: so no two resources may share one.
    """
    slots = (A, B, "0001:1f:02.3", "10000:e1:00.0")
    names = '{"hailo-8": "hailo.ai/hailo-8", "1e60:45c4": "hailo.ai/hailo-10h"}'
    resources = {"hailo.ai/hailo-8": 4, "hailo.ai/hailo-10h": 1, RESOURCE: 0}
    expected = sorted(device_id(slot) for slot in (*slots, E))

    def ids(node: Node) -> list[str]:
        return sorted(id_ for each in resources for id_ in node.kubelet.resource(each).devices)

    async def listed(node: Node) -> list[str]:
        for resource, count in resources.items():
            await node.listed(count, capacity=count, resource=resource)
        return ids(node)

    async with a_node(*slots) as node:
        node.machine.load("5.3")
        node.machine.plug(E, pci_id=HAILO_10H)
        before = dict(node.machine.entries)
        async with node.agent(f"--resource.names={names}", *NO_PATIENCE):
            first = await listed(node)
            node.machine.reload("4.23", order=tuple(reversed(slots)))
            assert before[A] != node.machine.entry(A)
            moved = (device_id(A), f"/dev/{node.machine.entry(A)}")
            await known(node, lambda said: moved in [(d.id, d.path) for d in said.devices])
            reloaded = await listed(node)
        async with node.agent(f"--resource.names={names}"):
            restarted = await listed(node)
    async with a_node() as rebooted:
        rebooted.machine.load("5.3")
        rebooted.machine.plug(E, pci_id=HAILO_10H)
        for slot in reversed(slots):
            rebooted.machine.plug(slot)
        async with rebooted.agent(f"--resource.names={names}"):
            after_reboot = await listed(rebooted)
    assert first == reloaded == restarted == after_reboot == expected
    assert len(set(first)) == len(first)
    assert all(len(id_) <= 63 for id_ in first)


async def test_18_text_that_is_not_utf8_reaches_neither_the_kubelet_nor_breaks_the_stream() -> None:
    """Rubbish in sysfs costs the device whose it is, and nothing else.

    Text that cannot be decoded raises when it is encoded for the wire, and the kubelet refuses a
    list with it in it: so it must be made harmless before.
    """
    async with a_node(A, B) as node:
        litter = {kind: node.machine.litter(kind).name for kind in LITTER}
        node.machine.set_attribute(A, "numa_node", b"\xff\xfe", of="function")
        async with node.agent(*NO_PATIENCE) as agent:
            await node.listed(2, capacity=2)
            node.machine.set_attribute(B, "board_location", b"\xff\xfe\x00 \xf0\x9f")
            look_again(agent)
            await node.listed(1, capacity=2)
            assert health(node) == {device_id(A): "Healthy", device_id(B): "Unhealthy"}
            said = await known(node, lambda _: True)  # decodes, or this would raise
            subjects = {fault.subject for fault in said.faults}
            assert f"hailo_chardev/{litter['bad-attribute']}" in subjects
            assert all(subject.isprintable() for subject in subjects)
            node.machine.mend(B)
            node.machine.sweep()
            look_again(agent)
            await node.listed(2, capacity=2)
        assert agent.garbage == []
        text = json.dumps([dict(line.fields) for line in agent.lines], ensure_ascii=False)
        assert text.encode().decode() == text
        assert len(agent.events("plugin.registered")) == 1


# --- 19: how often ---


async def test_19_a_storm_is_folded_to_one_list_a_second_and_ends_with_the_truth() -> None:
    """Bursts become at most one list a second; the first news travels at once, the last always.

    The kubelet writes a checkpoint with fsync for every list that it gets.
    """
    slots = [slot_address(number) for number in range(6)]
    chance = random.Random(19)
    async with a_node(*slots) as node, node.agent(*NO_PATIENCE):
        await node.listed(6)
        loop = asyncio.get_running_loop()
        before, began_at = node.kubelet.message_count, loop.time()
        broken: set[str] = set()
        changes = 0
        while loop.time() < began_at + 2.0:
            slot = chance.choice(slots)
            if slot in broken:
                node.machine.mend(slot)
            else:
                node.machine.break_node(slot, "missing")
            broken ^= {slot}
            changes += 1
            await asyncio.sleep(0.01)  # the pace of the storm
        for slot in slots:
            node.machine.mend(slot)
        node.machine.break_node(slots[2], "missing")
        ended_at = loop.time()
        final = {device_id(slot): "Healthy" for slot in slots} | {device_id(slots[2]): "Unhealthy"}
        await node.kubelet.wait_for(lambda: health(node) == final, within=5)
        await node.kubelet.quiet(1.1)
        assert health(node) == final
        lists = told(node.kubelet, before)
        assert changes > 20
        assert lists[0].at - began_at <= 0.5
        assert 2 <= len(lists) <= (ended_at - began_at) + 3
        gaps = [later.at - earlier.at for earlier, later in pairwise(lists)]
        assert min(gaps) >= 0.75
        assert lists[-1].at - ended_at <= 1.5


async def test_19_nothing_is_sent_while_nothing_changes_that_the_kubelet_counts() -> None:
    """The same list is never sent twice, however often the agent looks and whatever else moves."""
    async with a_node(A, B) as node:
        flags = (
            "--host.resync-seconds=0.1",
            "--kubelet.pod-resources-seconds=0.1",
            "--log.level=debug",
        )
        async with node.agent(*flags) as agent:
            await node.listed(2)
            looks = len(agent.events("machine.reconciled"))
            await node.kubelet.admit("default/pod", {RESOURCE: 1})
            await agent.wait_for("device.held")
            node.machine.degrade_link(A)
            node.spec_path.unlink()
            await agent.wait_for("spec.restored")
            (node.machine.dev / "null").touch()
            with node.machine.hold(B):
                # Silence can only be measured over a time.
                await asyncio.sleep(1.2)
            assert len(agent.events("machine.reconciled")) - looks > 10
        assert node.kubelet.message_count == 1
        assert len(agent.events("list.sent")) == 1


# --- 20 and 21: tombstones ---


async def test_20_whatever_befalls_a_held_device_it_stays_listed_as_unhealthy() -> None:
    """Broken, unbound or pulled: a device stays in the list, Unhealthy, while a pod may have it.

    The kubelet reports a device that is missing from the list as Healthy, and 1.36 follows a
    pointer to it when it next allocates.
    """
    async with a_node(A, B, C) as node, node.agent() as agent:
        await node.listed(3)
        await node.kubelet.admit("default/pod", {RESOURCE: 3})
        ids = [device_id(slot) for slot in (A, B, C)]
        node.machine.break_node(A, "missing")
        node.machine.unbind(B)
        node.machine.pull(C)
        await node.listed(0, capacity=3)
        assert health(node) == dict.fromkeys(ids, "Unhealthy")
        assert node.kubelet.status("default/pod") == {RESOURCE: dict.fromkeys(ids, "Unhealthy")}
        await agent.wait_for("device.faulted", lambda _: len(agent.events("device.faulted")) >= 3)
        faults = {
            line.fields["device"]["id"]: line.fields["device"]["faults"][0]["code"]
            for line in agent.events("device.faulted")
        }
        assert faults == dict(
            zip(ids, ("devnode.missing", "device.vanished", "device.vanished"), strict=True)
        )
        assert node.kubelet.crashes == []


async def _a_tombstone_of_this_life() -> None:
    """Pull one device that a pod holds and one that nobody holds."""
    async with a_node(A, B) as node, node.agent("--kubelet.pod-resources-seconds=0.3") as agent:
        await node.listed(2, within=30)
        container = await node.kubelet.admit("default/pod", {RESOURCE: 1})
        await agent.wait_for("device.held")
        (held,) = container.device_ids[RESOURCE]
        for slot in (A, B):
            node.machine.pull(slot)
        await node.listed(0, capacity=2)
        await node.kubelet.wait_for(lambda: len(health(node)) < 2, within=20)
        assert health(node) == {held: "Unhealthy"}, "what nobody holds is forgotten, and only that"
        assert node.kubelet.status("default/pod") == {RESOURCE: {held: "Unhealthy"}}
        await node.kubelet.remove("default/pod")
        await node.kubelet.wait_for(lambda: not health(node), within=15)
        assert node.kubelet.crashes == []


async def _a_tombstone_of_an_earlier_life() -> None:
    """Pull the device that a pod holds while no agent runs."""
    async with a_node(A, B) as node:
        async with node.agent() as agent:
            await node.listed(2, within=30)
            container = await node.kubelet.admit("default/pod", {RESOURCE: 1})
            await agent.kill()
        (held,) = container.device_ids[RESOURCE]
        gone = next(slot for slot in (A, B) if device_id(slot) == held)
        here = next(slot for slot in (A, B) if slot != gone)
        node.machine.pull(gone)
        before = node.kubelet.message_count
        async with node.agent("--kubelet.pod-resources-seconds=0.3") as agent:
            await node.kubelet.wait_for(lambda: node.kubelet.message_count > before, within=10)
            first = told(node.kubelet, before)[0]
            assert first.health == {device_id(here): "Healthy", held: "Unhealthy"}
            assert node.kubelet.status("default/pod") == {RESOURCE: {held: "Unhealthy"}}
            added = await agent.wait_for("device.added", lambda f: f["device"]["id"] == held)
            assert "pod holds it" in added.fields["device"]["faults"][0]["message"]
            await node.kubelet.remove("default/pod")
            await node.kubelet.wait_for(lambda: held not in health(node), within=20)
            assert health(node) == {device_id(here): "Healthy"}


async def _a_tombstone_that_nobody_can_lift() -> None:
    """Pull a device where there is no pod-resources socket."""
    async with (
        a_node(A, B, pod_resources=False) as node,
        node.agent("--kubelet.tombstone-seconds=2") as agent,
    ):
        await node.listed(2, within=30)
        node.machine.pull(A)
        faulted = await agent.wait_for("device.faulted")
        assert health(node).keys() == {device_id(A), device_id(B)}
        removed = await agent.wait_for("device.removed")
        assert 1.9 <= removed.at - faulted.at <= 4.0
        await node.listed(1, capacity=1)


async def _a_tombstone_of_what_was_ill_before() -> None:
    """Pull a device that has been ill for longer than a tombstone lasts."""
    async with (
        a_node(A, B, pod_resources=False) as node,
        node.agent("--kubelet.tombstone-seconds=0.8") as agent,
    ):
        await node.listed(2, within=30)
        node.machine.break_node(A, "missing")
        await node.listed(1, capacity=2)
        await node.kubelet.quiet(1.0)
        pulled_at = asyncio.get_running_loop().time()
        node.machine.pull(A)
        removed = await agent.wait_for("device.removed")
        assert removed.at - pulled_at >= 0.7


async def test_20_21_a_tombstone_goes_when_no_pod_holds_the_device_and_not_before() -> None:
    """A device that is gone is forgotten only when the kubelet's pod-resources shows it free.

    The same holds for a device that was gone before the agent started, which is in its very first
    list. Where pod-resources is not served, a configurable time decides, which counts from the
    disappearance: that a device was ill before says nothing about whether a pod holds it.
    """
    async with asyncio.TaskGroup() as group:
        group.create_task(_a_tombstone_of_this_life())
        group.create_task(_a_tombstone_of_an_earlier_life())
        group.create_task(_a_tombstone_that_nobody_can_lift())
        group.create_task(_a_tombstone_of_what_was_ill_before())


async def test_21_a_device_that_a_pod_holds_and_the_machine_lacks_keeps_its_resource() -> None:
    """What is gone cannot tell its model; it is listed under the resource the kubelet knows."""
    names = '--resource.names={"hailo-8": "hailo.ai/hailo-8"}'
    async with a_node(A) as node:
        async with node.agent(names) as agent:
            await node.listed(1, resource="hailo.ai/hailo-8")
            await node.kubelet.admit("default/pod", {"hailo.ai/hailo-8": 1})
            await agent.kill()
        node.machine.pull(A)
        before = node.kubelet.message_count
        async with node.agent(names):
            await node.kubelet.wait_for(lambda: node.kubelet.message_count >= before + 2, within=10)
            firsts = {m.resource: m.health for m in reversed(told(node.kubelet, before))}
            assert firsts == {"hailo.ai/hailo-8": {device_id(A): "Unhealthy"}, RESOURCE: {}}


async def test_21_a_silent_pod_resources_socket_delays_the_first_list_by_little() -> None:
    """Asking who holds what must not cost the node its devices when nobody answers."""
    async with a_node(A) as node:
        assert node.kubelet.pod_resources is not None
        node.kubelet.pod_resources.fault = "hang"
        async with node.agent() as agent:
            await node.listed(1)
            registered = await agent.wait_for("plugin.registered")
            assert registered.at - agent.started_at <= 5.0


# --- 22: recovery ---


async def test_22_a_mended_or_replugged_device_is_healthy_again_under_the_same_agent() -> None:
    """Unhealthy is not for life: node back, driver bound again or plugged in again, and it serves.

    A device that comes back under another index is the same device.
    """
    async with a_node(A, B, C) as node, node.agent() as agent:
        await node.listed(3)
        indices = {slot: node.machine.entry(slot) for slot in (A, B, C)}
        node.machine.break_node(A, "missing")
        node.machine.unbind(B)
        node.machine.pull(C)
        await node.listed(0, capacity=3)
        node.machine.mend(A)
        node.machine.plug(C)  # takes the lowest index that is free, which is B's
        node.machine.bind(B)
        assert node.machine.entry(C) == indices[B]
        await node.listed(3, capacity=3)
        assert set(health(node)) == {device_id(slot) for slot in (A, B, C)}
        assert len(agent.events("agent.started")) == len(node.kubelet.registrations) == 1
        container = await node.kubelet.admit("default/pod", {RESOURCE: 3})
        view = node.runtime.inject(container.cdi_devices)
        assert all(view.opens(f"/dev/{node.machine.entry(slot)}") for slot in (A, B, C))


async def test_22_a_flapping_device_is_trusted_only_once_it_has_been_well_for_a_while() -> None:
    """One fault is forgiven at once; a second one soon after makes recovery wait.

    So flapping reads as one transition, not as one per flap.
    """
    async with a_node(A, B) as node, node.agent("--health.recovery-seconds=1") as agent:
        await node.listed(2)
        loop = asyncio.get_running_loop()
        node.machine.break_node(A, "missing")
        await agent.wait_for("device.faulted")
        node.machine.mend(A)
        first = await agent.wait_for("device.recovered")
        assert first.at - agent.events("device.faulted")[0].at <= 0.9
        for _ in range(5):
            faults = len(agent.events("device.faulted"))
            node.machine.break_node(A, "missing")
            await agent.wait_for(
                "device.faulted",
                lambda line, faults=faults: len(agent.events("device.faulted")) > faults,  # type: ignore[misc]
            )
            node.machine.mend(A)
            await asyncio.sleep(0.05)  # between two flaps
        mended_at = loop.time()
        await agent.wait_for(
            "device.recovered", lambda _: len(agent.events("device.recovered")) > 1
        )
        assert agent.events("device.recovered")[1].at - mended_at >= 0.9
        await node.listed(2)
        verdicts = [message.health[device_id(A)] for message in told(node.kubelet)]
        assert verdicts.count("Healthy") <= 3
        assert len(agent.events("device.recovered")) == 2
        assert all(m.health[device_id(B)] == "Healthy" for m in told(node.kubelet))


# --- 23 and 24: what is on the wire ---


class Bytes(CodecBase):
    """Messages as they are on the wire."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: type[object]) -> bytes:
        return message

    def decode(self, data: bytes, message_type: type[object]) -> bytes:
        return data


def fields(message: bytes) -> list[tuple[int, bytes | int]]:
    """Take a protobuf message apart: field numbers, with varints and bytes as they stand."""

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (message[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if not message[at - 1] & 0x80:
                return value, at

    found: list[tuple[int, bytes | int]] = []
    at = 0
    while at < len(message):
        tag, at = varint(at)
        value, at = varint(at)
        if tag & 7 == 2:
            found.append((tag >> 3, message[at : at + value]))
            at += value
        else:
            assert tag & 7 == 0
            found.append((tag >> 3, value))
    return found


async def listed_bytes(node: Node) -> dict[str, bytes]:
    """Open a stream and keep each Device of the first list as the bytes that it came as."""
    async with dialled(node, Bytes()) as channel:
        method: UnaryStreamMethod[bytes, bytes] = UnaryStreamMethod(
            channel, "/v1beta1.DevicePlugin/ListAndWatch", bytes, bytes
        )
        async with method.open() as stream:
            await stream.send_message(b"", end=True)
            message = await stream.recv_message()
            assert message is not None
            await stream.cancel()
    devices = {}
    for number, device in fields(message):
        assert number == 1
        assert isinstance(device, bytes)
        (id_,) = [value for number, value in fields(device) if number == 1]
        assert isinstance(id_, bytes)
        devices[id_.decode()] = device
    return devices


async def test_23_health_is_spelled_in_the_two_words_that_the_kubelet_compares_with() -> None:
    """`Healthy` and `Unhealthy`, letter for letter: any other text means unhealthy."""
    async with a_node(A, B, C, D) as node:
        node.kubelet.faults.never_list = True
        async with node.agent() as agent:
            await agent.wait_for("plugin.registered")
            before = await listed_bytes(node)
            node.machine.break_node(A, "fifo")
            node.machine.pull(B)
            for slot in (A, B):
                await agent.wait_for(
                    "device.faulted",
                    lambda line, slot=slot: line["device"]["id"] == device_id(slot),  # type: ignore[misc]
                )
            after = await listed_bytes(node)
            node.kubelet.drop_stream(RESOURCE)  # else the agent waits for it to hang up
    said = [
        {id_: dict(fields(device))[2] for id_, device in devices.items()}
        for devices in (before, after)
    ]
    assert said[0] == {device_id(slot): b"Healthy" for slot in (A, B, C, D)}
    assert said[1] == said[0] | {device_id(slot): b"Unhealthy" for slot in (A, B)}


async def test_24_numa_node_0_is_on_the_wire_and_an_unknown_one_is_not() -> None:
    """Node 0 must be sent though 0 is proto3's default; unknown is no topology at all.

    -1 is the kubelet's own mark for "no affinity", and an empty topology broke old kubelets.
    """
    async with a_node() as node:
        node.machine.plug(A, numa_node=0)
        node.machine.plug(B, numa_node=1)
        node.machine.plug(C, numa_node=-1)
        node.machine.plug(D)
        node.machine.plug(E)
        node.machine.set_attribute(D, "numa_node", None, of="function")
        node.machine.set_attribute(E, "numa_node", b"\xff\n", of="function")
        async with node.agent() as agent:
            await node.listed(5)
            seen = {d.id: (d.numa, d.topology) for d in node.kubelet.messages[-1].devices}
            devices = await listed_bytes(node)
            assert agent.garbage == []
    topologies = {
        id_: [value for number, value in fields(device) if number == 3]
        for id_, device in devices.items()
    }
    assert bytes.fromhex("1a020a00") in devices[device_id(A)]
    assert topologies == {
        device_id(A): [bytes.fromhex("0a00")],
        device_id(B): [bytes.fromhex("0a020801")],
        device_id(C): [],
        device_id(D): [],
        device_id(E): [],
    }
    assert seen == {
        device_id(A): ((0,), True),
        device_id(B): ((1,), True),
        device_id(C): ((), False),
        device_id(D): ((), False),
        device_id(E): ((), False),
    }


# --- 25: a driver that hangs ---


async def test_25_a_hung_driver_costs_its_own_device_and_no_call_has_to_wait(
    record_property: Callable[[str, object], None],
) -> None:
    """While a look at one device hangs, every call is answered; then that device is unhealthy.

    There is one event loop: a look on it would stop the kubelet, which waits without a deadline.
    """
    async with a_node(A, B, C) as node:
        flags = ("--host.resync-seconds=0.3", "--host.scan-timeout-seconds=0.6", *NO_PATIENCE)
        async with node.agent(*flags) as agent, dialled(node) as channel:
            await node.listed(3)
            loop = asyncio.get_running_loop()
            plugin = deviceplugin.DevicePluginStub(channel)
            others = [device_id(B), device_id(C)]
            taken: list[float] = []

            async def call_everything() -> None:
                preference = deviceplugin.ContainerPreferredAllocationRequest(
                    available_device_ids=others, allocation_size=1
                )
                wanted = deviceplugin.ContainerAllocateRequest(device_ids=others)
                for call in (
                    lambda: plugin.get_device_plugin_options(deviceplugin.Empty()),
                    lambda: plugin.get_preferred_allocation(
                        deviceplugin.PreferredAllocationRequest(container_requests=[preference])
                    ),
                    lambda: plugin.allocate(
                        deviceplugin.AllocateRequest(container_requests=[wanted])
                    ),
                    lambda: plugin.pre_start_container(
                        deviceplugin.PreStartContainerRequest(device_ids=others)
                    ),
                ):
                    started_at = loop.time()
                    await call()
                    taken.append(loop.time() - started_at)

            with wedged(node.machine, A) as wedge:
                await asyncio.to_thread(wedge.wait)
                wedged_at = loop.time()
                while health(node)[device_id(A)] == "Healthy":
                    await call_everything()
                    assert loop.time() < wedged_at + 8
                noticed_after = loop.time() - wedged_at
                faulted = await agent.wait_for("device.faulted")
                assert faulted.fields["device"]["id"] == device_id(A)
                assert faulted.fields["device"]["faults"][0]["code"] == "device.unresponsive"
                node.machine.plug(D)  # and the rest of the machine is still looked at
                await node.listed(3, capacity=4)
                await call_everything()
            await node.listed(4, capacity=4)
            record_property("calls_while_wedged", len(taken))
            record_property("median_ms", 1000 * statistics.median(taken))
            record_property("longest_ms", 1000 * max(taken))
            record_property("noticed_after_seconds", noticed_after)
            assert statistics.median(taken) <= 0.1
            assert max(taken) <= 0.5
            assert noticed_after <= 4.0
        for message in told(node.kubelet):
            assert {message.health[id_] for id_ in others} == {"Healthy"}


async def test_25_with_a_hung_driver_the_agent_starts_serves_the_others_and_stops_in_time() -> None:
    """A driver that hangs keeps neither the first list nor the end of the process waiting."""
    async with a_node(A, B, C) as node:
        with wedged(node.machine, A):
            async with node.agent("--host.scan-timeout-seconds=0.5") as agent:
                await node.listed(2, capacity=2)
                assert device_id(A) not in health(node)
                found = await agent.wait_for("fault.found")
                assert found.fields["fault"]["code"] == "device.unresponsive"
                started_at = asyncio.get_running_loop().time()
                assert await agent.stop() == 0
                assert asyncio.get_running_loop().time() - started_at <= 5.0
