"""The demo's story holds in every point, and is honest where something does not."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import pytest

from hailo_agent.sim.chips import Chips, why_no_chips
from hailo_agent.sim.hands import device_id
from hailo_agent.sim.machine import slot_address
from hailo_agent.sim.node import RESOURCE, Node, temporary_root
from hailo_agent.sim.runtime import ContainerNotCreated
from hailo_agent.sim.scenario import FOURTH, Result, Sight, Story
from hailo_agent.sim.view import verdict


class Listener:
    """Hears a story, and may meddle with it when a chapter begins."""

    def __init__(self, meddle: Mapping[int, Callable[[], object]] | None = None) -> None:
        self.chapters: list[str] = []
        self.results: list[Result] = []
        self._meddle = meddle or {}

    def chapter(self, number: int, title: str) -> None:
        self.chapters.append(title)
        if number in self._meddle:
            self._meddle[number]()

    def waiting(self, expected: str) -> None:
        assert expected

    def told(self, result: Result) -> None:
        self.results.append(result)

    def failed(self, chapter: int) -> list[Result]:
        return [result for result in self.results if result.chapter == chapter and not result.ok]


class Shorter(Story):
    """The story without the chapter that takes half of the time."""

    @property
    def _chapters(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        return {
            title: happen
            for title, happen in super()._chapters.items()
            if happen != self._a_chip_falls_silent
        }


async def test_every_expectation_of_the_story_holds_as_the_demo_tells_it() -> None:
    listener = Listener()
    chips = None if await why_no_chips() else Chips
    began_at = asyncio.get_running_loop().time()
    async with temporary_root() as root, Node.build(root, chips=chips) as node:
        story = Story(node, listener)
        results = await story.tell()
        assert story.agent is not None
        assert story.agent.process.returncode == 0
        assert story.agent.garbage == []
        if node.ioctls is not None:
            assert node.ioctls.asked  # as devices are that nobody holds
    print(verdict(results, asyncio.get_running_loop().time() - began_at))  # noqa: T201 - for pytest -s
    assert [result for result in results if not result.ok] == []
    assert results == listener.results
    assert {result.chapter for result in results} == set(range(1, len(listener.chapters) + 1))
    assert listener.chapters == list(story.titles)


async def test_what_fails_is_told_and_hides_nothing_that_comes_after() -> None:
    async with temporary_root() as root, Node.build(root) as node:

        def occupy_the_slot() -> None:
            node.machine.plug(FOURTH)

        def stop_the_agent() -> None:
            assert story.agent is not None
            story.agent.process.terminate()

        listener = Listener({3: occupy_the_slot, 6: stop_the_agent})
        story = Shorter(node, listener)
        await story.tell()

    assert [result.seen for result in listener.failed(3)] == [
        f"there is already something in slot {FOURTH}"
    ]
    registers = listener.failed(6)[0]
    assert registers.expected == "it registers again"
    assert registers.seen.endswith("(the agent ended with 0)")
    assert all(listener.failed(chapter) == [] for chapter in (1, 2, 4, 5))
    # That kubelet never heard of a device, until the agent is started again.
    assert [result.expected for result in listener.failed(7)] == ["the kubelet goes on counting"]
    assert len(story.titles) == len(listener.chapters) == 9
    assert listener.failed(8) == listener.failed(9) == []


async def test_an_expectation_that_comes_true_too_late_has_not_held() -> None:
    async with temporary_root() as root, Node.build(root) as node:
        listener = Listener()
        story = Story(node, listener)
        story._record("late", 1.5, 1.0, Sight(ok=True, words="there it is"))
        story._record("in time", 0.5, 1.0, Sight(ok=True, words="there it is"))
    assert [result.ok for result in listener.results] == [False, True]


async def test_by_plain_devices_a_restarted_container_never_gets_what_took_its_index() -> None:
    held, newcomer = slot_address(0), slot_address(1)
    async with temporary_root() as root, Node.build(root) as node:
        node.machine.load("4.23")
        node.machine.plug(held)
        async with node.agent("--runtime.delivery=devicespec"):
            await node.listed(1)
            await node.kubelet.admit("default/camera", {RESOURCE: 1})
            node.machine.pull(held)
            await node.listed(0, capacity=1)
            assert node.machine.plug(newcomer) == "hailo0"
            await node.listed(1, capacity=2)
            container = await node.kubelet.restart_container("default/camera")

            def inject() -> Mapping[str, tuple[int, int]]:
                assert not container.cdi_devices
                view = node.runtime.inject(devices=container.devices)
                return {path: found.number for path, found in view.nodes.items()}

            with pytest.raises(ContainerNotCreated):
                inject()
            assert node.machine.plug(held) == "hailo1"
            await node.kubelet.wait_for(
                lambda: node.kubelet.resource(RESOURCE).health.get(device_id(held)) == "Healthy"
            )
            numbers = set(inject().values())
            assert numbers == {node.machine.number(held)}
