"""Another device plugin for our resource, as older ones are: it names devices after their nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from grpclib.client import Channel

from hailo_agent.sim.kubelet import Kubelet
from hailo_agent.sim.node import RESOURCE
from hailo_agent.sim.sockets import MortalServer, listening
from hailo_agent.wire import deviceplugin


class AnotherPlugin(deviceplugin.DevicePluginBase):
    """What serves our resource, names devices after their nodes, and hands them out by CDI."""

    async def get_device_plugin_options(
        self, message: deviceplugin.Empty
    ) -> deviceplugin.DevicePluginOptions:
        del message
        return deviceplugin.DevicePluginOptions()

    async def list_and_watch(
        self, message: deviceplugin.Empty
    ) -> AsyncIterator[deviceplugin.ListAndWatchResponse]:
        del message
        device = deviceplugin.Device(id="hailo0", health="Healthy")
        yield deviceplugin.ListAndWatchResponse(devices=[device])
        await asyncio.Event().wait()

    async def allocate(
        self, message: deviceplugin.AllocateRequest
    ) -> deviceplugin.AllocateResponse:
        return deviceplugin.AllocateResponse(
            container_responses=[
                deviceplugin.ContainerAllocateResponse(
                    annotations={"cdi.k8s.io/hailo": f"hailo.ai/npu={request.device_ids[0]}"}
                )
                for request in message.container_requests
            ]
        )


@asynccontextmanager
async def another_plugin(kubelet: Kubelet) -> AsyncIterator[None]:
    """Register another plugin for our resource, for the length of the block."""
    server = MortalServer([AnotherPlugin()])
    await server.start(sock=listening(kubelet.plugin_dir / "hailo.sock"))
    channel = Channel(path=str(kubelet.socket))
    try:
        await deviceplugin.RegistrationStub(channel).register(
            deviceplugin.RegisterRequest(
                version="v1beta1", endpoint="hailo.sock", resource_name=RESOURCE
            )
        )
        yield
    finally:
        channel.close()
        await server.die()
