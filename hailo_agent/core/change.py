"""The difference between two inventories, one value per change.

For those who tell of changes (logs, subscribers). Nothing is decided by them: who acts, acts on the
inventory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from hailo_agent.core.device import Device
from hailo_agent.core.health import Fault, Health
from hailo_agent.core.inventory import Inventory


class Kind(StrEnum):
    """What may change; the values are also the names of the log events."""

    ADDED = "device.added"
    REMOVED = "device.removed"
    MOVED = "device.moved"
    FAULTED = "device.faulted"
    RECOVERED = "device.recovered"
    HELD = "device.held"
    FREED = "device.freed"
    UPDATED = "device.updated"
    FAULT_FOUND = "fault.found"
    FAULT_CLEARED = "fault.cleared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One difference: of a device, or of a fault that belongs to none."""

    kind: Kind
    device: Device | None = None
    fault: Fault | None = None


def changes(before: Inventory, after: Inventory) -> tuple[Change, ...]:
    """Tell every difference between two inventories, in the order of device ids, faults last."""
    return (*_of_devices(before, after), *_of_faults(before, after))


def _of_devices(before: Inventory, after: Inventory) -> Iterator[Change]:
    olds, news = before.by_id(), after.by_id()
    for device_id in sorted({*olds, *news}):
        old, new = olds.get(device_id), news.get(device_id)
        if old == new:
            continue
        if new is None:
            yield Change(kind=Kind.REMOVED, device=old)
        elif old is None:
            yield Change(kind=Kind.ADDED, device=new)
        else:
            yield from _of_device(old, new)


def _of_device(old: Device, new: Device) -> Iterator[Change]:
    kinds = []
    if new.devnode is not None and old.devnode is not None and old.devnode != new.devnode:
        kinds.append(Kind.MOVED)
    if new.health is not old.health or new.faults != old.faults:
        kinds.append(_of_health(old, new))
    if bool(new.held) != bool(old.held):
        kinds.append(Kind.HELD if new.held else Kind.FREED)
    elif new.held and new.holders != old.holders:
        kinds.append(Kind.HELD)
    for kind in kinds or [Kind.UPDATED]:
        yield Change(kind=kind, device=new)


def _of_health(old: Device, new: Device) -> Kind:
    """Tell whether things got better: nothing new is wrong, and no verdict is worse."""
    known = {(fault.code, fault.subject, fault.message) for fault in old.faults}
    is_better = new.health.rank <= old.health.rank and all(
        (fault.code, fault.subject, fault.message) in known for fault in new.faults
    )
    is_well = is_better and new.health is not Health.UNHEALTHY
    return Kind.RECOVERED if is_well else Kind.FAULTED


def _of_faults(before: Inventory, after: Inventory) -> Iterator[Change]:
    for fault in after.faults:
        if fault not in before.faults:
            yield Change(kind=Kind.FAULT_FOUND, fault=fault)
    still = {(fault.code, fault.subject) for fault in after.faults}
    for fault in before.faults:
        if (fault.code, fault.subject) not in still:
            yield Change(kind=Kind.FAULT_CLEARED, fault=fault)
