"""The test stand of the benchmark: a simulated node, and the agent on it measured from outside.

`sim.bench` builds one per number of devices. The agent is a process of its own. Here is the
kubelet's side of it, and a message counts from when the kubelet has all of it decoded, which is
later than on the wire. Of the agent itself nothing is read but `/proc`.
"""

import asyncio
import gc
import os
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from hailo_agent.core.offer import endpoint_name
from hailo_agent.rpc.dial import dialing
from hailo_agent.sim.chips import Chips, why_no_chips
from hailo_agent.sim.ioctls import IoctlSupervisor, MachineDevices
from hailo_agent.sim.kubelet import AdmissionFailed, Kubelet
from hailo_agent.sim.machine import Ailment, Machine, slot_address
from hailo_agent.sim.node import RESOURCE, AgentProcess, Node, temporary_root
from hailo_agent.sim.runtime import Runtime
from hailo_agent.sim.uevents import Uevents
from hailo_agent.wire import deviceplugin

_GENERATION: Final = "4.23"
_APART_SECONDS: Final = 1.05
"""The agent tells the first change at once, and folds those of the following second."""
_REST_SECONDS: Final = 4.0
"""On a large node: the looks that the agent takes after trouble have then ended as well."""
_LARGE: Final = 256
_PACE_SECONDS: Final = 0.02
_HANGS_SECONDS: Final = 60.0
"""Within which a chip is asked, does not answer in time, and that is believed."""
_DEADLINE_SECONDS: Final = 30.0
_BARE: Final = ("--web.listen=", "--health.queries=off")
"""What the kubelet needs, and no more."""
_FLAGS: Final = ("--health.flap-window-seconds=1", "--host.resync-seconds=20")
"""The same slots are used again and again, and each time shall be like the first. Being idle for 20
seconds shall include its share of looking anyway, and rather more than less."""
_ASKING: Final = (
    *("--health.query-seconds=5", "--health.query-timeout-seconds=2"),
    "--health.awake-share=1",
)
_PAGES: Final = ("/", "/metrics", "/status", "/readyz")


class MeasurementFailed(Exception):
    """Raised when the agent or its kubelet did not do what was to be measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How long an agent took, in seconds from exec."""

    register: float
    first_list: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """How long news took, in seconds from the devnode's coming or going to the kubelet."""

    plugs: tuple[float, ...]
    unplugs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """What an agent did while there was nothing to do, a second."""

    cpu: float
    """Seconds of CPU."""
    wakeups: float
    messages: int
    """In all."""


