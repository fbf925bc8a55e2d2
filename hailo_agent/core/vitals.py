"""What the kernel tells of a PCI function without anything being opened, and what that proves.

Pure. `host.vitals` makes the readings, `inventory.decide` has them weighed. What could not be read
is None, and None proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hailo_agent.core.health import (
    RULES_BY_SENSOR,
    Evidence,
    Fault,
    FaultCode,
    Sensor,
    Severity,
)

ALL_ONES: Final = 0xFFFF
"""What a read from a function that does not answer brings home (PCI_POSSIBLE_ERROR)."""

RETRY_LATER: Final = 0x0001
"""The vendor id that a root port makes up while a function is not ready yet, as after a reset."""

MIN_CMA_BYTES: Final = 1024 * 1024
"""With less contiguous memory than this left, drivers fail to allocate their DMA buffers."""

_CODES: Final = frozenset(RULES_BY_SENSOR[Sensor.VITALS]) - {FaultCode.UNRESPONSIVE}
"""All that a reading may prove, if it comes back at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A PCIe link now and at best. Speed in GT/s per lane, width in lanes."""

    speed_gts: float
    width: int
    max_speed_gts: float
    max_width: int

    @property
    def is_degraded(self) -> bool:
        """Whether the link runs below what the device itself could do."""
        return self.speed_gts < self.max_speed_gts or self.width < self.max_width


@dataclass(frozen=True, slots=True, kw_only=True)
class Aer:
    """How many errors the kernel has counted since the function was found on the bus."""

    correctable: int | None = None
    nonfatal: int | None = None
    fatal: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """One reading of one PCI function."""

    at: float
    """When it was made, in seconds of the observation's clock."""
    config_vendor: int | None = None
    """The first 16-bit word of its configuration space."""
    driver: str | None = None
    driver_known: bool = False
    """Whether its binding could be read, so that no `driver` means that none is bound."""
    enabled: bool | None = None
    """Whether somebody has it enabled (`enable` counts who)."""
    link: Link | None = None
    power_state: str | None = None
    """As the kernel names it: `D0`, `D3hot`, `unknown`, …"""
    power_managed: bool | None = None
    """Whether its driver lets the chip sleep while nobody has it open."""
    aer: Aer | None = None
    hung: bool = False
    """Whether reading took too long; then nothing else is known."""

    @property
    def is_in_use(self) -> bool | None:
        """Whether somebody holds the device open; None where the power state does not tell.

        The driver wakes the chip at the first open and puts it to sleep at the last close, unless
        it was loaded with `no_power_mode`.
        """
        if self.power_managed is False or (self.driver_known and self.driver is None):
            return None
        return {"D0": True, "D3hot": False}.get(self.power_state or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """The contiguous memory that drivers of the whole machine share."""

    cma_total_bytes: int
    cma_free_bytes: int


def evidence(subject: str, now: Vitals, before: Vitals | None) -> Evidence:
    """Say what a reading proves of a device; errors count if they are more than `before`."""
    if now.hung:
        return Evidence(
            sensor=Sensor.VITALS, at=now.at, faults=(_unresponsive(subject),), unread=_CODES
        )
    faults: list[Fault] = []
    unread: set[FaultCode] = set()
    findings = (
        *_answers(subject, now),
        *_is_driven(subject, now),
        *_errors(subject, now.aer or Aer(), (before and before.aer) or Aer()),
    )
    for finding in findings:
        if isinstance(finding, Fault):
            faults.append(finding)
        else:
            unread.add(finding)
    return Evidence(sensor=Sensor.VITALS, at=now.at, faults=tuple(faults), unread=frozenset(unread))


def memory_fault(memory: HostMemory) -> Fault | None:
    """Say whether the machine has run out of contiguous memory; without any, it needs none."""
    if memory.cma_total_bytes == 0 or memory.cma_free_bytes >= MIN_CMA_BYTES:
        return None
    return Fault(
        code=FaultCode.HOST_CMA,
        subject="/proc/meminfo",
        message="the kernel has hardly any contiguous memory (CMA) left",
        remedy="end what uses it up (cameras and video codecs do, too), or give it more: boot with"
        " a larger `cma=` on the kernel's command line",
        severity=Severity.INFO,
        evidence=f"{memory.cma_free_bytes // 1024} of {memory.cma_total_bytes // 1024} KiB free",
    )


# --- what each part of a reading proves: a fault, or a code of which it says nothing --------------


def _answers(subject: str, now: Vitals) -> Iterator[Fault | FaultCode]:
    """Weigh configuration space and link; what a dead function tells of its link is made up."""
    if now.config_vendor == ALL_ONES:
        yield _dead(subject)
    elif now.config_vendor in {None, RETRY_LATER}:
        yield FaultCode.PCI_DEAD
    if now.link is None or now.config_vendor in {ALL_ONES, RETRY_LATER}:
        yield FaultCode.LINK_DEGRADED
    elif now.link.is_degraded:
        yield _slow(subject, now.link)


def _is_driven(subject: str, now: Vitals) -> Iterator[Fault | FaultCode]:
    """Weigh the binding; a function without a driver is disabled, and rightly so."""
    if not now.driver_known:
        yield FaultCode.PCI_UNBOUND
        yield FaultCode.PCI_DISABLED
    elif now.driver is None:
        yield _unbound(subject)
    elif now.enabled is None:
        yield FaultCode.PCI_DISABLED
    elif not now.enabled:
        yield _disabled(subject)


def _errors(subject: str, now: Aer, before: Aer) -> Iterator[Fault | FaultCode]:
    """Weigh the counters, which only grow: one that is lower belongs to a function found anew."""
    for code, count, known in (
        (FaultCode.AER_CORRECTABLE, now.correctable, before.correctable),
        (FaultCode.AER_NONFATAL, now.nonfatal, before.nonfatal),
        (FaultCode.AER_FATAL, now.fatal, before.fatal),
    ):
        if count is None or known is None:
            yield code
        elif count > known:
            message, remedy = _ERRORS[code]
            yield Fault(
                code=code,
                subject=subject,
                message=message,
                remedy=remedy,
                evidence=f"{count - known} more, {count} in all",
            )


# --- faults, in words ----------------------------------------------------------------------------

_ERRORS: Final = {
    FaultCode.AER_CORRECTABLE: (
        "its PCIe link has errors, which were corrected (AER)",
        (
            "none if they are few; if they go on, reseat the module, and check adapter, cable and"
            " power; on a Raspberry Pi 5, `dtparam=pciex1_gen=2` makes a noisy link quiet"
        ),
    ),
    FaultCode.AER_NONFATAL: (
        "its PCIe link has errors that lost data (AER, nonfatal)",
        (
            "read the kernel log for `AER`, reseat the module, and check adapter, cable and power;"
            " on a Raspberry Pi 5, try `dtparam=pciex1_gen=2`"
        ),
    ),
    FaultCode.AER_FATAL: (
        "its PCIe link has errors that make it unreliable (AER, fatal)",
        (
            "read the kernel log for `AER`, power-cycle the machine, reseat the module; if they"
            " come back, replace adapter, cable or module"
        ),
    ),
}


def _unresponsive(subject: str) -> Fault:
    return Fault(
        code=FaultCode.UNRESPONSIVE,
        subject=subject,
        message="reading the attributes of its PCI function takes too long",
        remedy="wait if it is being reset; else read the kernel log, then power-cycle the machine",
    )


def _dead(subject: str) -> Fault:
    return Fault(
        code=FaultCode.PCI_DEAD,
        subject=subject,
        message="it does not answer: its PCI configuration space reads all ones",
        remedy="read the kernel log, then power-cycle the machine (a reboot may leave the module"
        " powered); if that does not help, reseat the module, and check its power and its cooling",
        evidence=f"vendor id {ALL_ONES:#06x}",
    )


def _unbound(subject: str) -> Fault:
    return Fault(
        code=FaultCode.PCI_UNBOUND,
        subject=subject,
        message="no kernel driver is bound to its PCI function",
        remedy="read the kernel log for why it let go, then reload the kernel driver",
    )


def _disabled(subject: str) -> Fault:
    return Fault(
        code=FaultCode.PCI_DISABLED,
        subject=subject,
        message="its PCI function is disabled: it is being reset, or a reset got stuck",
        remedy="wait if it is being reset; else read the kernel log and reload the kernel driver,"
        " and if that does not help, power-cycle the machine",
    )


def _slow(subject: str, link: Link) -> Fault:
    return Fault(
        code=FaultCode.LINK_DEGRADED,
        subject=subject,
        message="its PCIe link runs below what the device can do",
        remedy="none if the slot cannot do more; else reseat the module; on a Raspberry Pi 5, add"
        " `dtparam=pciex1_gen=3` to /boot/firmware/config.txt and reboot",
        evidence=f"{link.speed_gts:g} GT/s x{link.width}"
        f" of {link.max_speed_gts:g} GT/s x{link.max_width}",
    )
