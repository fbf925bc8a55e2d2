"""Between the core's values and the kubelet's messages, in both directions, without a decision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hailo_agent.core.device import DeviceId, Holder, Topology, is_device_id
from hailo_agent.core.grant import Grant
from hailo_agent.core.health import Health
from hailo_agent.core.observation import Holding, Holdings
from hailo_agent.core.offer import Offer
from hailo_agent.core.standing import Counted
from hailo_agent.wire import deviceplugin, podresources


def to_devices(offered: Iterable[Offer]) -> list[deviceplugin.Device]:
    """Say what is offered as the kubelet counts it: it knows two words, and degraded is healthy."""
    return [
        deviceplugin.Device(
            id=offer.id,
            health=(Health.HEALTHY if offer.device.fit else Health.UNHEALTHY).value,
            topology=to_topology(offer.device.topology),
        )
        for offer in offered
    ]


def to_topology(topology: Topology) -> deviceplugin.TopologyInfo | None:
    """Tell the NUMA node, 0 included; leave it out where it is unknown.

    An empty TopologyInfo broke admission on old kubelets, and -1 is the kubelet's own mark.
    """
    if topology.numa_node is None:
        return None
    return deviceplugin.TopologyInfo(nodes=[deviceplugin.NumaNode(id=topology.numa_node)])


def to_container(grant: Grant) -> deviceplugin.ContainerAllocateResponse:
    """Hand over a grant. Access is `rw`: containerd copies it into the cgroup rule as it is."""
    return deviceplugin.ContainerAllocateResponse(
        annotations=dict(grant.annotations),
        cdi_devices=[deviceplugin.CdiDevice(name=name) for name in grant.cdi_devices],
        devices=[
            deviceplugin.DeviceSpec(host_path=host, container_path=container, permissions="rw")
            for host, container in grant.devnodes
        ],
    )


def to_places(offered: Iterable[Offer]) -> Mapping[str, Topology]:
    """Tell where each offer lies."""
    return {offer.id: offer.device.topology for offer in offered}


def from_pods(
    pods: Iterable[podresources.PodResources], resources: Iterable[str], at: float
) -> Holdings:
    """Read who holds what of ours; the kubelet repeats a device per NUMA node."""
    ours = frozenset(resources)
    entries = {
        Holding(
            resource=devices.resource_name,
            device_id=DeviceId(device_id),
            holder=Holder(namespace=pod.namespace, pod=pod.name, container=container.name),
        ): None
        for pod in pods
        for container in pod.containers
        for devices in container.devices
        for device_id in devices.device_ids
        if devices.resource_name in ours or is_device_id(device_id)
    }
    return Holdings(
        at=at, entries=tuple(sorted(entries, key=lambda e: (e.resource, e.device_id, e.holder)))
    )


def from_allocatable(
    devices: Iterable[podresources.ContainerDevices], resources: Iterable[str], asked_at: float
) -> Counted:
    """Read which devices are counted as healthy under our resources, ours or not."""
    by_resource: dict[str, set[str]] = {resource: set() for resource in resources}
    for entry in devices:
        if entry.resource_name in by_resource:
            by_resource[entry.resource_name].update(entry.device_ids)
    return Counted(
        by_resource={name: frozenset(ids) for name, ids in by_resource.items()}, asked_at=asked_at
    )
