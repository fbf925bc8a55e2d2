"""Conformance A, statements 1 to 15: how the agent comes to the kubelet, stays with it and leaves.

The agent is `hailo-agent run` as its own process, the kubelet is the simulated one, and between
them are real unix sockets. Each docstring retells its statement and says why the kubelet needs it.
"""

import asyncio
import itertools
import re
import shutil
import signal
import socket
import string
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hailo_agent.aio.latest import Latest
from hailo_agent.aio.tally import Tally
from hailo_agent.core.cdi import Place
from hailo_agent.core.grant import Delivery
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.offer import ResourceNames
from hailo_agent.errors import ConfigError
from hailo_agent.kubelet.deviceplugin import Terms
from hailo_agent.kubelet.session import Session
from hailo_agent.settings import load
from hailo_agent.sim import wedge
from hailo_agent.sim.devicemanager import Refused
from hailo_agent.sim.inotify import CREATE, MOVED_TO, Inotify
from hailo_agent.sim.kubelet import CHECKPOINT, KubeletVersion, is_extended_resource_name
from hailo_agent.sim.machine import slot_address
from hailo_agent.sim.node import AgentProcess, Node, temporary_root
from hailo_agent.wire import deviceplugin
from tests.conformance.support import (
    VERSIONS,
    a_node,
    an_agent,
    attentive,
    becomes_ready,
    calling,
    connected,
    endpoint,
    eventually,
    has_hung_up,
    identity,
    ignored,
    inventory,
    is_ready,
    is_socket,
    part,
    says,
    sockets,
    stalled,
)

NPU: Final = "hailo.ai/npu"
EIGHT: Final = "hailo.ai/hailo-8"
TEN: Final = "hailo.ai/hailo-10h"
TWO_RESOURCES: Final = (
    f"--resource.name={NPU}",
    f"--resource.names=hailo-8={EIGHT}",
)
PLUGIN: Final = f"plugin {NPU}"
GET_OPTIONS: Final = "/v1beta1.DevicePlugin/GetDevicePluginOptions"
LIST_AND_WATCH: Final = "/v1beta1.DevicePlugin/ListAndWatch"
WATCH: Final = "/hailo.agent.v1.DeviceEvents/Watch"
NO_POLLS: Final = "--kubelet.pod-resources-seconds=3600"
NO_UEVENTS: Final = "--host.uevents=false"
"""The kernel's own are not simulated: whatever else happens on this host would bring a look."""
SOON: Final = 1.0
"""Seconds; what the statements allow for coming back to a kubelet."""
AT_ONCE: Final = 1.0
"""Seconds; what is a matter of milliseconds, on a machine that others use too."""

each_version = pytest.mark.parametrize("version", VERSIONS)


def accepted(node: Node, resource: str = NPU) -> int:
    return sum(r.accepted and r.resource == resource for r in node.kubelet.registrations)


def arrivals(node: Node, resource: str = NPU) -> list[float]:
    return [r.at for r in node.kubelet.registrations if r.resource == resource]


async def registered(node: Node, times: int, resource: str = NPU, *, within: float = 10.0) -> None:
    await node.kubelet.wait_for(lambda: accepted(node, resource) >= times, within=within)


async def settled(agent: AgentProcess, seconds: float = 0.7) -> None:
    """Wait until the agent has written nothing for so long; with debug, that it has not looked."""
    async with asyncio.timeout(20):
        seen = -1
        while seen != len(agent.lines):
            seen = len(agent.lines)
            await asyncio.sleep(seconds)


def has_stream(node: Node, resource: str = NPU) -> bool:
    return node.kubelet.streams(resource) == 1


@asynccontextmanager
async def running(nodes: Sequence[Node], *flags: str) -> AsyncIterator[list[AgentProcess]]:
    """An agent on each node, all of them up before anything is measured."""
    async with AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(an_agent(node, *flags)) for node in nodes]
        await asyncio.gather(*(agent.wait_for("agent.started", within=30) for agent in agents))
        yield agents


# --- 1: serve, call ourselves, register -----------------------------------------------------------


async def test_01_the_agent_calls_its_own_socket_before_the_kubelet_hears_of_it() -> None:
    """With kubelet.sock there at start: bind, call GetDevicePluginOptions oneself, then Register.

    The kubelet dials back inside Register. This one refuses at the door and never calls, so the
    only GetDevicePluginOptions that the agent can have answered by then is its own.
    """
    came: list[tuple[float, bool]] = []

    async def door(request: deviceplugin.RegisterRequest) -> None:
        arrived_at = time.time()
        with connected(node.plugin_dir / request.endpoint):
            came.append((arrived_at, is_socket(node.plugin_dir / request.endpoint)))
        raise Refused("not today")

    async with a_node() as node:
        attentive(node).door = door
        async with an_agent(node, "--log.level=debug") as agent:
            await node.kubelet.wait_for(lambda: came)
            line = await agent.wait_for(
                "rpc.answered", lambda fields: fields["rpc"]["method"] == GET_OPTIONS
            )
    arrived_at, was_socket = came[0]
    assert was_socket
    assert line.fields["rpc"]["status"] == "OK"
    assert datetime.fromisoformat(line.fields["@timestamp"]).timestamp() <= arrived_at


# --- 2: names -------------------------------------------------------------------------------------


