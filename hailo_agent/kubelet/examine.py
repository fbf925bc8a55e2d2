"""What the doctor wants to know of the kubelet: whether it is there, and counts our devices."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

import anyio

from hailo_agent.core.diagnosis import KubeletFacts
from hailo_agent.errors import EdgeError
from hailo_agent.kubelet.session import KUBELET_SOCKET
from hailo_agent.rpc.dial import dialing, translating
from hailo_agent.wire import podresources

_SECONDS: Final = 3.0


async def examine(plugin_dir: Path, pod_resources: Path, resources: Iterable[str]) -> KubeletFacts:
    """Gather everything that can be asked without registering anything."""
    path = plugin_dir / KUBELET_SOCKET
    exists = await anyio.Path(path).exists()
    return KubeletFacts(
        plugin_dir=str(plugin_dir),
        plugin_dir_exists=await anyio.Path(plugin_dir).is_dir(),
        socket_exists=exists,
        socket_error=_why_silent(path) if exists else "",
        registered=await _registered(pod_resources, resources),
    )


def _why_silent(path: Path) -> str:
    """Connect and hang up: whoever refuses that cannot be registered with."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as client:
        client.settimeout(_SECONDS)
        try:
            client.connect(str(path))
        except TimeoutError:
            return f"does not answer within {_SECONDS:g} s"
        except OSError as error:
            return os.strerror(error.errno) if error.errno else str(error)
    return ""


async def _registered(pod_resources: Path, resources: Iterable[str]) -> Mapping[str, bool | None]:
    """Ask which of our resources the kubelet could allocate from."""
    names = tuple(resources)
    try:
        with translating("kubelet", f"pod-resources at {pod_resources}"):
            async with dialing(pod_resources) as channel:
                answer = await podresources.PodResourcesListerStub(
                    channel
                ).get_allocatable_resources(
                    podresources.AllocatableResourcesRequest(), timeout=_SECONDS
                )
    except EdgeError:
        return dict.fromkeys(names)
    counted = {devices.resource_name for devices in answer.devices if devices.device_ids}
    return {name: name in counted for name in names}
