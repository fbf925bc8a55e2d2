"""What conformance tests share: a node in one line, peers of our own, and waiting for conditions.

Nothing here knows a statement. Whoever asserts something does it in the test.
"""

import asyncio
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from grpclib.client import Channel
from grpclib.events import RecvRequest, listen
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes

from hailo_agent.core.device import DeviceId
from hailo_agent.sim.kubelet import Kubelet, KubeletVersion
from hailo_agent.sim.machine import slot_address
from hailo_agent.sim.node import RESOURCE, AgentProcess, Node, temporary_root
from hailo_agent.subscribers.client import get_inventory
from hailo_agent.wire import agentapi, deviceplugin

VERSIONS: Final[tuple[KubeletVersion, ...]] = ("1.32", "1.36")
_POLL_SECONDS: Final = 0.01

Door = Callable[[deviceplugin.RegisterRequest], Awaitable[None]]
"""Awaited for each Register before the kubelet looks at it; may raise `Refused`."""


class AttentiveKubelet(Kubelet):
    """The simulated kubelet, with somebody at its door, and an eye on its callers' deadlines."""

    def __init__(self, plugin_dir: Path, **options: Any) -> None:  # noqa: ANN401 - of Kubelet
        super().__init__(plugin_dir, **options)
        self.door: Door | None = None
        self.deadlines: list[float] = []
        """What each call said, in seconds, about how long its caller is going to wait."""

    async def start(self) -> None:
        await super().start()
        assert self._server is not None
        listen(self._server, RecvRequest, self._note_deadline)

    async def _note_deadline(self, event: RecvRequest) -> None:
        left = float("inf") if event.deadline is None else event.deadline.time_remaining()
        self.deadlines.append(left)

    async def _accept(self, request: deviceplugin.RegisterRequest) -> None:
        if self.door is not None:
            await self.door(request)
        await super()._accept(request)


@asynccontextmanager
async def a_node(
    version: KubeletVersion = "1.36",
    *,
    boards: int = 2,
    kubelet: bool = True,
    **options: Any,  # noqa: ANN401 - those of Kubelet
) -> AsyncIterator[Node]:
    """A node with so many Hailo-8 in its slots; its kubelet, up unless told otherwise, is ours."""
    async with temporary_root() as root, Node.build(root, kubelet=False) as node:
        node.machine.load("4.23")
        for number in range(boards):
            node.machine.plug(slot_address(number))
        node.kubelet = AttentiveKubelet(
            root / "kubelet" / "device-plugins",
            pod_resources_dir=root / "kubelet" / "pod-resources",
            version=version,
            **options,
        )
        if kubelet:
            await node.kubelet.start()
        try:
            yield node
        finally:
            if node.kubelet.running:
                await node.kubelet.stop()


def attentive(node: Node) -> AttentiveKubelet:
    """The kubelet of `a_node`, as what it is."""
    assert isinstance(node.kubelet, AttentiveKubelet)
    return node.kubelet


@asynccontextmanager
async def an_agent(node: Node, *flags: str) -> AsyncIterator[AgentProcess]:
    """An agent that must outlive the block, stop when asked to, and write nothing but its log."""
    async with node.agent(*flags) as agent:
        yield agent
        assert agent.process.returncode is None, "the agent ended by itself"
        assert await agent.stop() == 0
    assert agent.garbage == []


@asynccontextmanager
async def calling(path: Path) -> AsyncIterator[deviceplugin.DevicePluginStub]:
    """Another caller of a plugin's socket, beside the kubelet."""
    channel = Channel(path=str(path))
    try:
        yield deviceplugin.DevicePluginStub(channel)
    finally:
        channel.close()


@contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    """A peer that connects and never says a word."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.connect(str(path))
        yield peer


@contextmanager
def stalled(path: Path, method: str) -> Iterator[socket.socket]:
    """A peer that makes a call, allows no byte of an answer, and then neither reads nor leaves."""
    connection = H2Connection(H2Configuration(client_side=True))
    connection.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = 0
    connection.initiate_connection()
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("te", "trailers"),  # codespell:ignore te
        ("content-type", "application/grpc"),
    ]
    connection.send_headers(1, headers)
    connection.send_data(1, b"\0\0\0\0\0", end_stream=True)
    with connected(path) as peer:
        peer.sendall(connection.data_to_send())
        yield peer


def has_hung_up(peer: socket.socket) -> bool:
    """Whether the other side has closed the connection."""
    peer.settimeout(0)
    try:
        while True:
            if not peer.recv(65536):
                return True
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


async def eventually(
    holds: Callable[[], object], what: str, *, within: float = 5.0, since: float | None = None
) -> float:
    """Wait for what sends no event; tells after how many seconds since `since` (now) it held."""
    since = time.monotonic() if since is None else since
    while not holds():
        assert time.monotonic() - since < within, f"not within {within} s: {what}"
        await asyncio.sleep(_POLL_SECONDS)
    return time.monotonic() - since


async def inventory(node: Node) -> agentapi.Inventory:
    """What the agent says of itself and its devices, on its own socket."""
    return await get_inventory(node.agent_socket)


async def part(node: Node, name: str) -> agentapi.Part:
    """One part of the agent's readiness."""
    readiness = (await inventory(node)).readiness
    assert readiness is not None
    return next(part for part in readiness.parts if part.name == name)


async def is_ready(node: Node) -> bool:
    """Whether the agent says that it does what it is for."""
    readiness = (await inventory(node)).readiness
    assert readiness is not None
    return readiness.ready


async def becomes_ready(node: Node, *, within: float = 5.0) -> None:
    """Wait until the agent says so; its parts tell nobody when they move."""
    async with asyncio.timeout(within):
        while not await is_ready(node):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)


async def says(node: Node, name: str, text: str, *, within: float = 5.0) -> None:
    """Wait until a part of the agent gives a reason with this text."""
    async with asyncio.timeout(within):
        while text not in (await part(node, name)).reason:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)


def endpoint(node: Node, resource: str = RESOURCE) -> Path:
    """Where a resource is served."""
    return node.plugin_dir / f"{resource.replace('/', '_')}.sock"


def identity(path: Path) -> tuple[int, int]:
    """Device and inode: what makes a file this file and no other."""
    found = path.lstat()
    return found.st_dev, found.st_ino


def sockets(directory: Path) -> set[str]:
    """Names of the sockets in a directory."""
    return {name for name in os.listdir(directory) if is_socket(directory / name)}  # noqa: PTH208


def is_socket(path: Path) -> bool:
    """Whether a socket stands there, itself and not by a link."""
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return False


async def ignored(_: Sequence[DeviceId]) -> None:
    """Take note of no grant."""