async def test_02_each_resource_is_registered_by_version_bare_file_name_and_full_name() -> None:
    """Version is v1beta1; the endpoint a file name inside the directory, made of the full name.

    Two resources that differ in their domain alone must not share a socket: the kubelet joins the
    endpoint to its directory, and no later call says which resource it is about.
    """
    flags = ("--resource.name=a.example/npu", "--resource.names=hailo-8=b.example/npu")
    async with a_node() as node, an_agent(node, *flags):
        await registered(node, 1, "a.example/npu")
        await registered(node, 1, "b.example/npu")
        came = list(node.kubelet.registrations)
        assert {(r.version, r.resource) for r in came} == {
            ("v1beta1", "a.example/npu"),
            ("v1beta1", "b.example/npu"),
        }
        assert len({r.endpoint for r in came}) == len(came) == 2
        for registration in came:
            assert Path(registration.endpoint).name == registration.endpoint
            assert is_socket(node.plugin_dir / registration.endpoint)
            domain, _, name = registration.resource.partition("/")
            assert domain in registration.endpoint
            assert name in registration.endpoint


REFUSED_NAMES: Final = {
    "npu": "has no '/'",
    "kubernetes.io/npu": "contains 'kubernetes.io/'",
    "hailo.kubernetes.io/npu": "contains 'kubernetes.io/'",
    "requests.hailo.ai/npu": "begins with 'requests.'",
    "Hailo.ai/npu": "domain name",
    "hailo.ai/-npu": "after the '/'",
    "hailo.ai/a/b": "after the '/'",
    f"hailo.ai/{'n' * 64}": "64 characters after the '/'",
    f"{'a' * 245}/npu": "245 characters before the '/'",
}


def assert_clear(text: str, key: str, name: str, reason: str) -> None:
    """One line, that names the key, the value, what is wrong and what to do."""
    assert len(text.splitlines()) == 1, text
    assert key in text, text
    assert name[:60] in text, text
    assert reason in text, text
    assert re.search("; .*(use|write) ", text), text


@pytest.mark.parametrize("name", REFUSED_NAMES)
def test_02_a_name_that_the_kubelet_would_refuse_is_refused_with_a_clear_error(name: str) -> None:
    """A resource name is checked when the configuration is read, by the kubelet's own rules.

    Needed: a '/', no kubernetes.io/, no leading requests., and a qualified name.
    """
    assert not is_extended_resource_name(name)
    for key, text in (("resource.name", name), ("resource.names", f"hailo-8={name}")):
        with pytest.raises(ConfigError) as refusal:
            load(flags=[(f"--{key}", text)], environ={}, config=None)
        assert_clear(str(refusal.value), key, name, REFUSED_NAMES[name])


async def test_02_an_agent_with_such_a_name_ends_with_code_78_and_touches_nothing() -> None:
    """The error comes at start, on standard error, before there is a socket or a log."""
    for key, text, name in (
        ("resource.name", "requests.hailo.ai/npu", "requests.hailo.ai/npu"),
        ("resource.names", "hailo-8=npu", "npu"),
    ):
        async with temporary_root() as root:
            agent = await AgentProcess.start(f"--kubelet.plugin-dir={root}", f"--{key}={text}")
            assert await agent.wait(20.0) == 78
            assert list(root.iterdir()) == []
            assert agent.lines == []
            assert_clear("".join(agent.garbage), key, name, REFUSED_NAMES[name])


NAMES = st.one_of(
    st.text("aA0.-_/", max_size=12),
    st.from_regex(r"[a-z0-9.-]{1,8}/[A-Za-z0-9._-]{1,8}", fullmatch=True),
    st.builds(
        "{}{}/{}".format,
        st.sampled_from(["", "requests.", "kubernetes.io", "x.kubernetes.io", "requests"]),
        st.text(string.ascii_lowercase + ".-", max_size=5),
        st.text(string.ascii_letters + "/._-", max_size=5),
    ),
)


@given(name=NAMES)
@example(name="hailo.ai/npu\n")
@example(name="hailo.ai/npü")
@example(name="requests/npu")
@example(name="x.kubernetes.io/y")
def test_02_the_agent_takes_exactly_the_names_that_the_kubelet_takes(name: str) -> None:
    """The check at start agrees with the kubelet's, name by name, in both directions.

    Names are short here: a long one may be the kubelet's, and yet not fit a socket's address.
    """
    try:
        taken = (
            load(flags=[("--resource.name", name)], environ={}, config=None).settings.resource.name
            == name
        )
    except ConfigError:
        taken = False
    assert taken == is_extended_resource_name(name)


# --- 3 and 4: while Register is in flight ---------------------------------------------------------


@each_version
async def test_03_the_kubelets_calls_are_answered_while_register_waits_for_them(
    version: KubeletVersion,
) -> None:
    """Register returns only after dial-back and GetDevicePluginOptions: one loop must serve both.

    An agent that blocks in Register would sit out the kubelet's dial of 10 s. While this kubelet
    holds Register up, everything else that a kubelet may ask is answered too.
    """
    held, let_go = asyncio.Event(), asyncio.Event()

    async def door(_: deviceplugin.RegisterRequest) -> None:
        held.set()
        await let_go.wait()

    async with a_node(version) as node:
        attentive(node).door = door
        async with an_agent(node):
            async with asyncio.timeout(10):
                await held.wait()
            async with asyncio.timeout(AT_ONCE), calling(endpoint(node)) as plugin:
                await plugin.get_device_plugin_options(deviceplugin.Empty())
                async for answer in plugin.list_and_watch(deviceplugin.Empty()):
                    assert len(answer.devices) == 2
                    break
            assert not node.kubelet.registrations, "Register was given up"
            let_go.set()
            began_at = time.monotonic()
            await registered(node, 1)
            assert node.kubelet.registrations[0].answered_at - began_at < AT_ONCE
            await node.listed(2)
            assert len(node.kubelet.registrations) == 1


