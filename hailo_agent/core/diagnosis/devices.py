"""Every accelerator that the machine shows: ready, or why not and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from hailo_agent.core.cordon import find
from hailo_agent.core.device import Device, DeviceId, Model, PciAddress, model_of
from hailo_agent.core.diagnosis.driver import complaints
from hailo_agent.core.diagnosis.facts import Charge, Facts, HostFacts, Word
from hailo_agent.core.diagnosis.finding import Finding, Verdict
from hailo_agent.core.diagnosis.health import of_cordon, unread
from hailo_agent.core.diagnosis.unserved import why_unserved
from hailo_agent.core.drivers import PCI_DRIVERS, rebind
from hailo_agent.core.health import Fault, FaultCode, Health, Severity
from hailo_agent.core.observation import NodeKind, PciFunction, Sighting
from hailo_agent.core.vitals import Link

_GEN3_GTS: Final = 8.0
_SHARED_BY_ALL: Final = frozenset({Model.HAILO_10H, Model.HAILO_12L})
"""Chips that run their own Linux; any number of processes may open them."""


def examine(facts: Facts) -> Iterator[Finding]:
    """Say of every accelerator what it is good for, and then of whatever else was strange."""
    round_ = _Round.of(facts)
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
        yield from round_.rest()
        return
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
    told: set[Fault] = field(default_factory=set)
    visited: set[DeviceId] = field(default_factory=set)

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
            for fault in self._set_aside(function.address.device_id):
                yield _of_fault(fault, place)
            return
        device = self.devices.get(function.address)
        link = _link_of(function, device)
        yield from self._device(sighting, place, device, link)
        if device is not None:
            yield from unread(device, place)
        if link is not None:
            yield from _link(function.address, link, self.facts.host, _weight_of_link(device))

    def entry(self, sighting: Sighting) -> Iterator[Finding]:
        """Speak of a class entry that no PCI function stands behind."""
        device = next((d for d in self.facts.inventory.devices if d.id == sighting.device_id), None)
        yield from self._device(sighting, f"class entry {_name(sighting)}", device, None)

    def rest(self) -> Iterator[Finding]:
        """Speak of what is strange and belongs to no device, or to none that is there."""
        for fault in self.facts.inventory.faults:
            if fault not in self.told and fault.code is not FaultCode.SPEC_CONFLICT:
                yield _of_fault(fault, fault.subject)
        yield from self._cordon_file()
        if self.facts.vitals_unseen and self.facts.inventory.devices:
            yield Finding(
                check="device.vitals",
                looked_at="PCI functions in sysfs",
                found=self.facts.vitals_unseen,
                verdict=Verdict.UNSEEN,
                why="a card that does not answer any more may still have a node",
                next_step="run the doctor again; if it stays, `dmesg | grep -i -e pci -e hailo`",
            )
        for device_id, charge in self.facts.agent.charges.items():
            if device_id not in self.visited:
                yield from _of_charge(charge, f"device {device_id}", frozenset())
        known = {FaultCode.CORDONS_UNREADABLE} if self.facts.cordons.cordons.trouble else set()
        for word in self.facts.agent.words:
            if word.code in _ONLY_AGENT_SEES - known:
                yield _of_word(word, "this node", is_offered=True)

    def _device(
        self, sighting: Sighting, place: str, device: Device | None, link: Link | None
    ) -> Iterator[Finding]:
        facts = self.facts
        if sighting.device_id is not None:
            self.visited.add(sighting.device_id)
        charge = facts.agent.charges.get(sighting.device_id or DeviceId(""))
        logged = [] if device is None else _broken(device, facts.host)
        is_dead = sighting.function is not None and bool(logged)
        faults = () if device is None else device.faults
        well = device if device is not None and not device.denied and device.is_usable else None
        if well is None:
            faults += tuple(
                self._faults({_name(sighting), str(sighting.device_id), str(sighting.address)})
            )
            faults += self._set_aside(sighting.device_id) if device is None else ()
        elif not is_dead and (charge is None or charge.is_offered):
            yield _ready(well, place, facts.host, is_in_order=_is_in_order(well, charge))
        is_slow = link is not None and link.is_degraded
        for fault in dict.fromkeys(faults):
            if fault.code is not FaultCode.LINK_DEGRADED or not is_slow:
                yield _of_fault(fault, place, sighting)
        if charge is not None:
            said = {fault.code.value for fault in faults}
            said |= {_LOGGED[check] for check in logged if check in _LOGGED}
            said |= {FaultCode.LINK_DEGRADED} if is_slow else set()
            yield from _of_charge(charge, place, frozenset(said))
        if well is None and not faults and (charge is None or charge.health is Health.HEALTHY):
            yield Finding(
                check="device.unknown",
                looked_at=place,
                found="it is there, and not offered",
                verdict=Verdict.BROKEN,
                why="this should not happen",
                next_step="`hailo-agent devices --json`, and report what it says",
            )

    def _set_aside(self, device_id: DeviceId | None) -> tuple[Fault, ...]:
        """Tell whether there is a cordon on a card that is no device now."""
        if device_id is None:
            return ()
        self.visited.add(device_id)
        fault = of_cordon(device_id, find(self.facts.cordons.cordons.entries, device_id))
        return () if fault is None else (fault,)

    def _cordon_file(self) -> Iterator[Finding]:
        """Speak of the file that says what is set aside, and of cordons for what is not here."""
        facts = self.facts.cordons
        if facts.unseen:
            yield Finding(
                check="cordons.file",
                looked_at=facts.path,
                found=f"not readable: {facts.unseen}",
                verdict=Verdict.UNSEEN,
                why="a device that an operator set aside is not offered",
                next_step="run the doctor as root",
            )
            return
        trouble = facts.cordons.trouble
        if trouble is not None:
            yield _of_fault(trouble, facts.path)
        here = self.visited | {device.id for device in self.facts.inventory.devices}
        for cordon in facts.cordons.entries:
            if cordon.device_id not in here and cordon.since:
                yield Finding(
                    check=FaultCode.CORDONED.value,
                    looked_at=facts.path,
                    found=f"{cordon.device_id}, which is not here, is cordoned since"
                    f" {cordon.since}: {cordon.reason}",
                    next_step=f"`hailo-agent uncordon {cordon.device_id}` once it need not be",
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


def _broken(device: Device, host: HostFacts) -> list[str]:
    """Tell for what the kernel log knows better; `driver` then speaks of its PCI function."""
    return [f.check for f in complaints(device, host) if f.verdict is Verdict.BROKEN]


def _is_in_order(device: Device, charge: Charge | None) -> bool:
    return device.health is Health.HEALTHY and (charge is None or charge.health is Health.HEALTHY)


def _ready(device: Device, place: str, host: HostFacts, *, is_in_order: bool) -> Finding:
    node = "" if device.devnode is None else device.devnode.name
    ready = f"{'ready' if is_in_order else 'usable'} as {device.id}, /dev/{node}"
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


def _link_of(function: PciFunction, device: Device | None) -> Link | None:
    """Tell the link as it was read last; what a dead function tells of it is made up."""
    if device is None or device.vitals is None:
        return function.link
    if any(fault.code is FaultCode.PCI_DEAD for fault in device.faults):
        return None
    return device.vitals.link or function.link


def _weight_of_link(device: Device | None) -> Verdict:
    faults = () if device is None else device.faults
    weights = (_WEIGHTS[f.severity] for f in faults if f.code is FaultCode.LINK_DEGRADED)
    return next(weights, Verdict.DEGRADED)


def _link(address: PciAddress, link: Link, host: HostFacts, weight: Verdict) -> Iterator[Finding]:
    """Speak of a link that is slower than card and slot allow, or whose slot is itself slow."""
    where, now = f"PCIe link of {address}", _speed(link.speed_gts, link.width)
    port = host.ports.get(address)
    if link.is_degraded:
        is_slow = link.speed_gts < min(_GEN3_GTS, link.max_speed_gts)
        yield Finding(
            check="device.link",
            looked_at=where,
            found=f"{now}, card and slot could do {_speed(link.max_speed_gts, link.max_width)}",
            verdict=weight,
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
    FaultCode.CORDONED: Verdict.DEGRADED,
    FaultCode.CORDONS_UNREADABLE: Verdict.DEGRADED,
    FaultCode.HELD_ELSEWHERE: Verdict.DEGRADED,
    FaultCode.RECOVERING: Verdict.DEGRADED,
    FaultCode.ENTRY_UNEXPECTED: Verdict.DEGRADED,
    FaultCode.ENTRY_VANISHED: Verdict.DEGRADED,
    FaultCode.DUPLICATE: Verdict.DEGRADED,
}

_WEIGHTS: Final = {
    Severity.INFO: Verdict.OK,
    Severity.DEGRADED: Verdict.DEGRADED,
    Severity.UNKNOWN: Verdict.DEGRADED,
    Severity.FATAL: Verdict.BROKEN,
}
_LOGGED: Final = {
    "driver.firmware": FaultCode.FIRMWARE_NOT_LOADED,
    "driver.reset": FaultCode.FIRMWARE_NOT_LOADED,
    "driver.endpoint": FaultCode.FIRMWARE_MISMATCH,
}
"""What the kernel log says of a device, and an agent that asked the chip says as well."""

_ONLY_AGENT_SEES: Final = frozenset({FaultCode.HOST_CMA, FaultCode.CORDONS_UNREADABLE})
"""What is said of the whole node, and the doctor does not look at, or perhaps elsewhere."""

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
    FaultCode.CORDONED: "no new pod gets it; one that has it keeps it",
    FaultCode.CORDONS_UNREADABLE: "an agent that starts with it sets every device aside, for it"
    " cannot tell which are cordoned; one that runs keeps to what it knew",
    FaultCode.RECOVERING: "it is not handed out until it has been well for a while",
    FaultCode.PCI_DEAD: "it has a node, but nobody can reach the chip behind it",
    FaultCode.PCI_UNBOUND: "what is left of its node leads nowhere",
    FaultCode.PCI_DISABLED: "nobody can reach the chip until it is enabled again",
}
_WHY_BY_VERDICT: Final = {
    Verdict.OK: "it is worth knowing, and keeps nobody from using it",
    Verdict.DEGRADED: "it is handed out, but may be slow, or fail",
    Verdict.BROKEN: "it is not handed out like this",
}


def _of_fault(fault: Fault, place: str, sighting: Sighting | None = None) -> Finding:
    verdict = _NOT_BROKEN.get(fault.code, _WEIGHTS[fault.severity])
    return Finding(
        check=fault.code.value,
        looked_at=place,
        found=_measured(fault.message, fault.evidence),
        verdict=verdict,
        why=_WHY.get(fault.code, _WHY_BY_VERDICT[verdict]),
        next_step=_node_step(fault, sighting) or _remedy(fault),
    )


def _of_charge(charge: Charge, place: str, said: frozenset[str]) -> Iterator[Finding]:
    """Say what the agent says of a device, but what the doctor has found by itself."""
    for word in charge.words:
        if word.code not in said:
            yield _of_word(word, place, is_offered=charge.is_offered)
    is_ill = charge.health is not Health.HEALTHY or not charge.is_offered
    if is_ill and all(word.severity == Severity.INFO for word in charge.words):
        verdict = _verdict_of("", is_offered=charge.is_offered)
        offers = "" if charge.is_offered else " and does not offer it"
        yield Finding(
            check="agent.device",
            looked_at=place,
            found=f"the agent calls it {charge.health}{offers}, without a reason",
            verdict=verdict,
            why=_WHY_BY_VERDICT[verdict],
            next_step="`hailo-agent devices --json`, and the agent's log",
        )


def _of_word(word: Word, place: str, *, is_offered: bool) -> Finding:
    code = FaultCode(word.code) if word.code in set(FaultCode) else None
    verdict = _verdict_of(word.severity, is_offered=is_offered)
    why = _WHY_BY_VERDICT[verdict if is_offered or verdict is Verdict.OK else Verdict.BROKEN]
    if code is not None:
        verdict, why = _NOT_BROKEN.get(code, verdict), _WHY.get(code, why)
    remedy = word.remedy.removeprefix("none: ")
    if remedy.startswith("none"):
        remedy = f"nothing{remedy.removeprefix('none')}"
    return Finding(
        check=word.code or "agent.device",
        looked_at=place,
        found=f"the agent says: {_measured(word.message or word.code or 'a fault', word.evidence)}",
        verdict=verdict,
        why=why,
        next_step=remedy or "`hailo-agent devices --json`, and the agent's log",
    )


def _verdict_of(severity: str, *, is_offered: bool) -> Verdict:
    """Weigh what an agent says as it does, and a severity we have no word for by what it did."""
    if severity in set(Severity):
        return _WEIGHTS[Severity(severity)]
    return Verdict.DEGRADED if is_offered else Verdict.BROKEN


def _measured(message: str, evidence: str) -> str:
    return f"{message} ({evidence})" if evidence else message


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
    if not fault.remedy.startswith(("none", "wait if")):
        return fault.remedy or "`hailo-agent devices`, and `dmesg | grep -i hailo` as root"
    _, _, otherwise = fault.remedy.partition("; else ")
    return "run the doctor again in a moment" + (f"; if it stays, {otherwise}" if otherwise else "")


def _model(function: PciFunction) -> str:
    return model_of(function.pci_id).value


def _name(sighting: Sighting) -> str:
    return f"{sighting.family.class_name}/{sighting.entry}"
