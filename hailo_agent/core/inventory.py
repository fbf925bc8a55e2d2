"""What we hold to be true, and how one look changes it.

`decide` is pure, idempotent and blind to the order of sightings: the same observation over its own
result gives that result again. `reconcile` calls it once per pass and publishes what it returns.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Final

from hailo_agent.core.chip import Limits
from hailo_agent.core.chip import evidence as chip_evidence
from hailo_agent.core.cordon import evidence as cordoned
from hailo_agent.core.device import (
    ALL,
    Device,
    DeviceId,
    Devnode,
    Holder,
    Identity,
    PciAddress,
    model_of,
)
from hailo_agent.core.health import (
    Evidence,
    Fault,
    FaultCode,
    Health,
    Sensor,
    Standards,
    judge,
)
from hailo_agent.core.observation import Holdings, NodeKind, Observation, Readings, Sighting
from hailo_agent.core.vitals import Vitals
from hailo_agent.core.vitals import evidence as vitals_evidence

FORGET_GRACE_SECONDS = 10.0
"""How much younger than a grant or a disappearance a list of holders must be to count as proof.

The kubelet shows a pod in pod-resources a moment after it has called Allocate, in seconds.
"""

_HOLDERS_NAMED = 4
"""How many holders a fault names; the kubelet gives a device to one, but others may share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the operator decides about devices."""

    standards: Standards
    limits: Limits = field(default_factory=Limits)
    tombstone_seconds: float
    """How long a gone device stays listed while nobody can tell whether a pod holds it."""
    spec_path: str = ""
    """Where our spec is written, for the words of a conflict."""
    resources: frozenset[str] = frozenset()
    """The resources this agent serves; what the kubelet remembers of others is not ours."""
    allow: tuple[str, ...] = ()
    """Shell patterns over device id, PCI address, model and PCI id; empty allows all."""
    deny: tuple[str, ...] = ()

    def denies(self, device: Device) -> bool:
        """Whether configuration sets this device aside."""
        if not (self.allow or self.deny):
            return False
        names = [str(device.id), device.model.value]
        names += [str(name) for name in (device.address, device.pci_id) if name is not None]
        return _matches(names, self.deny) or (bool(self.allow) and not _matches(names, self.allow))


def _matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The devices, sorted by id, and what was seen but is not usable."""

    devices: tuple[Device, ...] = ()
    faults: tuple[Fault, ...] = ()
    class_names: tuple[str, ...] = ()
    at: float = field(default=0.0, compare=False)
    review_at: float | None = field(default=None, compare=False)
    """When to decide again though nothing happens: a recovery ends or a tombstone falls due."""

    def by_id(self) -> Mapping[DeviceId, Device]:
        """Look devices up by id."""
        return {device.id: device for device in self.devices}