async def test_04_register_is_given_15_seconds_and_nothing_else_cuts_it_short() -> None:
    """The kubelet 1.36 dials back under the caller's deadline: on the wire it is 15 s or more.

    And what happens meanwhile - boards, signals, files in the directory - does not cancel the call.
    """
    held, let_go = asyncio.Event(), asyncio.Event()

    async def door(_: deviceplugin.RegisterRequest) -> None:
        held.set()
        await let_go.wait()

    async with a_node("1.36") as node:
        attentive(node).door = door
        async with an_agent(node) as agent:
            async with asyncio.timeout(10):
                await held.wait()
            node.machine.plug(slot_address(2))
            await agent.wait_for("device.added", lambda f: "pci-0000-03" in f["device"]["id"])
            node.machine.pull(slot_address(0))
            await agent.wait_for("device.faulted", lambda f: "pci-0000-01" in f["device"]["id"])
            replaced = len(agent.events("spec.replaced"))
            node.spec_path.unlink()
            agent.process.send_signal(signal.SIGHUP)
            for name in (f"{CHECKPOINT}123", "other.sock"):
                (node.plugin_dir / name).touch()
                (node.plugin_dir / name).unlink()
            await eventually(node.spec_path.exists, "the spec is back")
            assert replaced
            assert not node.kubelet.registrations, "Register was given up"
            let_go.set()
            await registered(node, 1)
            await node.listed(2, capacity=3)
            assert len(node.kubelet.registrations) == 1
        # A hair's breadth is lost between the agent's clock and ours.
        assert attentive(node).deadlines[0] > 14.9


# --- 5: options -----------------------------------------------------------------------------------


async def test_05_the_options_are_the_same_wherever_they_are_told_and_pre_start_does_nothing() -> (
    None
):
    """GetDevicePluginOptions tells the truth, and Register the same; no pre-start is asked for.

    The kubelet heeds the former alone. Were pre-start required, no container could be restarted
    while the agent is down; called all the same, it succeeds, and nothing has changed by it.
    """
    async with a_node() as node, an_agent(node, NO_POLLS) as agent:
        await node.listed(2)
        await becomes_ready(node)

        async def everything() -> tuple[object, ...]:
            said = await inventory(node)
            return (
                (said.revision, said.devices, said.faults),
                (node.spec_path.read_bytes(), identity(node.spec_path)),
                node.kubelet.message_count,
                [line.event for line in agent.lines],
            )

        async with calling(endpoint(node)) as plugin:
            options = await plugin.get_device_plugin_options(deviceplugin.Empty())
            assert options == deviceplugin.DevicePluginOptions(
                pre_start_required=False, get_preferred_allocation_available=True
            )
            assert node.kubelet.registrations[0].options == (False, True)
            await settled(agent)
            before = await everything()
            for ids in (["pci-0000-01-00-0"], ["pci-0000-01-00-0", "nobody"], []):
                request = deviceplugin.PreStartContainerRequest(device_ids=ids)
                answer = await plugin.pre_start_container(request)
                assert answer == deviceplugin.PreStartContainerResponse()
            assert await everything() == before


# --- 6: no kubelet, or one that refuses -----------------------------------------------------------


async def test_06_without_a_kubelet_the_agent_waits_and_comes_within_a_second_of_its_socket() -> (
    None
):
    """At boot the kubelet may be late: its socket, or the directory around it, is not there yet.

    The agent waits without exiting, says in log and readiness what for, and registers at most 1 s
    after the socket has appeared; a little later without inotify, by its slow look alone.
    """
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(a_node(version, kubelet=False))
            for version in (*VERSIONS, "1.36")
        ]
        for node in nodes[1:]:
            node.plugin_dir.mkdir(parents=True)
        agents = [
            *await stack.enter_async_context(running(nodes[:2])),
            *await stack.enter_async_context(running(nodes[2:], "--host.inotify=false")),
        ]
        for node, agent in zip(nodes, agents, strict=True):
            line = await agent.wait_for("plugin.waiting")
            assert str(node.plugin_dir / "kubelet.sock") in line.fields["reason"]
            assert not await is_ready(node)
            assert "kubelet.sock" in (await part(node, PLUGIN)).reason
        for node in nodes:
            came_at = time.monotonic()
            await node.kubelet.start()
            await registered(node, 1)
            assert arrivals(node)[0] - came_at <= SOON
            await node.listed(2)
            await node.kubelet.wait_for(partial(has_stream, node))
            await becomes_ready(node)
            assert (await part(node, PLUGIN)).reason == ""
        assert [len(node.kubelet.registrations) for node in nodes] == [1, 1, 1]


async def test_06_a_refusal_is_told_in_the_kubelets_words_and_tried_again() -> None:
    """Register refused: the kubelet's text is in the log and in readiness, and the agent goes on.

    Tries lie apart by a delay that grows and is never zero. A kubelet that comes anew is a reason
    to try at once, within 1 s, however long the delay had become.
    """
    text = 'the ResourceName "hailo.ai/npu" is out of fashion'
    async with a_node() as node:
        node.kubelet.faults.refuse_register = text
        async with an_agent(node) as agent:
            line = await agent.wait_for("plugin.rejected")
            assert text in line.fields["error"]["message"]
            assert line.fields["resource"] == NPU
            await says(node, PLUGIN, text)
            assert not await is_ready(node)
            await node.kubelet.wait_for(lambda: len(arrivals(node)) >= 5, within=20)
            came = arrivals(node)
            gaps = [later - earlier for earlier, later in itertools.pairwise(came)]
            for attempt, gap in enumerate(gaps):
                ceiling = 0.2 * 2**attempt
                assert 0.1 * ceiling <= gap <= ceiling + AT_ONCE, gaps
            assert not await is_ready(node)
            assert not accepted(node)

            await node.kubelet.stop()
            node.kubelet.faults.refuse_register = ""
            came_at = time.monotonic()
            await node.kubelet.start()
            await registered(node, 1)
            assert arrivals(node)[-1] - came_at <= SOON
            await node.listed(2)
            await becomes_ready(node)
            assert (await part(node, PLUGIN)).reason == ""


