"""What the simulated kubelet knows of devices, and what it does with that when pods come.

`sim.kubelet` puts sockets around it; nobody else builds one. This is `devicemanager/manager.go` of
kubelet 1.32 and 1.36: tables per resource, endpoints with a grace when they stop, admission, the
cached answers, and who is healthy. It dials nobody: it is handed a stub to ask.
"""

import asyncio
import random
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from hailo_agent.sim import checkpoint
from hailo_agent.sim.checkpoint import Grant, GrantKey
from hailo_agent.sim.container import DeviceSpec, MountSpec
from hailo_agent.sim.podresources import Holding
from hailo_agent.sim.records import (
    HEALTHY,
    AdmissionFailed,
    Allocation,
    Container,
    ContainerNotStarted,
    KubeletCrashed,
    ListedDevice,
    Message,
    Pod,
    Preference,
    Resource,
)
from hailo_agent.sim.sockets import RPC_FAILURES, go_text
from hailo_agent.wire import deviceplugin

KubeletVersion = Literal["1.32", "1.36"]

PRE_START_SECONDS: Final = 30.0
STOP_GRACE_SECONDS: Final = 300.0
REMEMBERED: Final = 10_000


class Refused(Exception):
    """A Go `error` on its way out of Register or an admission: it is all text."""


@dataclass(slots=True)
class _Endpoint:
    """What `endpoints[resource]` holds; without a stub it was read from the checkpoint."""

    socket: str = ""
    stub: deviceplugin.DevicePluginStub | None = None
    pre_start_required: bool = False
    preferred_allocation: bool = False
    stopped_since: float | None = None
    expiry: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _Table:
    """healthyDevices, unhealthyDevices and allDevices of one resource.

    The two sets are None once the stop grace has run out and `GetCapacity` dropped the resource.
    """

    devices: dict[str, ListedDevice] = field(default_factory=dict)
    healthy: set[str] | None = None
    unhealthy: set[str] | None = None


