"""The kernel drivers that are loaded: their versions, their firmware, and their complaints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from hailo_agent.core.device import Device
from hailo_agent.core.diagnosis.facts import Facts, HostFacts, Module
from hailo_agent.core.diagnosis.finding import Finding, Verdict
from hailo_agent.core.diagnosis.kernellog import (
    Cause,
    Outcome,
    last_attempt,
    lines_about,
)
from hailo_agent.core.diagnosis.unserved import COLLISION_STEP, pcie_modules, versions
from hailo_agent.core.drivers import (
    PROBE_NEEDS_FIRMWARE,
    RESET_LOADS_FIRMWARE,
    Version,
    class_of,
    collide,
    firmware_of,
    is_known,
    rebind,
)

_FIRST_CLASS: Final = "hailo_chardev"
_SMALL_PAGE_BYTES: Final = 4096
_LARGE_PAGE_BYTES: Final = 16384
_IS_OFF: Final = "0"
"""Of force_desc_page_size: go by the kernel's pages."""

_POWER_CYCLE: Final = "switch the machine off and on again: a reboot may keep the card powered"


def examine(facts: Facts) -> Iterator[Finding]:
    """Look at the drivers, then at what they did to each device that they serve."""
    host = facts.host
    for module in host.modules:
        yield _version(module)
    yield from _libraries(host)
    yield from _collision(facts)
    yield from _page_size(host, facts.inventory.devices)
    for device in facts.inventory.devices:
        yield from complaints(device, host)
    if host.kernel_log is None and _is_there_something_to_tell(facts):
        yield Finding(
            check="kernel.log",
            looked_at=host.kernel_log_path,
            found=f"not readable: {host.kernel_log_unseen or 'no reason given'}",
            verdict=Verdict.UNSEEN,
            why="it tells why a driver gave up, and whether firmware was loaded",
            next_step="run the doctor as root; or, as root, `dmesg > FILE`, and then run it with"
            " `--kernel-log FILE`",
        )


def _is_there_something_to_tell(facts: Facts) -> bool:
    seen = facts.observation
    return bool(facts.host.modules) or seen is None or bool(seen.functions or seen.sightings)


def _version(module: Module) -> Finding:
    version = Version.parse(module.version)
    where = f"/sys/module/{module.name}/version"
    if version is None:
        return Finding(
            check="driver.version",
            looked_at=where,
            found="unreadable" if module.version is None else f"{module.version!r}, no version",
            verdict=Verdict.UNSEEN,
            why="an image must hold the libhailort of the very release of the driver",
            next_step=f"`modinfo -F version {module.name}` on the host",
        )
    if not is_known(version):
        return Finding(
            check="driver.version",
            looked_at=where,
            found=f"{version}, which this agent's tables do not know",
            verdict=Verdict.UNSEEN,
            why="devices are found and offered all the same; what is said here of drivers and chips"
            " may be out of date",
            next_step="update the agent, or see whether its release notes name this driver;"
            f" containers need libhailort {version}",
        )
    return Finding(
        check="driver.version",
        looked_at=where,
        found=f"{version}; containers need libhailort {version} exactly"
        + ("" if class_of(version) == _FIRST_CLASS else "; nodes are /dev/h1x-N, not /dev/hailoN"),
    )


def _libraries(host: HostFacts) -> Iterator[Finding]:
    """Compare the host's own libhailort; what is in images cannot be seen from here."""
    drivers = versions(host.modules)
    for path, text in host.libraries.items():
        if drivers and (library := Version.parse(text)) is not None and library not in drivers:
            loaded = " and ".join(map(str, drivers))
            yield Finding(
                check="driver.library",
                looked_at=path,
                found=f"libhailort {library}, but the loaded driver is {loaded}",
                verdict=Verdict.DEGRADED,
                why="what uses this library fails with HAILO_INVALID_DRIVER_VERSION (76); images"
                " that bring their own library are not concerned",
                next_step=f"`modinfo -F version {host.modules[0].name}`: if it says {library}, that"
                " driver is installed and not loaded yet: reboot; if not, install driver and"
                f" firmware {library}, or library {loaded}",
            )


def _collision(facts: Facts) -> Iterator[Finding]:
    """Warn of two drivers that want one class; where a card suffers from it, that was said."""
    host, observation = facts.host, facts.observation
    modules = pcie_modules(host)
    served = {s.address for s in (() if observation is None else observation.sightings)}
    if observation is not None and any(f.address not in served for f in observation.functions):
        return
    said = lines_about(host.kernel_log or (), r"duplicate filename '/class/(?:hailo|h1x)")
    known = versions(modules)
    if collide(known):
        yield Finding(
            check="driver.collision",
            looked_at="loaded kernel modules" if not said else host.kernel_log_path,
            found=said[-1]
            if said
            else f"{' and '.join(str(v) for v in known)} both make /sys/class/{class_of(known[0])}",
            verdict=Verdict.BROKEN if said else Verdict.DEGRADED,
            why="the driver that comes second gets no class, and its devices neither entry nor"
            " node",
            next_step=COLLISION_STEP,
        )


