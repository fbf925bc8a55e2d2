"""Every pod that the kubelet names, and what it holds of ours: asked once, for a person.

The agent itself keeps to `podresources`, which remembers holders and forgets all other pods.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hailo_agent.core.device import is_device_id
from hailo_agent.kubelet.session import KUBELET_SOCKET
from hailo_agent.rpc.dial import dialing, translating
from hailo_agent.wire import podresources

_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Held:
    """One device that the kubelet has given to one container."""

    container: str
    resource: str
    device_id: str


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Pod:
    """A pod on this node. Kubelets before 1.34 also name some that have ended."""

    namespace: str
    name: str
    held: tuple[Held, ...] = ()


async def pods(kubelet_root: Path, resources: Collection[str]) -> tuple[Pod, ...]:
    """List all pods, with their devices of these resources or of any id that is spelled as ours.

    Raises:
        EdgeError: the kubelet cannot be asked.
    """
    socket = kubelet_root / "pod-resources" / KUBELET_SOCKET
    with translating("kubelet", f"asking the kubelet at {socket}"):
        async with dialing(socket) as channel:
            answer = await podresources.PodResourcesListerStub(channel).list(
                podresources.ListPodResourcesRequest(), timeout=_SECONDS
            )
    found: dict[tuple[str, str], set[Held]] = {}
    for pod in answer.pod_resources:
        found.setdefault((pod.namespace, pod.name), set()).update(_held(pod, resources))
    return tuple(
        Pod(namespace=namespace, name=name, held=tuple(sorted(held)))
        for (namespace, name), held in sorted(found.items())
    )


def _held(pod: podresources.PodResources, resources: Collection[str]) -> Iterator[Held]:
    """Read what a pod holds; a device is repeated for each of its NUMA nodes."""
    for container in pod.containers:
        for devices in container.devices:
            for device_id in devices.device_ids:
                if devices.resource_name in resources or is_device_id(device_id):
                    yield Held(
                        container=container.name,
                        resource=devices.resource_name,
                        device_id=device_id,
                    )
