"""A whole node in a box: a machine, a kubelet, a container runtime, and the agent as a process.

The agent is the real one: `hailo-agent run`, unmodified, and only its paths differ. Demo,
benchmarks and tests stand on this; production never imports it.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import orjson

from hailo_agent.sim.ioctls import Chip, IoctlSupervisor, MachineDevices, under_supervision
from hailo_agent.sim.kubelet import Kubelet
from hailo_agent.sim.machine import Machine
from hailo_agent.sim.runtime import Runtime

RESOURCE: Final = "hailo.ai/npu"
_LOG_LINES: Final = 100_000
_STOP_SECONDS: Final = 10.0
_AGAIN_SECONDS: Final = 0.2
"""How soon a call that hangs notices that its chip is well again."""


@asynccontextmanager
async def temporary_root() -> AsyncIterator[Path]:
    """Hold a directory in memory, its path short enough for unix sockets below it."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - tmpfs on purpose
    with tempfile.TemporaryDirectory(prefix="hn-", dir=parent, ignore_cleanup_errors=True) as root:
        yield Path(root)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the agent's log, and when it was read (seconds, monotonic)."""

    at: float
    event: str
    fields: Mapping[str, Any]


class Process(Protocol):
    """What is used of `asyncio.subprocess.Process`."""

    pid: int
    stderr: asyncio.StreamReader | None

    @property
    def returncode(self) -> int | None:
        """The exit code, or the negative number of the signal that ended it; None before."""

    async def wait(self) -> int:
        """Wait until it ends."""

    def send_signal(self, signal: int, /) -> None:
        """Send it a signal."""

    def terminate(self) -> None:
        """Send it SIGTERM."""

    def kill(self) -> None:
        """Send it SIGKILL."""


async def execute(
    flags: tuple[str, ...], env: Mapping[str, str], prefix: tuple[str, ...]
) -> Process:
    """Start `hailo-agent run` with these flags; `prefix` is a command to run it under."""
    return await asyncio.create_subprocess_exec(
        *prefix,
        sys.executable,
        "-m",
        "hailo_agent",
        "run",
        *flags,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=env,
        limit=1 << 20,
    )


@dataclass(slots=True)
class AgentProcess:
    """A running `hailo-agent`, its log as it comes, and what it costs."""

    launch: ClassVar = staticmethod(execute)
    """How one is started: whoever starts hundreds may know a quicker way."""

    process: Process
    started_at: float
    lines: list[Line] = field(default_factory=list)
    garbage: list[str] = field(default_factory=list)
    """What it wrote that was no JSON object: there should never be any."""
    _moved: asyncio.Event = field(default_factory=asyncio.Event)
    _reader: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, *flags: str, env: Mapping[str, str] | None = None, prefix: tuple[str, ...] = ()
    ) -> AgentProcess:
        """Start `hailo-agent run` with these flags; `prefix` is a command to run it under."""
        started_at = time.monotonic()
        process = await cls.launch(flags, {**_clean_environment(), **(env or {})}, prefix)
        agent = cls(process=process, started_at=started_at)
        agent._reader = asyncio.create_task(agent._read())
        return agent

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def events(self, name: str) -> list[Line]:
        """List the log lines of one event."""
        return [line for line in self.lines if line.event == name]

    async def wait_for(
        self,
        event: str,
        matches: Callable[[Mapping[str, Any]], object] = bool,
        *,
        since: float = -math.inf,
        within: float = 10.0,
    ) -> Line:
        """Wait for a log line of this event, one that was already written `since` then included.

        Raises:
            TimeoutError: it did not come; tells what did.
        """
        try:
            async with asyncio.timeout(within):
                seen = 0
                while True:
                    for line in self.lines[seen:]:
                        if line.event == event and line.at >= since and matches(line.fields):
                            return line
                    seen = len(self.lines)
                    await self._moved.wait()
        except TimeoutError:
            tail = "\n".join(str(dict(line.fields)) for line in self.lines[-12:])
            raise TimeoutError(f"no {event} within {within} s; last lines:\n{tail}") from None

    async def stop(self) -> int:
        """Ask it to stop as the kubelet would, or kill it; returns its exit code."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
        try:
            return await self.wait()
        except TimeoutError:
            await self.kill()
            return await self._ended()

    async def kill(self) -> None:
        """Kill it without warning, as the kernel would when memory runs out."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.kill()
        await self._ended()

    async def wait(self, within: float = _STOP_SECONDS) -> int:
        """Wait until it ends by itself; returns its exit code."""
        async with asyncio.timeout(within):
            return await self._ended()

    def resident_bytes(self) -> int:
        """Tell how much memory it has in RAM (`VmRSS`)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    def workers(self) -> tuple[int, ...]:
        """Name the processes that it has started, and that run."""
        found: list[int] = []
        for children in Path(f"/proc/{self.pid}/task").glob("*/children"):
            with suppress(OSError):
                found += map(int, children.read_text().split())
        return tuple(found)

    def workers_bytes(self) -> int:
        """Tell how much memory those have to themselves; the rest is in RAM but once."""
        total = 0
        for pid in self.workers():
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith(("Private_Clean:", "Private_Dirty:")):
                        total += int(line.split()[1]) * 1024
        return total

    def cpu_seconds(self) -> float:
        """Tell how much processor time it and those have used so far, user and system."""
        return sum(map(_cpu_seconds, (self.pid, *self.workers())))

    def wakeups(self) -> int:
        """Tell how often its threads have gone to sleep of their own will so far."""
        total = 0
        for status in Path(f"/proc/{self.pid}/task").glob("*/status"):
            with suppress(OSError):
                for line in status.read_text().splitlines():
                    if line.startswith("voluntary_ctxt_switches:"):
                        total += int(line.split()[1])
        return total

    def descriptors(self) -> int:
        """Tell how many files it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208 - a count of names

    async def _ended(self) -> int:
        code = await self.process.wait()
        if self._reader is not None:
            await self._reader
        return code

    async def _read(self) -> None:
        assert self.process.stderr is not None  # noqa: S101 - it was asked for
        async for raw in self.process.stderr:
            try:
                fields = orjson.loads(raw)
                line = Line(time.monotonic(), str(fields["message"]), fields)
            except (ValueError, KeyError, TypeError):
                self.garbage.append(raw.decode("utf-8", "replace"))
            else:
                self.lines.append(line)
                del self.lines[:-_LOG_LINES]
            moved, self._moved = self._moved, asyncio.Event()
            moved.set()


