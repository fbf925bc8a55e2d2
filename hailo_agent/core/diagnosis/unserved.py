"""Why the kernel sees a card and no driver makes a device of it: the question asked most often.

The answer is put together from what is loaded, what is installed, and what the driver said when it
last tried. Where several reasons would do, the one that the others follow from comes first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from hailo_agent.core.device import PciId, model_of
from hailo_agent.core.diagnosis.facts import HostFacts, Module
from hailo_agent.core.diagnosis.finding import Finding, Verdict
from hailo_agent.core.diagnosis.kernellog import Attempt, Cause, Outcome, last_attempt
from hailo_agent.core.drivers import (
    PCI_DRIVERS,
    PCIE_MODULES,
    Line,
    Version,
    binds,
    class_of,
    collide,
    firmware_of,
    line_of,
    rebind,
)
from hailo_agent.core.observation import PciFunction

_BOOT_SECONDS: Final = 40
"""How long the driver waits for a chip that boots its own Linux (PCI_EP_WAIT_TIMEOUT_MS)."""

_NOT_ITS_FAULT: Final = frozenset(
    {
        Cause.NO_INTERRUPTS,
        Cause.DISCONNECTED,
        Cause.REGIONS_TAKEN,
        Cause.CLASS_TAKEN,
        Cause.NO_MEMORY,
    }
)
"""What would stop the right driver as well."""

COLLISION_STEP: Final = (
    "use 4.23 together with 5.3 or later, which names its class differently; then reboot, for the"
    " driver that lost holds a lock for ever"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reason:
    found: str
    why: str
    next_step: str
    verdict: Verdict = Verdict.BROKEN


def why_unserved(
    function: PciFunction, place: str, host: HostFacts, class_names: Collection[str]
) -> Finding:
    """Say why a card is of no use to anybody; `class_names` are those that a driver has made."""
    attempt = last_attempt(host.kernel_log or (), function.address)
    reason = (
        _held_by_another(function)
        or _no_driver(function, host)
        or _wrong_line(function, host, attempt)
        or _collision(host, attempt, class_names)
        or _given_up(function, host, attempt)
        or _no_firmware(function, host)
        or _not_done(function, host, attempt)
    )
    return Finding(
        check="pci.function",
        looked_at=place,
        found=reason.found,
        verdict=reason.verdict,
        why=reason.why,
        next_step=reason.next_step,
    )


def pcie_modules(host: HostFacts) -> tuple[Module, ...]:
    """Pick the loaded modules that serve PCI functions."""
    return tuple(module for module in host.modules if module.name in PCIE_MODULES)


def versions(modules: Iterable[Module]) -> tuple[Version, ...]:
    """Tell the versions that can be read."""
    parsed = [Version.parse(module.version) for module in modules]
    return tuple(version for version in parsed if version is not None)


# --- one reason each, or None --------------------------------------------------------------------


def _held_by_another(function: PciFunction) -> _Reason | None:
    if function.driver is None or function.driver in PCI_DRIVERS:
        return None
    return _Reason(
        found=f"held by the kernel driver {function.driver}",
        why="a card that is passed through to a virtual machine is not this node's",
        next_step=f"if it should be: `echo {function.address} >"
        f" /sys/bus/pci/drivers/{function.driver}/unbind`, and take it out of the configuration"
        " that binds it",
        verdict=Verdict.DEGRADED,
    )


def _no_driver(function: PciFunction, host: HostFacts) -> _Reason | None:
    if pcie_modules(host):
        return None
    line = line_of(function.pci_id)
    installed = host.installed
    fitting = _modules_for(line)
    why = "the kernel sees the card, and nothing serves it"
    if installed and (ready := [name for name in fitting if name in installed]):
        return _Reason(
            found=f"no driver: {ready[0]} is installed, but not loaded",
            why=why,
            next_step=f"`modprobe {ready[0]}`; if it is refused or does not last over a reboot, see"
            f" `grep -r {ready[0]} /etc/modprobe.d` and `dmesg | tail`",
        )
    if installed:
        return _Reason(
            found=f"no driver: {_list(installed)} is installed, which is not for this chip",
            why="each line of drivers binds other chips",
            next_step=_install(line, host),
        )
    kernel = f" for kernel {host.kernel_release}" if host.kernel_release else ""
    if installed is None:
        return _Reason(
            found="no driver: no Hailo kernel module is loaded",
            why=why,
            next_step=_install(line, host),
        )
    return _Reason(
        found=f"no driver: no Hailo kernel module is loaded, nor installed{kernel}",
        why=f"{why}; after a kernel update, DKMS has to build it anew",
        next_step=f"{_install(line, host)}; if `dkms status` lists it for another kernel, `dkms"
        " autoinstall` builds it for this one",
    )


def _wrong_line(function: PciFunction, host: HostFacts, attempt: Attempt) -> _Reason | None:
    """Tell a chip that no loaded driver is for, or not really.

    4.6 to 4.22 also take the later chips' ids, from the time when those were accelerators without a
    Linux of their own; a Hailo-10H as it is sold then fails to boot (nerves_system_rpi5 issue 103).
    """
    modules, pci_id = pcie_modules(host), function.pci_id
    line = line_of(pci_id)
    if pci_id is None or line is None:
        return None
    known = versions(modules)
    served = [binds(version, pci_id) for version in known]
    loaded = _loaded(modules)
    if len(known) == len(modules) and not any(answer is not False for answer in served):
        said = f"; it said: {attempt.line}" if attempt.line else ""
        return _Reason(
            found=f"wrong driver branch: {loaded} does not serve {_chip(pci_id)}{said}",
            why="each line of drivers binds other chips; this one will never serve this chip, not"
            " even by new_id",
            next_step=_install(line, host),
        )
    foreign = known and not any(version.major == line.major for version in known)
    if foreign and attempt.outcome is Outcome.FAILED and attempt.cause not in _NOT_ITS_FAULT:
        return _Reason(
            found=f"wrong driver branch: {loaded} takes {_chip(pci_id)} on, but cannot start"
            f" it: {attempt.line}",
            why="it knows the id from an earlier use of the chip",
            next_step=_install(line, host),
        )
    return None


def _collision(host: HostFacts, attempt: Attempt, class_names: Collection[str]) -> _Reason | None:
    modules = pcie_modules(host)
    known = versions(modules)
    is_said = attempt.cause is Cause.CLASS_TAKEN
    is_likely = collide(known) and class_of(known[0]) in class_names and attempt.cause is None
    if not is_said and not is_likely:
        return None
    return _Reason(
        found=f"two drivers want to make one class: {_loaded(modules)}"
        + (f" ({attempt.line})" if is_said else ""),
        why="the devices of the second one get neither class entry nor node",
        next_step=COLLISION_STEP,
    )


def _given_up(function: PciFunction, host: HostFacts, attempt: Attempt) -> _Reason | None:
    if attempt.outcome is not Outcome.FAILED:
        return None
    errno = "" if attempt.errno is None else f" (-{attempt.errno})"
    if attempt.cause is Cause.NO_FIRMWARE:
        return _firmware_missing(attempt.files or _absent(function, host), function, host)
    found, why, step = _GIVEN_UP.get(attempt.cause, _GIVEN_UP[None])
    if attempt.cause in {Cause.WRONG_FIRMWARE, Cause.REFUSED}:
        step = f"{step} ({_loaded(pcie_modules(host))} is loaded)"
    return _Reason(
        found=f"{found}{errno}: {attempt.line}" if attempt.line else f"{found}{errno}",
        why=why,
        next_step=step,
    )


def _no_firmware(function: PciFunction, host: HostFacts) -> _Reason | None:
    absent = _absent(function, host)
    return _firmware_missing(absent, function, host) if absent else None


def _not_done(function: PciFunction, host: HostFacts, attempt: Attempt) -> _Reason:
    driver, loaded = function.driver, _loaded(pcie_modules(host))
    look = (
        f"read what the driver said: `dmesg | grep {function.address}`"
        if host.kernel_log is not None
        else f"run the doctor as root, so that it sees the kernel log ({host.kernel_log_unseen})"
    )
    if attempt.outcome is Outcome.RELEASED:
        return _Reason(
            found="its driver served it, and was unbound",
            why="the driver does not take it back by itself",
            next_step=f"`echo {function.address} > /sys/bus/pci/drivers/{driver or 'hailo'}/bind`",
        )
    if driver is not None:
        return _Reason(
            found=f"kernel driver {driver} is bound, but has not made a device yet",
            why="it loads firmware first; a chip that boots its own Linux takes up to"
            f" {_BOOT_SECONDS} s",
            next_step=f"wait a minute and run the doctor again; if nothing has changed, {look}",
        )
    return _Reason(
        found=f"{loaded} is loaded, but has not bound it",
        why="probing failed, or was never tried",
        next_step=f"{look}; /sys/bus/pci/devices/{function.address}/driver_override must be (null)",
    )


# --- words ---------------------------------------------------------------------------------------

_POWER_CYCLE: Final = (
    "switch the machine off and on again, for a reboot keeps the card powered; if it stays, reseat"
    " the card and look at its power supply"
)
_GIVEN_UP: Final[dict[Cause | None, tuple[str, str, str]]] = {
    Cause.WRONG_FIRMWARE: (
        "firmware refused",
        "the file is of another release, or damaged",
        "install firmware and driver of one release, then reload the driver",
    ),
    Cause.NO_INTERRUPTS: (
        "no interrupt (MSI) to be had",
        (
            "the interrupt vectors of the PCIe host are used up, as behind a PCIe switch on a"
            " Raspberry Pi 5 (raspberrypi/linux issue 6206)"
        ),
        (
            "update kernel and firmware (on a Raspberry Pi, `rpi-update`), connect the card without"
            " a switch, or use fewer devices behind it"
        ),
    ),
    Cause.TIMEOUT: (
        "the chip did not answer in time",
        "its firmware was written but did not start, or it hangs since an earlier run",
        _POWER_CYCLE,
    ),
    Cause.DISCONNECTED: (
        "the card does not answer",
        "its registers read as ones: it lost power or its link",
        _POWER_CYCLE,
    ),
    Cause.CLASS_TAKEN: (
        "its class in /sys/class exists already",
        "another driver made it, so that the devices of this one get neither entry nor node",
        COLLISION_STEP,
    ),
    Cause.REGIONS_TAKEN: (
        "its memory is in use by another driver",
        "two drivers cannot share a card",
        "`grep -i -e hailo -e vfio /proc/iomem` as root tells which has it; unload that one",
    ),
    Cause.REFUSED: (
        "the driver refuses it",
        "the driver line is not for this chip, or the firmware file is not of its release",
        "install driver and firmware of one release, of the line that the chip needs",
    ),
    Cause.NO_MEMORY: (
        "not enough memory",
        "the driver needs memory in one piece while it starts the chip",
        "reload the driver soon after boot, or reboot",
    ),
    None: (
        "probe failed",
        "the driver knows the chip, but could not start it",
        "read the lines around it in the kernel log; " + _POWER_CYCLE,
    ),
}


def _firmware_missing(files: tuple[str, ...], function: PciFunction, host: HostFacts) -> _Reason:
    names = files or firmware_of(function.pci_id)
    return _Reason(
        found="firmware missing: "
        + (", ".join(f"{host.firmware_dir}/{name}" for name in names) or "which, it does not say"),
        why="the driver loads it into the chip at every start, and gives up without it",
        next_step=_install_firmware(function, host),
    )


def _install_firmware(function: PciFunction, host: HostFacts) -> str:
    """Say which release is wanted and how to have the driver try again, leaving others alone."""
    modules = [module for module in pcie_modules(host) if _may_serve(module, function.pci_id)]
    if len(modules) != 1:
        return (
            f"install the firmware of the driver's very release ({_loaded(modules)}), then reload"
            " the driver"
        )
    (module,) = modules
    again = rebind(function.address, function.driver)
    if function.driver is None:
        again = f"`echo {function.address} > /sys/bus/pci/drivers/{_DRIVER[module.name]}/bind`"
    return f"install the firmware of release {module.version or 'unknown'} there, then {again}"


_DRIVER: Final = dict(zip(PCIE_MODULES, PCI_DRIVERS, strict=True))
"""What each module calls itself on the PCI bus."""


def _may_serve(module: Module, pci_id: PciId | None) -> bool:
    version = Version.parse(module.version)
    return version is None or pci_id is None or binds(version, pci_id) is not False


def _absent(function: PciFunction, host: HostFacts) -> tuple[str, ...]:
    return tuple(name for name in firmware_of(function.pci_id) if host.firmware.get(name) is False)


def _modules_for(line: Line | None) -> tuple[str, ...]:
    """Name the modules that may serve a chip: up to 5.0 both lines called theirs hailo_pci."""
    if line is None or line.module == PCIE_MODULES[1]:
        return PCIE_MODULES[::-1]
    return (line.module,)


def _install(line: Line | None, host: HostFacts) -> str:
    if line is None:
        return (
            "install the kernel driver that Hailo names for this chip, which is newer than this"
            " agent"
        )
    in_the_way = _loaded(pcie_modules(host)) or _list(host.installed or ())
    return (
        f"install a kernel driver {line.name} (hailort-drivers, branch {line.branch}; Raspberry Pi"
        f" OS: package {line.package}) and its firmware, "
        + (f"remove {in_the_way} unless another card needs it, " if in_the_way else "")
        + f"then `modprobe {line.module}`"
    )


def _loaded(modules: Iterable[Module]) -> str:
    return " and ".join(f"{m.name} {m.version or '(version unreadable)'}" for m in modules)


def _list(names: Iterable[str]) -> str:
    return " and ".join(sorted(names))


def _chip(pci_id: PciId) -> str:
    return f"{model_of(pci_id)} ({pci_id})"
