"""Whatever happens in whatever order: whenever it pauses, kubelet, spec and machine agree.

A walk is a list of steps that hypothesis chose. Each is done to a whole simulated node, most of
them while the agent is still busy with the one before. The agent lives in this process, which is
quick; at the end of the file a few walks are done to the real process, SIGKILL and all.
"""

import asyncio
import os
import random
import shutil
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from hailo_agent.core import inventory
from hailo_agent.kubelet import deviceplugin
from hailo_agent.runtime import reader
from hailo_agent.sim.kubelet import AdmissionFailed
from hailo_agent.sim.machine import Breakage
from hailo_agent.sim.node import RESOURCE, AgentProcess, Node, temporary_root
from hailo_agent.sim.runtime import ContainerNotCreated, ContainerNotRun
from tests.support.inside import Inside

HAILO_8, HAILO_10H = "1e60:2864", "1e60:45c4"
SLOTS: Final = tuple(f"0000:{bus:02x}:00.0" for bus in range(1, 7))
GENERATIONS: Final = ("4.23", "5.3")
AGREE_SECONDS: Final = 25.0
POLL_SECONDS: Final = 0.02
QUICKLY: Final = (
    "--health.recovery-seconds=0.01",  # flapping is a subject of its own
    "--health.flap-window-seconds=0.01",
    "--kubelet.pod-resources-seconds=0.1",
    "--host.resync-seconds=2",
)
BREAKAGES: Final[tuple[Breakage, ...]] = ("missing", "wrong-number", "symlink", "regular-file")

# asyncio drops connections that come in the very turn in which their server closes; whichever test
# runs when they are collected would be blamed for it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def id_of(address: str) -> str:
    return "pci-" + address.replace(":", "-").replace(".", "-")


class AgentHandle(Protocol):
    """What a walk does with an agent, wherever it runs."""

    async def stop(self) -> object: ...
    async def kill(self) -> object: ...


@dataclass(slots=True)
class Hold:
    """From when to when a pod held a device."""

    device_id: str
    since: float
    until: float = float("inf")


