"""The CDI specification that lets a runtime hand our devices to containers.

Rendered from the inventory; `runtime.specs` puts it on disk. The field names are those of the
Container Device Interface;
readers refuse a whole file for one unknown key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from hailo_agent.core.device import ALL, Device, DeviceNumber
from hailo_agent.core.health import FaultCode
from hailo_agent.core.inventory import Inventory

VENDOR: Final = "hailo.ai"
CLASS: Final = "npu"
KIND: Final = f"{VENDOR}/{CLASS}"
FILE_NAME: Final = f"{VENDOR}-{CLASS}.json"
"""The name CDI's own library gives a static spec of this kind."""

_TMPFS_OPTIONS = ("rw", "nosuid", "nodev", "noexec", "mode=0755", "size=1m")
_BIND_OPTIONS = ("ro", "bind", "nosuid", "nodev", "noexec")

DEV_IN_CONTAINER: Final = "/dev"
MONITOR_IN_CONTAINER: Final = "/tmp/hmon_files"  # noqa: S108 - where HailoRT writes
_MONITOR_SWITCH = "HAILO_MONITOR=1"
_MONITOR_OPTIONS = ("rw", "bind", "nosuid", "nodev", "noexec")


def qualified(name: str) -> str:
    """Spell a CDI device as the kubelet, podman and docker take it: `hailo.ai/npu=<name>`."""
    return f"{KIND}={name}"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)


class DeviceNode(_Document):
    """A node to make in the container.

    Without major and minor the runtime takes them from the host when the container starts, so that
    a reloaded driver's new major cannot leave a dead number behind.
    """

    path: str
    host_path: str | None = None
    """Where it is on the host, if that is another path; known since CDI 0.5.0."""
    permissions: str = "rw"


class Mount(_Document):
    """A mount to make in the container; `type` is known since CDI 0.4.0."""

    host_path: str
    container_path: str
    type: str | None = None
    options: tuple[str, ...]


class ContainerEdits(_Document):
    """What to change in a container."""

    env: tuple[str, ...] | None = None
    device_nodes: tuple[DeviceNode, ...] | None = None
    mounts: tuple[Mount, ...] | None = None


class SpecDevice(_Document):
    """One name that can be asked for, and what asking for it changes."""

    name: str
    container_edits: ContainerEdits

    def to_document(self) -> dict[str, Any]:
        """Say this device as it stands in the file."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Spec(_Document):
    """A CDI specification file."""

    cdi_version: str
    kind: str
    container_edits: ContainerEdits | None = None
    devices: tuple[SpecDevice, ...]

    def to_json(self) -> bytes:
        """Serialise as the bytes of the file; equal specs give equal bytes."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode() + b"\n"


class Outcome(StrEnum):
    """What became of a spec; the values are also the names of the log events."""

    UNCHANGED = "spec.unchanged"
    REPLACED = "spec.replaced"
    RESTORED = "spec.restored"
    REMOVED = "spec.removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the container runtime finds things; our own mounts may differ."""

    dev: str = "/dev"
    sys: str = "/sys"
    links: str = "/run/hailo-agent/devices"
    """Directory of links named after device ids."""
    monitor: str = ""
    """Directory of directories named as the devices of the spec, for HailoRT to tell in what it
    does; empty where nobody reads them."""


def render(inventory: Inventory, place: Place) -> Spec | None:
    """Render the spec of all devices that a runtime could inject now; None when there are none.

    A device that is ill but present stays in: containers that hold it may restart. An empty device
    list would be refused by every reader, so no device means no spec.
    """
    devices = [device for device in inventory.devices if _is_injectable(device)]
    if not devices:
        return None
    masks = tuple(_mask(name) for name in inventory.class_names)
    edits = {device.id: _edits(place, device) for device in devices}
    offered = [edits[d.id] for d in devices if not _is_set_aside(d)] or list(edits.values())
    return Spec(
        cdi_version=_lowest_version(place, masks),
        kind=KIND,
        container_edits=ContainerEdits(mounts=masks) if masks else None,
        devices=(
            SpecDevice(name=ALL, container_edits=_monitored(_merged(offered), place, ALL)),
            *(
                SpecDevice(name=name, container_edits=_monitored(own, place, name))
                for name, own in edits.items()
            ),
        ),
    )


