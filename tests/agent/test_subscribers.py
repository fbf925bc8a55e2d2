"""Two hundred subscribers, ten of them stalled: the rest and the kubelet see every change in time.

The agent is a process of its own, and so its memory can be looked at. A stalled subscriber is a raw
HTTP/2 connection that asks for the stream, reads its first message, and then reads no more.
"""

import asyncio
import shutil
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from hailo_agent.core import inventory
from hailo_agent.errors import EdgeError
from hailo_agent.sim.machine import slot_address
from hailo_agent.sim.node import RESOURCE, AgentProcess, Node, temporary_root
from hailo_agent.subscribers.client import get_inventory, watch
from hailo_agent.wire import agentapi
from tests.support.inside import agent_inside

SUBSCRIBERS, STALLED, CHANGES = 200, 10, 24
IN_TIME_SECONDS = 3.0
SOON_SECONDS = 20.0
FLAT_BYTES = 8 * 1024 * 1024
# What stands in the way of a peer is asyncio's: see tests/edges/test_rpc.py.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.timeout(120),
]


@dataclass(slots=True)
class View:
    """What one subscriber holds to be true by applying every message in its order."""

    devices: dict[str, agentapi.Device] = field(default_factory=dict)
    firsts: list[agentapi.Inventory] = field(default_factory=list)
    revision: int = -1
    messages: int = 0
    empty: int = 0
    kinds: list[agentapi.ChangeKind] = field(default_factory=list)
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def apply(self, response: agentapi.WatchResponse) -> None:
        if response.inventory is not None:
            assert self.messages == 0
            self.firsts.append(response.inventory)
            self.devices = {device.id: device for device in response.inventory.devices}
            revision = response.inventory.revision
        else:
            assert response.changes is not None
            revision = response.changes.revision
            assert revision > self.revision
            self.empty += not response.changes.changes
            for change in response.changes.changes:
                self._apply(change)
        self.revision = revision
        self.messages += 1
        self.moved.set()

    def _apply(self, change: agentapi.Change) -> None:
        self.kinds.append(change.kind)
        if change.device is None:
            return
        if change.kind is agentapi.ChangeKind.REMOVED:
            self.devices.pop(change.device.id)
        else:
            self.devices[change.device.id] = change.device

    @property
    def healthy(self) -> set[str]:
        return {d.id for d in self.devices.values() if d.health is agentapi.Health.HEALTHY}

    async def until(self, condition: Callable[[], bool], within: float = SOON_SECONDS) -> None:
        async with asyncio.timeout(within):
            while not condition():
                self.moved.clear()
                await self.moved.wait()


@asynccontextmanager
async def subscribed(path: Path, count: int = 1) -> AsyncIterator[list[View]]:
    """Follow the agent with so many subscribers; each has seen its first message."""
    views = [View() for _ in range(count)]

    async def follow(view: View) -> None:
        async for response in watch(path):
            view.apply(response)

    tasks = [asyncio.create_task(follow(view)) for view in views]
    try:
        for view in views:
            await view.until(lambda view=view: view.messages > 0)  # type: ignore[misc]
        yield views
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        broken = [o for o in outcomes if isinstance(o, Exception) and not isinstance(o, EdgeError)]
        assert broken == []
        assert all(view.empty == 0 for view in views)  # nothing is sent when nothing changes