@dataclass(slots=True)
class World:
    """A node, what was done to it, and what must therefore be true."""

    node: Node
    start: Callable[[], Awaitable[AgentHandle]]
    agent: AgentHandle | None = None
    broken: dict[str, Breakage] = field(default_factory=dict)
    pods: dict[str, tuple[Hold, ...]] = field(default_factory=dict)
    holds: list[Hold] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    forgets: bool = True
    """Whether to wait until what is gone and not held is forgotten, which takes a process 10 s."""

    # --- what is true ---

    def present(self) -> dict[str, str]:
        """The class entry of each device that a driver serves, by address."""
        return dict(self.node.machine.entries)

    def usable(self) -> dict[str, str]:
        """The addresses whose node in /dev is what it should be, looked up with our own eyes."""
        return {a: entry for a, entry in self.present().items() if self._is_sound(a, entry)}

    def _is_sound(self, address: str, entry: str) -> bool:
        try:
            found = (self.node.machine.dev / entry).lstat()
            said = (self._class_entry(entry) / "dev").read_text().strip()
        except OSError:
            return False
        number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
        return stat.S_ISCHR(found.st_mode) and number == said

    def _class_entry(self, entry: str) -> Path:
        name = "hailo1x" if entry.startswith("h1x") else "hailo_chardev"
        return self.node.machine.sys / "class" / name / entry

    def held(self) -> set[str]:
        return {hold.device_id for holds in self.pods.values() for hold in holds}

    # --- whether all agree ---

    def disagreement(self) -> str:
        """Say what does not agree yet; empty if all does."""
        usable = {id_of(address) for address in self.usable()}
        unsound = {id_of(a) for a in self.present()} - usable
        told = self.node.kubelet.resource(RESOURCE)
        healthy = {d for d, health in told.health.items() if health == "Healthy"}
        if not told.connected:
            return "nobody is registered with the kubelet"
        if healthy != usable:
            return f"healthy at the kubelet: {sorted(healthy)}, on the machine: {sorted(usable)}"
        if not self.held() <= set(told.devices):
            return f"held, but not listed: {sorted(self.held() - set(told.devices))}"
        rest = set(told.devices) - usable - unsound - self.held()
        if rest and self.forgets:
            return f"listed, though gone and not held: {sorted(rest)}"
        return self._disagreement_on_disk(usable)

    def _disagreement_on_disk(self, usable: set[str]) -> str:
        path = self.node.spec_path
        if not usable:
            return f"a spec of nothing: {path}" if os.path.lexists(path) else ""
        try:
            document = reader.load(path)
        except (OSError, reader.SpecInvalid) as error:
            return f"no spec: {error}"
        if set(document.devices) != {"all", *usable}:
            return f"in the spec: {sorted(document.devices)}, on the machine: {sorted(usable)}"
        masks = {mount.container_path for mount in document.edits.mounts}
        classes = {
            f"/sys/class/{c.name}"
            for c in (self.node.machine.sys / "class").iterdir()
            if any(c.iterdir())
        }
        if masks != classes:  # a mask over what is gone would fail every container
            return f"masked: {sorted(masks)}, on the machine: {sorted(classes)}"
        wrong = [d.name for d in path.parent.iterdir() if d.name != path.name]
        return f"left beside the spec: {wrong}" if wrong else ""

    # --- steps; each does nothing where it makes no sense ---

    async def plug(self, slot: int, gap: float) -> None:
        address = SLOTS[slot]
        if address in self.node.machine.addresses:
            return
        pci_id = HAILO_10H if slot % 2 else HAILO_8
        for _ in self.node.machine.plugging(address, pci_id=pci_id, numa_node=slot % 3 - 1):
            await asyncio.sleep(gap)

    async def pull(self, slot: int, gap: float) -> None:
        address = SLOTS[slot]
        if address not in self.node.machine.addresses:
            return
        self.broken.pop(address, None)
        for _ in self.node.machine.pulling(address):
            await asyncio.sleep(gap)

    async def swap(self, slot: int, gap: float) -> None:
        del gap
        ours = [a for a in SLOTS[slot % 2 :: 2] if a in self.usable()]
        if len(ours) > 1:
            self.node.machine.swap_minors(ours[0], ours[-1])

    async def reload(self, slot: int, gap: float) -> None:
        generation = GENERATIONS[slot % 2]
        addresses = [a for a in self.node.machine.addresses if a in SLOTS[slot % 2 :: 2]]
        for address in addresses:
            self.broken.pop(address, None)
        self.node.machine.unload(generation)
        if gap:  # else nobody sees it gone: all names are as before, but not the numbers
            await asyncio.sleep(gap)
        self.node.machine.load(generation, order=addresses[::-1] if slot > 3 else addresses)

    async def spoil(self, slot: int, gap: float) -> None:
        del gap
        address = SLOTS[slot]
        if address in self.usable():
            self.broken[address] = BREAKAGES[slot % len(BREAKAGES)]
            self.node.machine.break_node(address, self.broken[address])

    async def mend(self, slot: int, gap: float) -> None:
        del slot, gap
        for address in self.broken:
            self.node.machine.mend(address)
        self.broken.clear()

    async def meddle(self, slot: int, gap: float) -> None:
        """Do to the spec what people and scripts do."""
        del gap
        await asyncio.to_thread(meddle_with, self.node.spec_path, slot)

    async def restart_kubelet(self, slot: int, gap: float) -> None:
        if self.node.kubelet.running:
            await self.node.kubelet.stop()
        await asyncio.sleep(gap)
        if slot % 3:  # else it stays down for a while
            await self.node.kubelet.start()

    async def restart_agent(self, slot: int, gap: float) -> None:
        if self.agent is not None:
            agent, self.agent = self.agent, None
            await (agent.kill() if slot % 2 else agent.stop())
        await asyncio.sleep(gap)
        if slot % 3:  # else it stays away for a while
            await self.start_agent()

    async def start_agent(self) -> None:
        self.agent = await self.start()

    async def run_pod(self, slot: int, gap: float) -> None:
        del gap
        if not self.node.kubelet.running:
            return
        name = f"default/pod-{len(self.done)}"
        try:
            async with asyncio.timeout(20.0):
                container = await self.node.kubelet.admit(name, {RESOURCE: 1 + slot % 2})
        except AdmissionFailed:
            await self.node.kubelet.remove(name)
            return
        now = asyncio.get_running_loop().time()
        holds = tuple(Hold(device_id, now) for device_id in container.device_ids[RESOURCE])
        self.pods[name] = holds
        self.holds += holds

    async def end_pod(self, slot: int, gap: float) -> None:
        del gap
        if not self.pods or not self.node.kubelet.running:
            return
        name = sorted(self.pods)[slot % len(self.pods)]
        for hold in self.pods.pop(name):
            hold.until = asyncio.get_running_loop().time()
        await self.node.kubelet.remove(name)

    async def pause(self, slot: int = 0, gap: float = 0.0) -> None:
        """Wait until all agree, and look closely."""
        del slot, gap
        if not self.node.kubelet.running:
            await self.node.kubelet.start()
        if self.agent is None:
            await self.start_agent()
        until = time.monotonic() + AGREE_SECONDS
        while wrong := self.disagreement() or await self.disappointment():
            assert time.monotonic() < until, f"{wrong}; after {self.done}"
            await asyncio.sleep(POLL_SECONDS)
        self.check_messages()

    # --- looking closely ---

    async def disappointment(self) -> str:
        """Say what a container would not get; empty if all get what they should."""
        try:
            self.check_containers()
            await self.check_running_pods()
        except (AssertionError, ContainerNotCreated, ContainerNotRun) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def check_containers(self) -> None:
        """Every listed device can be had by its name, and shows itself alone."""
        for address, entry in self.usable().items():
            view = self.node.runtime.inject([f"{RESOURCE}={id_of(address)}"])
            assert set(view.nodes) == {f"/dev/{entry}"}
            assert view.nodes[f"/dev/{entry}"].number == self.node.machine.number(address)
            assert view.opens(f"/dev/{entry}")
            shown = [
                *view.class_entries("hailo_chardev"),
                *view.class_entries("hailo1x"),
            ]
            assert shown == [entry]
        assert self.node.runtime.errors == {}

    async def check_running_pods(self) -> None:
        """A container that is restarted from the answer of long ago gets the device it holds."""
        addresses = {id_of(a): a for a in self.usable()}
        for name, holds in self.pods.items():
            if not all(hold.device_id in addresses for hold in holds):
                continue
            container = await self.node.kubelet.restart_container(name)
            view = self.node.runtime.inject(container.cdi_devices, devices=container.devices)
            numbers = {node.number for node in view.nodes.values()}
            for hold in holds:
                assert self.node.machine.number(addresses[hold.device_id]) in numbers
            assert len(numbers) == len(holds) or not self.node.machine.numbered

    def check_messages(self) -> None:
        """No list ever dropped what a pod held when it was sent."""
        for message in self.node.kubelet.messages:
            listed = {device.id for device in message.devices}
            assert "" not in listed
            for hold in self.holds:
                if hold.since < message.at < hold.until:
                    assert hold.device_id in listed, f"dropped while held; after {self.done}"
        self.node.kubelet.messages.clear()
        assert self.node.kubelet.crashes == []


