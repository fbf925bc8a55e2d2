"""Conformance C, statements 26 to 32: what a container receives, and what keeps working afterwards.

The agent is `hailo-agent run` as its own process. Pods come through the simulated kubelet, and what
they were given is tried out by the simulated runtime, which reads the spec from disk with a reader
of its own. Each docstring restates its statement and why the kubelet makes it one.
"""

import asyncio
import contextlib
import itertools
import os
import random
import re
import statistics
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pytest
from grpclib.client import Channel
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hailo_agent.aio.latest import Latest
from hailo_agent.aio.tally import Tally
from hailo_agent.core.cdi import Place
from hailo_agent.core.device import Device, DeviceId
from hailo_agent.core.grant import Delivery
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.offer import ResourceNames
from hailo_agent.kubelet.deviceplugin import DevicePlugin, Terms
from hailo_agent.rpc.endpoint import serving
from hailo_agent.sim.inotify import Inotify
from hailo_agent.sim.kubelet import AdmissionFailed, Container
from hailo_agent.sim.machine import SOC, slot_address
from hailo_agent.sim.node import RESOURCE, Node, temporary_root
from hailo_agent.sim.runtime import ContainerNotCreated, ContainerView, Runtime
from hailo_agent.wire import deviceplugin
from tests.conformance.support import ignored

HAILO_10H: Final = "1e60:45c4"
A, B, C, D = (slot_address(number) for number in range(4))

