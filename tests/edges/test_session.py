"""`kubelet.session` against the simulated kubelet, with counts that a test makes up."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hailo_agent.aio.latest import Latest
from hailo_agent.aio.tally import Tally
from hailo_agent.core.cdi import Place
from hailo_agent.core.device import DeviceId
from hailo_agent.core.grant import Delivery
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.offer import ResourceNames
from hailo_agent.core.standing import Counted
from hailo_agent.kubelet.deviceplugin import DevicePlugin, Terms
from hailo_agent.kubelet.session import Session
from hailo_agent.sim.kubelet import Kubelet
from hailo_agent.wire import deviceplugin
from tests.strategies import BOARDS, RESOURCE, after, found, seen

BOARD, NEIGHBOUR, *_ = BOARDS
ONE = after(seen(found(BOARD)))
TWO = after(seen(found(BOARD), found(NEIGHBOUR)))
SOON_SECONDS = 5.0


async def ignored(_: Sequence[DeviceId]) -> None:
    """Grant without a record."""


TERMS = Terms(
    resource=RESOURCE,
    names=ResourceNames(default=RESOURCE),
    delivery=frozenset({Delivery.CRI}),
    place=Place(dev="/dev", sys="/sys"),
    granted=ignored,
    tally=Tally(),
)


@dataclass(slots=True)
class Side:
    """A kubelet, a session with it, and what the session reported."""

    kubelet: Kubelet
    session: Session
    reports: list[str] = field(default_factory=list)
    asked: float = 1e6
    """The next made-up question: far in the future, for lists to have settled."""

    async def answer(self, *ids: str) -> None:
        """Have the kubelet count these, and the session learn it."""
        self.asked += 1.0
        by_resource = {RESOURCE: frozenset(ids)}
        self.session.counted.publish(Counted(by_resource=by_resource, asked_at=self.asked))
        self.session.hints.ring("test")
        await asyncio.sleep(0.02)  # it weighs at once, and then waits for more

    async def registered(self, times: int) -> None:
        def is_so() -> bool:
            return len(self.kubelet.registrations) == times and self.kubelet.streams(RESOURCE) >= 1

        await self.kubelet.wait_for(is_so, within=SOON_SECONDS)
        await self.kubelet.wait_for(lambda: self.kubelet.resource(RESOURCE).allocatable == 1)
        await asyncio.sleep(0.05)


@asynccontextmanager
async def both_sides() -> AsyncIterator[Side]:
    with tempfile.TemporaryDirectory(prefix="ks-") as root:
        async with Kubelet(Path(root) / "dp", fsync=False) as kubelet:
            session = Session(
                directory=kubelet.plugin_dir,
                terms=TERMS,
                inventory=Latest(ONE),
                register_seconds=15.0,
                prepare=partial(asyncio.sleep, 0),
            )
            side = Side(kubelet, session)
            life = asyncio.create_task(session.run(side.reports.append))
            try:
                await side.registered(1)
                yield side
                assert not life.done()
            finally:
                life.cancel()
                await asyncio.gather(life, return_exceptions=True)


async def test_two_answers_that_count_nothing_end_a_registration_and_one_does_not() -> None:
    async with both_sides() as side:
        await side.answer()
        await side.answer(BOARD.id)
        await side.answer()
        assert side.reports[-1] == ""
        assert len(side.kubelet.registrations) == 1
        await side.answer()
        assert any("our list says 1" in reason for reason in side.reports)
        await side.registered(2)
        assert side.reports[-1] == ""


async def test_a_kubelet_that_never_counts_is_registered_with_more_and_more_rarely() -> None:
    async with both_sides() as side:
        for registrations, answers in ((1, 2), (2, 4), (3, 8)):
            for _ in range(answers):
                assert len(side.kubelet.registrations) == registrations
                await side.answer()
            await side.registered(registrations + 1)
        for _ in range(2):
            await side.answer(BOARD.id)
        await side.answer()
        await side.answer()
        await side.registered(5)  # what has counted once is believed as at first


async def test_an_agent_that_stands_at_zero_says_so_while_it_waits_to_register_again() -> None:
    async with both_sides() as side:
        await side.answer()
        await side.answer()
        await side.registered(2)
        await side.answer()
        await side.answer()
        assert "counts no device" in side.reports[-1]
        assert len(side.kubelet.registrations) == 2
        await side.answer(BOARD.id)
        await side.answer(BOARD.id)
        assert side.reports[-1] == ""


async def test_a_list_proves_nothing_before_it_has_been_sent() -> None:
    inventory: Latest[Inventory] = Latest(ONE)
    plugin = DevicePlugin(inventory, TERMS)
    stream = plugin.list_and_watch(deviceplugin.Empty())
    assert told(plugin) is None
    await anext(stream)
    assert told(plugin) is None  # what has been handed over may not have left yet
    second = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert told(plugin) == frozenset({str(BOARD.id)})
    inventory.publish(TWO)
    await second
    assert told(plugin) is None
    third = asyncio.ensure_future(anext(stream, None))
    await asyncio.sleep(0)
    assert told(plugin) == frozenset({str(BOARD.id), str(NEIGHBOUR.id)})
    plugin.close()
    assert await third is None


def told(plugin: DevicePlugin) -> frozenset[str] | None:
    return None if plugin.told is None else plugin.told.healthy
