"""The sensors that ask how devices are, beyond whether they are there.

Each is a part of its own with its own period, and each may be missing. What they find out is kept
here, the newest reading of each device, until somebody looks; the bell is rung for news only. They
never decide anything: a reading is what was read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import anyio
import structlog

from hailo_agent.core.chip import Chip, Trouble
from hailo_agent.core.device import Device, DeviceId, PciAddress
from hailo_agent.core.hailortcli import evidence as contradiction
from hailo_agent.core.hailortcli import strangers
from hailo_agent.core.health import RULES_BY_SENSOR, Evidence, Fault, FaultCode, Sensor
from hailo_agent.core.ioctls import table
from hailo_agent.core.observation import Readings
from hailo_agent.core.vitals import HostMemory, Vitals, evidence, memory_fault
from hailo_agent.errors import EdgeError
from hailo_agent.host.hailortcli import HailortCli
from hailo_agent.host.notifications import Listeners
from hailo_agent.host.probe import Prober
from hailo_agent.host.vitals import VitalsReader

Report = Callable[[str], None]

ILL_SECONDS: Final = 10.0
"""How soon a device that gave trouble is asked again, so that it may recover."""

_SOON_SECONDS: Final = 1.0
"""When vitals are read again after they began to show, or ceased to show, something wrong."""

_CROSS_CHECK_SECONDS: Final = 300.0

_TURN_SECONDS: Final = 1.0
"""How often it is looked whether a device is due, when none is known to be."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device as the sensors need to know it."""

    id: DeviceId
    address: PciAddress | None
    path: str | None
    """Its devnode; None while that is not sound, and must not be opened."""
    driver_version: str | None
    is_held: bool
    is_ill: bool
    """Whether something is wrong with it, or may turn out to be: each reading of it counts."""
    is_wavering: bool
    """Whether its vitals are about to be judged otherwise: the next reading of them decides."""
    present_since: float

    @classmethod
    def of(cls, device: Device, dev: str) -> Target:
        """Take from a device what matters here; `dev` is where devnodes are."""
        node = device.devnode
        return cls(
            id=device.id,
            address=device.address,
            path=f"{dev}/{node.name}" if node is not None and node.is_sound else None,
            driver_version=device.driver_version,
            is_held=device.held is True,
            is_ill=bool(device.history.tracks),
            is_wavering=any(
                track.sensor is Sensor.VITALS and (not track.stands or track.well_since is not None)
                for track in device.history.tracks
            ),
            present_since=device.present_since,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """When driver and firmware are asked."""

    mode: Literal["auto", "on", "off"]
    """`on` warns where devices may not be opened, and holds them for unknown; `auto` does not."""
    seconds: float
    """How often an idle device is asked."""
    in_use: bool
    """Whether devices that somebody uses are asked as well."""
    awake_share: float
    """Of the time, at most; a chip that is asked does not sleep."""


@dataclass(slots=True)
class _Asked:
    """What is remembered of asking one device."""

    present_since: float
    due_at: float = 0.0
    is_ill: bool = False


def _differ(now: Vitals, before: Vitals | None) -> bool:
    return before is None or replace(now, at=before.at) != before


def _faults(subject: DeviceId, now: Vitals, before: Vitals | None) -> frozenset[FaultCode]:
    return frozenset(fault.code for fault in evidence(subject, now, before).faults)


@dataclass(slots=True, kw_only=True)
class Senses:
    """Readings of every device, made by parts that run beside each other."""

    targets: Callable[[], Sequence[Target]]
    ring: Callable[[str], None]
    vitals: VitalsReader
    vitals_seconds: float
    memory: Callable[[], HostMemory | None]
    prober: Prober
    questions: Questions
    listeners: Listeners | None
    """Who hears what firmware says by itself; None unless ordered."""
    hailortcli: HailortCli | None
    _readings: dict[DeviceId, Readings] = field(default_factory=dict)
    _shortages: tuple[Fault, ...] = ()
    _strangers: tuple[Fault, ...] = ()
    _wrong: dict[DeviceId, frozenset[FaultCode]] = field(default_factory=dict)
    """What the last reading of its vitals showed to be wrong."""
    _asked: dict[DeviceId, _Asked] = field(default_factory=dict)
    _asking: DeviceId | None = None
    _unable: dict[DeviceId, str] = field(default_factory=dict)
    """Which devices cannot be asked, and why."""
    _strange: set[str] = field(default_factory=set)
    """Versions of kernel drivers that have been said to be unknown."""

    def readings(self, at: float) -> Mapping[DeviceId, Readings]:
        """Tell the newest reading of each sensor, by device, and what was heard up to now."""
        if self.listeners is None:
            return dict(self._readings)
        return {
            device_id: replace(
                readings, others=(*readings.others, self.listeners.evidence(device_id, at))
            )
            for device_id, readings in self._readings.items()
        }

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What is wrong with the machine rather than with a device."""
        return (*self._shortages, *self._strangers)

    # --- what the kernel tells ---

    async def watch_vitals(self, report: Report) -> None:
        """Read the vitals of every device, for ever."""
        report("")
        loop = asyncio.get_running_loop()
        while True:
            started_at = loop.time()
            is_settled = await self._read_vitals(started_at)
            took = loop.time() - started_at
            rest = max(self.vitals_seconds - took, self.vitals_seconds / 2)
            await anyio.sleep(rest if is_settled else min(rest, _SOON_SECONDS))

    async def _read_vitals(self, at: float) -> bool:
        """Read once; tells whether all is as wrong as it was, so that there is no hurry."""
        targets = {t.address: t for t in self.targets() if t.address is not None}
        asked = {self._asking}
        found = await self.vitals.read(tuple(targets), at)
        asked.add(self._asking)
        self._forget(self.targets())
        news, is_settled = False, True
        for address, vitals in found.items():
            target = targets[address]
            before = self._readings.get(target.id, Readings())
            if target.id in {*asked, *self.prober.hung}:
                # It is us who woke it: whether somebody else uses it is what was known before.
                known = None if before.vitals is None else before.vitals.power_state
                vitals = replace(vitals, power_state=known)  # noqa: PLW2901
            elif self._keeps_awake(target.id):
                vitals = replace(vitals, power_state=None)  # noqa: PLW2901
            wrong, was_wrong = _faults(target.id, vitals, before.vitals), self._wrong.get(target.id)
            is_settled = is_settled and wrong == (was_wrong or frozenset())
            is_settled = is_settled and not target.is_wavering
            self._wrong[target.id] = wrong
            is_news = bool(wrong) or target.is_ill or _differ(vitals, before.vitals)
            news = news or is_news
            self._readings[target.id] = replace(before, vitals=vitals)
        memory = self.memory()
        short = None if memory is None else memory_fault(memory)
        faults = () if short is None else (short,)
        if news or faults != self._shortages:
            self._shortages = faults
            self.ring("vitals")
        return is_settled

    def _keeps_awake(self, device_id: DeviceId) -> bool:
        return self.listeners is not None and self.listeners.keeps_awake(device_id)

    def _forget(self, targets: Iterable[Target]) -> None:
        present = {target.id for target in targets}
        for device_id in self._readings.keys() - present:
            del self._readings[device_id]
            self._wrong.pop(device_id, None)
        for device_id in self._asked.keys() - present:
            del self._asked[device_id]

    # --- what driver and firmware answer ---

    async def ask(self, report: Report) -> None:
        """Ask one device after the other, each when it is due, for ever."""
        loop = asyncio.get_running_loop()
        report("")
        try:
            while True:
                self._let_go(report)
                due = self._due(loop.time())
                for target in due:
                    await self._ask(target, report)
                if due:
                    self.ring("query")  # once for all that only differ in what was measured
                due_at = min((a.due_at for a in self._asked.values()), default=0.0)
                await anyio.sleep(min(max(due_at - loop.time(), 0.05), _TURN_SECONDS))
        finally:
            await self.prober.close()

    def _due(self, at: float) -> Sequence[Target]:
        due = []
        for target in self.targets():
            asked = self._asked.get(target.id)
            if asked is None or asked.present_since != target.present_since:
                asked = self._asked[target.id] = _Asked(present_since=target.present_since)
            if at >= asked.due_at and self._may_ask(target):
                due.append(target)
        return due

    def _may_ask(self, target: Target) -> bool:
        if target.path is None or target.driver_version is None:
            return False
        if table(target.driver_version) is None:
            if target.driver_version not in self._strange:
                self._strange.add(target.driver_version)
                _log.info("driver.unknown", driver={"version": target.driver_version})
            return False
        if target.id in self.prober.hung:
            return True  # which costs nothing, until its call has come back
        return self.questions.in_use or not self._is_in_use(target)

    def _is_in_use(self, target: Target) -> bool:
        vitals = self._readings.get(target.id, Readings()).vitals
        if vitals is not None and vitals.is_in_use is not None:
            return vitals.is_in_use
        return target.is_held

    async def _ask(self, target: Target, report: Report) -> None:
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        self._asking = target.id
        try:
            chip = await self.prober.query(
                target.id, target.path or "", target.driver_version or "", started_at, identify=True
            )
        except EdgeError as error:
            self._cannot(target, started_at, str(error), report)
            chip = None
        finally:
            self._asking = None
        asked = self._asked.get(target.id)
        if asked is None:
            return  # it went meanwhile
        took = loop.time() - started_at
        asked.due_at = loop.time() + max(self.questions.seconds, took / self.questions.awake_share)
        if chip is None:
            return
        if chip.trouble is Trouble.DENIED:
            self._cannot(target, started_at, chip.detail, report)
            return
        self._can(target.id, report)
        asked.is_ill = chip.trouble is not None
        if asked.is_ill:
            asked.due_at = loop.time() + min(self.questions.seconds, ILL_SECONDS)
        self._take(target, chip)

    def _take(self, target: Target, chip: Chip) -> None:
        before = self._readings.get(target.id, Readings())
        others = tuple(e for e in before.others if e.sensor is not Sensor.QUERY)
        self._readings[target.id] = replace(before, chip=chip, others=others)
        if chip.trouble is not None or target.is_ill or before.chip is None:
            self.ring("query")  # the next one may take its time to answer

    def _cannot(self, target: Target, at: float, reason: str, report: Report) -> None:
        """Say once that devices cannot be asked; who ordered it holds them for unknown."""
        is_ordered = self.questions.mode == "on"
        is_news = not self._unable
        self._unable[target.id] = reason
        if is_news and is_ordered:
            report(f"{reason}; grant access to devnodes, or set health.queries to auto or off")
        elif is_news:
            _log.info("sensor.absent", sensor=Sensor.QUERY.value, reason=reason)
        if not is_ordered:
            return
        before = self._readings.get(target.id, Readings())
        fault = Fault(
            code=FaultCode.SENSOR_FAILED,
            subject=target.id,
            message="nobody can ask it how it is",
            remedy="grant access to its devnode, or set health.queries to auto or off",
            evidence=reason,
        )
        others_unread = frozenset(RULES_BY_SENSOR[Sensor.QUERY]) - {FaultCode.SENSOR_FAILED}
        failed = Evidence(sensor=Sensor.QUERY, at=at, faults=(fault,), unread=others_unread)
        others = tuple(e for e in before.others if e.sensor is not Sensor.QUERY)
        self._readings[target.id] = replace(before, chip=None, others=(*others, failed))
        self.ring("query")

    def _can(self, device_id: DeviceId, report: Report) -> None:
        """Say so when no device is left that cannot be asked."""
        if self._unable.pop(device_id, "") and not self._unable:
            report("")

    def _let_go(self, report: Report) -> None:
        """Let devices that are gone keep nobody limping, also if they went while being asked."""
        present = {target.id for target in self.targets()}
        for device_id in self._unable.keys() - present:
            self._can(device_id, report)

    # --- what the vendor's command says ---

    async def cross_check(self, report: Report) -> None:
        """Compare with what hailortcli says, for ever; it is never needed."""
        if self.hailortcli is None:
            return
        loop = asyncio.get_running_loop()
        report("")
        said = ""
        while True:
            reason = await self._compare(self.hailortcli, loop.time())
            if reason and reason != said:
                # Where nobody installed it, nobody misses it.
                write = _log.info if self.hailortcli.is_there else _log.debug
                write("sensor.absent", sensor=Sensor.HAILORTCLI.value, reason=reason)
            said = reason
            await anyio.sleep(_CROSS_CHECK_SECONDS if self.targets() else _TURN_SECONDS)

    async def _compare(self, command: HailortCli, at: float) -> str:
        """Compare once; tells why that was not possible."""
        targets = {t.address: t for t in self.targets() if t.address is not None}
        if not targets:
            return ""
        idle = [address for address, target in targets.items() if not self._is_in_use(target)]
        versions = {t.driver_version for t in targets.values() if t.driver_version is not None}
        reading = await command.look(drivers=versions, identify=idle, at=at)
        self._strangers = strangers(reading, tuple(targets))
        for address, target in targets.items():
            before = self._readings.get(target.id, Readings())
            said = contradiction(
                target.id,
                reading,
                address=address,
                driver_version=target.driver_version,
                firmware=None if before.chip is None else before.chip.firmware,
            )
            others = tuple(e for e in before.others if e.sensor is not Sensor.HAILORTCLI)
            self._readings[target.id] = replace(before, others=(*others, said))
        if reading.devices is not None:
            self.ring("hailortcli")
        return reading.reason