@dataclass(slots=True, kw_only=True)
class Node:
    """The box. `async with Node.build(root) as node`, then start agents in it."""

    root: Path
    machine: Machine
    kubelet: Kubelet
    runtime: Runtime
    ioctls: IoctlSupervisor | None = None
    """Who answers for the chips, where there are any; knows all that was opened and asked."""

    @classmethod
    @asynccontextmanager
    async def build(
        cls,
        root: Path,
        *,
        kubelet: bool = True,
        pod_resources: bool = True,
        chips: Mapping[str, Chip] | Callable[[Machine], Mapping[str, Chip]] | None = None,
        **kubelet_options: Any,  # noqa: ANN401 - those of Kubelet
    ) -> AsyncIterator[Node]:
        """Build a node below `root`: no driver loaded, nothing plugged in, the kubelet up.

        With `chips`, by address, devnodes can be opened and asked, by whoever is started with
        `prefix`; the mapping may change at any time. Without, each open() fails with ENXIO.
        """
        cdi_dir = root / "cdi"
        cdi_dir.mkdir()
        (root / "run").mkdir()
        machine = Machine(root / "machine")
        manager = Kubelet(
            root / "kubelet" / "device-plugins",
            pod_resources_dir=root / "kubelet" / "pod-resources" if pod_resources else None,
            **kubelet_options,
        )
        async with AsyncExitStack() as stack:
            stack.callback(machine.close)
            runtime = stack.enter_context(Runtime([cdi_dir], root=machine.root))
            runtime.attach()
            supervisor = None
            if chips is not None:
                by_address = chips(machine) if callable(chips) else chips
                devices = MachineDevices(machine, by_address)
                supervisor = IoctlSupervisor(devices, again_seconds=_AGAIN_SECONDS)
                stack.enter_context(supervisor.serving(root / "run" / "ioctls.sock"))
            if kubelet:
                await manager.start()
            stack.push_async_callback(_stop, manager)
            yield cls(
                root=root, machine=machine, kubelet=manager, runtime=runtime, ioctls=supervisor
            )

    @property
    def cdi_dir(self) -> Path:
        """Where the agent writes and the runtime reads."""
        return self.root / "cdi"

    @property
    def spec_path(self) -> Path:
        """The agent's spec."""
        return self.cdi_dir / "hailo.ai-npu.json"

    @property
    def plugin_dir(self) -> Path:
        """The kubelet's device-plugin directory."""
        return self.kubelet.plugin_dir

    @property
    def agent_socket(self) -> Path:
        """Where the agent tells subscribers of devices."""
        return self.root / "run" / "agent.sock"

    @property
    def prefix(self) -> tuple[str, ...]:
        """Name the command to start a process under, so that the chips answer it."""
        return () if self.ioctls is None else under_supervision(self.root / "run" / "ioctls.sock")

    def flags(self) -> list[str]:
        """Name the paths of this node as the agent wants to hear them."""
        return [
            f"--host.dev={self.machine.dev}",
            f"--host.sys={self.machine.sys}",
            f"--runtime.cdi-dir={self.cdi_dir}",
            f"--runtime.cdi-search-dirs={self.cdi_dir}",
            f"--runtime.links-dir={self.machine.root}/run/hailo-agent/devices",
            f"--kubelet.plugin-dir={self.plugin_dir}",
            f"--kubelet.root={self.root / 'kubelet'}",
            f"--subscribers.socket={self.agent_socket}",
            f"--web.listen=unix:{self.root}/run/web.sock",
            f"--host.cordon-file={self.root / 'state' / 'cordons.json'}",
            *(() if self.ioctls else ("--health.queries=off",)),  # nobody would answer
            "--log.format=json",
        ]

    @asynccontextmanager
    async def agent(
        self, *flags: str, env: Mapping[str, str] | None = None
    ) -> AsyncIterator[AgentProcess]:
        """Run an agent on this node for the length of the block; later flags win."""
        agent = await AgentProcess.start(*self.flags(), *flags, env=env, prefix=self.prefix)
        try:
            yield agent
        finally:
            await agent.stop()

    async def listed(
        self,
        allocatable: int,
        *,
        capacity: int | None = None,
        resource: str = RESOURCE,
        within: float = 10.0,
    ) -> None:
        """Wait until the kubelet counts so many devices."""

        def agrees() -> bool:
            view = self.kubelet.resource(resource)
            return view.allocatable == allocatable and capacity in {None, view.capacity}

        await self.kubelet.wait_for(agrees, within=within)


def _cpu_seconds(pid: int) -> float:
    """Add up what a process and its ended children have used; nothing for one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


async def _stop(kubelet: Kubelet) -> None:
    if kubelet.running:
        await kubelet.stop()


def _clean_environment() -> dict[str, str]:
    """Pass on our environment, but none of its settings: a simulation must not heed them."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HAILO_AGENT_") and name != "NODE_NAME"
    }