class Stalled:
    """A subscriber that reads one message and then nothing, but stays connected."""

    def __init__(self, path: Path, *, window: int) -> None:
        """Ask for the stream; with a big window it is the socket that fills up, not HTTP/2."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SOON_SECONDS)
        self._socket.connect(str(path))
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._http.initiate_connection()
        self._http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        if window > 65_535:
            self._http.increment_flow_control_window(window - 65_535)
        stream = self._http.get_next_available_stream_id()
        self._http.send_headers(
            stream,
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", "/hailo.agent.v1.DeviceEvents/Watch"),
                (":authority", "localhost"),
                ("te", "trailers"),
                ("content-type", "application/grpc+proto"),
            ],
        )
        self._http.send_data(stream, b"\0\0\0\0\0", end_stream=True)
        self._socket.sendall(self._http.data_to_send())

    def read_first(self) -> int:
        """Read until data comes; tells how many bytes of it."""
        while True:
            for event in self._http.receive_data(self._socket.recv(4096)):
                if isinstance(event, h2.events.DataReceived):
                    self._socket.sendall(self._http.data_to_send())
                    return len(event.data)

    def close(self) -> None:
        self._socket.close()


@asynccontextmanager
async def stalled(path: Path, count: int) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for number in range(count):
            one = await asyncio.to_thread(
                Stalled, path, window=2**30 if number % 2 else (16_384, 65_535)[number // 2 % 2]
            )
            stack.callback(one.close)
            assert await asyncio.to_thread(one.read_first) > 0
        yield


@asynccontextmanager
async def busy_node(devices: int) -> AsyncIterator[tuple[Node, AgentProcess]]:
    async with temporary_root() as root, Node.build(root, fsync=False) as node:
        node.machine.load("4.23")
        for number in range(devices):
            node.machine.plug(slot_address(number))
        flags = ["--health.recovery-seconds=0.01", "--health.flap-window-seconds=0.01"]
        async with node.agent(*flags, "--kubelet.pod-resources-seconds=1") as agent:
            await node.listed(devices)
            yield node, agent


async def everybody(views: list[View], condition: Callable[[View], bool], within: float) -> None:
    for view in views:
        await view.until(lambda view=view: condition(view), within)  # type: ignore[misc]


def gone_is(device_id: str, *, gone: bool) -> Callable[[View], bool]:
    return lambda view: (device_id not in view.healthy) == gone


def lasting(devices: Iterable[agentapi.Device]) -> dict[str, agentapi.Device]:
    """Leave out what was measured: nobody is told when only that moves."""
    return {device.id: replace(device, vitals=None) for device in devices}


def id_of(number: int) -> str:
    return "pci-" + slot_address(number).replace(":", "-").replace(".", "-")


async def test_ten_stalled_of_two_hundred_cost_nobody_anything(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with (
        busy_node(8) as (node, agent),
        subscribed(node.agent_socket, SUBSCRIBERS - STALLED) as (views),
    ):
        async with stalled(node.agent_socket, STALLED):
            base = agent.resident_bytes()
            delays: list[float] = []
            for round_number in range(CHANGES):
                gone = round_number % 2 == 0
                address, device_id = slot_address(3), id_of(3)
                started_at = time.monotonic()
                if gone:
                    node.machine.pull(address)
                else:
                    node.machine.plug(address)
                await everybody(views, gone_is(device_id, gone=gone), IN_TIME_SECONDS)
                delays.append(time.monotonic() - started_at)
                if round_number == CHANGES // 4:
                    base = agent.resident_bytes()
            # The kubelet's list is folded to one a second, and its last state is the true one.
            await node.listed(8, within=IN_TIME_SECONDS)
            grown = agent.resident_bytes() - base
            started_at = time.monotonic()
            node.machine.break_node(slot_address(5), "missing")
            await node.listed(7, within=IN_TIME_SECONDS)
            at_kubelet = time.monotonic() - started_at
            await everybody(views, lambda v: id_of(5) not in v.healthy, IN_TIME_SECONDS)
            resident = agent.resident_bytes()
        with capsys.disabled():
            sys.stdout.write(
                f"\n{SUBSCRIBERS} subscribers, {STALLED} stalled: change to all that read p50"
                f" {1000 * statistics.median(delays):.0f} ms, max {1000 * max(delays):.0f} ms; to"
                f" the kubelet {1000 * at_kubelet:.0f} ms; agent {resident / 1e6:.1f} MB,"
                f" {grown / 1e6:+.1f} MB in {CHANGES * 3 // 4} changes\n"
            )
        assert grown < FLAT_BYTES
        assert {view.messages for view in views} != {1}
        whole = await get_inventory(node.agent_socket)
        newest = lasting(whole.devices)
        assert all(lasting(view.devices.values()) == newest for view in views)
        assert node.kubelet.disconnects == type(node.kubelet.disconnects)(maxlen=10_000)
        assert await asyncio.wait_for(agent.stop(), 5.0) == 0


async def test_a_storm_reaches_those_who_read_and_does_not_pile_up_for_those_who_do_not() -> None:
    async with busy_node(48) as (node, agent), stalled(node.agent_socket, STALLED):
        async with subscribed(node.agent_socket) as (view,):
            for round_number in range(8):  # each difference is a message of several kilobytes
                for number in range(48):
                    if round_number % 2:
                        node.machine.plug(slot_address(number))
                    else:
                        node.machine.pull(slot_address(number))
                count = 48 if round_number % 2 else 0
                await view.until(lambda count=count: len(view.healthy) == count)  # type: ignore[misc]
                if round_number == 3:
                    base = agent.resident_bytes()
            grown = agent.resident_bytes() - base
        assert grown < FLAT_BYTES
        await node.listed(48, within=IN_TIME_SECONDS)


async def test_whoever_reconnects_gets_the_newest_inventory_first() -> None:
    async with busy_node(2) as (node, agent):
        async with subscribed(node.agent_socket) as (view,):
            before = view.revision
            assert view.healthy == {id_of(0), id_of(1)}
        node.machine.plug(slot_address(2))
        await node.listed(3)
        for number in range(20):
            async with subscribed(node.agent_socket, 10) as views:
                assert all(v.messages == 1 for v in views) or number
                assert all(id_of(2) in {d.id for d in v.firsts[0].devices} for v in views)
                assert all(v.revision > before for v in views)
        await agent.stop()


async def test_after_the_agent_was_killed_all_come_back_at_once_and_see_the_truth() -> None:
    async with busy_node(2) as (node, agent):
        async with subscribed(node.agent_socket) as (view,):
            instance = view.firsts[0].instance
        await agent.kill()
        with pytest.raises(EdgeError, match="nobody listens on the socket"):
            await get_inventory(node.agent_socket)
        node.machine.pull(slot_address(0))
        async with node.agent() as again:
            await node.listed(1)
            async with subscribed(node.agent_socket, SUBSCRIBERS) as views:
                assert {v.firsts[0].instance for v in views} != {instance}
                assert all(id_of(1) in v.healthy for v in views)
                assert all(id_of(0) not in v.healthy for v in views)
            assert again.garbage == []


@asynccontextmanager
async def calm_node() -> AsyncIterator[Node]:
    """Two devices, and an agent in this process."""
    async with temporary_root() as root, Node.build(root, fsync=False) as node:
        node.machine.load("4.23")
        node.machine.plug(slot_address(0))
        node.machine.plug(slot_address(1))
        async with agent_inside(
            node,
            "--health.recovery-seconds=0.01",
            "--health.flap-window-seconds=0.01",
            "--kubelet.pod-resources-seconds=0.1",
        ):
            await node.listed(2)
            yield node


async def test_a_socket_that_somebody_removed_is_there_again_for_the_next_subscriber() -> None:
    async with calm_node() as node:
        await asyncio.to_thread(shutil.rmtree, node.agent_socket.parent)
        async with asyncio.timeout(SOON_SECONDS):
            while True:
                try:
                    found = await get_inventory(node.agent_socket)
                except EdgeError:
                    await asyncio.sleep(0.05)
                else:
                    break
        assert [device.id for device in found.devices] == [id_of(0), id_of(1)]


async def test_every_kind_of_change_is_told_with_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inventory, "FORGET_GRACE_SECONDS", 0.3)  # a simulated kubelet needs less
    async with calm_node() as node, subscribed(node.agent_socket) as (view,):
        await node.kubelet.admit("default/a", {RESOURCE: 1})
        await view.until(lambda: any(d.held for d in view.devices.values()))
        (held,) = [d for d in view.devices.values() if d.held]
        await view.until(lambda: bool(view.devices[held.id].holders))
        holder = view.devices[held.id].holders[0]
        assert (holder.namespace, holder.pod, holder.container) == ("default", "a", "main")
        await node.kubelet.remove("default/a")
        await view.until(lambda: view.devices[held.id].held is False)
        node.machine.break_node(slot_address(0), "symlink")
        await view.until(lambda: id_of(0) not in view.healthy)
        (fault,) = view.devices[id_of(0)].faults
        assert fault.code == "devnode.is-a-symlink"
        assert fault.message
        assert fault.remedy
        assert abs(fault.since_unix_seconds - time.time()) < 60
        node.machine.mend(slot_address(0))
        await view.until(lambda: id_of(0) in view.healthy)
        node.machine.swap_minors(slot_address(0), slot_address(1))
        await view.until(lambda: view.devices[id_of(0)].index == "hailo1")
        await view.until(lambda: len(view.healthy) == 2)
        told = agentapi.ChangeKind
        assert {told.HELD, told.FREED, told.HEALTH, told.MOVED} <= set(view.kinds)
