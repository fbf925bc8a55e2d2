"""79: liveness really calls our services, readiness says what is missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import anyio
import pytest

from hailo_agent.kubelet.deviceplugin import DevicePlugin
from hailo_agent.sim.node import RESOURCE, Node, temporary_root
from hailo_agent.wire import deviceplugin
from tests.support.inside import agent_inside

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


async def test_79_readiness_waits_for_the_kubelet_and_says_so() -> None:
    async with a_node() as node:
        await node.kubelet.stop()
        (node.plugin_dir / "kubelet.sock").unlink()
        async with node.agent():
            await until_served(node)
            status, text = await get(node, "/readyz")
            assert status == 503
            assert "waiting for the kubelet's socket" in text
            assert (await get(node, "/livez"))[0] == 200
            await node.kubelet.start()
            await node.listed(2)
            await until_ok(node, "/readyz")


async def test_79_liveness_catches_a_wedged_service_and_its_recovery(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    works = asyncio.Event()
    works.set()
    answers = DevicePlugin.get_device_plugin_options

    async def options(
        self: DevicePlugin, message: deviceplugin.Empty
    ) -> deviceplugin.DevicePluginOptions:
        await works.wait()
        return await answers(self, message)

    monkeypatch.setattr(DevicePlugin, "get_device_plugin_options", options)
    async with a_node() as node, agent_inside(node):
        await node.listed(2)
        await until_served(node)
        assert await get(node, "/livez") == (200, "ok\n")
        works.clear()
        status, text = await get(node, "/livez")
        assert status == 503
        assert f"plugin {RESOURCE}" in text
        assert "subscribers" not in text  # which answers
        works.set()
        await until_ok(node, "/livez")
