"""Every accelerator that the machine shows: ready, or why not and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hailo_agent.core.device import Device, Model, PciAddress, model_of
from hailo_agent.core.diagnosis.driver import complaints
from hailo_agent.core.diagnosis.facts import Facts, HostFacts
from hailo_agent.core.diagnosis.finding import Finding, Verdict
from hailo_agent.core.diagnosis.unserved import why_unserved
from hailo_agent.core.drivers import PCI_DRIVERS, rebind
from hailo_agent.core.health import Fault, FaultCode, Health
from hailo_agent.core.observation import NodeKind, PciFunction, Sighting
from hailo_agent.core.vitals import Link

_GEN3_GTS: Final = 8.0
_SHARED_BY_ALL: Final = frozenset({Model.HAILO_10H, Model.HAILO_12L})
"""Chips that run their own Linux; any number of processes may open them."""


def examine(facts: Facts) -> Iterator[Finding]:
    """Say of every accelerator what it is good for, and then of whatever else was strange."""
    if facts.observation is None:
        yield Finding(
            check="pci.function",
            looked_at="sysfs",
            found=facts.unobserved or "it could not be looked at",
            verdict=Verdict.BROKEN,
            why="nothing can be said about any device",
            next_step="look for a driver that hangs: `dmesg | grep -i hailo`; then power the"
            " machine off and on",
        )
        return
    round_ = _Round.of(facts)
    for function in facts.observation.functions:
        yield from round_.function(function)
    for sighting in facts.observation.sightings:
        if sighting.function is None:
            yield from round_.entry(sighting)
    if not facts.observation.functions and not facts.observation.sightings:
        yield Finding(
            check="pci.none",
            looked_at="PCI bus and /sys/class",
            found="no Hailo accelerator",
            next_step="if there should be one: `lspci -d 1e60:`; if that shows none either, switch"
            " off, reseat the card, and see that its slot is on (in the machine's firmware setup;"
            " on a Raspberry Pi 5, `dtparam=pciex1` in /boot/firmware/config.txt)",
        )
    yield from round_.rest()


@dataclass(slots=True)
class _Round:
    """One walk through the devices; remembers what it has spoken of."""

    facts: Facts
    devices: dict[PciAddress | None, Device]
    sightings: dict[PciAddress, Sighting]
    nameless: tuple[str, ...]
    """Entries that do not tell whose they are."""
    class_names: tuple[str, ...]
    told: set[Fault]

    @classmethod
    def of(cls, facts: Facts) -> _Round:
        observation = facts.observation
        sightings = () if observation is None else observation.sightings
        return cls(
            facts=facts,
            devices={d.address: d for d in facts.inventory.devices if d.address is not None},
            sightings={s.address: s for s in sightings if s.address is not None},
            nameless=tuple(_name(s) for s in sightings if s.device_id is None),
            class_names=() if observation is None else observation.class_names,
            told=set(),
        )

    def function(self, function: PciFunction) -> Iterator[Finding]:
        """Speak of one PCI function, and of the device that a driver made of it."""
        place = f"PCI {function.address} ({function.pci_id or 'id unreadable'}, {_model(function)})"
        sighting = self.sightings.get(function.address)
        if sighting is None:
            self._faults({str(function.address)})
            if self.nameless and function.driver in PCI_DRIVERS:
                yield _perhaps_served(function, place, self.nameless)
            else:
                yield why_unserved(function, place, self.facts.host, self.class_names)
            return
        yield from self._device(sighting, place, self.devices.get(function.address))
        if function.link is not None:
            yield from _link(function, function.link, self.facts.host)

    def entry(self, sighting: Sighting) -> Iterator[Finding]:
        """Speak of a class entry that no PCI function stands behind."""
        device = next((d for d in self.facts.inventory.devices if d.id == sighting.device_id), None)
        yield from self._device(sighting, f"class entry {_name(sighting)}", device)

    def rest(self) -> Iterator[Finding]:
        """Speak of what is strange and belongs to no device."""
        for fault in self.facts.inventory.faults:
            if fault not in self.told and fault.code is not FaultCode.SPEC_CONFLICT:
                yield _of_fault(fault, fault.subject)

    def _device(self, sighting: Sighting, place: str, device: Device | None) -> Iterator[Finding]:
        if device is not None and device.health is Health.HEALTHY and not device.denied:
            if sighting.function is None or not _is_dead(device, self.facts.host):
                yield _ready(device, place, self.facts.host)
            return
        subjects = {_name(sighting), str(sighting.device_id), str(sighting.address)}
        faults = [*(() if device is None else device.faults), *self._faults(subjects)]
        for fault in dict.fromkeys(faults):
            yield _of_fault(fault, place, sighting)
        if not faults:
            yield Finding(
                check="device.unknown",
                looked_at=place,
                found="it is there, and not offered",
                verdict=Verdict.BROKEN,
                why="this should not happen",
                next_step="`hailo-agent devices --json`, and report what it says",
            )

    def _faults(self, subjects: set[str]) -> list[Fault]:
        found = [fault for fault in self.facts.inventory.faults if fault.subject in subjects]
        self.told.update(found)
        return found


def _perhaps_served(function: PciFunction, place: str, nameless: tuple[str, ...]) -> Finding:
    """Until 5.2 only the entry itself tells whose it is, which one that hangs does not."""
    return Finding(
        check="pci.function",
        looked_at=place,
        found=f"kernel driver {function.driver} is bound; which device it made does not show, as"
        f" {', '.join(nameless)} does not tell whose it is",
        verdict=Verdict.UNSEEN,
        why="it may be that one, and then shares its fault",
        next_step="see to that entry first",
    )


def _is_dead(device: Device, host: HostFacts) -> bool:
    """Tell whether the kernel log knows better; `driver` then speaks of its PCI function."""
    return any(finding.verdict is Verdict.BROKEN for finding in complaints(device, host))


def _ready(device: Device, place: str, host: HostFacts) -> Finding:
    node = "" if device.devnode is None else device.devnode.name
    ready = f"ready as {device.id}, /dev/{node}"
    if not _is_open(device.address, host):
        return Finding(check="pci.function", looked_at=place, found=ready)
    is_shared = device.model in _SHARED_BY_ALL
    return Finding(
        check="pci.function",
        looked_at=place,
        found=f"{ready}; a process has it open now",
        why=""
        if is_shared
        else "it is one process's at a time: another one that wants it fails"
        " with HAILO_DEVICE_IN_USE (73) or HAILO_OUT_OF_PHYSICAL_DEVICES (74)",
        next_step="" if is_shared else f"`fuser -v /dev/{node}`, as root, tells whose it is",
    )


def _is_open(address: PciAddress | None, host: HostFacts) -> bool:
    """Tell by its power state, for the driver puts a chip to sleep with the last close.

    With the parameter no_power_mode it never sleeps, which tells nothing.
    """
    never_sleeps = any(m.parameters.get("no_power_mode", "N") != "N" for m in host.modules)
    return (
        address is not None
        and host.power_states.get(address) == "D0"
        and bool(host.modules)
        and not never_sleeps
    )


def _link(function: PciFunction, link: Link, host: HostFacts) -> Iterator[Finding]:
    """Speak of a link that is slower than card and slot allow, or whose slot is itself slow."""
    where, now = f"PCIe link of {function.address}", _speed(link.speed_gts, link.width)
    port = host.ports.get(function.address)
    if link.is_degraded:
        is_slow = link.speed_gts < min(_GEN3_GTS, link.max_speed_gts)
        yield Finding(
            check="device.link",
            looked_at=where,
            found=f"{now}, card and slot could do {_speed(link.max_speed_gts, link.max_width)}",
            verdict=Verdict.DEGRADED,
            why="it works, but frames reach the chip more slowly than they could",
            next_step=f"{_TRY_GEN3}; elsewhere, {_RESEAT}" if is_slow else _RESEAT,
        )
    elif port is not None and port.max_speed_gts < _GEN3_GTS:
        # Every Hailo chip can do better. Whether the slot can, only its owner knows.
        yield Finding(
            check="device.link",
            looked_at=where,
            found=f"{now}, which is all that its slot does",
            next_step=f"{_TRY_GEN3}; elsewhere, a newer slot would make it faster",
        )


_TRY_GEN3: Final = (
    "on a Raspberry Pi 5, write `dtparam=pciex1_gen=3` into /boot/firmware/config.txt and reboot"
)
_RESEAT: Final = (
    "reseat the card, try another cable or slot, and look for AER messages in the kernel log"
)


def _speed(gts: float, width: int) -> str:
    return f"{gts:g} GT/s x{width}"


# --- faults, in the doctor's words ---------------------------------------------------------------

_NOT_BROKEN: Final = {
    FaultCode.DENIED: Verdict.OK,
    FaultCode.RECOVERING: Verdict.DEGRADED,
    FaultCode.ENTRY_UNEXPECTED: Verdict.DEGRADED,
    FaultCode.ENTRY_VANISHED: Verdict.DEGRADED,
    FaultCode.DUPLICATE: Verdict.DEGRADED,
}

_NO_NODE: Final = "the driver serves the chip, but nobody can open it"
_BAD_ENTRY: Final = (
    "libhailort reads every entry of the class and gives up at the first bad one (85), so outside"
    " of our containers it finds no device at all"
)
_WHY: Final = {
    FaultCode.DENIED: "",
    FaultCode.DEVNODE_MISSING: _NO_NODE,
    FaultCode.DEVNODE_FOREIGN: _NO_NODE,
    FaultCode.DEVNODE_NUMBER: "whoever opens it reaches another device, or none",
    FaultCode.DEVNODE_LINK: "CDI readers refuse a link where a device node should be",
    FaultCode.ENTRY_UNEXPECTED: _BAD_ENTRY,
    FaultCode.ENTRY_BROKEN: _BAD_ENTRY,
    FaultCode.ENTRY_INCOMPLETE: _BAD_ENTRY,
    FaultCode.ENTRY_VANISHED: "something comes and goes while we look",
    FaultCode.UNRESPONSIVE: "a driver that hangs stops whoever reads its attributes",
    FaultCode.CLASS_UNREADABLE: "nothing can be said about what is in it",
    FaultCode.DUPLICATE: "one chip must not be counted twice",
}


def _of_fault(fault: Fault, place: str, sighting: Sighting | None = None) -> Finding:
    return Finding(
        check=fault.code.value,
        looked_at=place,
        found=fault.message,
        verdict=_NOT_BROKEN.get(fault.code, Verdict.BROKEN),
        why=_WHY.get(fault.code, "it is not handed out like this"),
        next_step=_node_step(fault, sighting) or _remedy(fault),
    )


def _node_step(fault: Fault, sighting: Sighting | None) -> str:
    """Say how to come by the right node: the kernel tells its numbers, so it can be made by hand.

    devtmpfs makes it but once, when the device comes: what was deleted stays away until a reload.
    """
    if sighting is None or sighting.number is None or not fault.code.value.startswith("devnode."):
        return ""
    path, number = f"/dev/{sighting.entry}", sighting.number
    driver = None if sighting.function is None else sighting.function.driver
    remove = "" if sighting.node is NodeKind.MISSING else f"`rm {path}`, then "
    return (
        f"{remove}`mknod -m 666 {path} c {number.major} {number.minor}`, or"
        f" {rebind(sighting.address, driver)}; in a container, mount the host's /dev"
    )


def _remedy(fault: Fault) -> str:
    """Turn "none if …; else …", which is true of a running agent, into what a person can do."""
    if not fault.remedy.startswith("none"):
        return fault.remedy or "`hailo-agent devices`, and `dmesg | grep -i hailo` as root"
    _, _, otherwise = fault.remedy.partition("; else ")
    return "run the doctor again in a moment" + (f"; if it stays, {otherwise}" if otherwise else "")


def _model(function: PciFunction) -> str:
    return model_of(function.pci_id).value


def _name(sighting: Sighting) -> str:
    return f"{sighting.family.class_name}/{sighting.entry}"
