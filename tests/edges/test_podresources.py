"""`kubelet.podresources` against the simulated kubelet's socket, as it behaves and misbehaves."""

import asyncio
import gc
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from grpclib.exceptions import GRPCError

from hailo_agent.core.observation import Holdings
from hailo_agent.kubelet import podresources
from hailo_agent.kubelet.podresources import PodResources
from hailo_agent.sim import podresources as sim

NPU, GPU = "hailo.ai/npu", "nvidia.com/gpu"
ONE, TWO = "pci-0000-01-00-0", "pci-0000-02-00-0"
SOON_SECONDS = 5.0
INTERVAL_SECONDS = 0.05


@pytest.fixture
def root() -> Iterator[Path]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="pr-", dir=memory) as path:
        yield Path(path)


def held(pod: str, *devices: str, resource: str = NPU, nodes: Sequence[int] = (0,)) -> sim.Holding:
    return sim.Holding(
        namespace="default",
        pod=pod,
        container="main",
        devices={resource: dict.fromkeys(nodes, devices)},
    )


@dataclass(slots=True)
class Side:
    """The kubelet's side and ours, and what ours said."""

    server: sim.PodResources
    client: PodResources
    holdings: list[sim.Holding]
    awaited: bool = True
    reports: list[str] = field(default_factory=list)
    rings: list[str] = field(default_factory=list)
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def report(self, reason: str) -> None:
        self.reports.append(reason)
        self.moved.set()

    def ring(self, reason: str) -> None:
        self.rings.append(reason)
        self.moved.set()

    async def until_reported(self, part: str) -> str:
        """Wait until the last report contains a text; the empty one is that all is well."""
        async with asyncio.timeout(SOON_SECONDS):
            while not (
                self.reports and part in self.reports[-1] and (part or not self.reports[-1])
            ):
                self.moved.clear()
                await self.moved.wait()
        return self.reports[-1]

    async def until_listed(self) -> Holdings:
        """Wait for one more list."""
        before = len(self.rings)
        async with asyncio.timeout(SOON_SECONDS):
            while len(self.rings) <= before:
                self.moved.clear()
                await self.moved.wait()
        return known(self.client)


def known(client: PodResources) -> Holdings:
    found = client.holdings.value
    assert found is not None
    return found


def held_by(found: Holdings) -> dict[str, str]:
    return {
        entry.device_id: f"{entry.holder.namespace}/{entry.holder.pod}/{entry.holder.container}"
        for entry in found.entries
    }


@asynccontextmanager
async def both_sides(root: Path, *, serve: bool = True) -> AsyncIterator[Side]:
    holdings: list[sim.Holding] = []
    server = sim.PodResources(
        root / "pod-resources", get_enabled=True, holdings=lambda: holdings, allocatable=dict
    )
    client = PodResources(
        socket=server.socket,
        resources=frozenset({NPU}),
        interval_seconds=INTERVAL_SECONDS,
        ring=lambda _: None,
        is_awaited=lambda: side.awaited,
    )
    side = Side(server, client, holdings)
    client.ring = side.ring
    if serve:
        await server.start()
    try:
        yield side
    finally:
        await server.stop()


@asynccontextmanager
async def running(side: Side) -> AsyncIterator[None]:
    task = asyncio.create_task(side.client.run(side.report))
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_every_device_of_ours_is_told_with_its_holder(root: Path) -> None:
    async with both_sides(root) as side, running(side):
        side.holdings += [held("a", ONE), held("b", "gpu-0", resource=GPU), held("c", TWO)]
        await side.until_listed()
        found = await side.until_listed()
        assert held_by(found) == {ONE: "default/a/main", TWO: "default/c/main"}
        assert set(side.rings) == {"holdings"}
        side.holdings.clear()
        await side.until_listed()
        assert (await side.until_listed()).entries == ()


async def test_a_device_that_the_kubelet_repeats_for_each_numa_node_is_held_once(
    root: Path,
) -> None:
    async with both_sides(root) as side, running(side):
        side.holdings.append(held("a", ONE, nodes=[0, 1]))
        await side.until_listed()
        found = await side.until_listed()
        assert [entry.device_id for entry in found.entries] == [ONE]