def meddle_with(path: Path, how: int) -> None:
    with suppress(OSError):
        if how == 0:
            path.unlink()
        elif how == 1:
            path.write_bytes(path.read_bytes().replace(b"rw", b"r"))
        elif how == 2:
            path.write_bytes(b"{}")
        elif how == 3:
            shutil.rmtree(path.parent)
        elif how == 4:
            path.rename(path.with_suffix(".json.orig"))
            path.with_suffix(".json.orig").unlink()
        else:
            path.parent.rename(path.parent.with_name("cdi-old"))
            shutil.rmtree(path.parent.with_name("cdi-old"))


STEPS: Final = {
    World.plug: 6,
    World.pull: 4,
    World.swap: 2,
    World.reload: 3,
    World.spoil: 2,
    World.mend: 1,
    World.meddle: 3,
    World.restart_kubelet: 2,
    World.restart_agent: 2,
    World.run_pod: 4,
    World.end_pod: 2,
    World.pause: 2,
}
NAMES: Final = [step.__name__ for step, weight in STEPS.items() for _ in range(weight)]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, to what, how slowly, and how long to wait before the next."""

    name: str
    slot: int
    gap: float
    rest: float


WALKS = st.lists(
    st.builds(
        Step,
        name=st.sampled_from(NAMES),
        slot=st.integers(0, len(SLOTS) - 1),
        gap=st.sampled_from([0.0, 0.0, 0.003, 0.02]),
        rest=st.sampled_from([0.0, 0.0, 0.005, 0.05, 0.15]),
    ),
    min_size=8,
    max_size=30,
)


def steps_of(text: str) -> list[Step]:
    """Read a walk: each step and its slot, none of them slow."""
    return [
        Step(word.rstrip("0123456789"), int(word[-1]) if word[-1].isdigit() else 0, 0.0, 0.05)
        for word in text.split()
    ]


async def walk(world: World, steps: Sequence[Step]) -> None:
    for step in steps:
        world.done.append(f"{step.name}({step.slot}, {step.gap})")
        await getattr(world, step.name)(step.slot, step.gap)
        await asyncio.sleep(step.rest)
    await world.pause()


@asynccontextmanager
async def node_with_drivers() -> AsyncIterator[Node]:
    async with temporary_root() as root, Node.build(root, fsync=False) as node:
        for generation in GENERATIONS:
            node.machine.load(generation)
        yield node


@pytest.fixture
def in_a_hurry() -> Iterator[None]:
    """Shorten the two waits that are only there for real kubelets' sake."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deviceplugin, "REST_SECONDS", 0.1)
        patch.setattr(inventory, "FORGET_GRACE_SECONDS", 0.3)
        yield