@dataclass(slots=True, kw_only=True)
class HastySession(Session):
    """The agent's own session, but it only notes how long it would have waited."""

    delays: list[float] = field(default_factory=list)

    async def _pause(self, delay: float, kubelet: tuple[int, int]) -> None:
        assert kubelet
        self.delays.append(delay)
        await asyncio.sleep(0)


async def test_06_the_delay_between_tries_grows_with_jitter_to_30_seconds_at_most() -> None:
    """Exponential backoff with jitter, 30 s at most, and no end of trying.

    Half an hour of refusals cannot be waited for, so this session runs in the test's own process
    and its delays pass at once; sockets and kubelet are real.
    """
    inventories = Latest(Inventory())
    async with a_node() as node:
        node.kubelet.faults.refuse_register = "no"
        session = HastySession(
            directory=node.plugin_dir,
            terms=Terms(
                resource=NPU,
                names=ResourceNames(default=NPU),
                delivery=frozenset({Delivery.CRI}),
                place=Place(dev="/dev", sys="/sys"),
                granted=ignored,
                tally=Tally(),
            ),
            inventory=inventories,
            register_seconds=15.0,
            prepare=partial(asyncio.sleep, 0),
        )
        life = asyncio.create_task(session.run(lambda _: None))
        await node.kubelet.wait_for(lambda: len(session.delays) >= 60, within=20)
        assert not life.done()
        delays = list(session.delays)
        node.kubelet.faults.refuse_register = ""
        await registered(node, 1)
        inventories.close()
        session.hints.ring("stop")
        async with asyncio.timeout(8):
            await life
    assert min(delays) > 0
    assert max(delays) <= 30.0
    assert max(delays[20:]) > 15.0
    assert max(delays[:3]) <= 0.8
    assert len(set(delays[20:])) == len(delays[20:])


# --- 7 and 8: the sockets that the kubelet or somebody else removes -------------------------------


@each_version
async def test_07_after_a_kubelet_restart_each_resource_is_registered_once_from_memory(
    version: KubeletVersion,
) -> None:
    """A starting kubelet deletes all sockets: bind anew and register, once each, at most 1 s later.

    The list comes from memory. Pods of this node are being admitted again right then, so nothing
    is enumerated first; here sysfs is gone, and the list is still the whole one.
    """
    async with (
        a_node(version) as node,
        an_agent(node, *TWO_RESOURCES, NO_POLLS, NO_UEVENTS, "--log.level=debug") as agent,
    ):
        await node.listed(2, resource=EIGHT)
        await registered(node, 1)
        await settled(agent)
        hidden = node.machine.sys.rename(node.machine.sys.with_name("hidden"))
        for restart in (2, 3):
            before = {resource: identity(endpoint(node, resource)) for resource in (NPU, EIGHT)}
            came_at = time.monotonic()
            await node.kubelet.restart()
            for resource in (NPU, EIGHT):
                await registered(node, restart, resource)
                assert arrivals(node, resource)[-1] - came_at <= SOON
                assert is_socket(endpoint(node, resource))
                assert identity(endpoint(node, resource)) != before[resource]
            await node.listed(2, capacity=2, resource=EIGHT)
            await node.kubelet.quiet(0.7)
            assert len(arrivals(node)) == len(arrivals(node, EIGHT)) == restart
            assert [node.kubelet.streams(resource) for resource in (NPU, EIGHT)] == [1, 1]
        assert {m.resource: len(m.devices) for m in node.kubelet.messages} == {NPU: 0, EIGHT: 2}
        assert all(len(m.devices) == 2 for m in node.kubelet.messages if m.resource == EIGHT)
        hidden.rename(node.machine.sys)


@pytest.mark.parametrize("sensors", [(), ("--host.inotify=false",)], ids=["inotify", "no inotify"])
async def test_08_an_own_socket_that_is_removed_or_replaced_is_published_and_registered_again(
    sensors: tuple[str, ...],
) -> None:
    """The kubelet is the same, but our socket's file is gone or another one: seen by its inode.

    The live stream would go on, and nobody could ever dial again. So it is published anew, and the
    resource registered anew, once.
    """
    async with a_node() as node, an_agent(node, *sensors):
        await node.listed(2)
        kubelet = identity(node.kubelet.socket)
        ours = identity(endpoint(node))

        endpoint(node).unlink()
        await registered(node, 2)
        await node.kubelet.wait_for(lambda: node.kubelet.streams(NPU) == 1)
        await node.listed(2, capacity=2)
        assert identity(endpoint(node)) != ours

        with stranger(endpoint(node)) as foreign:
            await registered(node, 3)
            assert identity(endpoint(node)) != foreign
        await node.kubelet.wait_for(lambda: node.kubelet.streams(NPU) == 1)
        await node.listed(2, capacity=2)

        await node.kubelet.quiet(0.7)
        assert len(arrivals(node)) == 3
        assert identity(node.kubelet.socket) == kubelet
        async with calling(endpoint(node)) as plugin:
            await plugin.get_device_plugin_options(deviceplugin.Empty(), timeout=AT_ONCE)


