"""The node in a box, left running: its agent is kept alive, and what happens is told.

`simulate` makes one and passes it to each command of `sim.commands`.
"""

import asyncio
import json
import shlex
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from hailo_agent.settings import Settings
from hailo_agent.sim.follow import Follower, News
from hailo_agent.sim.hands import device_id
from hailo_agent.sim.node import AgentProcess, Line, Node
from hailo_agent.sim.terminal import Terminal
from hailo_agent.sim.view import health_word, resource_line
from hailo_agent.wire import agentapi

_RESTART_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 5.0
"""Before an agent that ended at once is started again, and until one has to have stopped."""
_CALM_SECONDS: Final = 0.25
_SETTLE_SECONDS: Final = 15.0
_TICK_SECONDS: Final = 0.02
_PASSING: Final = frozenset(
    {
        *("device.recovering", "device.denied"),
        *("aer.correctable", "aer.nonfatal", "aer.fatal"),
        *("temperature.high", "chip.throttled"),
    }
)
"""Faults that only time cures, or a setting."""
_QUERY_SECONDS: Final = 1.0
"""How often chips are asked, unless that was set: nobody wants to wait a minute to see them ill."""
_LINES: Final = 10_000
_FOR_EVER: Final = 1e9

_SEEN_BY_THE_RUNTIME: Final = ("host_dev", "host_sys", "host_links_dir")
"""Where the node's container runtime sees what is elsewhere for the agent: not to be changed."""

Tell = Callable[[str, str], None]


