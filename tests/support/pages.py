"""A node with two devices, and what its agent says over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import anyio

from hailo_agent.sim.node import Node, temporary_root

FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"
SOON_SECONDS = 20.0


@asynccontextmanager
async def a_node() -> AsyncIterator[Node]:
    async with temporary_root() as root, Node.build(root, fsync=False) as node:
        node.machine.load("4.23")
        node.machine.plug(FIRST)
        node.machine.plug(SECOND)
        yield node


async def get(node: Node, path: str) -> tuple[int, str]:
    connector = aiohttp.UnixConnector(str(node.root / "run" / "web.sock"))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"http://agent{path}") as response,
    ):
        return response.status, await response.text()


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again: HTTP tells nobody when to look."""
    async with asyncio.timeout(SOON_SECONDS):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def until_served(node: Node) -> None:
    async def is_there() -> bool:
        return await anyio.Path(node.root / "run" / "web.sock").exists()

    await eventually(is_there)


async def until(node: Node, line: str, *, there: bool = True) -> None:
    """Wait until the metrics have a line that begins like this, or have none."""

    async def is_so() -> bool:
        _, text = await get(node, "/metrics")
        return any(one.startswith(line) for one in text.splitlines()) is there

    await eventually(is_so)


async def until_ok(node: Node, path: str) -> None:
    async def is_ok() -> bool:
        return (await get(node, path))[0] == 200

    await eventually(is_ok)
