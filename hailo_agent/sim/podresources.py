"""The kubelet's pod-resources socket: who holds which device, for whoever polls.

`sim.kubelet` starts one, says through two callables what is to be answered, and knows nothing of
sockets. Tests switch on its faults. `Watch` does not exist here because it does not exist at all.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from hailo_agent.sim.sockets import MortalServer, listening
from hailo_agent.wire import podresources

QUERIES_PER_SECOND: Final = 100.0
BURST: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One container of one pod, and the devices it holds: resource → NUMA node → ids.

    A node below zero is the kubelet's word for "no NUMA node".
    """

    namespace: str
    pod: str
    container: str
    devices: dict[str, dict[int, tuple[str, ...]]]


class PodResources:
    """The server on `<directory>/kubelet.sock`. Set `fault` and `refusal` to make it misbehave."""

    def __init__(
        self,
        directory: Path,
        *,
        get_enabled: bool,
        holdings: Callable[[], list[Holding]],
        allocatable: Callable[[], dict[str, dict[int, tuple[str, ...]]]],
    ) -> None:
        self.directory = directory
        self.fault: Literal["", "hang", "error"] = ""
        self.refusal = "pod resources: something went wrong"
        self.allocatable_fault: Literal["", "unimplemented", "disabled", "error"] = ""
        """What alone GetAllocatableResources has: missing before 1.21, behind a gate until 1.23."""
        self.lists = 0
        self.counts = 0
        self._get_enabled = get_enabled
        self._holdings = holdings
        self._allocatable = allocatable
        self._server: MortalServer | None = None
        self._tokens = float(BURST)
        self._refilled = 0.0

    @property
    def socket(self) -> Path:
        """Where it is listened for queries."""
        return self.directory / "kubelet.sock"

    async def start(self) -> None:
        """Listen under another name, then rename: the socket is never there and not ready."""
        self.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        temporary = self.directory / ".kubelet.sock.new"
        temporary.unlink(missing_ok=True)
        server = MortalServer([_Lister(self)])
        await server.start(sock=listening(temporary))
        temporary.replace(self.socket)
        self._server = server
        self._tokens, self._refilled = float(BURST), asyncio.get_running_loop().time()

    async def stop(self) -> None:
        """Go away with the kubelet; the socket file stays."""
        server, self._server = self._server, None
        if server is not None:
            await server.die()

    async def vanish(self) -> None:
        """Go away for good, as where this API was never served: no socket file either."""
        await self.stop()
        self.socket.unlink(missing_ok=True)

    async def admit_query(self) -> None:
        """Count one query against the limit of this node, and have the fault that is wanted."""
        now = asyncio.get_running_loop().time()
        gained = (now - self._refilled) * QUERIES_PER_SECOND
        self._tokens, self._refilled = min(float(BURST), self._tokens + gained), now
        if self._tokens < 1.0:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, "rejected by rate limit")
        self._tokens -= 1.0
        if self.fault == "hang":
            await asyncio.Event().wait()
        if self.fault == "error":
            raise GRPCError(Status.UNKNOWN, self.refusal)

    def pods(self) -> list[podresources.PodResources]:
        """Answer with every pod that the kubelet names, its containers under it."""
        said: dict[tuple[str, str], podresources.PodResources] = {}
        for holding in self._holdings():
            pod = said.setdefault(
                (holding.namespace, holding.pod),
                podresources.PodResources(name=holding.pod, namespace=holding.namespace),
            )
            pod.containers.append(
                podresources.ContainerResources(
                    name=holding.container, devices=_entries(holding.devices)
                )
            )
        return list(said.values())

    def get(self, namespace: str, name: str) -> podresources.PodResources:
        """Answer with one pod, where this kubelet is young enough to be asked for one."""
        if not self._get_enabled:
            raise GRPCError(Status.UNKNOWN, "PodResources API Get method disabled")
        for pod in self.pods():
            if (pod.namespace, pod.name) == (namespace, name):
                return pod
        raise GRPCError(Status.UNKNOWN, f"pod {name} in namespace {namespace} not found")

    def allocatable(self) -> list[podresources.ContainerDevices]:
        """Answer with the healthy devices of every resource."""
        if self.allocatable_fault == "unimplemented":
            raise GRPCError(Status.UNIMPLEMENTED, "unknown method GetAllocatableResources")
        if self.allocatable_fault == "disabled":
            raise GRPCError(Status.UNKNOWN, "Pod Resources API GetAllocatableResources disabled")
        if self.allocatable_fault == "error":
            raise GRPCError(Status.UNKNOWN, self.refusal)
        return _entries(self._allocatable())


def _entries(
    devices: dict[str, dict[int, tuple[str, ...]]],
) -> list[podresources.ContainerDevices]:
    """Make one entry per device and per NUMA node, so that a device may come more than once."""
    return [
        podresources.ContainerDevices(
            resource_name=resource,
            device_ids=[device_id],
            topology=None
            if node < 0
            else podresources.TopologyInfo(nodes=[podresources.NumaNode(id=node)]),
        )
        for resource, by_node in devices.items()
        for node, ids in by_node.items()
        for device_id in ids
    ]


class _Lister(podresources.PodResourcesListerBase):
    def __init__(self, server: PodResources) -> None:
        self._server = server

    async def list(
        self,
        message: podresources.ListPodResourcesRequest,  # noqa: ARG002 - it is empty
    ) -> podresources.ListPodResourcesResponse:
        self._server.lists += 1
        await self._server.admit_query()
        return podresources.ListPodResourcesResponse(pod_resources=self._server.pods())

    async def get_allocatable_resources(
        self,
        message: podresources.AllocatableResourcesRequest,  # noqa: ARG002 - it is empty
    ) -> podresources.AllocatableResourcesResponse:
        self._server.counts += 1
        await self._server.admit_query()
        return podresources.AllocatableResourcesResponse(devices=self._server.allocatable())

    async def get(
        self, message: podresources.GetPodResourcesRequest
    ) -> podresources.GetPodResourcesResponse:
        await self._server.admit_query()
        return podresources.GetPodResourcesResponse(
            pod_resources=self._server.get(message.pod_namespace, message.pod_name)
        )