# Verdicts follow the evidence at once, for tests that are about something else than patience.
NO_PATIENCE: Final = ("--health.flap-window-seconds=0.01", "--health.recovery-seconds=0.01")
IN_OPEN_OR_ACCESS: Final = 0x21
ANNOTATION_KEY: Final = re.compile(r"cdi\.k8s\.io/[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


def device_id(address: str) -> str:
    return "pci-" + re.sub(r"[:.]", "-", address)


def name(address: str) -> str:
    return f"{RESOURCE}={device_id(address)}"


@asynccontextmanager
async def a_node(*slots: str) -> AsyncIterator[Node]:
    """A node with a 4.23 kernel driver and these slots taken by a Hailo-8 each."""
    async with temporary_root() as root, Node.build(root) as node:
        node.machine.load("4.23")
        for slot in slots:
            node.machine.plug(slot)
        yield node


@asynccontextmanager
async def plugin(socket: Path) -> AsyncIterator[deviceplugin.DevicePluginStub]:
    """A connection of our own to a plugin's socket, beside the kubelet's."""
    channel = Channel(path=str(socket))
    try:
        yield deviceplugin.DevicePluginStub(channel)
    finally:
        channel.close()


def socket_of(node: Node) -> Path:
    return node.plugin_dir / "hailo.ai_npu.sock"


def request(*containers: Sequence[str]) -> deviceplugin.AllocateRequest:
    return deviceplugin.AllocateRequest(
        container_requests=[
            deviceplugin.ContainerAllocateRequest(device_ids=list(ids)) for ids in containers
        ]
    )


def start(
    node: Node, container: Container, traits: Mapping[str, Any] = MappingProxyType({})
) -> ContainerView:
    """Start a container on a runtime that comes up now, and knows what is on disk now."""
    with Runtime([node.cdi_dir], root=node.machine.root, **traits) as fresh:
        return fresh.inject(
            container.cdi_devices, annotations=container.annotations, devices=container.devices
        )


def opened(node: Node, view: ContainerView) -> set[str]:
    """Tell by slot which devices a container can really open: path, cgroup and number agree."""
    numbers = {node.machine.number(slot): slot for slot in node.machine.entries}
    return {
        numbers[made.number]
        for path, made in view.nodes.items()
        if made.number in numbers and view.opens(path)
    }


# --- 26: the answer to Allocate ---


class Opens(Inotify):
    """Who opens or reads what is in a directory."""

    def add(self, path: Path) -> int:
        add_watch = self._libc.inotify_add_watch
        return self._checked(add_watch(self.fd, os.fsencode(path), IN_OPEN_OR_ACCESS))


async def test_26_allocate_answers_each_container_in_order_and_from_memory(
    record_property: Callable[[str, object], None],
) -> None:
    """One answer per container request, in its order, within 50 ms, without touching hardware.

    The kubelet waits for it in its sync loop, without a deadline.
    """
    quiet = (
        "--host.resync-seconds=3600",
        "--host.inotify=false",
        "--host.uevents=false",
        "--log.level=debug",
    )
    async with a_node(A, B, C) as node, node.agent(*quiet) as agent, plugin(socket_of(node)) as p:
        await node.listed(3)
        opens = Opens()
        for slot in (A, B, C):
            opens.add(node.machine.function_directory(slot))
            entry = node.machine.entry_directory(slot)
            assert entry is not None
            opens.add(entry)
        opens.add(node.machine.dev)
        loop = asyncio.get_running_loop()
        taken = []
        try:
            for slots in itertools.islice(itertools.cycle(itertools.permutations((A, B, C))), 30):
                one, two, three = map(device_id, slots)
                started_at = loop.time()
                answer = await p.allocate(request([one], [two, three], [three]))
                taken.append(loop.time() - started_at)
                assert [
                    [device.name.partition("=")[2] for device in each.cdi_devices]
                    for each in answer.container_responses
                ] == [[one], [two, three], [three]]
            await agent.wait_for("machine.reconciled", lambda line: "granted" in line["reasons"])
            assert list(opens.read()) == []
            record_property("median_ms", 1000 * statistics.median(taken))
            assert statistics.median(taken) <= 0.05
            agent.process.send_signal(1)  # a look does open things: the watch was not blind
            await agent.wait_for("machine.reconciled", lambda line: "hangup" in line["reasons"])
            assert list(opens.read()) != []
        finally:
            opens.close()


# --- 27: refusals ---


async def test_27_a_refusal_names_the_device_and_why_and_hands_out_nothing() -> None:
    """Unknown, ill or gone: the call fails as a whole, in words that a person can use.

    A half-granted pod would run with fewer devices than it asked for; and what is no gRPC error
    of its own arrives as "Internal Server Error".
    """
    async with a_node(A, B, C, D) as node, node.agent() as agent, plugin(socket_of(node)) as p:
        await node.listed(4)
        node.machine.break_node(A, "symlink")
        node.machine.pull(B)
        await node.listed(2, capacity=4)
        cases = {
            "pci-00ff-01-00-0": "no device",
            "": "no device",
            "hailo0": "no device",
            "all": "no device",
            device_id(A): "symlink",
            device_id(B): "does not have it any more",
        }
        for bad, why in cases.items():
            for containers in ([[bad]], [[device_id(C)], [bad]], [[device_id(C), bad]]):
                with pytest.raises(GRPCError) as refused:
                    await p.allocate(request(*containers))
                assert refused.value.status is not Status.UNKNOWN
                assert refused.value.message is not None
                assert bad in refused.value.message
                assert why in refused.value.message
                assert RESOURCE in refused.value.message
        await p.allocate(request([device_id(C)]))
        await agent.wait_for("allocation.granted")
        assert len(agent.events("allocation.granted")) == 1
        assert len(agent.events("allocation.refused")) == 3 * len(cases)


async def test_27_the_words_of_a_refusal_are_what_the_pod_s_owner_reads() -> None:
    """What the kubelet took for healthy may have failed meanwhile: then the pod's status says so.

    After a list has been sent the next one waits for a second; the inventory knows at once.
    """
    async with a_node(A, B) as node, node.agent(*NO_PATIENCE) as agent:
        said = ""
        for attempt in range(4):  # on a machine that is too slow the kubelet learns it in time
            await node.listed(2)
            if attempt:
                await node.kubelet.quiet(1.0)
            node.machine.break_node(A, "missing")
            await node.listed(1, capacity=2)
            faults = len(agent.events("device.faulted"))
            node.machine.break_node(B, "missing")
            await agent.wait_for(
                "device.faulted",
                lambda _, faults=faults: len(agent.events("device.faulted")) > faults,  # type: ignore[misc]
            )
            with pytest.raises(AdmissionFailed) as failure:
                await node.kubelet.admit(f"default/pod-{attempt}", {RESOURCE: 1})
            said = node.kubelet.pods[f"default/pod-{attempt}"].message
            assert said == str(failure.value)
            if "rpc error" in said:
                break
            node.machine.mend(A)
            node.machine.mend(B)
        assert "Pod was rejected: Allocate failed due to rpc error" in said
        assert device_id(B) in said
        assert "does not exist" in said
        assert node.kubelet.crashes == []


@dataclass
class Visitors:
    """Pods that come and go: what they got, and what they were told when they got nothing."""

    granted: dict[str, int] = field(default_factory=dict)
    """How many lists there had been when an id was first granted."""
    refusals: list[str] = field(default_factory=list)

    async def come_and_go(self, node: Node, ends_at: float) -> None:
        for number in itertools.count():
            if asyncio.get_running_loop().time() >= ends_at:
                return
            try:
                container = await node.kubelet.admit(f"default/{number}", {RESOURCE: 1})
            except AdmissionFailed as failure:
                self.refusals.append(failure.why)
                await node.kubelet.quiet(0.01)
            else:
                (id_,) = container.device_ids[RESOURCE]
                self.granted.setdefault(id_, node.kubelet.message_count)
            if number >= 2:
                await node.kubelet.remove(f"default/{number - 2}")


async def stir(node: Node, slots: Sequence[str], ends_at: float) -> None:
    """Pull devices and plug them in again, one after the other, until it is time."""
    chance = random.Random(27)
    while asyncio.get_running_loop().time() < ends_at:
        slot = chance.choice(slots)
        node.machine.pull(slot)
        await asyncio.sleep(0.02)  # the pace of the storm
        node.machine.plug(slot)
        await asyncio.sleep(0.02)


async def test_27_pods_come_while_devices_come_and_go_and_no_id_is_lost_under_way() -> None:
    """An id stays listed while an Allocate naming it is under way, whatever happens to the device.

    Kubelet 1.36 follows a pointer to the listed device once Allocate has succeeded: were it
    dropped meanwhile, the kubelet would die.
    """
    slots = (A, B, C, D)
    visitors = Visitors()
    async with a_node(*slots) as node, node.agent(*NO_PATIENCE):
        await node.listed(4)
        ends_at = asyncio.get_running_loop().time() + 1.5
        async with asyncio.TaskGroup() as group:
            group.create_task(stir(node, slots, ends_at))
            group.create_task(visitors.come_and_go(node, ends_at))
        await node.listed(4, capacity=4)
        assert node.kubelet.crashes == []
        assert len(visitors.granted) >= 2
        messages = list(node.kubelet.messages)
        assert len(messages) >= 3
        for id_, since in visitors.granted.items():
            assert all(id_ in message.health for message in messages[since - 1 :])
        refused_by_us = [why for why in visitors.refusals if why.startswith("rpc error")]
        assert all("is not available: " in why and "pci-0000-" in why for why in refused_by_us)


# --- 28: what is in an answer ---


async def test_28_what_is_granted_resolves_and_exists_at_that_moment() -> None:
    """Every CDI name is on disk when Allocate answers, every path is a device node, access is rw.

    Runtimes do not look again because a name is missing, and copy the permissions into the cgroup
    rule as they are.
    """
    async with a_node() as node, node.agent():
        for number, slot in enumerate((A, B)):
            node.machine.plug(slot)
            await node.listed(number + 1, capacity=number + 1)
            container = await node.kubelet.admit(f"default/{number}", {RESOURCE: 1})
            view = start(node, container)
            assert container.cdi_devices == (name(slot),)
            assert opened(node, view) == {slot}
            assert view.class_entries("hailo_chardev") == (node.machine.entry(slot),)
            assert [(d.container_path, d.permissions) for d in container.devices] == [
                (f"/dev/{node.machine.entry(slot)}", "rw")
            ]
            assert opened(node, start(node, container, IGNORES_CDI)) == {slot}
            assert {rule.access for rule in view.cgroup} == {"rw"}
            # and for a runtime that has been up all along
            assert node.runtime.inject(container.cdi_devices).nodes == view.nodes


@pytest.mark.parametrize("delivery", ["cri", "annotation"])
async def test_28_nothing_in_an_answer_expires_while_the_pod_lives(delivery: str) -> None:
    """A container starts again years later from the first answer, with the device it was given.

    The kubelet never asks again. Meanwhile the driver may have been reloaded, with another major
    and in another order: what was hailo0 then is another pod's device now.
    """
    flags = (f"--runtime.delivery={delivery}", *NO_PATIENCE)
    async with a_node(A, B) as node, node.agent(*flags):
        await node.listed(2)
        pods = ("default/one", "default/two")
        held = {}
        for pod in pods:
            container = await node.kubelet.admit(pod, {RESOURCE: 1})
            (held[pod],) = opened(node, start(node, container))
        assert set(held.values()) == {A, B}
        before = dict(node.machine.entries)
        node.machine.reload("4.23", order=(B, A))
        assert node.machine.entry(A) == before[B]
        await _settled(node)
        for pod in pods:
            again = await node.kubelet.restart_container(pod)
            view = start(node, again)
            assert opened(node, view) == {held[pod]}
            assert view.class_entries("hailo_chardev") == (node.machine.entry(held[pod]),)


async def _settled(node: Node) -> None:
    """Wait until spec and links on disk name both devices where they are now.

    The log tells of the spec, and the links come after it.
    """
    async with asyncio.timeout(10):
        while not (_spec_is_settled(node) and _links_are_settled(node)):  # noqa: ASYNC110 - files
            await asyncio.sleep(0.01)


def _spec_is_settled(node: Node) -> bool:
    with (
        Runtime([node.cdi_dir], root=node.machine.root) as fresh,
        contextlib.suppress(ContainerNotCreated),
    ):
        return all(opened(node, fresh.inject([name(slot)])) == {slot} for slot in (A, B))
    return False


def _links_are_settled(node: Node) -> bool:
    links = node.machine.root / "run/hailo-agent/devices"
    return not links.exists() or all(
        (links / device_id(slot)).readlink().name == node.machine.entry(slot) for slot in (A, B)
    )


async def test_28_by_default_a_restarted_container_is_not_given_another_pods_device() -> None:
    """What the default hands out must not expire either: a path may become another pod's device.

    While its own device is away, a container had better not start.
    """
    async with a_node(A, B) as node, node.agent(*NO_PATIENCE):
        await node.listed(2)
        container = await node.kubelet.admit("default/one", {RESOURCE: 1})
        (held,) = opened(node, start(node, container))
        entry = node.machine.entry(held)
        node.machine.reload("4.23", order=(B, A))
        await _settled(node)
        again = await node.kubelet.restart_container("default/one")
        for traits in ({}, IGNORES_CDI):
            assert opened(node, start(node, again, traits)) == {held}
        for slot in (A, B):
            node.machine.pull(slot)
        assert node.machine.plug(C) == "hailo0"
        assert node.machine.plug(D) == "hailo1"
        assert entry in {"hailo0", "hailo1"}, "a stranger has the old path now"
        await node.listed(2, capacity=4)
        for traits in ({}, IGNORES_CDI):
            with pytest.raises(ContainerNotCreated):
                start(node, await node.kubelet.restart_container("default/one"), traits)


# --- 29: ways of delivery and runtimes ---

RUNTIMES: Final[Mapping[str, Mapping[str, Any]]] = {
    "containerd 1.6": {"cdi": "ignored", "newest": "0.5.0"},
    "containerd 1.7 as installed": {"cdi": "ignored", "newest": "0.5.0"},
    "containerd 1.7.0, CDI on": {"reads_cri": False, "newest": "0.5.0"},
    "containerd 1.7.11, CDI on": {"newest": "0.5.0", "drops_duplicates": False},
    "containerd 2.0": {"newest": "0.8.0"},
    "containerd 2.3": {},
    "CRI-O 1.26": {"reads_cri": False, "newest": "0.5.0", "drops_duplicates": False},
    "CRI-O 1.31": {"newest": "0.8.0", "drops_duplicates": False},
}
IGNORES_CDI: Final = {"cdi": "ignored"}
SAYS_SO: Final = {"cdi": "refused"}
"""containerd 2.3 with CDI switched off: the one that does not stay silent."""


@dataclass(frozen=True)
class Way:
    """A choice of delivery, a runtime version that the agent is told of, and what it should say."""

    delivery: tuple[str, ...]
    version: str = ""
    warning: str = ""
    flag: bool = True


WAYS: Final = (
    Way(("cri", "devicespec"), "containerd://1.7.13", "enable_cdi.*get their devnodes", flag=False),
    Way(("cri",), "containerd://1.7.13", "enable_cdi.*without a device.*add devicespec"),
    Way(("annotation",), "cri-o://1.27.1"),
    Way(("devicespec",), "docker://20.10.5"),
    Way(("cri", "annotation"), "containerd://1.6.30", "before 1.7.*without a device"),
    Way(("annotation", "devicespec"), "containerd://2.1.4"),
    Way(("cri", "annotation", "devicespec"), "cri-o://1.31.0"),
)


async def _delivered(way: Way, turn: asyncio.Semaphore) -> None:
    async with turn:
        await _delivered_now(way)


async def _delivered_now(way: Way) -> None:
    flags = [f"--runtime.version={way.version}"]
    if way.flag:
        flags.append(f"--runtime.delivery={','.join(way.delivery)}")
    async with a_node(A, B) as node, node.agent(*flags) as agent:
        await node.listed(2, within=30)
        registered = await agent.wait_for("plugin.registered")
        warnings = agent.events("runtime.doubted")
        assert len(warnings) == (1 if way.warning else 0), way
        for warning in warnings:
            assert warning.fields["log.level"] == "warning"
            assert re.search(way.warning, warning.fields["reason"]), warning.fields["reason"]
            assert agent.lines.index(warning) < agent.lines.index(registered)
        container = await node.kubelet.admit("default/pod", {RESOURCE: 1})
        (id_,) = container.device_ids[RESOURCE]
        (slot,) = (slot for slot in (A, B) if device_id(slot) == id_)
        assert container.cdi_devices == ((name(slot),) if "cri" in way.delivery else ())
        assert list(container.annotations.values()) == (
            [name(slot)] if "annotation" in way.delivery else []
        )
        assert [device.container_path for device in container.devices] == (
            [f"/dev/{node.machine.entry(slot)}"] if "devicespec" in way.delivery else []
        )
        assert node.spec_path.exists() == (way.delivery != ("devicespec",))
        for label, traits in RUNTIMES.items():
            names = ("cri" in way.delivery and traits.get("reads_cri", True)) or (
                "annotation" in way.delivery
            )
            usable = "devicespec" in way.delivery or (names and traits.get("cdi") != "ignored")
            got = opened(node, start(node, container, traits))
            assert got == ({slot} if usable else set()), (way, label)
            if not way.flag:
                assert usable, "the default has to give a usable node everywhere"
        if way.delivery == ("devicespec",):
            assert opened(node, start(node, container, SAYS_SO)) == {slot}
        else:
            with pytest.raises(ContainerNotCreated, match="CDI is disabled"):
                start(node, container, SAYS_SO)


async def test_29_every_way_of_delivery_gives_a_usable_node_where_it_should() -> None:
    """CRI field, annotation, device nodes: alone or together, as configured.

    containerd before 2.0 ignores CDI without a word unless it is switched on, so the default works
    without it; and the agent says at the start where the runtime's version gives cause for doubt.
    """
    turn = asyncio.Semaphore(3)  # more agents at once do not make a small machine faster
    async with asyncio.TaskGroup() as group:
        for way in WAYS:
            group.create_task(_delivered(way, turn))


# --- 30: the annotation ---


async def test_30_annotations_have_keys_that_kubernetes_takes_and_the_names_of_the_cri_field() -> (
    None
):
    """One key per resource of a container, of at most 63 characters, and names without a space.

    The kubelet keeps the first of two equal keys; one bad name in a value fails the container.
    """
    flags = (
        "--runtime.delivery=cri,annotation",
        '--resource.names={"hailo-8": "hailo.ai/hailo-8", "hailo-10h": "hailo.ai/hailo-10h"}',
    )
    async with a_node(A, B, "10000:e1:1f.7") as node:
        node.machine.load("5.3")
        node.machine.plug(D, pci_id=HAILO_10H)
        node.machine.load("integrated-5.3")
        async with node.agent(*flags):
            wanted = {"hailo.ai/hailo-8": 3, "hailo.ai/hailo-10h": 1, RESOURCE: 1}
            for resource, count in wanted.items():
                await node.listed(count, resource=resource)
            container = await node.kubelet.admit("default/pod", wanted)
            assert len(container.annotations) == 3
            for key in container.annotations:
                assert ANNOTATION_KEY.fullmatch(key), key
                assert "_" in key.partition("/")[2]
            names = [n for value in container.annotations.values() for n in value.split(",")]
            assert not any(" " in value for value in container.annotations.values())
            assert sorted(names) == sorted(container.cdi_devices)
            assert len(names) == 5
            with Runtime([node.cdi_dir], root=node.machine.root, reads_cri=False) as runtime:
                view = runtime.inject(annotations=container.annotations)
            assert opened(node, view) == {A, B, "10000:e1:1f.7", D, SOC}


# --- 31: preferences ---

IDS: Final = tuple(device_id(slot_address(number)) for number in range(8))
NO_IDS: Final = ("pci-00ff-01-00-0", "", "all", "ü", "x" * 300)


@st.composite
def questions(draw: st.DrawFn) -> deviceplugin.ContainerPreferredAllocationRequest:
    """Whatever may be asked: ids we never had, sizes that do not fit, in any order."""
    available = draw(st.lists(st.sampled_from([*IDS, *NO_IDS]), unique=True))
    must = draw(st.lists(st.sampled_from(available), unique=True)) if available else []
    size = draw(
        st.one_of(st.integers(0, len(available) + 2), st.sampled_from([-(2**31), -1, 2**31 - 1]))
    )
    return deviceplugin.ContainerPreferredAllocationRequest(
        available_device_ids=available, must_include_device_ids=must, allocation_size=size
    )


async def test_31_a_preference_is_of_the_available_ids_holds_the_mandatory_ones_and_fits() -> None:
    """Every question has an answer, the same each time: of what may be chosen, as many as asked.

    An error would fail the pod.
    """
    loop = asyncio.get_running_loop()
    async with a_node() as node:
        for number in range(8):  # four to a NUMA node, two to a root port's switch
            node.machine.plug(
                slot_address(number),
                numa_node=number // 4,
                root_port=f"0000:00:{number // 2:02x}.0/0000:{0x40 + number:02x}:00.0",
            )
        async with node.agent() as agent, plugin(socket_of(node)) as p:
            await node.listed(8)

            async def prefer(
                *asked: deviceplugin.ContainerPreferredAllocationRequest,
            ) -> list[list[str]]:
                answer = await p.get_preferred_allocation(
                    deviceplugin.PreferredAllocationRequest(container_requests=list(asked)),
                    timeout=5,
                )
                return [each.device_ids for each in answer.container_responses]

            @settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
            @given(question=questions(), chance=st.randoms(use_true_random=False))
            def holds(
                question: deviceplugin.ContainerPreferredAllocationRequest, chance: random.Random
            ) -> None:
                available = question.available_device_ids
                must, size = question.must_include_device_ids, question.allocation_size
                shuffled = deviceplugin.ContainerPreferredAllocationRequest(
                    available_device_ids=chance.sample(available, len(available)),
                    must_include_device_ids=must,
                    allocation_size=size,
                )
                asking = prefer(question, question, shuffled)
                first, second, third = asyncio.run_coroutine_threadsafe(asking, loop).result(10)
                assert first == second == third
                assert set(first) <= set(available)
                assert len(set(first)) == len(first)
                assert len(first) == max(0, min(size, len(available)))
                if size >= len(must):
                    assert set(must) <= set(first)

            await asyncio.to_thread(holds)
            (pair,) = await prefer(
                deviceplugin.ContainerPreferredAllocationRequest(
                    available_device_ids=[IDS[0], IDS[3], IDS[5], IDS[4]], allocation_size=2
                )
            )
            assert pair == [IDS[4], IDS[5]], "one NUMA node and one root port"
            assert agent.events("preference.failed") == []


async def test_31_a_preference_that_fails_inside_is_the_first_ids_that_fit() -> None:
    """Trouble of our own does not fail the pod either: then any ids do.

    The servicer is the real one, on a socket; only what it holds to be true is impossible.
    """
    impossible: Any = None
    broken = replace(Device(id=DeviceId(IDS[0])), topology=impossible)
    terms = Terms(
        resource=RESOURCE,
        names=ResourceNames(default=RESOURCE),
        delivery=frozenset({Delivery.CRI}),
        place=Place(),
        granted=ignored,
        tally=Tally(),
    )
    servicer = DevicePlugin(Latest(Inventory(devices=(broken,))), terms)
    async with (
        temporary_root() as root,
        serving(root / "x.sock", [servicer], edge="kubelet"),
        plugin(root / "x.sock") as p,
    ):
        answer = await p.get_preferred_allocation(
            deviceplugin.PreferredAllocationRequest(
                container_requests=[
                    deviceplugin.ContainerPreferredAllocationRequest(
                        available_device_ids=list(IDS[:5]),
                        must_include_device_ids=[IDS[3]],
                        allocation_size=2,
                    )
                ]
            )
        )
    assert [each.device_ids for each in answer.container_responses] == [[IDS[3], IDS[0]]]


# --- 32: without an agent ---


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
async def test_32_a_container_restarts_while_no_agent_runs(end: str) -> None:
    """What running pods need is on disk and in /dev, never in the agent's memory."""
    async with a_node(A, B) as node:
        async with node.agent("--runtime.delivery=cri,annotation,devicespec") as agent:
            await node.listed(2)
            pods = ("default/one", "default/two")
            held = {}
            for pod in pods:
                container = await node.kubelet.admit(pod, {RESOURCE: 1})
                (held[pod],) = opened(node, start(node, container))
            await (agent.stop() if end == "SIGTERM" else agent.kill())
        await node.kubelet.wait_for(lambda: not node.kubelet.resource(RESOURCE).connected)
        for pod in pods:
            again = await node.kubelet.restart_container(pod)
            assert opened(node, start(node, again)) == {held[pod]}
            assert opened(node, start(node, again, IGNORES_CDI)) == {held[pod]}
            assert opened(node, node.runtime.inject(again.cdi_devices)) == {held[pod]}
        await node.kubelet.restart()
        for pod in pods:
            again = await node.kubelet.restart_container(pod)
            assert opened(node, start(node, again)) == {held[pod]}