@contextmanager
def stranger(path: Path) -> Iterator[tuple[int, int]]:
    """Put somebody else's socket in the place of one, in one step; tells its identity."""
    beside = path.with_name("stranger")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as foreign:
        foreign.bind(str(beside))
        foreign.listen()
        found = identity(beside)
        beside.rename(path)
        yield found


# --- 9: the watchdog ------------------------------------------------------------------------------


async def test_09_a_list_that_nobody_hears_is_registered_again_though_no_file_moved() -> None:
    """The watchdog: at most 10 s after a stream was lost, 30 s after a Register without a call.

    A kubelet up to 1.36.2 that mixed up two registrations, or failed to read once, has given the
    resource up, and nothing in the directory tells. One try at a time, and not one after another.
    """

    async def loses_the_stream(node: Node) -> None:
        await node.listed(2)
        await node.kubelet.quiet(0.3)
        lost_at = time.monotonic()
        node.kubelet.drop_stream(NPU)
        await node.listed(0, capacity=2)
        await registered(node, 2, within=12)
        assert arrivals(node)[1] - lost_at <= 10.0
        await node.listed(2, capacity=2)

    async def never_calls(node: Node) -> None:
        await registered(node, 1)
        await node.kubelet.quiet(0.3)
        node.kubelet.faults.never_list = False
        await registered(node, 2, within=32)
        assert arrivals(node)[1] - node.kubelet.registrations[0].answered_at <= 30.0
        await node.listed(2, capacity=2)

    async def loses_every_stream(node: Node) -> None:
        while True:
            await node.kubelet.wait_for(lambda: node.kubelet.streams(NPU), within=40)
            node.kubelet.drop_stream(NPU)
            await node.kubelet.wait_for(lambda: not node.kubelet.streams(NPU))

    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(a_node(version)) for version in (*VERSIONS, "1.36")
        ]
        nodes[1].kubelet.faults.never_list = True
        await stack.enter_async_context(running(nodes, NO_POLLS))
        async with asyncio.TaskGroup() as group:
            unlucky = group.create_task(loses_every_stream(nodes[2]))
            await asyncio.gather(loses_the_stream(nodes[0]), never_calls(nodes[1]))
            unlucky.cancel()
        assert [len(arrivals(node)) for node in nodes[:2]] == [2, 2]
        came = list(nodes[2].kubelet.registrations)
        assert len(came) >= 3
        for earlier, later in itertools.pairwise(came):
            assert later.at - earlier.answered_at > 2.0, "one try follows the other at once"


# --- 10: one live stream per resource -------------------------------------------------------------


async def test_10_the_old_stream_is_over_and_its_peer_gone_before_register_is_called_again() -> (
    None
):
    """The kubelet knows a resource by its name alone: of two live streams, the end of the old one
    disconnects the new one. So end it, wait at most 5 s until the peer has hung up, then Register.

    Here the socket is removed while the stream lives. A peer that lingers is waited for; one that
    never leaves is hung up on, and delays Register by 5 s and no more.
    """

    async def comes_back(node: Node, peer: socket.socket | None, leaves_after: float) -> float:
        """Tells how long Register was put off."""
        seen: list[tuple[int, int, bool]] = []
        left: list[float] = []

        async def door(_: deviceplugin.RegisterRequest) -> None:
            kubelet = node.kubelet
            gone = peer is None or bool(left) or has_hung_up(peer)
            seen.append((kubelet.streams(NPU), len(kubelet.disconnects), gone))

        def leave(peer: socket.socket) -> None:
            left.append(time.monotonic())
            peer.close()

        attentive(node).door = door
        removed_at = time.monotonic()
        endpoint(node).unlink()
        if peer is not None and leaves_after:
            asyncio.get_running_loop().call_later(leaves_after, leave, peer)
        await registered(node, 2)
        assert seen == [(0, 1, True)]
        assert node.kubelet.disconnects[0].why == "EOF", "the stream was not ended but cut off"
        await node.listed(2, capacity=2)
        await node.kubelet.quiet(1.0)
        assert node.kubelet.streams(NPU) == 1
        assert node.kubelet.resource(NPU).connected
        assert len(node.kubelet.disconnects) == 1
        return arrivals(node)[1] - removed_at

    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(a_node(v)) for v in (*VERSIONS, "1.36")]
        await stack.enter_async_context(running(nodes))
        await asyncio.gather(*(node.listed(2) for node in nodes))
        lingering = stack.enter_context(connected(endpoint(nodes[1])))
        staying = stack.enter_context(connected(endpoint(nodes[2])))
        alone, with_lingering, with_staying = await asyncio.gather(
            comes_back(nodes[0], None, 0.0),
            comes_back(nodes[1], lingering, 2.0),
            comes_back(nodes[2], staying, 0.0),
        )
        assert alone <= 0.5 + AT_ONCE
        assert 2.0 <= with_lingering <= 2.0 + AT_ONCE
        # what noticing takes, the 5 s, and what hanging up takes
        assert 4.0 <= with_staying <= 0.5 + 5.0 + AT_ONCE + AT_ONCE