async def test_a_list_that_says_nothing_new_wakes_nobody_who_does_not_wait_for_it(
    root: Path,
) -> None:
    async with both_sides(root) as side, running(side):
        await side.until_listed()
        side.awaited = False
        quiet_since, dated = side.server.lists, known(side.client).at
        side.rings.clear()
        async with asyncio.timeout(SOON_SECONDS):
            while side.server.lists < quiet_since + 4:  # noqa: ASYNC110 - its lists ring nowhere
                await asyncio.sleep(0.01)
        assert side.rings == []
        assert known(side.client).at > dated  # but it is known how young it is
        side.holdings.append(held("a", ONE))
        assert held_by(await side.until_listed()) == {ONE: "default/a/main"}


async def test_a_list_is_dated_with_the_moment_it_was_asked_for(root: Path) -> None:
    async with both_sides(root) as side, running(side):
        asked_at = asyncio.get_running_loop().time()
        await side.until_listed()
        found = await side.until_listed()
        assert asked_at < found.at <= asyncio.get_running_loop().time()


async def test_without_the_socket_nobody_can_tell_and_that_is_said(root: Path) -> None:
    async with both_sides(root, serve=False) as side, running(side):
        said = await side.until_reported("does not exist")
        assert str(side.server.socket) in said
        assert side.client.holdings.value is None
        assert side.rings == []
        await side.server.start()
        await side.until_reported("")
        assert known(side.client).entries == ()


@pytest.mark.parametrize("fault", ["error", "restart", "vanish"])
async def test_what_was_known_stays_known_while_the_kubelet_does_not_answer(
    root: Path, fault: str
) -> None:
    async with both_sides(root) as side, running(side):
        side.holdings.append(held("a", ONE))
        await side.until_listed()
        await side.until_listed()
        if fault == "error":
            side.server.refusal, side.server.fault = "too early", "error"
            await side.until_reported("too early")
        elif fault == "restart":
            await side.server.stop()
            await side.until_reported("nobody listens")
        else:
            await side.server.vanish()
            await side.until_reported("does not exist")
        assert held_by(known(side.client)) == {ONE: "default/a/main"}
        side.server.fault = ""
        side.holdings[:] = [held("b", TWO)]
        if fault != "error":
            await side.server.start()
        await side.until_reported("")
        await side.until_listed()
        assert held_by(known(side.client)) == {TWO: "default/b/main"}


async def test_a_kubelet_that_hangs_is_given_up_and_asked_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(podresources, "_TIMEOUT_SECONDS", 0.2)
    async with both_sides(root) as side:
        side.server.fault = "hang"
        async with running(side):
            await side.until_reported("no answer in time")
            side.server.fault = ""
            await side.until_reported("")


async def test_the_limit_of_the_node_is_one_more_refusal(root: Path) -> None:
    async with both_sides(root) as side:
        greed = asyncio.create_task(ask_all_the_time(side.server))
        async with running(side):
            await side.until_reported("rejected by rate limit")
            greed.cancel()
            await side.until_reported("")


async def ask_all_the_time(server: sim.PodResources) -> None:
    """Be another client of the node, and use up what all share."""
    while True:
        with suppress(GRPCError):
            await server.admit_query()
        await asyncio.sleep(0)


async def test_failing_for_long_costs_no_descriptor_and_no_storm_of_calls(root: Path) -> None:
    async with both_sides(root) as side:
        side.server.fault = "error"
        async with running(side):
            await side.until_reported("something went wrong")
            gc.collect()
            before, lists = len(os.listdir("/proc/self/fd")), side.server.lists  # noqa: PTH208
            await asyncio.sleep(1.0)  # what does not happen takes time to see
            gc.collect()
            assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208
            assert side.server.lists - lists < 1.0 / INTERVAL_SECONDS


async def test_the_interval_is_kept(root: Path) -> None:
    """The kubelet answers all callers of a node out of one rate limit."""
    async with both_sides(root) as side:
        side.client.interval_seconds = 0.2
        async with running(side):
            await side.until_listed()
            lists = side.server.lists
            await asyncio.sleep(1.0)  # as above
            assert 1 <= side.server.lists - lists <= 6


