"""The spine: look, decide, write, speak; over and over, whatever woke it up.

It never learns what happened, only that something may have. Everything it does to the world is
handed in: `agent` knows who looks and who writes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import structlog

from hailo_agent.aio.doorbell import Doorbell
from hailo_agent.aio.latest import Latest
from hailo_agent.aio.supervise import Backoff
from hailo_agent.aio.tally import Tally
from hailo_agent.core.cdi import Outcome, Place, Spec, links, numbers, render
from hailo_agent.core.change import Change, Kind, changes
from hailo_agent.core.chronicle import Chronicle, recorded
from hailo_agent.core.device import Device, DeviceNumber
from hailo_agent.core.health import Fault, Health
from hailo_agent.core.inventory import Inventory, Policy, bad_news, covered, decide
from hailo_agent.core.observation import Observation
from hailo_agent.errors import EdgeError

SETTLING_SECONDS: Final = (0.1, 0.4, 1.6)
"""When to look again after trouble was found: a driver half-way through sends no more hints."""
_REST_SECONDS: Final = 0.01
"""Between two passes, at least."""
_REST_SHARE: Final = 0.25
"""And never less than this share of what the last pass took."""
_UNSETTLED = {Kind.FAULTED, Kind.FAULT_FOUND}

_log = structlog.get_logger()


class Specs(Protocol):
    """Where the spec is kept. Implemented by `runtime.specs.SpecStore`."""

    async def replace(self, spec: Spec | None, numbers: Mapping[str, DeviceNumber]) -> Outcome:
        """Make the disk say exactly this spec, or raise an EdgeError."""

    async def covered(
        self, spec: Spec | None, numbers: Mapping[str, DeviceNumber]
    ) -> frozenset[str]:
        """Tell which devices of this spec the file on disk covers as it stands."""


class Links(Protocol):
    """Where lasting names of devnodes are kept. Implemented by `runtime.links.DeviceLinks`."""

    async def replace(self, targets: Mapping[str, str]) -> bool:
        """Make the disk say exactly this, or raise an EdgeError."""

    def covered(self, targets: Mapping[str, str]) -> frozenset[str]:
        """Tell which of these links lead where they should."""


Observe = Callable[[Sequence[str]], Awaitable[Observation]]
"""Looks once; told why, for some reasons need no look at the machine."""


@dataclass(slots=True, kw_only=True)
class Reconciler:
    """Keeps the inventory and the spec true."""

    bell: Doorbell
    observe: Observe
    policy: Policy
    specs: Specs | None
    """None where devices are delivered without CDI."""
    links: Links | None
    """None where devices are delivered by CDI alone."""
    place: Place
    prepared: Callable[[Sequence[str]], Awaitable[bool]] | None = None
    """Makes what the spec of these devices will mount; tells whether it is there."""
    inventory: Latest[Inventory]
    resync_seconds: float
    tally: Tally
    chronicle: Latest[Chronicle] = field(default_factory=lambda: Latest(Chronicle()))
    """What has changed lately."""
    weighed_at: Latest[float] = field(default_factory=lambda: Latest(-math.inf))
    """The age of the observation behind the inventory, moved with each pass."""
    _decided: Inventory = field(default_factory=Inventory)
    _refused: tuple[str, ...] = ()
    """What was said last to be wrong: event and reason."""
    _settling: Sequence[float] = ()
    _hinted_at: float = math.inf
    """When the hint came that this pass follows; infinite if none did."""
    _backoff: Backoff = field(default_factory=Backoff)

    async def run(self, report: Callable[[str], None]) -> None:
        """Reconcile for ever: when rung for, when a verdict falls due, and every so often."""
        loop = asyncio.get_running_loop()
        reasons: Sequence[str] = ("start",)
        resync_at = loop.time() + self.resync_seconds
        while True:
            started_at = loop.time()
            due = await self._pass(reasons, report)
            took = loop.time() - started_at
            self.tally.time("reconciles", seconds=took)
            for reason in reasons:
                self.tally.count("reconcile_reasons", reason)
            _log.debug(
                "machine.reconciled", reasons=list(reasons), duration_ms=round(1000 * took, 3)
            )
            await asyncio.sleep(max(_REST_SECONDS, _REST_SHARE * took))
            reasons = await self.bell.wait(min(due, max(resync_at - loop.time(), 0.0)))
            self._hinted_at = self.bell.heard_since if reasons else math.inf
            if loop.time() >= resync_at:
                resync_at = loop.time() + self.resync_seconds
                reasons = (*reasons, "resync")
            reasons = reasons or ("review",)

    async def _pass(self, reasons: Sequence[str], report: Callable[[str], None]) -> float:
        """Do one pass; returns after how many seconds the next one is due by itself.

        Good news waits until it is on disk, bad news does not: a disk may take its time.
        """
        try:
            observation = await self.observe(reasons)
        except EdgeError as error:
            return self._refuse("machine.unreadable", error, report)
        self._decided = decide(self._decided, observation, self.policy)
        self._publish(bad_news(self.inventory.value, self._decided))
        due = math.inf
        published = self._decided
        try:
            await self._write(self._decided)
        except EdgeError as error:
            due = self._refuse("spec.refused", error, report)
            self.tally.count("spec_writes", "refused")
            published = await self._as_far_as_covered(self._decided, str(error))
        else:
            if "spec.refused" in self._refused:
                _log.info("spec.accepted", spec={"path": self.policy.spec_path})
            self._refused = ()
            self._backoff.forget()
            report("")
        self._publish(published)
        self.weighed_at.publish(observation.at)
        if published.review_at is not None:
            due = min(due, max(published.review_at - asyncio.get_running_loop().time(), 0.0))
        if self._settling:
            due, self._settling = min(due, self._settling[0]), self._settling[1:]
        return due

    async def _write(self, decided: Inventory) -> None:
        """Write the spec, then the links, whatever becomes of the other."""
        try:
            await self._write_spec(decided)
        finally:
            if self.links is not None:
                await self.links.replace(links(decided, self.place))

    async def _write_spec(self, decided: Inventory) -> None:
        if self.specs is None:
            return
        spec = await self._rendered(decided)
        outcome = await self.specs.replace(spec, numbers(decided))
        if outcome is not Outcome.UNCHANGED:
            self.tally.count("spec_writes", outcome.value.removeprefix("spec."))
            devices = 0 if spec is None else len(spec.devices) - 1
            _log.info(outcome.value, spec={"path": self.policy.spec_path, "devices": devices})

    async def _rendered(self, decided: Inventory) -> Spec | None:
        """Render the spec, without what cannot be mounted: a container would not start for it."""
        spec = render(decided, self.place)
        if spec is None or self.prepared is None:
            return spec
        if await self.prepared([device.name for device in spec.devices]):
            return spec
        return render(decided, replace(self.place, monitor=""))

    async def _as_far_as_covered(self, decided: Inventory, reason: str) -> Inventory:
        """Take back what the spec on disk does not cover. Bad news travels all the same."""
        names = frozenset(str(device.id) for device in decided.devices)
        if self.links is not None:
            names &= self.links.covered(links(decided, self.place))
        if self.specs is not None:
            try:
                spec = await self._rendered(decided)
                names &= await self.specs.covered(spec, numbers(decided))
            except EdgeError:
                names = frozenset()
        return covered(decided, names, reason)

    def _refuse(self, event: str, error: EdgeError, report: Callable[[str], None]) -> float:
        """Say once what is wrong, and when to try again."""
        report(str(error))
        delay = self._backoff.next()
        if self._refused != (event, str(error)):
            self._refused = event, str(error)
            _log.error(event, error={"type": type(error).__name__, "message": str(error)})
        return delay

    def _publish(self, published: Inventory) -> None:
        found = changes(self.inventory.value, published)
        for change in found:
            _tell(change, self.place)
            self.tally.count("changes", change.kind.value)
        if found:
            self.chronicle.publish(recorded(self.chronicle.value, found, at=self._decided.at))
        if any(_is_unsettled(change) for change in found):
            self._settling = SETTLING_SECONDS
        if self.inventory.publish(published) and found and self._hinted_at < math.inf:
            took = asyncio.get_running_loop().time() - self._hinted_at
            self.tally.time("hotplug", seconds=took)


def _tell(change: Change, place: Place) -> None:
    """Write the one log line of a change."""
    is_bad = _is_bad(change)
    write = _log.warning if is_bad else _log.info
    if change.fault is not None:
        write(change.kind.value, fault=_fault(change.fault))
    if change.device is not None:
        device = change.device
        write(
            change.kind.value,
            device={
                "id": device.id,
                "path": None if device.devnode is None else f"{place.dev}/{device.devnode.name}",
                "pci": None if device.address is None else str(device.address),
                "model": device.model.value,
                "health": device.health.value,
                "faults": [_fault(fault) for fault in device.faults],
                "holders": [f"{h.namespace}/{h.pod}/{h.container}" for h in device.holders],
            },
        )


def _is_bad(change: Change) -> bool:
    """Whether to warn: of what is gone, and of news about what is ill."""
    return change.kind in {Kind.REMOVED, Kind.FAULT_FOUND} or (
        change.kind in {Kind.ADDED, Kind.FAULTED} and _is_ill(change.device)
    )


def _is_unsettled(change: Change) -> bool:
    return change.kind in _UNSETTLED or (change.kind is Kind.ADDED and _is_ill(change.device))


def _is_ill(device: Device | None) -> bool:
    return device is not None and device.health is not Health.HEALTHY


def _fault(fault: Fault) -> dict[str, str]:
    return {
        "code": fault.code.value,
        "subject": fault.subject,
        "message": fault.message,
        "remedy": fault.remedy,
        "severity": fault.severity.value,
        **({"evidence": fault.evidence} if fault.evidence else {}),
    }
