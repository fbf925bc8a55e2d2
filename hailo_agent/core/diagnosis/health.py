"""How devices that are there fare: what one reading of sysfs proves, and what operators set aside.

Without an agent there is nobody who remembers, so what one reading shows counts at once. An agent
waits for a second one, and knows more: `devices` adds what it says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from hailo_agent.core.cordon import Cordon, Cordons, Doubt
from hailo_agent.core.cordon import evidence as cordoned
from hailo_agent.core.device import Device, DeviceId, PciAddress
from hailo_agent.core.diagnosis.finding import Finding, Verdict
from hailo_agent.core.health import RULES, Fault, FaultCode, Severity
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.vitals import RETRY_LATER, Vitals
from hailo_agent.core.vitals import evidence as vitals_evidence

_VITAL: Final = frozenset({FaultCode.PCI_DEAD, FaultCode.PCI_UNBOUND})


def weighed(
    inventory: Inventory,
    *,
    vitals: Mapping[PciAddress, Vitals],
    cordons: Cordons,
    severities: Mapping[FaultCode, Severity],
) -> Inventory:
    """Add to devices what one reading of each and the cordons say of them.

    `severities` are those that differ from the usual ones.
    """
    known = {code: rule.severity for code, rule in RULES.items()} | dict(severities)
    return replace(
        inventory,
        devices=tuple(
            _weighed(device, _of(device, vitals), cordons, known) for device in inventory.devices
        ),
    )


def _of(device: Device, vitals: Mapping[PciAddress, Vitals]) -> Vitals | None:
    return None if device.address is None else vitals.get(device.address)


def _weighed(
    device: Device,
    now: Vitals | None,
    cordons: Cordons,
    severities: Mapping[FaultCode, Severity],
) -> Device:
    found = [] if now is None else list(vitals_evidence(device.id, now, None).faults)
    operator = of_cordon(device.id, cordons.get(device.id))
    found += [] if operator is None else [operator]
    new = [replace(f, severity=severities.get(f.code, f.severity)) for f in found]
    again = {fault.code for fault in new}
    worst = max((device.health, *(fault.severity.health for fault in new)), key=lambda h: h.rank)
    return replace(
        device,
        health=worst,
        fit=device.fit and not any(fault.severity is Severity.FATAL for fault in new),
        faults=(*(fault for fault in device.faults if fault.code not in again), *new),
        vitals=now or device.vitals,
    )


def of_cordon(device_id: DeviceId, cordon: Cordon | Doubt | None) -> Fault | None:
    """Say that a device is set aside, and which way; None if it is not."""
    faults = cordoned(device_id, cordon, 0.0).faults
    by = cordon.by if isinstance(cordon, Cordon) and cordon.since else ""
    return replace(faults[0], evidence=f"by {by}" if by else "") if faults else None


def unread(device: Device, place: str) -> Iterator[Finding]:
    """Say what of a device's PCI function could not be read, so that nothing is known of it."""
    now = device.vitals
    if now is None or now.hung:
        return
    missing = vitals_evidence(device.id, now, None).unread
    if now.config_vendor == RETRY_LATER:
        found = "not ready to answer yet, as for a moment after a reset"
    elif missing & _VITAL:
        names = {FaultCode.PCI_DEAD: "config", FaultCode.PCI_UNBOUND: "driver"}
        found = f"not readable: {', '.join(n for code, n in names.items() if code in missing)}"
    else:
        return
    yield Finding(
        check="device.vitals",
        looked_at=place,
        found=found,
        verdict=Verdict.UNSEEN,
        why="a card that lost its link or its driver may still have a node",
        next_step=f"`head -c 2 /sys/bus/pci/devices/{device.address}/config | xxd`: ffff is a card"
        " that does not answer; in a container, mount the host's /sys",
    )