# --- the first list ----------------------------------------------------------------------------


async def test_the_first_list_is_had_before_anything_runs(root: Path) -> None:
    async with both_sides(root) as side:
        side.holdings.append(held("a", ONE))
        assert await side.client.ask(SOON_SECONDS)
        assert held_by(known(side.client)) == {ONE: "default/a/main"}


@pytest.mark.parametrize("how", ["absent", "error", "hang", "dead"])
async def test_the_first_list_is_waited_for_a_moment_only(root: Path, how: str) -> None:
    async with both_sides(root, serve=how != "absent") as side:
        if how == "error":
            side.server.fault = "error"
        elif how == "hang":
            side.server.fault = "hang"
        elif how == "dead":
            await side.server.stop()
        started_at = time.monotonic()
        await side.client.ask_patiently(0.2)
        assert time.monotonic() - started_at < 2.0
        assert side.client.holdings.value is None
        assert side.rings == []


# --- what is counted ---------------------------------------------------------------------------


def counting(side: Side, *devices: str, resource: str = NPU) -> None:
    """Have the kubelet count these, each under two NUMA nodes."""
    side.server._allocatable = lambda: {resource: {0: devices, 1: devices}}


async def until_counted(side: Side, times: int = 2) -> dict[str, frozenset[str]]:
    """Wait for so many more answers."""
    counted = side.client.counted
    before = counted.version
    async with asyncio.timeout(SOON_SECONDS):
        async for _ in counted.follow():
            if counted.version >= before + times:
                break
    assert counted.value is not None
    return dict(counted.value.by_resource)


async def test_what_is_counted_of_our_resources_is_told_and_of_no_others(root: Path) -> None:
    async with both_sides(root) as side, running(side):
        assert await until_counted(side) == {NPU: frozenset()}
        counting(side, ONE, "hailo0")
        assert await until_counted(side) == {NPU: {ONE, "hailo0"}}
        counting(side, "gpu-0", resource=GPU)
        assert await until_counted(side) == {NPU: frozenset()}


async def test_a_count_is_dated_with_the_moment_it_was_asked_for(root: Path) -> None:
    async with both_sides(root) as side, running(side):
        asked_at = asyncio.get_running_loop().time()
        await until_counted(side)
        counted = side.client.counted.value
        assert counted is not None
        assert asked_at < counted.asked_at <= asyncio.get_running_loop().time()


async def test_the_kubelet_is_asked_for_one_count_with_each_list(root: Path) -> None:
    async with both_sides(root) as side, running(side):
        await until_counted(side, times=6)
        assert side.server.lists - 1 <= side.server.counts <= side.server.lists


@pytest.mark.parametrize("how", ["unimplemented", "disabled"])
async def test_a_kubelet_that_cannot_tell_is_asked_once_and_nothing_is_said_of_it(
    root: Path, how: Literal["unimplemented", "disabled"]
) -> None:
    async with both_sides(root) as side:
        side.server.allocatable_fault = how
        async with running(side):
            for _ in range(4):
                await side.until_listed()
            assert side.server.counts == 1
            assert set(side.reports) == {""}
            assert side.client.counted.value is None
            # Another kubelet, perhaps a younger one.
            side.server.allocatable_fault = ""
            await side.server.stop()
            side.server.socket.rename(root / "old")  # its inode must not be given out again
            await side.server.start()
            assert await until_counted(side) == {NPU: frozenset()}


async def test_who_tells_holders_but_not_what_it_counts_is_reported_and_asked_again(
    root: Path,
) -> None:
    async with both_sides(root) as side:
        side.server.allocatable_fault = "error"
        async with running(side):
            said = await side.until_reported("another plugin for our resources goes unnoticed")
            assert "something went wrong" in said
            side.holdings.append(held("a", ONE))
            await side.until_listed()
            assert held_by(await side.until_listed()) == {ONE: "default/a/main"}
            side.server.allocatable_fault = ""
            await side.until_reported("")
            await until_counted(side)
