"""What one container receives, or why it receives nothing.

Called while the kubelet waits with its sync loop, so it only looks at the inventory in memory. The
answer is kept by the kubelet for the pod's whole life and used again at every container restart:
nothing in it may expire.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from hailo_agent.core.cdi import DEV_IN_CONTAINER, KIND, Place, qualified
from hailo_agent.core.device import Device
from hailo_agent.core.offer import Offer, OfferId
from hailo_agent.errors import DeviceUnavailable, UnknownOffer

ANNOTATION_PREFIX = "cdi.k8s.io/"
_PLUGIN = "hailo-agent"
_MAX_ANNOTATION_NAME = 63


class Delivery(StrEnum):
    """How devices reach the container; runtimes replace equal nodes, so ways can be combined."""

    CRI = "cri"
    ANNOTATION = "annotation"
    DEVICESPEC = "devicespec"

    @property
    def needs_spec(self) -> bool:
        """Whether the runtime must find our CDI spec on disk for this to work."""
        return self is not Delivery.DEVICESPEC


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a container receives, in the kubelet's terms but not in its types."""

    devices: tuple[Device, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()
    devnodes: tuple[tuple[str, str], ...] = ()
    """Path on the host and path in the container.

    The host's is a link named after the device: this answer is used again when the container
    restarts, and `/dev/hailo0` may be another device by then.
    """


def grant(
    offered: Iterable[Offer],
    offer_ids: Sequence[OfferId],
    *,
    resource: str,
    delivery: frozenset[Delivery],
    place: Place,
) -> Grant:
    """Decide what one container receives, or refuse and name the device and the reason.

    Raises:
        UnknownOffer: an id is not offered under this resource.
        DeviceUnavailable: a device is unhealthy, gone or set aside.
    """
    by_id = {offer.id: offer.device for offer in offered}
    devices = []
    for offer_id in dict.fromkeys(offer_ids):
        device = by_id.get(offer_id)
        if device is None:
            raise UnknownOffer(f"{resource} has no device {offer_id!r} on this node")
        if not device.is_usable:
            raise DeviceUnavailable(
                f"{resource} device {offer_id} is not available: {_why(device)}"
            )
        devices.append(device)
    names = tuple(qualified(device.id) for device in devices)
    return Grant(
        devices=tuple(devices),
        cdi_devices=names if Delivery.CRI in delivery else (),
        annotations=_annotation(names) if Delivery.ANNOTATION in delivery else (),
        devnodes=tuple(
            (f"{place.links}/{device.id}", f"{DEV_IN_CONTAINER}/{device.devnode.name}")
            for device in devices
            if device.devnode is not None
        )
        if Delivery.DEVICESPEC in delivery
        else (),
    )


def _why(device: Device) -> str:
    return "; ".join(fault.message for fault in device.faults) or "it is not usable"


def _annotation(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Build the one annotation of a container.

    Two resources of one container must not meet under one key, for the kubelet keeps only the
    first. A device is in one container only, so the first device's id tells the keys apart.
    """
    if not names:
        return ()
    first = min(names).removeprefix(f"{KIND}=")
    room = _MAX_ANNOTATION_NAME - len(_PLUGIN) - 1
    return ((f"{ANNOTATION_PREFIX}{_PLUGIN}_{first[-room:].lstrip('-')}", ",".join(names)),)