def _page_size(host: HostFacts, devices: Iterable[Device]) -> Iterator[Finding]:
    """Hint at a kernel with large pages: by what the driver said of it, or else by its parameter.

    libhailort then says "max_desc_page_size given 16384 is bigger than hw max desc page size 4096".
    """
    log = host.kernel_log or ()
    said = [last_attempt(log, d.address).page_bytes for d in devices if d.address is not None]
    largest = max((size for size in said if size is not None), default=None)
    for module in pcie_modules(host):
        forced = module.parameters.get("force_desc_page_size")
        if largest is None and host.page_bytes >= _LARGE_PAGE_BYTES and forced is not None:
            largest = host.page_bytes if forced == _IS_OFF else _number(forced)
        if largest is not None and largest > _SMALL_PAGE_BYTES:
            yield Finding(
                check="kernel.page-size",
                looked_at=f"/sys/module/{module.name}/parameters/force_desc_page_size",
                found=f"{forced or 'unknown'}, so that descriptors have pages of {largest} bytes",
                verdict=Verdict.DEGRADED,
                why="libhailort may refuse to configure a network: descriptors of that size are"
                f" larger than the chip's {_SMALL_PAGE_BYTES}",
                next_step=f"`echo options {module.name} force_desc_page_size={_SMALL_PAGE_BYTES} >"
                " /etc/modprobe.d/hailo.conf`, then reload the driver; on a Raspberry Pi 5"
                " `kernel=kernel8.img` in /boot/firmware/config.txt does as well",
            )


def _number(parameter: str) -> int:
    return int(parameter) if re.fullmatch(r"[0-9]{1,9}", parameter) else 0


# --- of one device that has a node ---------------------------------------------------------------


def complaints(device: Device, host: HostFacts) -> Iterator[Finding]:
    """Say what the kernel log tells of a device that looks well from outside."""
    if device.address is None:
        return
    attempt = last_attempt(host.kernel_log or (), device.address)
    version = Version.parse(device.driver_version)
    if attempt.mismatch:
        yield Finding(
            check="driver.endpoint",
            looked_at=_place(device),
            found=f"{_has_node(device)}the chip still runs the firmware of another release:"
            f" {attempt.mismatch}",
            verdict=Verdict.BROKEN,
            why="it refuses every call (EINVAL); firmware is loaded once, when the chip gets power",
            next_step=f"{_POWER_CYCLE}; `echo 1 > /sys/bus/pci/devices/{device.address}/reset` and"
            " a reload of the driver have helped as well (hailo_model_zoo_genai PR 11)",
        )
    if attempt.outcome is Outcome.FAILED:
        yield Finding(
            check="driver.activation",
            looked_at=_place(device),
            found=f"{_has_node(device)}the chip was not started again: {attempt.line}",
            verdict=Verdict.BROKEN,
            why="the node was made by an earlier start, before a resume or a reset; nothing runs"
            " behind it now",
            next_step=f"{rebind(device.address, device.driver)}; if that does not help,"
            f" {_POWER_CYCLE}",
        )
    elif attempt.was_reset and version is not None and version < RESET_LOADS_FIRMWARE:
        yield Finding(
            check="driver.reset",
            looked_at=_place(device),
            found=f"{_has_node(device)}the function was reset, and driver {version} does not load"
            " firmware again",
            verdict=Verdict.BROKEN,
            why="nothing runs on the chip, so every call fails",
            next_step=rebind(device.address, device.driver),
        )
    if version is not None and version < PROBE_NEEDS_FIRMWARE:
        was_missed = attempt.cause is Cause.NO_FIRMWARE
        yield from _firmware(device, version, host, was_missed=was_missed)


def _place(device: Device) -> str:
    return f"PCI {device.address} ({device.pci_id or 'id unreadable'}, {device.model})"


def _has_node(device: Device) -> str:
    """Grant that it looks well, which is what misleads."""
    return "" if device.devnode is None else f"there is a node, /dev/{device.devnode.name}, but "


def _firmware(
    device: Device, version: Version, host: HostFacts, *, was_missed: bool
) -> Iterator[Finding]:
    """Look for firmware where the driver made a node without it: sysfs does not show which it is.

    Only the library can tell, by opening the device, which the doctor does not. What can be seen is
    whether the file is there now, and what the driver said when it looked.
    """
    names = firmware_of(device.pci_id)
    files = ", ".join(f"{host.firmware_dir}/{name}" for name in names)
    absent = any(host.firmware.get(name) is False for name in names)
    again = rebind(device.address, device.driver)
    if was_missed:
        yield Finding(
            check="driver.firmware",
            looked_at=_place(device),
            found=f"{_has_node(device)}no firmware: the driver did not find {files} when it looked",
            verdict=Verdict.BROKEN,
            why=f"driver {version} makes a node even if it finds no firmware; every call to such a"
            " device fails",
            next_step=f"install the firmware of release {version} there, then {again}",
        )
        return
    if not absent:
        if host.kernel_log is None and names:
            yield Finding(
                check="driver.firmware",
                looked_at=files,
                found="there, but whether it was loaded does not show in sysfs",
                verdict=Verdict.UNSEEN,
                why=f"driver {version} makes a node even if it finds no firmware",
                next_step="`dmesg | grep -i firmware` as root",
            )
        return
    yield Finding(
        check="driver.firmware",
        looked_at=files,
        found="firmware missing, though it may have been there when the driver looked",
        verdict=Verdict.DEGRADED,
        why=f"driver {version} makes a node even if it finds no firmware; every call to such a"
        " device fails",
        next_step=f"install the firmware of release {version} there, then {again}",
    )