async def test_10_a_second_list_and_watch_gets_the_whole_list_and_ends_the_first() -> None:
    """A newer stream of the same resource takes the place of the older: never two live ones.

    The kubelet takes a list from whichever stream it comes. This one never calls by itself, so
    that both streams are ours.
    """
    async with a_node() as node:
        node.kubelet.faults.never_list = True
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(an_agent(node))
            await registered(node, 1)
            older = await stack.enter_async_context(calling(endpoint(node)))
            newer = await stack.enter_async_context(calling(endpoint(node)))
            async with asyncio.timeout(5):
                first = older.list_and_watch(deviceplugin.Empty())
                assert len((await anext(first)).devices) == 2
                second = newer.list_and_watch(deviceplugin.Empty())
                assert len((await anext(second)).devices) == 2
                with pytest.raises(StopAsyncIteration):
                    await anext(first)
                node.machine.plug(slot_address(2))
                assert len((await anext(second)).devices) == 3
            assert len(node.kubelet.registrations) == 1


# --- 11: the directory ----------------------------------------------------------------------------

Q_OVERFLOW: Final = 0x4000  # <linux/inotify.h>


@contextmanager
def overflown(agent: AgentProcess, directory: Path) -> Iterator[None]:
    """Stop the agent, let more happen in a directory than inotify keeps, do the block, go on.

    What the block does there is lost on the agent. A watch of our own, as old as the agent's and
    as little read, proves it.
    """
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    watch = Inotify()
    try:
        watch.add(directory)
        agent.process.send_signal(signal.SIGSTOP)
        for number in range(limit // 2 + 100):
            path = directory / f"flood-{number}"
            path.touch()
            path.unlink()
        yield
        events = list(watch.read())
    finally:
        watch.close()
        agent.process.send_signal(signal.SIGCONT)
    assert events[-1].mask & Q_OVERFLOW
    assert all(event.name.startswith("flood-") for event in events[:-1])


async def test_11_a_kubelet_that_restarts_behind_an_inotify_overflow_is_found_all_the_same() -> (
    None
):
    """After an overflow everything is looked at anew; here kubelet.sock changed unannounced."""
    async with a_node() as node, an_agent(node, NO_POLLS) as agent:
        await node.listed(2)
        await node.kubelet.quiet(0.3)
        with overflown(agent, node.plugin_dir):
            await node.kubelet.restart()
        woke_at = time.monotonic()
        await registered(node, 2)
        assert arrivals(node)[1] - woke_at <= SOON
        await node.listed(2)


async def test_11_a_board_that_comes_behind_an_inotify_overflow_is_found_by_the_full_look() -> None:
    """An overflow loses the hint, never the board: the full look at intervals finds it.

    The interval is 30 s by default, and is shortened here.
    """
    async with a_node() as node, an_agent(node, NO_UEVENTS, "--host.resync-seconds=2") as agent:
        await node.listed(2)
        await node.kubelet.quiet(0.3)
        with overflown(agent, node.machine.dev):
            node.machine.plug(slot_address(2))
        await node.listed(3, within=2.0 + 2.0)


def remove_directory(node: Node) -> None:
    shutil.rmtree(node.plugin_dir)


def replace_directory(node: Node) -> None:
    node.plugin_dir.rename(node.plugin_dir.with_name("moved"))
    node.plugin_dir.mkdir(mode=0o750)


async def test_11_a_directory_that_is_removed_or_replaced_ends_the_agent_with_code_75() -> None:
    """A container's mount shows the old directory for ever, where no kubelet will come again.

    So the agent ends in order - streams ended, its own other socket unlinked, the spec left - with
    a line that says why and a code that asks for a new process, registered or still waiting.
    """

    async def ends(node: Node, agent: AgentProcess, how: Callable[[Node], None]) -> None:
        how(node)
        assert await agent.wait(5.0) == 75
        last = agent.events("agent.displaced")[-1]
        assert last.fields["log.level"] == "error"
        assert str(node.plugin_dir) in last.fields["reason"]
        assert "removed or replaced" in last.fields["reason"]
        assert not agent.events("agent.crashed")
        assert agent.garbage == []
        assert not node.agent_socket.exists()
        assert node.spec_path.exists()

    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(a_node(kubelet=kubelet))
            for kubelet in (True, True, False, True)
        ]
        nodes[2].plugin_dir.mkdir(parents=True)
        agents = [
            await stack.enter_async_context(node.agent(*flags))
            for node, flags in zip(
                nodes, ((), (), (), (*TWO_RESOURCES, "--host.inotify=false")), strict=True
            )
        ]
        await asyncio.gather(nodes[0].listed(2), nodes[1].listed(2), registered(nodes[3], 1))
        await agents[2].wait_for("plugin.waiting")
        await nodes[3].listed(2, resource=EIGHT)
        await asyncio.gather(
            ends(nodes[0], agents[0], remove_directory),
            ends(nodes[1], agents[1], replace_directory),
            ends(nodes[2], agents[2], replace_directory),
            ends(nodes[3], agents[3], remove_directory),
        )
        # nobody took an emptied list with him
        assert all(len(m.devices) == 2 for node in nodes[:2] for m in node.kubelet.messages)


def told(agent: AgentProcess) -> list[str]:
    """List what it said of its dealings with the kubelet; sensors may speak whenever they like."""
    about = ("agent.", "list.", "plugin.", "allocation.", "part.failed")
    return [line.event for line in agent.lines if line.event.startswith(about)]