async def walk_inside(steps: Sequence[Step]) -> None:
    async with node_with_drivers() as node:

        async def start() -> AgentHandle:
            return Inside(node, *QUICKLY)

        world = World(node, start=start)
        await world.start_agent()
        try:
            with capture_logs() as lines:
                await walk(world, steps)
        finally:
            if world.agent is not None:
                await world.agent.stop()
        events = {line["event"] for line in lines}
        assert not events & {"part.failed", "preference.failed"}, events
        assert not [line for line in lines if line["log_level"] in {"exception", "critical"}]


@pytest.mark.usefixtures("in_a_hurry")
@pytest.mark.timeout(120)
@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink a walk takes minutes
)
@given(steps=WALKS)
@example(steps=steps_of("plug0 plug2 pause reload0 pause"))  # new numbers behind equal names
@example(steps=steps_of("plug0 plug2 run_pod1 restart_agent3 pull0 restart_kubelet1 end_pod0"))
@example(steps=steps_of("plug0 plug1 pull0 reload0"))  # an empty class goes, and nobody tells
@example(steps=steps_of("plug0 run_pod0 pull0 plug2 plug0 pause swap0"))  # back under a new index
def test_whatever_happens_in_whatever_order_kubelet_spec_and_machine_agree_when_it_pauses(
    steps: list[Step],
) -> None:
    asyncio.run(walk_inside(steps))


@pytest.mark.long
@pytest.mark.usefixtures("in_a_hurry")
@pytest.mark.timeout(3600)
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=WALKS)
def test_whatever_happens_for_a_quarter_of_an_hour_they_agree_when_it_pauses(
    steps: list[Step],
) -> None:
    asyncio.run(walk_inside(steps))


# --- the process itself ------------------------------------------------------------------------


def drawn(seed: int, length: int) -> list[Step]:
    """A walk of fixed steps, in which the agent and the kubelet end more often than elsewhere."""
    chance = random.Random(seed)
    names = [*NAMES, *["restart_agent", "restart_kubelet"] * 3]
    return [
        Step(chance.choice(names), chance.randrange(6), chance.choice([0.0, 0.01]), 0.05)
        for _ in range(length)
    ]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 20))]
)
async def test_the_process_may_be_killed_at_any_moment_and_nothing_is_lost(seed: int) -> None:
    async with node_with_drivers() as node:
        running: list[AgentProcess] = []

        async def start() -> AgentHandle:
            running.append(await AgentProcess.start(*node.flags(), *QUICKLY))
            return running[-1]

        world = World(node, start=start, forgets=False)
        await world.start_agent()
        try:
            await walk(world, drawn(seed, 24))
        finally:
            for agent in running:
                await agent.kill()
        assert [line for agent in running for line in agent.garbage] == []
        assert [
            agent.events("agent.crashed") for agent in running if agent.events("agent.crashed")
        ] == []
