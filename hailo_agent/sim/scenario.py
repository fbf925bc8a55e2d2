"""The demo's story: what happens to a node in a few seconds, and what is expected of the agent.

`simulate` tells it on a node in a box, tests do the same. Every expectation has a limit, and what
was seen and how long it took is recorded whether it held or not: one that fails does not hide those
after it. What is expected is said in terms of the kubelet, the runtime and the disk; what the agent
says of itself is only shown.
"""

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from hailo_agent.errors import EdgeError
from hailo_agent.sim.cancel import heed_cancellation
from hailo_agent.sim.container import Node as DeviceNode
from hailo_agent.sim.generations import HAILO_8, HAILO_10H
from hailo_agent.sim.hands import device_id
from hailo_agent.sim.kubelet import AdmissionFailed, Container, ContainerNotStarted, KubeletCrashed
from hailo_agent.sim.machine import GENERATIONS, Ailment, Machine, MachineError, slot_address
from hailo_agent.sim.node import RESOURCE, AgentProcess, Node
from hailo_agent.sim.runtime import ContainerNotCreated, ContainerNotRun, ContainerView
from hailo_agent.subscribers import client

CAMERA: Final = "default/camera"
LIDAR: Final = "default/lidar"

FIRST, SECOND, THIRD, FOURTH, FIFTH, SIXTH = (slot_address(number) for number in range(6))
_AT_FIRST: Final = {FIRST: HAILO_8, SECOND: HAILO_8, THIRD: HAILO_10H}

_REST_SECONDS: Final = 1.05
"""The agent sends at most one list a second: what is to be timed begins after such a rest."""
_UNNUMBERED: Final = (0, 0)
_STOP_SECONDS: Final = 10.0
_TICK_SECONDS: Final = 0.01

# Limits, in seconds. A quiet machine stays far below them; the time taken is shown beside them.
_START: Final = 10.0
_LIST: Final = 2.0
_ALLOCATE: Final = 1.0
_CONTAINER: Final = 1.0
_REGISTER: Final = 5.0
_SPEC: Final = 5.0
_FAULT: Final = 15.0
_RECOVERY: Final = 45.0
_STOP: Final = 5.0