@dataclass(slots=True, kw_only=True)
class Stand:
    """A node with so many devices, and what can be done to it with a watch in hand."""

    node: Node
    addresses: tuple[str, ...]
    no_uevents: str
    """Why this machine announces nothing; empty if it does."""
    no_chips: str
    """Why nobody answers for chips; empty if somebody does."""
    settle_seconds: float
    """Until nothing is under way any more: after trouble the agent looks again for 2.1 s."""
    dice: random.Random

    @classmethod
    @asynccontextmanager
    async def build(cls, devices: int, *, settle_seconds: float) -> AsyncIterator[Self]:
        """Build a node in memory. Its kubelet is up, no agent runs."""
        no_uevents, no_chips = _why_no_uevents(), await why_no_chips()
        async with AsyncExitStack() as stack:
            root = await stack.enter_async_context(temporary_root())
            machine = Machine(root / "machine", uevents=not no_uevents)
            machine.load(_GENERATION)
            addresses = tuple(slot_address(number) for number in range(devices))
            for address in addresses:
                machine.plug(address)
            (root / "cdi").mkdir()
            (root / "run").mkdir()
            supervisor = None
            if not no_chips:
                supervisor = IoctlSupervisor(MachineDevices(machine, Chips(machine)))
                stack.enter_context(supervisor.serving(root / "run" / "ioctls.sock"))
            # The runtime is left unattached: it would read each spec, in the time of the kubelet.
            node = Node(
                root=root,
                machine=machine,
                kubelet=Kubelet(
                    root / "kubelet" / "device-plugins",
                    pod_resources_dir=root / "kubelet" / "pod-resources",
                ),
                runtime=Runtime([root / "cdi"], root=machine.root),
                ioctls=supervisor,
            )
            try:
                async with node.kubelet:
                    yield cls(
                        node=node,
                        addresses=addresses,
                        no_uevents=no_uevents,
                        no_chips=no_chips,
                        settle_seconds=settle_seconds,
                        dice=random.Random(devices),
                    )
            finally:
                node.runtime.close()
                machine.close()

    @property
    def devices(self) -> int:
        """How many devices there are."""
        return len(self.addresses)

    @property
    def kubelet(self) -> Kubelet:
        """The other side."""
        return self.node.kubelet

    @asynccontextmanager
    async def agent(self, *flags: str) -> AsyncIterator[AgentProcess]:
        """Run an agent; the block begins when it has told of every device and come to rest."""
        async with self._settled(*_BARE, *flags) as agent:
            yield agent

    @asynccontextmanager
    async def asking_agent(self, *flags: str) -> AsyncIterator[AgentProcess]:
        """Run one that asks each chip every 5 s."""
        async with self._settled("--web.listen=", *_ASKING, *flags, prefix=self.node.prefix) as one:
            yield one

    @asynccontextmanager
    async def agent_with_everything(self) -> AsyncIterator[AgentProcess]:
        """Run one that asks chips, and answers to HTTP, its page included."""
        async with self._settled("--web.page=true", *_ASKING, prefix=self.node.prefix) as one:
            yield one

    @asynccontextmanager
    async def a_chip_that_hangs(self) -> AsyncIterator[None]:
        """Let a call to one chip hang; the block begins when the agent has said so."""
        address = self.addresses[-1]
        self.node.machine.ail(address, Ailment.HUNG_CONTROL)
        try:
            await self.node.listed(self.devices - 1, capacity=self.devices, within=_HANGS_SECONDS)
            yield
        finally:
            self.node.machine.cure(address)

    async def read_pages(self) -> None:
        """Read each page once: what it takes to make them stays in memory."""
        for page in _PAGES:
            reader, writer = await self._connected()
            writer.write(
                f"GET {page} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode()
            )
            status = await reader.readline()
            await reader.read()
            writer.close()
            if b" 200 " not in status:
                raise MeasurementFailed(f"GET {page}: {status.decode().strip() or 'no answer'}")

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the agent's pages, which may come after its first list."""
        path = self.node.root / "run" / "web.sock"
        async with asyncio.timeout(_DEADLINE_SECONDS):
            while True:
                try:
                    return await asyncio.open_unix_connection(path)
                except (FileNotFoundError, ConnectionRefusedError):
                    await asyncio.sleep(_PACE_SECONDS)

    async def starts(self, count: int) -> list[Start]:
        """Start an agent so many times."""
        samples = []
        for _ in range(count):
            async with self._process(*_BARE) as agent:
                began_at = agent.started_at
                await self._all_listed()
                registered_at = next(r.at for r in self.kubelet.registrations if r.at > began_at)
                listed_at = next(m.at for m in self.kubelet.messages if m.at > began_at)
                samples.append(
                    Start(register=registered_at - began_at, first_list=listed_at - began_at)
                )
            await self.kubelet.wait_for(lambda: not self.kubelet.resource(RESOURCE).connected)
        return samples

    async def changes(self, count: int) -> Changes:
        """Pull and plug so many times in all, slot after slot."""
        plugs: list[float] = []
        unplugs: list[float] = []
        apart = _APART_SECONDS if self.devices < _LARGE else _REST_SECONDS
        for number in range(count):
            address = self._slot(number)
            # Not in step with anything that the agent does by the clock.
            await asyncio.sleep(apart + self.dice.uniform(0.0, 0.1))
            with _undisturbed():
                if number % 2 == 0:
                    unplugs.append(await self._unplugged(address))
                else:
                    plugs.append(await self._plugged(address))
        if len(unplugs) > len(plugs):
            self.node.machine.plug(address)
            await self._all_listed()
        return Changes(plugs=tuple(plugs), unplugs=tuple(unplugs))

    async def allocations(self, count: int, *, pause_seconds: float) -> list[float]:
        """Admit pods with a device each, one after the other; seconds of each Allocate alone."""
        known = len(self.kubelet.allocations)
        for number in range(known, known + count):
            with _undisturbed():
                await self.kubelet.admit(f"bench/pod-{number}", {RESOURCE: 1})
            await self.kubelet.remove(f"bench/pod-{number}")
            if pause_seconds:
                await asyncio.sleep(pause_seconds + self.dice.uniform(0.0, pause_seconds))
        return [allocation.seconds for allocation in list(self.kubelet.allocations)[known:]]

    async def empty_calls(self, count: int, *, pause_seconds: float) -> list[float]:
        """Make calls that have nothing to do: what waking up and the way there cost by themselves.

        Seconds of each.
        """
        samples = []
        async with dialing(self.kubelet.plugin_dir / endpoint_name(RESOURCE)) as channel:
            stub = deviceplugin.DevicePluginStub(channel)
            for _ in range(count):
                with _undisturbed():
                    began_at = time.monotonic()
                    await stub.get_device_plugin_options(deviceplugin.Empty())
                    samples.append(time.monotonic() - began_at)
                await asyncio.sleep(pause_seconds + self.dice.uniform(0.0, pause_seconds))
        return samples

    async def restarts(self, count: int) -> list[float]:
        """Restart the kubelet so many times; seconds until the plugin is registered again."""
        samples = []
        for _ in range(count):
            began_at = time.monotonic()
            await self.kubelet.restart()
            samples.append(await self._registered(since=began_at) - began_at)
            await self._all_listed()
            await asyncio.sleep(_APART_SECONDS)
        return samples

    async def events(self, count: int) -> None:
        """Pull and plug so many times, faster than anybody could. In the end all is as before."""
        for number in range(count + count % 2):
            address = self._slot(number)
            if number % 2 == 0:
                self.node.machine.pull(address)
            else:
                self.node.machine.plug(address)
            await asyncio.sleep(_PACE_SECONDS)
        await self._all_listed()
        await asyncio.sleep(self.settle_seconds)

    async def idle(self, agent: AgentProcess, seconds: float) -> Idle:
        """Do nothing for a while, and look how much the agent did."""
        cpu, wakeups, messages = agent.cpu_seconds(), agent.wakeups(), self.kubelet.message_count
        began_at = time.monotonic()
        await asyncio.sleep(seconds)
        took = time.monotonic() - began_at
        return Idle(
            cpu=(agent.cpu_seconds() - cpu) / took,
            wakeups=(agent.wakeups() - wakeups) / took,
            messages=self.kubelet.message_count - messages,
        )

    # --- small things ---

    @asynccontextmanager
    async def _settled(
        self, *flags: str, prefix: tuple[str, ...] = ()
    ) -> AsyncIterator[AgentProcess]:
        async with self._process(*_FLAGS, *flags, prefix=prefix) as agent:
            await self._all_listed()
            await asyncio.sleep(self.settle_seconds)
            yield agent
        await self.kubelet.wait_for(lambda: not self.kubelet.resource(RESOURCE).connected)

    @asynccontextmanager
    async def _process(
        self, *flags: str, prefix: tuple[str, ...] = ()
    ) -> AsyncIterator[AgentProcess]:
        """Run an agent that logs into a file: to read its log would cost the kubelet time."""
        log = self.node.root / "agent.log"
        shell = ("sh", "-c", 'exec "$@" 2>"$0"', str(log))
        agent = await AgentProcess.start(*self.node.flags(), *flags, prefix=(*shell, *prefix))
        try:
            yield agent
        except (TimeoutError, AdmissionFailed) as error:
            raise MeasurementFailed(
                f"{error}\nThe agent {_state(agent)}. The last lines of its log:\n{_tail(log)}"
            ) from error
        finally:
            await agent.stop()

    def _slot(self, number: int) -> str:
        """Go through the slots, two turns for each: out and in again."""
        return self.addresses[number // 2 % self.devices]

    async def _plugged(self, address: str) -> float:
        """Plug; the watch runs from the moment when the driver is about to make the devnode."""
        began_at = time.monotonic()
        for stage in self.node.machine.plugging(address):
            if stage == "dev":
                began_at = time.monotonic()
        return await self._heard(address, "Healthy", began_at) - began_at

    async def _unplugged(self, address: str) -> float:
        """Pull; the watch runs from the moment when the driver is about to remove the devnode."""
        began_at = time.monotonic()
        for stage in self.node.machine.pulling(address):
            if stage == "power":
                began_at = time.monotonic()
        return await self._heard(address, "Unhealthy", began_at) - began_at

    async def _heard(self, address: str, health: str, since: float) -> float:
        """Wait until the kubelet is told of a device's health; tells when it was."""
        device_id = f"pci-{address.replace(':', '-').replace('.', '-')}"
        heard: list[float] = []

        def is_told() -> bool:
            newest = self.kubelet.messages[-1]
            if newest.at >= since and newest.health.get(device_id) == health:
                heard.append(newest.at)
            return bool(heard)

        await self.kubelet.wait_for(is_told, within=_DEADLINE_SECONDS)
        return heard[0]

    async def _registered(self, *, since: float) -> float:
        """Wait for a registration younger than that; tells when it was answered."""
        await self.kubelet.wait_for(
            lambda: any(r.accepted and r.at >= since for r in self.kubelet.registrations),
            within=_DEADLINE_SECONDS,
        )
        return next(
            r.answered_at for r in self.kubelet.registrations if r.accepted and r.at >= since
        )

    async def _all_listed(self) -> None:
        await self.node.listed(self.devices, capacity=self.devices, within=_DEADLINE_SECONDS)


def _state(agent: AgentProcess) -> str:
    code = agent.process.returncode
    return "still runs" if code is None else f"has ended with {code}"


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Collect no garbage of our own in the middle of a measurement."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _why_no_uevents() -> str:
    """Ask the kernel to announce something that concerns nobody; tell why it would not."""
    if os.geteuid() != 0:
        return "needs root"
    try:
        announcer = Uevents()
    except OSError as error:
        return f"no netlink socket: {error.strerror}"
    try:
        announcer.send("change", "/devices/virtual/bench/none", "bench", b"")
    except OSError:
        return "needs CAP_SYS_ADMIN"
    finally:
        announcer.close()
    return ""