async def test_11_files_of_others_in_the_directory_are_nothing_to_the_agent() -> None:
    """Checkpoints, their temporary files, other plugins' sockets: ignored, whatever they do."""
    async with a_node() as node, an_agent(node) as agent:
        await node.listed(2)
        await node.kubelet.quiet(0.3)
        before = (told(agent), node.kubelet.message_count, identity(endpoint(node)))
        for number in range(20):
            for name in (f".{CHECKPOINT}{number}", f"{CHECKPOINT}.tmp", "npu.sock", "DEPRECATION"):
                path = node.plugin_dir / name
                path.write_text("{}")
                path.rename(path.with_name(f"{name}.done"))
                path.with_name(f"{name}.done").unlink()
            with stranger(node.plugin_dir / "example.com_gpu.sock"):
                await asyncio.sleep(0.03)
        (node.plugin_dir / "example.com_gpu.sock").unlink()
        await node.kubelet.quiet(1.0)
        after = (told(agent), node.kubelet.message_count, identity(endpoint(node)))
        assert after == before
        assert len(node.kubelet.registrations) == 1


# --- 12: several resources ------------------------------------------------------------------------


async def test_12_each_resource_lives_by_itself_and_the_failure_of_one_is_its_own() -> None:
    """Calls after Register do not name a resource: each has a socket and a registration of its own.

    One that is refused, or loses its socket, takes nothing from the others: not a list, not a
    stream, not a registration.
    """
    refused = True

    async def door(request: deviceplugin.RegisterRequest) -> None:
        if refused and request.resource_name == TEN:
            raise Refused("no tens today")

    names = f"--resource.names=hailo-8={EIGHT},hailo-10h={TEN}"
    async with a_node() as node:
        attentive(node).door = door
        node.machine.load("5.3")
        node.machine.plug(slot_address(2), pci_id="1e60:45c4")
        async with an_agent(node, names, NO_POLLS) as agent:
            line = await agent.wait_for("plugin.rejected")
            assert line.fields["resource"] == TEN
            await node.listed(2, capacity=2, resource=EIGHT)
            await registered(node, 1)
            assert sockets(node.plugin_dir) - {"kubelet.sock", endpoint(node, TEN).name} == {
                endpoint(node, NPU).name,
                endpoint(node, EIGHT).name,
            }
            assert not await is_ready(node)
            assert "no tens today" in (await part(node, f"plugin {TEN}")).reason
            for resource in (NPU, EIGHT):
                assert "no tens today" not in (await part(node, f"plugin {resource}")).reason
            node.machine.pull(slot_address(1))
            await node.listed(1, capacity=2, resource=EIGHT)

            refused = False
            await registered(node, 1, TEN)
            await node.listed(1, capacity=1, resource=TEN)
            await becomes_ready(node)
            assert sockets(node.plugin_dir) == {
                "kubelet.sock",
                *(endpoint(node, resource).name for resource in (NPU, EIGHT, TEN)),
            }

            untouched = identity(endpoint(node, EIGHT)), identity(endpoint(node, NPU))
            endpoint(node, TEN).unlink()
            await registered(node, 2, TEN)
            await node.listed(1, capacity=1, resource=TEN)
            await node.kubelet.quiet(0.5)
            assert (identity(endpoint(node, EIGHT)), identity(endpoint(node, NPU))) == untouched
            assert [d.resource for d in node.kubelet.disconnects] == [TEN]
            assert [node.kubelet.streams(resource) for resource in (NPU, EIGHT, TEN)] == [1, 1, 1]
            assert [accepted(node, resource) for resource in (NPU, EIGHT, TEN)] == [1, 1, 2]


# --- 13: what is stored there ---------------------------------------------------------------------


@each_version
async def test_13_the_agent_leaves_nothing_but_sockets_in_the_kubelets_directory(
    version: KubeletVersion,
) -> None:
    """A starting kubelet 1.32 deletes every file but its own: nothing there may be worth keeping.

    Watched through a whole life, with grants, a kubelet restart, a SIGKILL and a successor.
    """
    theirs = re.compile(rf"{CHECKPOINT}|\.[a-z0-9_]{{8}}|DEPRECATION|kubelet\.sock")
    ours = re.compile(r"hailo\.ai_npu\.sock|\.hailo\.ai_npu\.sock\.[0-9a-f]+")
    async with a_node(version, kubelet=False) as node:
        node.plugin_dir.mkdir(parents=True)
        watch = Inotify()
        try:
            watch.add(node.plugin_dir)
            await node.kubelet.start()
            async with node.agent() as agent:
                await node.listed(2)
                await node.kubelet.admit("default/a", {NPU: 1})
                await node.kubelet.restart()
                await node.listed(2)
                await agent.kill()
            left = sockets(node.plugin_dir)
            async with an_agent(node):
                await node.listed(2)
                await node.kubelet.admit("default/b", {NPU: 1})
                found = {p.name for p in node.plugin_dir.iterdir() if not theirs.fullmatch(p.name)}
                assert found == {"hailo.ai_npu.sock"} == left - {"kubelet.sock"}
                assert is_socket(endpoint(node))
            made = {e.name for e in watch.read() if e.mask & (CREATE | MOVED_TO)}
        finally:
            watch.close()
        assert "hailo.ai_npu.sock" in made
        assert not [n for n in made if not theirs.fullmatch(n) and not ours.fullmatch(n)]
        assert sockets(node.plugin_dir) == {"kubelet.sock"}


# --- 14: leaving ----------------------------------------------------------------------------------