class Keeper:
    """Keeps an agent running on the node, as a DaemonSet would."""

    def __init__(self, node: Node, settings: Settings, tell: Tell) -> None:
        self._node = node
        self._tell = tell
        self._agent: AgentProcess | None = None
        self._past: deque[Line] = deque(maxlen=_LINES)
        self._config = node.root / "agent.yaml"
        wanted = _for_the_agent(settings)
        self.query_seconds: float = wanted["health"]["query_seconds"]
        self._config.write_text(json.dumps(wanted))  # JSON is YAML

    async def run(self) -> None:
        """Start it, and start it again whenever it ends."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                flags = [f"--config={self._config}", *self._node.flags()]
                started_at = loop.time()
                self._agent = await AgentProcess.start(*flags, prefix=self._node.prefix)
                await self._agent.wait(_FOR_EVER)
                self._past.extend(self._agent.lines)
                lived = loop.time() - started_at
                delay = _RESTART_SECONDS if lived > _RESTART_SECONDS else _PATIENCE_SECONDS
                self._tell("node", f"{_last_words(self._agent)}; started again in {delay:g} s")
                self._agent = None
                await asyncio.sleep(delay)
        finally:
            await self._put_away()

    async def kill(self) -> bool:
        """Kill it, as the kernel would when memory runs out; tells whether there was one."""
        if self._agent is None:
            return False
        await self._agent.kill()
        return True

    def log(self, count: int) -> list[Line]:
        """Give the newest lines of its log, over all its lives."""
        present = [] if self._agent is None else self._agent.lines
        return [*self._past, *present][-count:]

    async def _put_away(self) -> None:
        if self._agent is None:
            return
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._agent.stop()
        except TimeoutError:
            await self._agent.kill()


class Playground:
    """A node with everything on it, for commands to work on."""

    def __init__(self, node: Node, settings: Settings, terminal: Terminal) -> None:
        self.node = node
        self.terminal = terminal
        self.resource = settings.resource.name
        self.spoilt: set[str] = set()
        """Ids of devices that were broken so that it can be seen, and not mended yet."""
        self.follower = Follower(node.agent_socket, self._heard)
        self.keeper = Keeper(node, settings, terminal.tell)

    async def narrate_kubelet(self) -> None:
        """Tell what the kubelet counts whenever that has changed, for ever."""
        kubelet = self.node.kubelet
        told = resource_line(kubelet)

        def has_news() -> bool:
            return resource_line(kubelet) != told

        while True:
            await kubelet.wait_for(has_news, within=_FOR_EVER)
            told = resource_line(kubelet)
            self.terminal.tell("kubelet", told)

    def introduce(self) -> None:
        """Say what this is, where it is, and how to look at it from outside."""
        self.terminal.say(
            "A simulated node: two Hailo-8 (driver 4.23), one Hailo-10H (driver 5.3), a\n"
            "kubelet, a container runtime, and an agent that is none the wiser.\n"
            "Type help, or quit."
        )
        if self.node.ioctls is not None:
            self.terminal.say(
                f"Chips are asked how they are every {self.keeper.query_seconds:g} s."
            )
        self.locate()

    def locate(self) -> None:
        """Say where everything is."""
        node = self.node
        self.terminal.say(
            f"  machine   {node.machine.dev} and {node.machine.sys}\n"
            f"  kubelet   {node.plugin_dir}\n"
            f"  CDI spec  {node.spec_path}\n"
            "To look on from another terminal:\n"
            f"  {_program()} devices --watch --subscribers.socket={node.agent_socket}"
        )

    async def settle(self) -> None:
        """Wait until what was done has reached everybody, or it is clear that it will not."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + _SETTLE_SECONDS
        calm_since = loop.time()
        while loop.time() < min(give_up_at, calm_since + _CALM_SECONDS):
            await asyncio.sleep(_TICK_SECONDS)
            if not (self._agent_is_right() and self._kubelet_is_right()):
                calm_since = loop.time()

    def _agent_is_right(self) -> bool:
        """Whether the agent sees every device as the machine has it."""
        machine, devices = self.node.machine, self.follower.devices
        present = {device_id(address) for address in machine.entries}
        gone = (device for name, device in devices.items() if name not in present)
        return (
            self.follower.answered
            and all(self._is_right(address, entry) for address, entry in machine.entries.items())
            and all(device.health is not agentapi.Health.HEALTHY for device in gone)
        )

    def _is_right(self, address: str, entry: str) -> bool:
        name = device_id(address)
        device = self.follower.devices.get(name)
        if name in self.spoilt:
            return device is None or device.health is not agentapi.Health.HEALTHY
        if device is None:  # denied, for instance
            return any(subject == name for _, subject in self.follower.faults)
        if self.node.machine.ailments(address):
            return device.index == entry  # what ails it takes its time to be told
        return device.index == entry and {fault.code for fault in device.faults} <= _PASSING

    def _kubelet_is_right(self) -> bool:
        """Whether the kubelet has heard what the agent told us."""
        resources = self.node.kubelet.resources.values()
        listed = {
            name: health for resource in resources for name, health in resource.health.items()
        }
        told = {name: health_word(device) for name, device in self.follower.devices.items()}
        connected = [resource.connected for resource in resources]
        return bool(connected) and all(connected) and listed == told

    def _heard(self, news: News) -> None:
        self.terminal.tell("agent", news.text)


def _for_the_agent(settings: Settings) -> dict[str, Any]:
    """Write down what was asked for; the node's own flags win over it."""
    every = settings.model_dump(mode="json")
    for key in _SEEN_BY_THE_RUNTIME:
        del every["runtime"][key]
    if settings.health.query_seconds == Settings().health.query_seconds:
        every["health"] |= {"query_seconds": _QUERY_SECONDS, "awake_share": 1.0}
    return every


def _last_words(agent: AgentProcess) -> str:
    words = f"the agent ended with {agent.process.returncode}"
    return ": ".join([words, *(line.strip() for line in agent.garbage[-1:])])


def _program() -> str:
    """Name ourselves so that another terminal finds us."""
    script = Path(sys.executable).with_name("hailo-agent")
    if script.exists():
        return shlex.quote(str(script))
    return f"{shlex.quote(sys.executable)} -m hailo_agent"
