"""79: liveness really calls our services, readiness says what is missing."""

from __future__ import annotations

import asyncio

import pytest

from hailo_agent.kubelet.deviceplugin import DevicePlugin
from hailo_agent.sim.node import RESOURCE
from hailo_agent.wire import deviceplugin
from tests.support.inside import agent_inside
from tests.support.pages import a_node, get, until_ok, until_served


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