async def test_14_sigterm_ends_the_agent_within_5_seconds_whoever_holds_on_to_it() -> None:
    """Streams are ended, own sockets unlinked, no empty list is sent, and the spec stays.

    Capacity and running pods must live through a rolling restart. It takes 5 s at most, always:
    with peers that stay and say nothing, that stall, or with a kubelet that keeps Register waiting.
    """
    held, never = asyncio.Event(), asyncio.Event()

    async def door(_: deviceplugin.RegisterRequest) -> None:
        held.set()
        await never.wait()

    async def leaves(node: Node, agent: AgentProcess) -> None:
        asked_at = time.monotonic()
        assert await agent.stop() == 0
        assert time.monotonic() - asked_at <= 5.0
        assert agent.events("agent.stopped")
        assert not agent.events("agent.crashed")
        assert agent.garbage == []
        assert sockets(node.plugin_dir) <= {"kubelet.sock"}
        assert not node.agent_socket.exists()
        assert node.spec_path.exists()

    async with AsyncExitStack() as stack:
        names = ("alone", "clung to", "stalled", "register", "absent", "refused")
        nodes = {
            name: await stack.enter_async_context(a_node(kubelet=name != "absent"))
            for name in names
        }
        nodes["absent"].plugin_dir.mkdir(parents=True)
        nodes["stalled"].kubelet.faults.never_list = True
        attentive(nodes["register"]).door = door
        nodes["refused"].kubelet.faults.refuse_register = "no"
        agents = dict(
            zip(names, await stack.enter_async_context(started(nodes.values())), strict=True)
        )
        for name in ("alone", "clung to"):
            await nodes[name].listed(2)
        stack.enter_context(connected(endpoint(nodes["clung to"])))
        stack.enter_context(stalled(nodes["clung to"].agent_socket, WATCH))
        await registered(nodes["stalled"], 1)
        stack.enter_context(stalled(endpoint(nodes["stalled"]), LIST_AND_WATCH))
        async with asyncio.timeout(10):
            await held.wait()
        await agents["absent"].wait_for("plugin.waiting")
        await nodes["refused"].kubelet.wait_for(
            lambda: len(arrivals(nodes["refused"])) >= 4, within=20
        )

        await asyncio.gather(*(leaves(nodes[name], agents[name]) for name in names))

        for name in ("alone", "clung to"):
            kubelet = nodes[name].kubelet
            await kubelet.wait_for(partial(len, kubelet.disconnects))
            assert [d.why for d in kubelet.disconnects] == ["EOF"], name
            assert {len(m.devices) for m in kubelet.messages} == {2}, name
            assert all(d.healthy for m in kubelet.messages for d in m.devices), name
            assert kubelet.resource(NPU).capacity == 2
            assert kubelet.resource(NPU).allocatable == 0


@asynccontextmanager
async def started(nodes: Iterable[Node]) -> AsyncIterator[list[AgentProcess]]:
    """An agent on each node that the test itself brings to an end."""
    async with AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(node.agent()) for node in nodes]
        await asyncio.gather(*(agent.wait_for("agent.started", within=30) for agent in agents))
        yield agents


async def test_14_sigterm_ends_the_agent_while_its_first_look_at_the_machine_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """5 s at most also hold before the agent is up: a kernel that hangs is when restarts come."""
    on_directories = 0x4000_0000  # FAN_ONDIR of <linux/fanotify.h>
    monkeypatch.setattr(wedge, "_FAN_OPEN_PERM", wedge._FAN_OPEN_PERM | on_directories)
    async with a_node() as node:
        with ExitStack() as stack:
            try:
                hung = stack.enter_context(
                    wedge.wedged(node.machine.sys / "bus" / "pci" / "devices")
                )
            except wedge.CannotWedge as error:
                pytest.skip(str(error))
            async with node.agent() as agent:
                await asyncio.to_thread(hung.wait)
                agent.process.send_signal(signal.SIGTERM)
                try:
                    code = await agent.wait(5.0)
                except TimeoutError:
                    await agent.kill()
                    pytest.fail(f"still there after 5 s; last said {agent.lines[-1].event}")
                assert code == 0


# --- 15: coming back ------------------------------------------------------------------------------


async def test_15_a_restart_of_the_agent_alone_leaves_a_gap_of_5_seconds_and_no_other() -> None:
    """From the start of the process to its first list less than 5 s pass; capacity never moves.

    Stopped or killed; and also with a board that is gone, for a pod still holds it.
    """
    capacities: set[int] = set()

    async with a_node(boards=3) as node:

        def sample() -> None:
            capacities.add(node.kubelet.resource(NPU).capacity)

        async with an_agent(node) as agent:
            await node.listed(3)
            container = await node.kubelet.admit("default/holder", {NPU: 1})
            (held,) = container.device_ids[NPU]
            places = {device.id: device.pci_address for device in (await inventory(node)).devices}
            node.machine.pull(str(places[held]))
            await node.listed(2, capacity=3)
            watching = asyncio.create_task(node.kubelet.wait_for(sample, within=50))
        await node.listed(0, capacity=3)
        await comes_back(node, held)
        async with node.agent() as agent:
            await node.listed(2, capacity=3)
            await agent.kill()
        await node.listed(0, capacity=3)
        await comes_back(node, held)
        watching.cancel()
        assert capacities == {3}


async def comes_back(node: Node, held: str) -> None:
    before = node.kubelet.message_count
    async with an_agent(node) as agent:
        await node.kubelet.wait_for(lambda: node.kubelet.message_count > before)
        first = next(m for m in node.kubelet.messages if m.at > agent.started_at)
        assert first.at - agent.started_at < 5.0
        assert len(first.devices) == 3
        assert {d.id for d in first.devices if not d.healthy} == {held}
        await node.listed(2, capacity=3)
    await node.listed(0, capacity=3)