def decide(before: Inventory, observation: Observation, policy: Policy) -> Inventory:
    """Weigh one observation against what was held to be true."""
    at = observation.at
    known = before.by_id()
    seen, loose = _identify(known, observation.sightings)
    hands = _Hands.of(observation)
    borrowed = _borrowed(seen, hands, policy.resources)
    devices: list[Device] = []
    faults = [*observation.faults, *loose]
    reviews: list[float] = []
    for device_id in sorted({*known, *seen, *hands.ours(policy.resources)}):
        old = known.get(device_id)
        found = seen.get(device_id)
        present_since = _present_since(old, found, at)
        readings = _since(present_since, observation.readings.get(device_id), old)
        resource = hands.resource(device_id, policy.resources)
        device = _describe(device_id, old, found, resource, readings)
        evidence = _evidence(device_id, old, found, at)
        is_borrowed = not evidence and device_id in borrowed
        evidence = (
            evidence
            or _held_elsewhere(device_id, hands.strangers(device_id, policy.resources))
            or borrowed.get(device_id, ())
        )
        denied = policy.denies(device)
        if denied:
            evidence = (_denied(device_id),)
        if old is None and evidence and not hands.held(device_id) and (denied or not is_borrowed):
            faults += evidence  # never yet fit to be offered, so not yet a device
            continue
        held = hands.held(device_id)
        verdict = judge(
            device_id,
            (
                Evidence(sensor=Sensor.LOOK, at=at, faults=evidence),
                *_read(device, readings, policy.limits),
                cordoned(device_id, observation.cordons.get(device_id), at),
            ),
            at=at,
            before=None if old is None else old.health,
            history=device.history,
            standards=policy.standards,
            in_use=held is True or _is_busy(readings),
            present_since=present_since,
        )
        device = _with(
            device,
            present_since=present_since,
            vitals=_remembered(readings.vitals, device.vitals),
            chip=readings.chip or device.chip,
            health=verdict.health,
            fit=policy.standards.permits(verdict.health),
            faults=verdict.faults,
            history=verdict.history,
            denied=denied,
            held=held,
            holders=hands.holders(device_id),
        )
        # An entry that fell silent may speak again: that is no reason to drop anything.
        if found is None or (denied and _denied_afresh(device_id, found, policy)):
            codes = {fault.code for fault in evidence}
            gone_since = max((f.since for f in verdict.faults if f.code in codes), default=at)
            due_at = hands.forget_at(device_id, gone_since, policy.tombstone_seconds)
            if due_at is not None and at >= due_at:
                faults += [] if found is None else (_denied(device_id),)
                continue
            reviews += [] if due_at is None else [due_at]
        devices.append(device)
        reviews += [] if verdict.review_at is None else [verdict.review_at]
    faults += _unserved(observation, (known[i].address for i in seen if i in known))
    faults += _conflicts(observation, devices, policy)
    return Inventory(
        devices=tuple(devices),
        faults=_carried(faults, before.faults, at),
        class_names=tuple(sorted(observation.class_names)),
        at=at,
        review_at=min(reviews, default=None),
    )


def covered(inventory: Inventory, names: Container[str], reason: str) -> Inventory:
    """Take back good news about devices that the spec on disk does not cover."""
    return replace(
        inventory,
        devices=tuple(
            device
            if device.id in names or not device.is_usable
            else replace(
                device,
                health=Health.UNHEALTHY,
                fit=False,
                faults=(
                    Fault(
                        code=FaultCode.SPEC_UNWRITTEN,
                        subject=device.id,
                        message=reason,
                        remedy="see the spec.refused log line; the agent retries by itself",
                        since=inventory.at,
                    ),
                ),
            )
            for device in inventory.devices
        ),
    )