def furnish(machine: Machine) -> None:
    """Load both lines of the kernel driver, and plug two Hailo-8 and one Hailo-10H in."""
    machine.load("4.23")
    machine.load("5.3")
    for address, pci_id in _AT_FIRST.items():
        machine.plug(address, pci_id=pci_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One look: what was seen, and whether it was what was expected."""

    ok: bool
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one expectation."""

    chapter: int
    expected: str
    seen: str
    seconds: float
    limit: float
    ok: bool


class Teller(Protocol):
    """Whoever shows the story as it goes. Implemented in `sim.view`."""

    def chapter(self, number: int, title: str) -> None:
        """Begin a chapter."""

    def waiting(self, expected: str) -> None:
        """Say what is waited for now."""

    def told(self, result: Result) -> None:
        """Say what became of it."""


_CANNOT_GO_ON = (
    AdmissionFailed,
    ContainerNotStarted,
    EdgeError,
    KubeletCrashed,
    MachineError,
    TimeoutError,
)


class Story:
    """The story on one node, told once: `await story.tell()`."""

    def __init__(
        self,
        node: Node,
        teller: Teller,
        *,
        pause_seconds: float = 0.0,
    ) -> None:
        self.results: list[Result] = []
        self.agent: AgentProcess | None = None
        self._node = node
        self._teller = teller
        self._pause_seconds = pause_seconds
        self._chapter = 0

    async def tell(self) -> list[Result]:
        """Let everything happen, and return what became of each expectation."""
        try:
            for number, (title, happen) in enumerate(self._chapters.items(), 1):
                self._chapter = number
                self._teller.chapter(number, title)
                try:
                    await happen()
                except _CANNOT_GO_ON as error:
                    heed_cancellation()
                    self._record("the chapter goes on", 0.0, 0.0, Sight(ok=False, words=str(error)))
                await asyncio.sleep(self._pause_seconds)
        finally:
            await self._put_away()
        return self.results

    @property
    def titles(self) -> tuple[str, ...]:
        """What the chapters are called."""
        return tuple(self._chapters)

    @property
    def _chapters(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        return {
            "A node starts with two Hailo-8 and one Hailo-10H": self._start,
            "Pods take devices": self._pods_take_devices,
            "A module is plugged in": self._a_module_is_plugged_in,
            "A module is pulled while a pod holds it": self._a_held_module_is_pulled,
            "It comes back under another index": self._it_comes_back,
            "The kubelet restarts": self._the_kubelet_restarts,
            "The agent is killed, and returns": self._the_agent_is_killed,
            "Somebody deletes the CDI file": self._the_spec_is_deleted,
            "A chip falls silent, and recovers": self._a_chip_falls_silent,
            "The agent is asked to stop": self._the_agent_is_stopped,
        }

    # --- the chapters -----------------------------------------------------------------------------

    async def _start(self) -> None:
        furnish(self._node.machine)
        started_at = self._now()
        self.agent = await self._new_agent()
        await self._expect("it registers with the kubelet", self._registered(0), _START, started_at)
        await self._expect("the kubelet counts three devices", self._counts(3, 3), _START)
        await self._expect("their CDI names are on disk", self._cdi_names(3), _LIST)
        await self._expect_models(Counter({"hailo-8": 2, "hailo-10h": 1}))

    async def _pods_take_devices(self) -> None:
        for pod in (CAMERA, LIDAR):
            await self._expect_admission(pod)
            container = await self._node.kubelet.restart_container(pod)
            await self._expect(
                "its container sees that device alone",
                partial(self._container_has_its_own, container),
                _CONTAINER,
            )

    async def _a_module_is_plugged_in(self) -> None:
        await self._rest()
        plugged_at = self._now()
        self._node.machine.plug(FOURTH)
        await self._expect("the kubelet counts it", self._counts(4, 4), _LIST, plugged_at)
        # Not one tick later: whoever reads the list may ask for the device at once.
        await self._expect(
            "its CDI name resolves by then",
            lambda: self._injects(device_id(FOURTH), f"/dev/{self._node.machine.entry(FOURTH)}"),
            0.0,
        )

    async def _a_held_module_is_pulled(self) -> None:
        machine = self._node.machine
        held = self._held_address()
        await self._rest()
        pulled_at = self._now()
        index = machine.entry(held)
        machine.pull(held)
        await self._expect(
            "it is listed Unhealthy, and still counted",
            self._counts(3, 4, {device_id(held): "Unhealthy"}),
            _LIST,
            pulled_at,
        )
        await self._expect("the pod's status says so", self._pod_status(CAMERA, "Unhealthy"), _LIST)
        await self._rest()
        plugged_at = self._now()
        machine.plug(FIFTH, pci_id=_AT_FIRST[held])
        await self._expect(
            f"a newcomer at {index} is another device",
            self._counts(4, 5, {device_id(FIFTH): "Healthy"}),
            _LIST,
            plugged_at,
        )
        await self._expect_refused_restart(CAMERA)

    async def _it_comes_back(self) -> None:
        machine = self._node.machine
        held = self._held_address()
        await self._rest()
        plugged_at = self._now()
        entry = machine.plug(held, pci_id=_AT_FIRST[held])
        await self._expect(
            f"as {entry} it is the same, and Healthy",
            self._counts(5, 5, {device_id(held): "Healthy"}),
            _LIST,
            plugged_at,
        )
        await self._expect("the pod's status says so", self._pod_status(CAMERA, "Healthy"), _LIST)
        await self._expect(
            "the spec points to the new node",
            lambda: self._injects(device_id(held), f"/dev/{entry}"),
            _LIST,
        )
        await self._expect_restart("the pod's container restarts with it alone")

    async def _the_kubelet_restarts(self) -> None:
        kubelet = self._node.kubelet
        await self._rest()
        holders = kubelet.holders(RESOURCE)
        before = len(kubelet.registrations)
        await kubelet.restart()
        restarted_at = self._now()
        await self._expect("it registers again", self._registered(before), _REGISTER, restarted_at)
        await self._expect("no device is lost", self._counts(5, 5), _REGISTER, restarted_at)
        await self._expect("pods keep theirs", self._held_as(holders), _LIST)
        await asyncio.sleep(_REST_SECONDS)  # a second Register would come soon
        await self._expect("it has registered only once", self._registered(before), 0.0)

    async def _the_agent_is_killed(self) -> None:
        node = self._node
        holders = node.kubelet.holders(RESOURCE)
        before = len(node.kubelet.registrations)
        if self.agent is not None:
            await self.agent.kill()
        killed_at = self._now()
        await self._expect("the kubelet goes on counting", self._counts(0, 5), _LIST, killed_at)
        await self._expect_restart("the pod's container restarts without it")
        node.machine.plug(SIXTH)
        started_at = self._now()
        self.agent = await self._new_agent()
        await self._expect("back, it registers", self._registered(before), _START, started_at)
        await self._expect("it knows what came meanwhile", self._counts(6, 6), _START, started_at)
        await self._expect("pods keep theirs", self._held_as(holders), _LIST)

    async def _the_spec_is_deleted(self) -> None:
        path = self._node.spec_path
        before = path.read_bytes() if path.exists() else b""
        path.unlink(missing_ok=True)
        deleted_at = self._now()

        def restored() -> Sight:
            found = path.read_bytes() if path.exists() else b""
            words = "as it was" if found == before else "another" if found else "no file"
            return Sight(ok=bool(found) and found == before, words=words)

        await self._expect("it is back", restored, _SPEC, deleted_at)
        await self._expect_restart("the pod's container restarts")

    async def _a_chip_falls_silent(self) -> None:
        machine, ill = self._node.machine, device_id(FOURTH)
        await self._rest()
        machine.ail(FOURTH, Ailment.DEAD_LINK)
        silent_at = self._now()
        unhealthy = self._counts(5, 6, {ill: "Unhealthy"})
        await self._expect("it is listed Unhealthy, alone", unhealthy, _FAULT, silent_at)
        await self._expect("and it is said why", self._said_of(ill), _LIST)
        machine.cure(FOURTH)
        cured_at = self._now()
        healthy = self._counts(6, 6, {ill: "Healthy"})
        await self._expect("it is trusted again by itself", healthy, _RECOVERY, cured_at)

    async def _the_agent_is_stopped(self) -> None:
        agent = self.agent
        if agent is None:
            return
        asked_at = self._now()
        if agent.process.returncode is None:
            agent.process.send_signal(signal.SIGTERM)
        await self._expect("it ends in time", lambda: _exit_code(agent), _STOP, asked_at)
        await self._expect_restart("the pod's container restarts all the same")

    # --- looks ------------------------------------------------------------------------------------

    def _registered(self, before: int) -> Callable[[], Sight]:
        """See whether the kubelet has been sent one Register since, and has accepted it."""

        def look() -> Sight:
            since = list(self._node.kubelet.registrations)[before:]
            refusals = [registration.refusal for registration in since if registration.refusal]
            words = f"{len(since) or 'no'} Register{'' if len(since) == 1 else 's'}"
            if refusals:
                words += f", refused: {refusals[-1]}"
            return Sight(ok=len(since) == 1 and not refusals, words=words)

        return look

    def _counts(
        self, allocatable: int, capacity: int, health: dict[str, str] | None = None
    ) -> Callable[[], Sight]:
        """See whether the kubelet counts so many, and says this of some of them."""

        def look() -> Sight:
            seen = self._node.kubelet.resource(RESOURCE)
            said = {name: seen.health.get(name, "not listed") for name in health or {}}
            words = [f"{seen.allocatable} of {seen.capacity} healthy"]
            words += [f"{name} {state}" for name, state in said.items()]
            ok = (seen.allocatable, seen.capacity) == (allocatable, capacity)
            return Sight(ok=ok and said == (health or {}), words=", ".join(words))

        return look

    def _said_of(self, name: str) -> Callable[[], Sight]:
        """See what the agent's log says that is wrong with a device, and what to do about it."""

        def look() -> Sight:
            lines = [] if self.agent is None else self.agent.events("device.faulted")
            said = [line.fields["device"] for line in lines]
            told = [device["faults"] for device in said if device["id"] == name]
            if not told or not told[-1]:
                return Sight(ok=False, words="nothing")
            fault = told[-1][0]
            words = f"{fault['message']}: {fault['remedy']}"
            return Sight(ok=bool(fault["message"] and fault["remedy"]), words=words)

        return look

    def _cdi_names(self, count: int) -> Callable[[], Sight]:
        """See whether the runtime could inject so many devices, and `all`."""

        def look() -> Sight:
            names = {name.partition("=")[2] for name in self._node.runtime.devices}
            devices = names - {"all"}
            words = f"{len(devices)} names{' and all' if 'all' in names else ''}"
            return Sight(ok=len(devices) == count and "all" in names, words=words)

        return look

    def _pod_status(self, pod: str, health: str) -> Callable[[], Sight]:
        """See what `allocatedResourcesStatus` says of the one device of a pod."""

        def look() -> Sight:
            said = set(self._node.kubelet.status(pod).get(RESOURCE, {}).values())
            return Sight(ok=said == {health}, words=", ".join(sorted(said)) or "nothing")

        return look

    def _held_as(self, holders: dict[str, str]) -> Callable[[], Sight]:
        """See whether the kubelet still has every device with its pod."""

        def look() -> Sight:
            found = self._node.kubelet.holders(RESOURCE)
            words = ", ".join(_short(pod) for pod in sorted(found.values())) or "no pod holds any"
            return Sight(ok=bool(holders) and found == holders, words=words)

        return look

    def _injects(self, name: str, node: str) -> Sight:
        """See whether a container that asks for one device now gets this node."""
        try:
            view = self._node.runtime.inject([f"{RESOURCE}={name}"])
        except (ContainerNotCreated, ContainerNotRun) as error:
            return Sight(ok=False, words=_refusal(error))
        return Sight(ok=set(view.nodes) == {node}, words=", ".join(view.nodes))

    def _container_has_its_own(self, container: Container) -> Sight:
        """See whether a container sees and may open exactly what the kubelet gave it."""
        machine = self._node.machine
        try:
            view = self._inject(container)
        except (ContainerNotCreated, ContainerNotRun) as error:
            return Sight(ok=False, words=_refusal(error))
        held = [a for a in machine.addresses if device_id(a) in _ids(container)]
        wanted = {f"/dev/{machine.entry(address)}" for address in held}
        entries = {name for row in _class_names(machine) for name in view.class_entries(row)}
        numbers = {node.number for path, node in view.nodes.items() if view.opens(path)}
        ok = (
            wanted <= set(view.nodes)
            and numbers == {machine.number(address) for address in held}
            and entries == {machine.entry(address) for address in held}
        )
        words = [*in_words(view.nodes), *(f"entry {entry}" for entry in sorted(entries))]
        return Sight(ok=bool(held) and ok, words=", ".join(words) or "no device")

    # --- expecting --------------------------------------------------------------------------------

    async def _expect(
        self,
        expected: str,
        look: Callable[[], Sight],
        limit: float,
        since: float | None = None,
    ) -> None:
        """Look until it is as expected, or the limit has passed since; and record it."""
        self._teller.waiting(expected)
        since = self._now() if since is None else since
        sight = look()
        while not sight.ok and self._now() - since < limit and self._agent_lives():
            # Woken by whatever the kubelet learns; the disk and the runtime are looked at anyway.
            with suppress(TimeoutError):
                await self._node.kubelet.wait_for(lambda: look().ok, within=_TICK_SECONDS)
            sight = look()
        seconds = self._now() - since
        if not sight.ok:
            sight = Sight(ok=False, words=sight.words + self._agent_words())
        self._record(expected, seconds, limit, sight)

    async def _expect_models(self, models: Counter[str]) -> None:
        """Expect the agent to tell so many of each model to whoever asks on its own socket."""
        expected, since = "on its own socket it tells the models", self._now()
        self._teller.waiting(expected)
        found = await client.get_inventory(self._node.agent_socket)
        seen = Counter(device.model for device in found.devices)
        words = ", ".join(f"{count} {model}" for model, count in sorted(seen.items()))
        sight = Sight(ok=seen == models, words=words or "none")
        self._record(expected, self._now() - since, _LIST, sight)

    async def _expect_admission(self, pod: str) -> None:
        """Expect a pod to be admitted with one device; the time is that of Allocate alone."""
        expected = f"pod {_short(pod)} is granted a device"
        self._teller.waiting(expected)
        try:
            container = await self._node.kubelet.admit(pod, {RESOURCE: 1})
        except AdmissionFailed as error:
            heed_cancellation()
            self._record(expected, 0.0, _ALLOCATE, Sight(ok=False, words=str(error)))
            raise
        seconds = self._node.kubelet.allocations[-1].seconds
        words = ", ".join(_ids(container))
        self._record(expected, seconds, _ALLOCATE, Sight(ok=bool(words), words=words))

    async def _expect_restart(self, expected: str) -> None:
        """Expect the camera's container to start again, from what the kubelet has of it."""
        container = await self._node.kubelet.restart_container(CAMERA)
        await self._expect(expected, lambda: self._container_has_its_own(container), _CONTAINER)

    async def _expect_refused_restart(self, pod: str) -> None:
        """Expect the runtime to refuse a container rather than give it another one's device."""
        container = await self._node.kubelet.restart_container(pod)

        def look() -> Sight:
            try:
                view = self._inject(container)
            except (ContainerNotCreated, ContainerNotRun) as error:
                return Sight(ok=True, words=_refusal(error))
            return Sight(ok=False, words=", ".join(view.nodes) or "started without a device")

        await self._expect("the pod's container is not given that one", look, _CONTAINER)

    def _record(self, expected: str, seconds: float, limit: float, sight: Sight) -> None:
        result = Result(
            chapter=self._chapter,
            expected=expected,
            seen=sight.words,
            seconds=seconds,
            limit=limit,
            ok=sight.ok and (seconds <= limit or limit == 0.0),
        )
        self.results.append(result)
        self._teller.told(result)

    # --- small things -----------------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _rest(self) -> None:
        """Wait until the agent would send a list at once."""
        messages = self._node.kubelet.messages
        if messages:
            await asyncio.sleep(max(0.0, messages[-1].at + _REST_SECONDS - self._now()))

    async def _new_agent(self) -> AgentProcess:
        return await AgentProcess.start(*self._node.flags(), prefix=self._node.prefix)

    async def _put_away(self) -> None:
        """See to it that no agent is left, whatever it is doing."""
        if self.agent is None:
            return
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self.agent.stop()
        except TimeoutError:
            await self.agent.kill()

    def _agent_lives(self) -> bool:
        """Whether waiting makes sense: an agent that ended by itself will not do anything more."""
        if self.agent is None or self.agent.process.returncode is None:
            return True
        return self.agent.process.returncode == -signal.SIGKILL  # by us, and meant so

    def _agent_words(self) -> str:
        if self._agent_lives() or self.agent is None:
            return ""
        last = f": {self.agent.garbage[-1].strip()}" if self.agent.garbage else ""
        return f" (the agent ended with {self.agent.process.returncode}{last})"

    def _held_address(self) -> str:
        """Tell where the camera's device is, or was."""
        held = [name for name, pod in self._node.kubelet.holders(RESOURCE).items() if pod == CAMERA]
        by_id = {device_id(address): address for address in _AT_FIRST}
        if not held or held[0] not in by_id:
            raise MachineError(f"pod {_short(CAMERA)} holds no device that could be pulled")
        return by_id[held[0]]

    def _inject(self, container: Container) -> ContainerView:
        return self._node.runtime.inject(
            container.cdi_devices,
            annotations=container.annotations,
            devices=container.devices,
            mounts=container.mounts,
            env=container.envs,
        )


def in_words(nodes: Mapping[str, DeviceNode]) -> list[str]:
    """Name device nodes, those of one number together: an index that moved leaves its old name."""
    names: dict[tuple[int, int] | str, list[str]] = {}
    for path in sorted(nodes):
        number = nodes[path].number
        names.setdefault(path if number == _UNNUMBERED else number, []).append(path)
    return [" = ".join(paths) for paths in names.values()]


def _ids(container: Container) -> tuple[str, ...]:
    return container.device_ids.get(RESOURCE, ())


def _short(pod: str) -> str:
    return pod.rpartition("/")[2]


def _exit_code(agent: AgentProcess) -> Sight:
    code = agent.process.returncode
    return Sight(ok=code == 0, words="it runs" if code is None else f"exit code {code}")


def _refusal(error: Exception) -> str:
    return f"refused: {str(error).removeprefix('CDI device injection failed: ')}"


def _class_names(machine: Machine) -> list[str]:
    return [GENERATIONS[name].class_name for name in machine.loaded]
