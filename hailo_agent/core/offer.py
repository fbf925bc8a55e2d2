"""What Kubernetes counts: the units offered under each resource name.

Today one device is one offer. Sharing will make several offers of one device here, and nowhere
else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NewType

from hailo_agent.core.device import Device
from hailo_agent.core.inventory import Inventory

OfferId = NewType("OfferId", str)


def endpoint_name(resource: str) -> str:
    """Name a resource's socket file after its full name, so that no two resources share one.

    Only the part after the slash of a valid name may contain an underscore.
    """
    return f"{resource.replace('/', '_')}.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceNames:
    """Under which resource a device is offered: by PCI id, else by model, else the default."""

    default: str
    by_kind: Mapping[str, str] = field(default_factory=dict)
    """Model (`hailo-8`) or PCI id (`1e60:2864`) to resource name."""

    def of(self, device: Device) -> str:
        """Name the resource of one device."""
        if device.resource is not None:
            return device.resource
        default = self.by_kind.get(device.model.value, self.default)
        return default if device.pci_id is None else self.by_kind.get(str(device.pci_id), default)

    def all(self) -> tuple[str, ...]:
        """Every resource that is served, also those without a device yet."""
        return tuple(sorted({self.default, *self.by_kind.values()}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One countable unit of one resource, and the device behind it."""

    id: OfferId
    device: Device


def offers(inventory: Inventory, resource: str, names: ResourceNames) -> tuple[Offer, ...]:
    """List what is offered under one resource, healthy or not, sorted by id."""
    return tuple(
        Offer(id=OfferId(device.id), device=device)
        for device in inventory.devices
        if names.of(device) == resource
    )
