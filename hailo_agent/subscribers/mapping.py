"""Between the core's values and the messages of our own API, without a decision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hailo_agent.aio.supervise import Status
from hailo_agent.core.change import Change, Kind
from hailo_agent.core.chip import Firmware
from hailo_agent.core.chronicle import Chronicle
from hailo_agent.core.device import Device, Holder
from hailo_agent.core.health import Fault, Health
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.offer import ResourceNames
from hailo_agent.wire import agentapi

_HEALTH = {
    Health.HEALTHY: agentapi.Health.HEALTHY,
    Health.DEGRADED: agentapi.Health.DEGRADED,
    Health.UNKNOWN: agentapi.Health.UNKNOWN,
    Health.UNHEALTHY: agentapi.Health.UNHEALTHY,
}

_KINDS = {
    Kind.ADDED: agentapi.ChangeKind.ADDED,
    Kind.REMOVED: agentapi.ChangeKind.REMOVED,
    Kind.MOVED: agentapi.ChangeKind.MOVED,
    Kind.FAULTED: agentapi.ChangeKind.HEALTH,
    Kind.RECOVERED: agentapi.ChangeKind.HEALTH,
    Kind.HELD: agentapi.ChangeKind.HELD,
    Kind.FREED: agentapi.ChangeKind.FREED,
    Kind.UPDATED: agentapi.ChangeKind.UPDATED,
    Kind.FAULT_FOUND: agentapi.ChangeKind.FAULT_FOUND,
    Kind.FAULT_CLEARED: agentapi.ChangeKind.FAULT_CLEARED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What is true of this agent as long as it runs."""

    node: str
    version: str
    instance: str
    names: ResourceNames
    host_dev: str
    epoch: float
    """Seconds since 1970 at which the observations' clock stood at zero."""


def to_inventory(
    inventory: Inventory, revision: int, parts: Iterable[Status], about: About
) -> agentapi.Inventory:
    """Say everything that is held to be true."""
    statuses = tuple(parts)
    return agentapi.Inventory(
        devices=[to_device(device, about) for device in inventory.devices],
        faults=[to_fault(fault, about) for fault in inventory.faults],
        node=about.node,
        agent_version=about.version,
        revision=revision,
        instance=about.instance,
        readiness=agentapi.Readiness(
            ready=bool(statuses) and all(status.is_ready for status in statuses),
            parts=[
                agentapi.Part(name=s.name, state=s.state.value, reason=s.reason) for s in statuses
            ],
        ),
    )


def to_changes(found: Iterable[Change], revision: int, about: About) -> agentapi.Changes:
    """Say what differs."""
    return agentapi.Changes(
        revision=revision,
        changes=[
            agentapi.Change(
                kind=_KINDS[change.kind],
                device=None if change.device is None else to_device(change.device, about),
                fault=None if change.fault is None else to_fault(change.fault, about),
            )
            for change in found
        ],
    )


def to_device(device: Device, about: About) -> agentapi.Device:
    """Say what one device is, where, how, and who has it."""
    node = device.devnode
    return agentapi.Device(
        id=device.id,
        resource=about.names.of(device),
        model=device.model.value,
        family="" if node is None else node.class_name,
        index="" if node is None else node.name,
        path="" if node is None else f"{about.host_dev}/{node.name}",
        major=None if node is None else node.number.major,
        minor=None if node is None else node.number.minor,
        pci_address=None if device.address is None else str(device.address),
        pci_id=None if device.pci_id is None else str(device.pci_id),
        driver=device.driver or "",
        driver_version=device.driver_version or "",
        numa_node=device.topology.numa_node,
        pcie_root=device.topology.pcie_root or "",
        link=None
        if device.link is None
        else agentapi.Link(
            speed_gts=device.link.speed_gts,
            width=device.link.width,
            max_speed_gts=device.link.max_speed_gts,
            max_width=device.link.max_width,
        ),
        health=_HEALTH[device.health],
        faults=[to_fault(fault, about) for fault in device.faults],
        held=device.held,
        holders=[to_holder(holder) for holder in device.holders],
        fit=device.fit,
        firmware=None if device.firmware is None else to_firmware(device.firmware),
        vitals=to_vitals(device, about),
    )


def to_holder(holder: Holder) -> agentapi.Holder:
    """Name one container that holds a device."""
    return agentapi.Holder(namespace=holder.namespace, pod=holder.pod, container=holder.container)


def to_recent(chronicle: Chronicle, subject: str, about: About) -> agentapi.ListRecentResponse:
    """Say what happened lately; to one subject, unless that is empty."""
    return agentapi.ListRecentResponse(
        changes=[
            agentapi.RecentChange(
                at_unix_seconds=about.epoch + entry.at,
                kind=_KINDS[entry.kind],
                subject=entry.subject,
                words=entry.words,
                codes=[code.value for code in entry.codes],
                health=agentapi.Health.UNSPECIFIED
                if entry.health is None
                else _HEALTH[entry.health],
                held=entry.held,
                holders=[to_holder(holder) for holder in entry.holders],
            )
            for entry in chronicle.entries
            if subject in {"", entry.subject}
        ],
        forgotten=chronicle.forgotten,
        instance=about.instance,
    )


def to_firmware(firmware: Firmware) -> agentapi.Firmware:
    """Say what a chip's firmware says it is."""
    return agentapi.Firmware(
        version=firmware.version,
        architecture=firmware.architecture.value,
        board_name=firmware.board_name,
        serial=firmware.serial,
        part_number=firmware.part_number,
        product_name=firmware.product_name,
    )


def to_vitals(device: Device, about: About) -> agentapi.Vitals | None:
    """Say what was measured last; None if nothing was."""
    vitals, chip = device.vitals, device.chip
    temperatures = None if chip is None else chip.temperatures
    if vitals is None and temperatures is None:
        return None
    return agentapi.Vitals(
        at_unix_seconds=0.0 if vitals is None else about.epoch + vitals.at,
        power_state="" if vitals is None else vitals.power_state or "",
        in_use=None if vitals is None else vitals.is_in_use,
        temperatures_celsius=[]
        if temperatures is None
        else [temperatures.ts0_celsius, temperatures.ts1_celsius],
        temperatures_at_unix_seconds=0.0
        if chip is None or temperatures is None
        else about.epoch + chip.at,
    )


def to_fault(fault: Fault, about: About) -> agentapi.Fault:
    """Say one thing that is wrong."""
    return agentapi.Fault(
        code=fault.code.value,
        subject=fault.subject,
        message=fault.message,
        remedy=fault.remedy,
        since_unix_seconds=about.epoch + fault.since,
        severity=fault.severity.value,
        evidence=fault.evidence,
    )