def bad_news(told: Inventory, decided: Inventory) -> Inventory:
    """Tell what may be told before anything is written: that devices must not be used any more."""
    by_id = decided.by_id()
    return replace(
        told,
        devices=tuple(
            after if (after := by_id.get(d.id)) is not None and not after.is_usable else d
            for d in told.devices
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hands:
    """Who holds what: the kubelet's list, and the grants too young to be on it."""

    holdings: Holdings | None
    by_device: Mapping[DeviceId, tuple[tuple[str, Holder], ...]]
    granted_at: Mapping[DeviceId, float]

    @classmethod
    def of(cls, observation: Observation) -> _Hands:
        by_device: dict[DeviceId, tuple[tuple[str, Holder], ...]] = {}
        if observation.holdings is not None:
            for entry in observation.holdings.entries:
                before = by_device.get(entry.device_id, ())
                by_device[entry.device_id] = (*before, (entry.resource, entry.holder))
        return cls(
            holdings=observation.holdings,
            by_device=by_device,
            granted_at=dict(observation.granted_at),
        )

    def ours(self, resources: frozenset[str]) -> set[DeviceId]:
        return {
            device_id
            for device_id, hands in self.by_device.items()
            if any(resource in resources for resource, _ in hands)
        }

    def resource(self, device_id: DeviceId, served: frozenset[str]) -> str | None:
        """Name the resource it is held under, if we serve it."""
        names = sorted(resource for resource, _ in self.by_device.get(device_id, ()))
        return next((name for name in names if name in served), None)

    def strangers(self, device_id: DeviceId, served: frozenset[str]) -> tuple[str, ...]:
        """Name the resources that it is held under and that we do not serve."""
        names = {resource for resource, _ in self.by_device.get(device_id, ())}
        return tuple(sorted(names - served))

    def holders(self, device_id: DeviceId) -> tuple[Holder, ...]:
        return tuple(sorted({holder for _, holder in self.by_device.get(device_id, ())}))

    def held(self, device_id: DeviceId) -> bool | None:
        if device_id in self.by_device:
            return True
        granted_at = self.granted_at.get(device_id)
        if self.holdings is None:
            return None
        return granted_at is not None and self.holdings.at < granted_at + FORGET_GRACE_SECONDS

    def forget_at(
        self, device_id: DeviceId, gone_since: float, tombstone_seconds: float
    ) -> float | None:
        """When a device that should go may be dropped; None while it is held."""
        if self.held(device_id):
            return None
        if self.holdings is None or self.holdings.at < gone_since + FORGET_GRACE_SECONDS:
            return gone_since + tombstone_seconds  # sooner, if a younger list comes
        return self.holdings.at


def _identify(
    known: Mapping[DeviceId, Device], sightings: Iterable[Sighting]
) -> tuple[dict[DeviceId, Sighting], list[Fault]]:
    """Find out which device each sighting is; what stays nameless is a fault of its own."""
    by_devnode = {
        (device.devnode.class_name, device.devnode.name): device_id
        for device_id, device in known.items()
        if device.devnode is not None
    }
    seen: dict[DeviceId, Sighting] = {}
    nameless: list[Sighting] = []
    faults: list[Fault] = []
    # A sound sighting wins over a broken one of the same device; order never matters.
    for sighting in sorted(sightings, key=_rank):
        device_id = sighting.device_id
        if device_id is None:
            nameless.append(sighting)
        elif device_id in seen:
            faults.append(_duplicate(device_id, sighting, seen[device_id]))
        else:
            seen[device_id] = sighting
    for sighting in nameless:
        # An entry that cannot be read any more is still the device that had this very devnode a
        # moment ago.
        device_id = by_devnode.get((sighting.family.class_name, sighting.entry))
        if device_id is None or device_id in seen:
            faults += sighting.faults or (_nameless(sighting),)
        else:
            seen[device_id] = sighting
    return seen, faults


def _rank(sighting: Sighting) -> tuple[bool, bool, str, str]:
    functionless = sighting.address is not None and sighting.function is None
    return not _is_sound(sighting), functionless, sighting.family.class_name, sighting.entry


def _is_sound(sighting: Sighting) -> bool:
    return (
        not sighting.faults
        and sighting.node is NodeKind.CHARACTER
        and sighting.number is not None
        and sighting.number == sighting.node_number
    )


def _describe(
    device_id: DeviceId,
    old: Device | None,
    found: Sighting | None,
    resource: str | None,
    readings: Readings,
) -> Device:
    """Say what and where the device is; what cannot be seen now stays as it was known."""
    device = old or Device(id=device_id)
    if found is None or _is_another(old, found):
        device = _with(device, firmware=None, vitals=None, chip=None)
    if found is not None and found.function is not None:
        function = found.function
        pci_id = function.pci_id or device.pci_id
        told = None if readings.chip is None else readings.chip.firmware
        firmware = told or device.firmware
        model = model_of(pci_id, found.accelerator_type, firmware)
        if found.faults and pci_id == device.pci_id:
            model = device.model  # what tells the models apart may be what could not be read
        device = _with(
            device,
            model=model,
            pci_id=pci_id,
            topology=function.topology,
            link=(readings.vitals and readings.vitals.link) or function.link,
            firmware=firmware,
            driver=function.driver,
            driver_version=function.driver_version,
        )
    is_known = device.pci_id is not None or (
        found is not None and found.family.identity is Identity.SYSFS and _is_sound(found)
    )
    return _with(
        device,
        address=device.address if found is None else found.address or device.address,
        devnode=None if found is None else _devnode(device.devnode, found),
        # Held, it stays where it was granted, however it would be named now.
        resource=resource or (None if is_known else device.resource),
    )


def _with(device: Device, **changes: Any) -> Device:  # noqa: ANN401 - as dataclasses.replace
    """Change what differs; a device of which nothing differs stays the very same object.

    That is cheaper than a copy, and so is every comparison after it.
    """
    if all(_is_same(getattr(device, name), value) for name, value in changes.items()):
        return device
    return replace(device, **changes)


def _is_same(old: object, new: object) -> bool:
    """Tell whether nothing would be lost; what leaves fields out of `==` has to be identical."""
    return old is new or (old == new and not isinstance(old, (Devnode, tuple)))


def _devnode(old: Devnode | None, found: Sighting) -> Devnode | None:
    """Say which devnode the device has, and never one that is only remembered.

    An index is given away as soon as it is free: another board may have what this one had.
    """
    class_name = found.family.class_name
    number = found.number
    if (
        number is None
        and old is not None
        and (old.class_name, old.name) == (class_name, found.entry)
    ):
        number = old.number
    if number is None:
        return None
    is_told = found.device_id is not None or bool(found.faults)
    devnode = Devnode(
        name=found.entry,
        number=number,
        class_name=class_name,
        is_sound=is_told and found.node is NodeKind.CHARACTER and found.node_number == number,
    )
    return old if old == devnode and old.is_sound == devnode.is_sound else devnode


def _denied_afresh(device_id: DeviceId, found: Sighting, policy: Policy) -> bool:
    """Whether a board would be denied if it were new.

    If not, what denies it is what its firmware said, or something that cannot be read just now:
    forgotten, it would come back as another device that is offered until it has been asked.
    """
    if found.device_id is None:
        return False
    return policy.denies(_describe(device_id, None, found, None, Readings()))


def _present_since(old: Device | None, found: Sighting | None, at: float) -> float:
    if found is None:
        return math.inf
    is_new = old is None or old.present_since == math.inf or _is_another(old, found)
    return at if is_new or old is None else old.present_since


def _is_another(old: Device | None, found: Sighting) -> bool:
    """Whether another card is in the slot, though nobody saw the first one go."""
    seen = None if found.function is None else found.function.pci_id
    known = None if old is None else old.pci_id
    return seen is not None and known is not None and seen != known


def _since(at: float, readings: Readings | None, old: Device | None) -> Readings:
    """Keep what is newest, and was read since then: another card may have been there before."""
    if readings is None:
        return Readings()
    vitals, chip = readings.vitals, readings.chip
    vitals_at = at if old is None or old.vitals is None else max(at, old.vitals.at)
    chip_at = at if old is None or old.chip is None else max(at, old.chip.at)
    return Readings(
        vitals=None if vitals is None or vitals.at < vitals_at else vitals,
        chip=None if chip is None or chip.at < chip_at else chip,
        others=tuple(evidence for evidence in readings.others if evidence.at >= at),
    )


def _read(device: Device, readings: Readings, limits: Limits) -> Iterable[Evidence]:
    """Weigh what is newer than what has been weighed already."""
    now, before = readings.vitals, device.vitals
    if now is not None and (before is None or now.at > before.at):
        yield vitals_evidence(device.id, now, before)
    chip = readings.chip
    if chip is not None and (device.chip is None or chip.at > device.chip.at):
        yield chip_evidence(device.id, chip, limits, driver_version=device.driver_version)
    yield from readings.others


def _remembered(now: Vitals | None, before: Vitals | None) -> Vitals | None:
    """Keep the newest reading, and counts that it could not read: they tell what grows."""
    if now is None or before is None:
        return now or before
    return replace(now, aer=before.aer) if now.aer is None and before.aer is not None else now


def _is_busy(readings: Readings) -> bool:
    return readings.vitals is not None and readings.vitals.is_in_use is True


def _evidence(
    device_id: DeviceId, old: Device | None, found: Sighting | None, at: float
) -> tuple[Fault, ...]:
    """Say what is wrong with a device; nothing, if it may be handed out."""
    if found is None:
        return (_gone(device_id, old, at),)
    if found.faults:
        return found.faults
    if found.device_id is None:
        return (_nameless(found),)
    wrong = _wrong_with_node(found)
    if wrong is not None:
        code, message, remedy = wrong
        return (_fault(code, device_id, message, remedy),)
    return _wrong_with_function(device_id, old, found)


def _wrong_with_function(
    device_id: DeviceId, old: Device | None, found: Sighting
) -> tuple[Fault, ...]:
    """Doubt what hangs in the air; what was known once may be unreadable for a while."""
    if found.address is None or found.function is not None:
        return ()
    if found.function_is_gone:
        return (_functionless(device_id, found.address),)
    if old is None or old.pci_id is None:
        return (_unread(device_id, found.address),)
    return ()


_NODE_FAULTS = {
    NodeKind.MISSING: (
        FaultCode.DEVNODE_MISSING,
        "does not exist",
        "check devtmpfs and udev; the driver would create it on a reload",
    ),
    NodeKind.SYMLINK: (
        FaultCode.DEVNODE_LINK,
        "is a symlink, which no runtime injects",
        "remove the link and let the driver create the node",
    ),
    NodeKind.OTHER: (
        FaultCode.DEVNODE_FOREIGN,
        "is not a character device",
        "remove it and let the driver create the node",
    ),
}


def _wrong_with_node(found: Sighting) -> tuple[FaultCode, str, str] | None:
    if found.number is None:
        return (
            FaultCode.ENTRY_INCOMPLETE,
            f"class entry {found.entry} has no readable dev attribute",
            "none if the driver is just loading; else reload the driver",
        )
    if found.node in _NODE_FAULTS:
        code, message, remedy = _NODE_FAULTS[found.node]
        return code, f"/dev/{found.entry} {message}", remedy
    if found.node_number != found.number:
        return (
            FaultCode.DEVNODE_NUMBER,
            f"/dev/{found.entry} is {found.node_number}, the kernel says {found.number}",
            "remove the stale node and run `udevadm trigger`, or reload the driver",
        )
    return None


def _fault(code: FaultCode, subject: str, message: str, remedy: str) -> Fault:
    return Fault(code=code, subject=subject, message=message, remedy=remedy)


def _gone(device_id: DeviceId, old: Device | None, at: float) -> Fault:
    if old is None:
        return Fault(
            code=FaultCode.UNKNOWN_TO_MACHINE,
            subject=device_id,
            message="a pod holds it, but the machine does not have it",
            remedy="put the device back, or delete the pod that holds it",
            since=at,
        )
    vanished = [fault for fault in old.faults if fault.code is FaultCode.UNKNOWN_TO_MACHINE]
    if vanished:
        return vanished[0]
    return Fault(
        code=FaultCode.VANISHED,
        subject=device_id,
        message="the machine does not have it any more",
        remedy="put the device back, or delete the pod that holds it",
        since=at,
    )


def _denied(device_id: DeviceId) -> Fault:
    return _fault(
        FaultCode.DENIED,
        device_id,
        "set aside by devices.allow or devices.deny",
        "change the setting to offer it",
    )


def _duplicate(device_id: DeviceId, sighting: Sighting, winner: Sighting) -> Fault:
    return _fault(
        FaultCode.DUPLICATE,
        f"{sighting.family.class_name}/{sighting.entry}",
        f"claims to be {device_id}, which {winner.family.class_name}/{winner.entry} is",
        "none if the driver is just reloading; else two kernel drivers serve one device",
    )


def _nameless(sighting: Sighting) -> Fault:
    return _fault(
        FaultCode.IDENTITY_UNREADABLE,
        f"{sighting.family.class_name}/{sighting.entry}",
        "neither an attribute nor the device link tells its PCI address",
        "none if the driver is just loading; else reload the driver",
    )


def _functionless(device_id: DeviceId, address: PciAddress) -> Fault:
    return _fault(
        FaultCode.PCI_MISSING,
        device_id,
        f"PCI function {address} is gone from the bus, though its class entry still stands",
        "look at the slot and the kernel log; `echo 1 > /sys/bus/pci/rescan` may bring it back",
    )


def _unread(device_id: DeviceId, address: PciAddress) -> Fault:
    return _fault(
        FaultCode.PCI_MISSING,
        device_id,
        f"PCI function {address} cannot be read, so that nobody knows what it is",
        "check that /sys/bus/pci is there and may be read",
    )


_UNTIL_THE_POD_ENDS: Final = (
    "none: offered again when that pod ends, before Kubernetes 1.34 when it is deleted;"
    " `hailo-agent devices` names it"
)


def _held_elsewhere(device_id: DeviceId, resources: tuple[str, ...]) -> tuple[Fault, ...]:
    """Keep back what pods hold under a name that is not served: it would be given twice."""
    if not resources:
        return ()
    return (
        _fault(
            FaultCode.HELD_ELSEWHERE,
            device_id,
            f"a pod holds it as {', '.join(resources)}, which this agent does not serve",
            _UNTIL_THE_POD_ENDS,
        ),
    )


def _borrowed(
    seen: Mapping[DeviceId, Sighting], hands: _Hands, served: frozenset[str]
) -> Mapping[DeviceId, tuple[Fault, ...]]:
    """Keep back what pods hold under the name of its devnode: it would be given twice.

    Older plugins name devices so, and the kubelet remembers what they gave for as long as the pod
    lives. It takes these for other devices than ours, and they stay listed as what they are to it.
    """
    by_entry: dict[str, list[str]] = {}
    for name in sorted(hands.ours(served) - set(seen)):
        by_entry.setdefault(name.rpartition("/")[2], []).append(name)
    return {
        device_id: (_given_by_devnode(device_id, by_entry[sighting.entry], hands),)
        for device_id, sighting in seen.items()
        if sighting.entry in by_entry
    }


def _given_by_devnode(device_id: DeviceId, names: Iterable[str], hands: _Hands) -> Fault:
    holders = [
        f"{holder.namespace}/{holder.pod}/{holder.container} holds {name}"
        for name in names
        for holder in hands.holders(DeviceId(name))
    ]
    return Fault(
        code=FaultCode.HELD_ELSEWHERE,
        subject=device_id,
        message=f"a pod holds it as {', '.join(names)}, as another plugin named it",
        remedy=_UNTIL_THE_POD_ENDS,
        evidence="; ".join(holders[:_HOLDERS_NAMED]),
    )


def _unserved(observation: Observation, known: Iterable[PciAddress | None]) -> Iterable[Fault]:
    """Report functions that nothing serves; a known device may hide its address for now."""
    served = {*known, *(sighting.address for sighting in observation.sightings)}
    for function in observation.functions:
        if function.address in served:
            continue
        bound = (
            f"driver {function.driver} is bound but made no device"
            if function.driver
            else "no kernel driver is bound"
        )
        yield _fault(
            FaultCode.PCI_UNSERVED,
            str(function.address),
            f"PCI function {function.pci_id} ({model_of(function.pci_id)}): {bound}",
            "read the kernel log: driver missing, of the wrong branch, or firmware not found",
        )


def _conflicts(
    observation: Observation, devices: Iterable[Device], policy: Policy
) -> Iterable[Fault]:
    """Report names that we and a file of others define: readers drop both, or let one hide ours."""
    ours = {str(device.id) for device in devices if device.devnode is not None}
    ours |= {ALL} if ours else set()
    for path, name in observation.foreign_names:
        if name in ours:
            yield _fault(
                FaultCode.SPEC_CONFLICT,
                f"{path}: {name}",
                f"CDI device {name} is defined in {path} and in {policy.spec_path}",
                f"remove {path}, or the device from it; runtimes refuse a name defined twice",
            )


def _carried(faults: Iterable[Fault], before: Iterable[Fault], at: float) -> tuple[Fault, ...]:
    """Date new faults with this look, keep the date of known ones; each once, in order."""
    first = {(fault.code, fault.subject): fault.since for fault in before}
    dated = {
        (fault.code, fault.subject): replace(
            fault, since=first.get((fault.code, fault.subject), at)
        )
        for fault in faults
    }
    return tuple(dated[key] for key in sorted(dated))