class DeviceManager:
    """Tables, endpoints and grants of one kubelet, and the admission of pods against them."""

    def __init__(
        self,
        plugin_dir: Path,
        *,
        version: KubeletVersion,
        stop_grace_seconds: float,
        pre_start_seconds: float,
        fsync: bool,
        seed: int,
    ) -> None:
        self.plugin_dir = plugin_dir
        self.version = version
        self.pods: dict[str, Pod] = {}
        self.messages: deque[Message] = deque(maxlen=REMEMBERED)
        self.allocations: deque[Allocation] = deque(maxlen=REMEMBERED)
        self.preferences: deque[Preference] = deque(maxlen=REMEMBERED)
        self.crashes: list[str] = []
        self.message_count = 0
        self.checkpoint_failures = 0
        self._stop_grace = stop_grace_seconds
        self._pre_start_seconds = pre_start_seconds
        self._fsync = fsync
        self._random = random.Random(seed)
        self._moved = asyncio.Event()
        self._sync_loop = asyncio.Lock()
        self._interned: dict[ListedDevice, ListedDevice] = {}
        self._forget()

    def _forget(self) -> None:
        """Have the memory of a process that has just begun."""
        self._tables: dict[str, _Table] = {}
        self._endpoints: dict[str, _Endpoint] = {}
        self._grants: dict[GrantKey, Grant] = {}
        self._in_flight: dict[str, set[str]] = {}

    def _remember(self) -> None:
        """Read the checkpoint: a resource named there starts out stopped, with no devices."""
        self._grants, resources = checkpoint.read(self.plugin_dir)
        for resource in resources:
            self._tables[resource] = _Table(healthy=set(), unhealthy=set())
            self._endpoints[resource] = _Endpoint()
            self._stop_endpoint(resource, self._endpoints[resource])

    def _write_checkpoint(self) -> None:
        registered = {
            resource: table.healthy
            for resource, table in self._tables.items()
            if table.healthy is not None
        }
        checkpoint.write(self.plugin_dir, self._grants, registered, fsync=self._fsync)

    def _try_checkpoint(self) -> None:
        """Write the checkpoint where a kubelet only logs it if that fails."""
        try:
            self._write_checkpoint()
        except OSError:
            self.checkpoint_failures += 1

    # --- waiting ---

    def _changed(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def wait_for(self, predicate: Callable[[], object], *, within: float = 5.0) -> None:
        """Wait until the predicate holds; it is asked again whenever this kubelet has changed."""
        try:
            async with asyncio.timeout(within):
                while not predicate():
                    await self._moved.wait()
        except TimeoutError:
            message = f"not so within {within} s: {self.describe()}"
            raise TimeoutError(message) from None

    async def quiet(self, seconds: float, *, within: float = 30.0) -> None:
        """Wait until nothing has changed here for so many seconds."""
        async with asyncio.timeout(within):
            while True:
                try:
                    async with asyncio.timeout(seconds):
                        await self._moved.wait()
                except TimeoutError:
                    return

    def describe(self) -> str:
        """Say in one line what this kubelet believes, for a failed expectation."""
        said = [
            f"{r.name}: {r.allocatable}/{r.capacity}"
            + ("" if r.connected else " disconnected")
            + "".join(f" {d.id}={d.health}" for d in list(r.devices.values())[:16])
            for r in self.resources.values()
        ]
        return "; ".join(said) or "no resource"

    # --- what it believes ---

    @property
    def resources(self) -> dict[str, Resource]:
        """Every resource that this kubelet knows, or knew: `GetCapacity` keeps the key at 0."""
        return {name: self.resource(name) for name in self._tables}

    def resource(self, name: str) -> Resource:
        """Look at one resource; one never heard of is all zero."""
        table = self._tables.get(name)
        if table is None:
            return Resource(name=name)
        healthy, unhealthy = table.healthy or set(), table.unhealthy or set()
        endpoint = self._endpoints.get(name)
        return Resource(
            name=name,
            capacity=len(healthy) + len(unhealthy),
            allocatable=len(healthy),
            devices=dict(table.devices),
            endpoint=endpoint.socket if endpoint is not None else "",
            connected=endpoint is not None and endpoint.stopped_since is None,
            stopped_since=endpoint.stopped_since if endpoint is not None else None,
        )

    def holders(self, resource: str) -> dict[str, str]:
        """Tell which pod holds which device, as podDevices has it."""
        names = {pod.uid: pod.name for pod in self.pods.values()}
        return {
            device_id: names.get(uid, uid)
            for (uid, _, held), grant in self._grants.items()
            if held == resource
            for device_id in grant.ids
        }

    def status(self, pod: str) -> dict[str, dict[str, str]]:
        """Read `allocatedResourcesStatus` of a pod: resource → device → health.

        `UpdateAllocatedResourcesStatus` looks a device up in the newest list; one that is not
        there is reported Healthy, and a stream that ended changes nothing.
        """
        said: dict[str, dict[str, str]] = {}
        for (uid, _, resource), grant in self._grants.items():
            if uid != self.pods[pod].uid:
                continue
            table = self._tables.get(resource, _Table())
            for device_id in grant.ids:
                listed = table.devices.get(device_id)
                healthy = listed is None or listed.healthy
                said.setdefault(resource, {})[device_id] = HEALTHY if healthy else "Unhealthy"
        return said

    # --- what the registration server tells it ---

    def _plugin_connected(
        self,
        resource: str,
        socket: str,
        stub: deviceplugin.DevicePluginStub,
        options: deviceplugin.DevicePluginOptions,
    ) -> None:
        """Take a plugin for this resource, whoever had it before."""
        before = self._endpoints.get(resource)
        if before is not None and before.expiry is not None:
            before.expiry.cancel()
        self._endpoints[resource] = _Endpoint(
            socket=socket,
            stub=stub,
            pre_start_required=options.pre_start_required,
            preferred_allocation=options.get_preferred_allocation_available,
        )
        self._tables.setdefault(resource, _Table())
        self._changed()

    def _plugin_disconnected(self, resource: str) -> None:
        """Take every device for unhealthy, and begin the grace of the resource's endpoint."""
        endpoint, table = self._endpoints.get(resource), self._tables.get(resource)
        if endpoint is None or table is None:
            return
        if table.healthy is not None:
            table.unhealthy = (table.unhealthy or set()) | table.healthy
            table.healthy = set()
        self._stop_endpoint(resource, endpoint)
        self._changed()

    def _stop_endpoint(self, resource: str, endpoint: _Endpoint) -> None:
        loop = asyncio.get_running_loop()
        endpoint.stopped_since = loop.time()
        if endpoint.expiry is not None:
            endpoint.expiry.cancel()
        endpoint.expiry = loop.call_later(self._stop_grace, self._expire, resource, endpoint)

    def _expire(self, resource: str, endpoint: _Endpoint) -> None:
        """Forget an endpoint whose grace is over, and its devices (`GetCapacity`)."""
        if self._endpoints.get(resource) is not endpoint:
            return
        del self._endpoints[resource]
        self._tables[resource].healthy = self._tables[resource].unhealthy = None
        self._try_checkpoint()
        self._changed()

    def _cancel_expiries(self) -> None:
        for endpoint in self._endpoints.values():
            if endpoint.expiry is not None:
                endpoint.expiry.cancel()

    def _received(self, resource: str, response: deviceplugin.ListAndWatchResponse) -> None:
        """Replace the table by a list (`genericDeviceUpdateCallback`), and checkpoint, always."""
        listed = [self._listed(device) for device in response.devices]
        table = _Table(devices={device.id: device for device in listed})
        if resource in self._endpoints:  # else GetCapacity drops the counts again: "out of sync"
            # Sets of their own: an id listed twice with two healths is in both and counts twice.
            table.healthy = {device.id for device in listed if device.healthy}
            table.unhealthy = {device.id for device in listed if not device.healthy}
        self._tables[resource] = table
        self.message_count += 1
        self.messages.append(
            Message(at=asyncio.get_running_loop().time(), resource=resource, devices=tuple(listed))
        )
        self._try_checkpoint()
        self._changed()

    def _listed(self, device: deviceplugin.Device) -> ListedDevice:
        topology = device.topology
        said = ListedDevice(
            id=device.id,
            health=device.health,
            numa=() if topology is None else tuple(node.id for node in topology.nodes),
            topology=topology is not None,
        )
        return self._interned.setdefault(said, said)

    # --- admission (manager.go) ---

    async def admit(
        self, pod: str, requests: Mapping[str, int], container: str = "main"
    ) -> Container:
        """Admit a container of a pod: choose devices, have them allocated, remember the answer.

        Admitting a container that has its devices already is what a kubelet does again after a
        reboot of the node: nothing is allocated, but the devices must be healthy.
        """
        async with self._sync_loop:  # admission is serial, and a slow plugin stalls all of it
            known = self.pods.setdefault(pod, Pod(name=pod, uid=str(uuid.uuid4())))
            known.requests[container] = dict(requests)
            self._free_inactive()
            try:
                await self._allocate_container(known, container)
            except Refused as error:
                refusal = AdmissionFailed(pod, str(error))
                known.phase, known.message = "Failed", str(refusal)
                self._changed()
                raise refusal from error
            self._changed()
            return self._container(known, container)

    async def restart_container(self, pod: str, container: str = "main") -> Container:
        """Start a container again: from the cached answer, without the plugin if it can be."""
        known = self.pods[pod]
        for resource, wanted in known.requests[container].items():
            if not wanted:
                continue
            key = (known.uid, container, resource)
            await self._pre_start(resource, key)
            if key not in self._grants:  # a checkpoint was lost: GetDeviceRunContainerOptions
                async with self._sync_loop:
                    try:
                        await self._allocate_container(known, container)
                    except Refused as error:
                        raise ContainerNotStarted(str(error)) from error
        return self._container(known, container)

    async def remove(self, pod: str) -> None:
        """Delete a pod. Its devices are free from the next admission on, as they really are."""
        async with self._sync_loop:
            del self.pods[pod]
            self._changed()

    async def finish(self, pod: str) -> None:
        """Let a pod run to its end, without deleting it."""
        async with self._sync_loop:
            self.pods[pod].phase = "Succeeded"
            self._changed()

    def _free_inactive(self) -> None:
        """Forget what pods held that are no longer active (`UpdateAllocatedDevices`)."""
        active = {pod.uid for pod in self.pods.values() if pod.active}
        self._grants = {key: grant for key, grant in self._grants.items() if key[0] in active}

    async def _allocate_container(self, pod: Pod, container: str) -> None:
        allocated = False
        try:
            for resource, wanted in pod.requests[container].items():
                chosen = await self._devices_to_allocate(pod, container, resource, wanted)
                if chosen:
                    await self._allocate(pod, container, resource, chosen)
                    allocated = True
        finally:
            self._in_flight.clear()
        if allocated:
            try:
                self._write_checkpoint()
            except OSError as error:
                why = f'failed to write checkpoint file "{checkpoint.CHECKPOINT}": {error}'
                raise Refused(why) from error

    async def _devices_to_allocate(
        self, pod: Pod, container: str, resource: str, wanted: int
    ) -> list[str]:
        held = self._grants.get((pod.uid, container, resource))
        have = held.ids if held is not None else set[str]()
        if held is not None and len(have) != wanted:
            raise Refused(
                f'pod "{pod.uid}" container "{container}" changed request for resource '
                f'"{resource}" from {len(have)} to {wanted}'
            )
        healthy = self._tables.get(resource, _Table()).healthy
        if healthy is None:
            raise Refused(f"cannot allocate unregistered device {resource}")
        if not healthy:
            raise Refused(
                f"no healthy devices present; cannot allocate unhealthy devices {resource}"
            )
        if not have <= healthy:
            raise Refused(
                "previously allocated devices are no longer healthy; "
                f"cannot allocate unhealthy devices {resource}"
            )
        if held is not None or wanted == 0:
            return []
        available = healthy - self._in_use(resource)
        if len(available) < wanted:
            raise Refused(
                f"requested number of devices unavailable for {resource}. "
                f"Requested: {wanted}, Available: {len(available)}"
            )
        preferred = await self._preferred(resource, available, wanted)
        chosen = [*preferred, *self._shuffled(available - set(preferred))][:wanted]
        self._in_flight.setdefault(resource, set()).update(chosen)
        return chosen

    def _in_use(self, resource: str) -> set[str]:
        in_use = set(self._in_flight.get(resource, ()))
        for (_, _, held), grant in self._grants.items():
            if held == resource:
                in_use |= grant.ids
        return in_use

    def _shuffled(self, ids: Iterable[str]) -> list[str]:
        """Put ids into no particular order, the only one that Go's sets have."""
        shuffled = sorted(ids)
        self._random.shuffle(shuffled)
        return shuffled

    async def _preferred(self, resource: str, available: set[str], size: int) -> list[str]:
        """Ask the plugin what it would choose. Advice: what does not fit is passed over."""
        endpoint = self._endpoints.get(resource)
        if endpoint is None:
            raise Refused(f"endpoint not found in cache for a registered resource: {resource}")
        if not endpoint.preferred_allocation or endpoint.stub is None:
            return []
        request = deviceplugin.ContainerPreferredAllocationRequest(
            available_device_ids=self._shuffled(available),
            must_include_device_ids=[],
            allocation_size=size,
        )
        try:
            answer = await endpoint.stub.get_preferred_allocation(
                deviceplugin.PreferredAllocationRequest(container_requests=[request])
            )
        except RPC_FAILURES as error:
            raise Refused(
                f"device plugin GetPreferredAllocation rpc failed with err: {go_text(error)}"
            ) from error
        said = answer.container_responses[0].device_ids if answer.container_responses else []
        self.preferences.append(
            Preference(
                resource=resource,
                available=tuple(request.available_device_ids),
                size=size,
                answer=tuple(said),
            )
        )
        return [device_id for device_id in dict.fromkeys(said) if device_id in available]

    async def _allocate(self, pod: Pod, container: str, resource: str, ids: list[str]) -> None:
        endpoint = self._endpoints.get(resource)
        if endpoint is None:
            raise Refused(f"unknown Device Plugin {resource}")
        if endpoint.stub is None or endpoint.stopped_since is not None:
            raise Refused(f"endpoint {resource} has been stopped")
        loop = asyncio.get_running_loop()
        asked = self._shuffled(ids)
        request = deviceplugin.ContainerAllocateRequest(device_ids=asked)
        at, failure = loop.time(), ""
        try:
            answer = await endpoint.stub.allocate(
                deviceplugin.AllocateRequest(container_requests=[request])
            )
            if not answer.container_responses:
                failure = f"no containers return in allocation response {answer}"
        except RPC_FAILURES as error:
            failure = go_text(error)
        self.allocations.append(
            Allocation(
                at=at,
                seconds=loop.time() - at,
                pod=pod.name,
                container=container,
                resource=resource,
                device_ids=tuple(asked),
                error=failure,
            )
        )
        if failure:
            raise Refused(failure)
        self._grants[pod.uid, container, resource] = Grant(
            by_node=self._by_node(resource, asked), response=answer.container_responses[0]
        )

    def _by_node(self, resource: str, ids: list[str]) -> dict[int, tuple[str, ...]]:
        """Sort granted ids by NUMA node; the place where 1.36 follows a pointer unconditionally."""
        listed = self._tables[resource].devices
        by_node: dict[int, tuple[str, ...]] = {}
        for device_id in ids:
            device = listed.get(device_id)
            if device is None and self.version == "1.36":
                crash = (
                    "panic: runtime error: invalid memory address or nil pointer dereference: "
                    f"allDevices[{resource}][{device_id}].Topology"
                )
                self.crashes.append(crash)
                self._changed()
                raise KubeletCrashed(crash)
            for node in (device.numa if device is not None else ()) or (-1,):
                by_node[node] = (*by_node.get(node, ()), device_id)
        return by_node

    async def _pre_start(self, resource: str, key: GrantKey) -> None:
        endpoint = self._endpoints.get(resource)
        if endpoint is None:
            message = f"endpoint not found in cache for a registered resource: {resource}"
            raise ContainerNotStarted(message)
        if not endpoint.pre_start_required:
            return
        pod = f"pod {key[0]}, container {key[1]}, resource {resource}"
        if key not in self._grants:
            message = f"no devices found allocated in local cache for {pod}"
            raise ContainerNotStarted(message)
        failed = "device plugin PreStartContainer rpc failed with err: "
        if endpoint.stub is None or endpoint.stopped_since is not None:
            raise ContainerNotStarted(f"{failed}endpoint {resource} has been stopped")
        try:
            await endpoint.stub.pre_start_container(
                deviceplugin.PreStartContainerRequest(
                    device_ids=self._shuffled(self._grants[key].ids)
                ),
                timeout=self._pre_start_seconds,
            )
        except RPC_FAILURES as error:
            raise ContainerNotStarted(f"{failed}{go_text(error)}") from error

    def _container(self, pod: Pod, container: str) -> Container:
        """Merge the answers for a container (`deviceRunContainerOptions`): the first one wins."""
        ids: dict[str, tuple[str, ...]] = {}
        envs: dict[str, str] = {}
        mounts: dict[str, MountSpec] = {}
        devices: dict[str, DeviceSpec] = {}
        annotations: dict[str, str] = {}
        names: dict[str, None] = {}
        for (uid, held_by, resource), grant in self._grants.items():
            if (uid, held_by) != (pod.uid, container):
                continue
            ids[resource] = tuple(sorted(grant.ids))
            for key, value in grant.response.envs.items():
                envs.setdefault(key, value)
            for mount in grant.response.mounts:
                mounts.setdefault(
                    mount.container_path,
                    MountSpec(
                        container_path=mount.container_path,
                        host_path=mount.host_path,
                        read_only=mount.read_only,
                    ),
                )
            for device in grant.response.devices:
                devices.setdefault(
                    device.container_path,
                    DeviceSpec(
                        container_path=device.container_path,
                        host_path=device.host_path,
                        permissions=device.permissions,
                    ),
                )
            for key, value in grant.response.annotations.items():
                annotations.setdefault(key, value)
            names.update(dict.fromkeys(device.name for device in grant.response.cdi_devices))
        return Container(
            pod=pod.name,
            name=container,
            device_ids=ids,
            envs=envs,
            mounts=tuple(mounts.values()),
            devices=tuple(devices.values()),
            annotations=annotations,
            cdi_devices=tuple(names),
        )

    # --- what the pod-resources socket says ---

    def _holdings(self) -> list[Holding]:
        """Say who holds what. Before 1.34 pods that have finished were named as well."""
        if self.version != "1.32":
            self._free_inactive()
        return [
            Holding(
                namespace=pod.name.rpartition("/")[0] or "default",
                pod=pod.name.rpartition("/")[2],
                container=container,
                devices={
                    resource: dict(grant.by_node)
                    for (uid, held_by, resource), grant in self._grants.items()
                    if (uid, held_by) == (pod.uid, container)
                },
            )
            for pod in self.pods.values()
            if pod.active or (self.version == "1.32" and pod.phase == "Succeeded")
            for container in pod.requests
        ]

    def _allocatable(self) -> dict[str, dict[int, tuple[str, ...]]]:
        """Say which devices are healthy, by resource and NUMA node."""
        said: dict[str, dict[int, tuple[str, ...]]] = {}
        for resource, table in self._tables.items():
            for device_id in sorted(table.healthy or ()):
                for node in table.devices[device_id].numa or (-1,):
                    by_node = said.setdefault(resource, {})
                    by_node[node] = (*by_node.get(node, ()), device_id)
        return said