def _is_set_aside(device: Device) -> bool:
    """Whether an operator wants nobody new to have it; `all` is for whoever comes."""
    return device.denied or any(fault.code is FaultCode.CORDONED for fault in device.faults)


def numbers(inventory: Inventory) -> Mapping[str, DeviceNumber]:
    """Tell the device number behind each name of the spec.

    Readers remember the numbers they found until they read the file again, so a spec whose text is
    equal but whose numbers moved must be published anew.
    """
    return {
        device.id: device.devnode.number
        for device in inventory.devices
        if device.devnode is not None and _is_injectable(device)
    }


def links(inventory: Inventory, place: Place) -> Mapping[str, str]:
    """Tell for each device that could be injected now where the link of its name must lead."""
    return {
        device.id: f"{place.dev}/{device.devnode.name}"
        for device in inventory.devices
        if device.devnode is not None and _is_injectable(device)
    }


def _is_injectable(device: Device) -> bool:
    return device.devnode is not None and device.devnode.is_sound


def _edits(place: Place, device: Device) -> ContainerEdits:
    node = device.devnode
    if node is None:
        return ContainerEdits()
    return ContainerEdits(
        device_nodes=(_devnode(place, node.name),),
        mounts=(_entry(place, node.class_name, node.name),),
    )


def _devnode(place: Place, name: str) -> DeviceNode:
    """Libhailort looks for devnodes in /dev, wherever the host has them."""
    path = f"{DEV_IN_CONTAINER}/{name}"
    host_path = f"{place.dev}/{name}"
    return DeviceNode(path=path, host_path=None if host_path == path else host_path)


def _merged(edits: Iterable[ContainerEdits]) -> ContainerEdits:
    edits = tuple(edits)
    return ContainerEdits(
        device_nodes=tuple(node for one in edits for node in one.device_nodes or ()),
        mounts=tuple(mount for one in edits for mount in one.mounts or ()),
    )


def _monitored(edits: ContainerEdits, place: Place, name: str) -> ContainerEdits:
    """Have HailoRT write down what it does, in a directory that is this name's own.

    Who is granted two names gets the directory of one of them: of mounts onto the same place the
    last one wins.
    """
    if not place.monitor:
        return edits
    mount = Mount(
        host_path=f"{place.monitor}/{name}",
        container_path=MONITOR_IN_CONTAINER,
        options=_MONITOR_OPTIONS,
    )
    return edits.model_copy(
        update={"env": (_MONITOR_SWITCH,), "mounts": (*(edits.mounts or ()), mount)}
    )


def _mask(class_name: str) -> Mount:
    """Hide every device of a class: libhailort fails if it lists one that it cannot open."""
    return Mount(
        host_path="tmpfs",
        container_path=f"/sys/class/{class_name}",
        type="tmpfs",
        options=_TMPFS_OPTIONS,
    )


def _entry(place: Place, class_name: str, entry: str) -> Mount:
    """Show one device again; runtimes sort mounts by depth, so the mask always lands first."""
    return Mount(
        host_path=f"{place.sys}/class/{class_name}/{entry}",
        container_path=f"/sys/class/{class_name}/{entry}",
        options=_BIND_OPTIONS,
    )


def _lowest_version(place: Place, masks: tuple[Mount, ...]) -> str:
    """Write the lowest version that the content needs: old runtimes refuse newer ones."""
    if place.dev != DEV_IN_CONTAINER:
        return "0.5.0"
    return "0.4.0" if masks else "0.3.0"
