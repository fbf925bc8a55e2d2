"""What the doctor concludes from what it saw: one finding per check, with the exact next step.

Pure. The edges gather the facts, `doctor` puts them together, `cli` prints what comes out of here.
A fact that could not be gathered is None and leads to a finding that says so; it is never taken for
health, and never for a fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from hailo_agent.core.device import Device, model_of
from hailo_agent.core.drivers import (
    READ,
    Version,
    binds,
    firmware_of,
    needed_driver,
)
from hailo_agent.core.health import Fault, FaultCode, Health
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.observation import Observation, PciFunction

LARGE_PAGE_BYTES: Final = 16384
NEEDED_INOTIFY_INSTANCES: Final = 16
"""The agent itself needs one; containerd, the kubelet and a few operators share the rest."""
EVERYBODY_MAY_OPEN: Final = 0o666


class Verdict(StrEnum):
    """What one check says; the order is that of badness."""

    OK = "ok"
    UNSEEN = "unseen"
    DEGRADED = "degraded"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of one check."""

    check: str
    """Stable name, for programs."""
    looked_at: str
    found: str
    verdict: Verdict = Verdict.OK
    why: str = ""
    """Why it matters; empty where all is well."""
    next_step: str = ""
    """Exactly what to do; empty where there is nothing to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A loaded kernel module of Hailo's."""

    name: str
    version: str | None
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What the host shows. None is what could not be seen."""

    observation: Observation | None
    modules: tuple[Module, ...] = ()
    firmware: Mapping[str, bool | None] = field(default_factory=dict)
    """By file below the firmware directory: whether it is there."""
    firmware_dir: str = "/lib/firmware"
    kernel_log: tuple[str, ...] | None = None
    kernel_log_unseen: str = ""
    page_bytes: int = 4096
    modes: Mapping[str, int] = field(default_factory=dict)
    """Permission bits by name in /dev."""
    char_links: Mapping[str, bool] | None = None
    """By `major:minor`: whether /dev/char leads there. None where systemd is not in charge."""
    inotify_instances: int | None = None
    in_user_namespace: bool = False
    selinux: bool = False
    apparmor: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """One container runtime's configuration on this node."""

    runtime: str
    path: str
    cdi: bool | None
    """Whether it resolves CDI names; None if the file does not decide it for every version."""
    lines: str
    """What to write there to turn it on."""
    restart: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecFacts:
    """What the CDI directories show."""

    path: str
    directory_exists: bool
    is_writable: bool | None
    is_symlink: bool = False
    names: tuple[str, ...] | None = None
    """Devices of the spec; None if there is no spec."""
    problems: tuple[str, ...] = ()
    conflicts: tuple[tuple[str, str], ...] = ()
    leftovers: tuple[str, ...] = ()
    configs: tuple[RuntimeConfig, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeletFacts:
    """What the kubelet's directory and our own agent show."""

    plugin_dir: str
    plugin_dir_exists: bool
    socket_exists: bool
    socket_error: str = ""
    """Why nobody answers at the kubelet's socket; empty if somebody does."""
    registered: Mapping[str, bool | None] = field(default_factory=dict)
    """By resource: whether the kubelet counts devices of it; None if it cannot be asked."""
    agent_error: str = ""
    """Why no agent answers; empty if one does."""
    parts: tuple[tuple[str, str, str], ...] = ()
    """The agent's parts that do not run, as (name, state, reason)."""
    agent_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything the doctor could see of one node."""

    host: HostFacts
    inventory: Inventory
    spec: SpecFacts
    kubelet: KubeletFacts
    needs_spec: bool
    in_kubernetes: bool = True
    """Whether a kubelet is expected here at all."""


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """Draw every conclusion, in the order in which a person would look."""
    return (
        *_functions(facts),
        *_devices(facts.inventory),
        *_modules(facts.host),
        *_kernel_log(facts.host),
        *_page_size(facts.host),
        *_permissions(facts),
        *_char_links(facts.host),
        *_spec(facts),
        *_runtimes(facts),
        *_kubelet(facts.kubelet),
        *_surroundings(facts.host),
    )


def worst(findings: Iterable[Finding]) -> Verdict:
    """Sum findings up; what could not be seen does not make a node ill."""
    order = list(Verdict)
    worst_of = max((order.index(finding.verdict) for finding in findings), default=0)
    verdict = order[worst_of]
    return Verdict.OK if verdict is Verdict.UNSEEN else verdict


# --- devices -----------------------------------------------------------------------------------


def _functions(facts: Facts) -> Iterator[Finding]:
    """Say of every PCI function of the vendor whether it is of use, and if not, why not."""
    observation = facts.host.observation
    if observation is None:
        yield Finding(
            check="pci.function",
            looked_at="/sys/bus/pci/devices",
            found="sysfs could not be read in time",
            verdict=Verdict.BROKEN,
            why="nothing can be said about any device",
            next_step="read the kernel log: a driver that hangs holds sysfs",
        )
        return
    if not observation.functions and not facts.inventory.devices:
        yield Finding(
            check="pci.function",
            looked_at="/sys/bus/pci/devices",
            found="no PCI function of vendor 1e60",
            verdict=Verdict.OK,
            next_step="if there should be one: `lspci -d 1e60:` on the host, then reseat the card"
            " and check that the slot is switched on in firmware",
        )
    usable = {device.address: device for device in facts.inventory.devices}
    for function in observation.functions:
        device = usable.get(function.address)
        if device is not None and device.health is Health.HEALTHY:
            yield Finding(
                check="pci.function",
                looked_at=_place(function),
                found=f"ready as {device.id}, /dev/{_node(device)}",
            )
        elif device is None:
            yield _unserved(function, facts.host)


def _unserved(function: PciFunction, host: HostFacts) -> Finding:
    """Find out why the kernel sees a card that no driver serves."""
    found, why, step = _why_unserved(function, host)
    return Finding(
        check="pci.function",
        looked_at=_place(function),
        found=found,
        verdict=Verdict.BROKEN,
        why=why,
        next_step=step,
    )


def _why_unserved(function: PciFunction, host: HostFacts) -> tuple[str, str, str]:
    pci_id = function.pci_id
    versions = {m.name: Version.parse(m.version) for m in host.modules}
    serving = [v for v in versions.values() if v is not None and pci_id and binds(v, pci_id)]
    needed = (needed_driver(pci_id) if pci_id else None) or "of a newer release"
    if not host.modules:
        return (
            "no driver: no Hailo kernel module is loaded",
            "the kernel sees the card, and nothing serves it",
            (
                f"install the kernel driver {needed}, then `modprobe hailo_pci` (5.1 and later:"
                " `modprobe hailo1x_pci`)"
            ),
        )
    loaded = ", ".join(f"{m.name} {m.version or '(version unreadable)'}" for m in host.modules)
    if not serving and all(v is not None for v in versions.values()):
        return (
            f"wrong driver branch: {loaded} does not serve {model_of(pci_id)} ({pci_id})",
            "each driver line binds other chips; it never will serve this one",
            f"install the kernel driver {needed}",
        )
    missing = _missing_firmware(function, host)
    if missing:
        return (
            f"firmware missing: {', '.join(missing)}",
            "the driver loads it while probing and gives up without it",
            (
                "install the firmware package of the driver's version, then unbind and bind the"
                " function or reload the module"
            ),
        )
    failure = _probe_failure(function, host.kernel_log or ())
    if failure:
        return (
            f"probe failed: {failure}",
            "the driver knows the chip but could not start it",
            _after_probe_failure(failure),
        )
    if function.driver:
        return (
            f"driver {function.driver} is bound but made no device",
            "probing has not ended, or its class could not be made",
            "wait a minute (a Hailo-10H boots its own Linux), then read the kernel log",
        )
    return (
        f"{loaded} is loaded but has not bound it",
        "probing failed or was never tried",
        f"read the kernel log for {function.address}; `driver_override` may keep it away",
    )


def _missing_firmware(function: PciFunction, host: HostFacts) -> tuple[str, ...]:
    if function.pci_id is None:
        return ()
    wanted = firmware_of(function.pci_id)
    in_log = [name for name in wanted if _log_misses(name, host.kernel_log or ())]
    absent = [name for name in wanted if host.firmware.get(name) is False]
    return tuple(f"{host.firmware_dir}/{name}" for name in in_log or absent)


def _log_misses(name: str, log: Sequence[str]) -> bool:
    return any(
        name in line and re.search(r"fail|error|missing", line, re.IGNORECASE) for line in log
    )


_PROBE_FAILURE = re.compile(
    r"(?:failed with error|probe.*(?:failed|error)).*?(-[0-9]{1,3})", re.IGNORECASE
)


def _probe_failure(function: PciFunction, log: Sequence[str]) -> str:
    for line in reversed(log):
        if str(function.address) in line and _PROBE_FAILURE.search(line):
            return line.strip()
    return ""


def _after_probe_failure(line: str) -> str:
    if "-28" in line:
        return (
            "interrupt vectors are used up (ENOSPC), as behind a PCIe switch on a Raspberry Pi:"
            " connect the card directly, or use fewer devices behind the switch"
        )
    if "-22" in line:
        return "the driver refuses the chip (EINVAL): install the driver line that it needs"
    if "-110" in line:
        return "the chip did not answer in time: power the machine off and on, then look again"
    return "read the kernel lines around it; power-cycle the machine if the chip hangs"


def _devices(inventory: Inventory) -> Iterator[Finding]:
    for device in inventory.devices:
        if device.health is not Health.HEALTHY:
            for fault in device.faults:
                yield _from_fault(f"device {device.id}", fault)
        if device.link is not None and device.link.is_degraded:
            link = device.link
            yield Finding(
                check="device.link",
                looked_at=f"PCIe link of {device.id}",
                found=f"{link.speed_gts:g} GT/s x{link.width}, could be {link.max_speed_gts:g}"
                f" GT/s x{link.max_width}",
                verdict=Verdict.DEGRADED,
                why="the device works, but frames reach it more slowly than they could",
                next_step="use a slot with more lanes; on a Raspberry Pi 5 set"
                " `dtparam=pciex1_gen=3` in /boot/firmware/config.txt and reboot",
            )
    for fault in inventory.faults:
        if fault.code is not FaultCode.PCI_UNSERVED and fault.code is not FaultCode.SPEC_CONFLICT:
            yield _from_fault(fault.subject, fault)


def _from_fault(looked_at: str, fault: Fault) -> Finding:
    is_chosen = fault.code is FaultCode.DENIED
    return Finding(
        check=fault.code.value,
        looked_at=looked_at,
        found=fault.message,
        verdict=Verdict.OK if is_chosen else Verdict.BROKEN,
        why="" if is_chosen else "it is not handed out like this",
        next_step=fault.remedy,
    )


# --- driver and kernel -------------------------------------------------------------------------


def _modules(host: HostFacts) -> Iterator[Finding]:
    for module in host.modules:
        version = Version.parse(module.version)
        where = f"/sys/module/{module.name}/version"
        if version is None:
            yield Finding(
                check="driver.version",
                looked_at=where,
                found="unreadable",
                verdict=Verdict.UNSEEN,
                why="images are built for one driver version, to the last digit",
                next_step=f"`modinfo -F version {module.name}` on the host",
            )
        elif version in READ:
            yield Finding(
                check="driver.version",
                looked_at=where,
                found=f"{version}; containers need libhailort {version} exactly",
            )
        else:
            yield Finding(
                check="driver.version",
                looked_at=where,
                found=f"{version}, which this agent's tables do not know",
                verdict=Verdict.DEGRADED,
                why="devices are found all the same; what depends on the version is not used",
                next_step="update the agent, or look whether its release notes name this driver",
            )


def _kernel_log(host: HostFacts) -> Iterator[Finding]:
    if host.kernel_log is None:
        yield Finding(
            check="kernel.log",
            looked_at="the kernel log",
            found=f"not readable: {host.kernel_log_unseen}",
            verdict=Verdict.UNSEEN,
            why="it tells why a driver gave up",
            next_step="run the doctor as root, or read `dmesg | grep -i hailo` yourself",
        )
        return
    for line in host.kernel_log:
        if "duplicate filename" in line and "/class/hailo" in line:
            yield Finding(
                check="driver.collision",
                looked_at="the kernel log",
                found=line.strip(),
                verdict=Verdict.BROKEN,
                why="two driver lines make one class, so the devices of the second get no node",
                next_step="use 4.23 together with 5.3 or later, whose class has a name of its own",
            )
            break
    for line in host.kernel_log:
        if re.search(r"mismatch driver version", line, re.IGNORECASE):
            yield Finding(
                check="driver.firmware-mismatch",
                looked_at="the kernel log",
                found=line.strip(),
                verdict=Verdict.BROKEN,
                why="the chip runs firmware of another release and refuses every call",
                next_step="install driver and firmware of one release, then power the machine off"
                " and on: a reload does not load firmware again",
            )
            break


def _page_size(host: HostFacts) -> Iterator[Finding]:
    for module in host.modules:
        forced = module.parameters.get("force_desc_page_size")
        if host.page_bytes >= LARGE_PAGE_BYTES and forced not in {"4096", None}:
            yield Finding(
                check="kernel.page-size",
                looked_at=f"/sys/module/{module.name}/parameters/force_desc_page_size",
                found=f"{forced} on a kernel with pages of {host.page_bytes} bytes",
                verdict=Verdict.DEGRADED,
                why="libhailort may refuse descriptors larger than the chip's 4096",
                next_step=f"`options {module.name} force_desc_page_size=4096` in"
                " /etc/modprobe.d/hailo.conf, then reload the module",
            )


def _permissions(facts: Facts) -> Iterator[Finding]:
    for device in facts.inventory.devices:
        mode = facts.host.modes.get(_node(device))
        if mode is not None and mode & EVERYBODY_MAY_OPEN != EVERYBODY_MAY_OPEN:
            yield Finding(
                check="devnode.mode",
                looked_at=f"/dev/{_node(device)}",
                found=f"mode {mode:04o}",
                verdict=Verdict.OK if facts.needs_spec else Verdict.DEGRADED,
                why="without CDI the container's node has this mode, so only root can open it"
                if not facts.needs_spec
                else "",
                next_step='add a udev rule: SUBSYSTEM=="'
                + ("" if device.devnode is None else device.devnode.class_name)
                + '", MODE="0666", then `udevadm trigger`'
                if not facts.needs_spec
                else "",
            )


def _char_links(host: HostFacts) -> Iterator[Finding]:
    for number, leads in (host.char_links or {}).items():
        if not leads:
            yield Finding(
                check="devnode.char-link",
                looked_at=f"/dev/char/{number}",
                found="missing",
                verdict=Verdict.DEGRADED,
                why="with systemd's cgroup driver, `systemctl daemon-reload` takes the device away"
                " from running containers",
                next_step="`udevadm trigger`, or link it by a udev rule",
            )


# --- containers --------------------------------------------------------------------------------


def _spec(facts: Facts) -> Iterator[Finding]:
    spec = facts.spec
    if not facts.needs_spec:
        return
    usable = {device.id for device in facts.inventory.devices if device.is_usable}
    if spec.is_writable is False:
        yield Finding(
            check="cdi.directory",
            looked_at=spec.path,
            found="its directory cannot be written",
            verdict=Verdict.BROKEN,
            why="runtimes find there what our device names mean",
            next_step="run the agent as root and mount the directory writable, or set"
            " runtime.cdi_dir (as an ordinary user, the doctor cannot tell)",
        )
    if spec.is_symlink:
        yield Finding(
            check="cdi.directory",
            looked_at=spec.path,
            found="its directory is itself a symlink",
            verdict=Verdict.BROKEN,
            why="the CDI library does not scan such a directory",
            next_step="make it a directory, or set runtime.cdi_dir to where it leads",
        )
    if spec.names is None:
        yield Finding(
            check="cdi.spec",
            looked_at=spec.path,
            found="no spec" if spec.directory_exists else "no spec, nor its directory",
            verdict=Verdict.BROKEN if usable else Verdict.OK,
            why="no container can be given a device by name" if usable else "",
            next_step="start the agent, or `hailo-agent cdi generate` without Kubernetes"
            if usable
            else "",
        )
    elif spec.problems:
        yield Finding(
            check="cdi.spec",
            looked_at=spec.path,
            found="; ".join(spec.problems[:3]),
            verdict=Verdict.BROKEN,
            why="a runtime refuses the whole file",
            next_step="`hailo-agent cdi generate`; a running agent repairs it by itself",
        )
    elif missing := sorted(usable - set(spec.names)):
        yield Finding(
            check="cdi.spec",
            looked_at=spec.path,
            found=f"lacks {', '.join(missing)}",
            verdict=Verdict.BROKEN,
            why="a container that is granted such a device cannot start",
            next_step="start the agent, or `hailo-agent cdi generate` without Kubernetes",
        )
    else:
        yield Finding(
            check="cdi.spec", looked_at=spec.path, found=f"valid, {len(usable)} usable devices"
        )
    for path, name in spec.conflicts:
        yield Finding(
            check="cdi.conflict",
            looked_at=path,
            found=f"defines {name}, as {spec.path} does",
            verdict=Verdict.BROKEN,
            why="readers drop a name that two files define, or let one hide the other",
            next_step=f"remove {path}, or the device from it",
        )
    for path in spec.leftovers:
        yield Finding(
            check="cdi.leftover",
            looked_at=path,
            found="written by an agent with another configuration",
            verdict=Verdict.DEGRADED,
            why="it may hide or contradict the true spec",
            next_step=f"restart the agent, which removes it, or remove {path}",
        )


def _runtimes(facts: Facts) -> Iterator[Finding]:
    if not facts.needs_spec:
        return
    if not facts.spec.configs:
        yield Finding(
            check="runtime.cdi",
            looked_at="configurations of containerd and CRI-O",
            found="none found here",
            verdict=Verdict.UNSEEN,
            why="containerd 1.7 ignores CDI unless told otherwise",
            next_step="run the doctor on the host, or with --root where the host is mounted",
        )
    for config in facts.spec.configs:
        if config.cdi:
            yield Finding(
                check="runtime.cdi", looked_at=config.path, found=f"{config.runtime}: CDI is on"
            )
        else:
            yield Finding(
                check="runtime.cdi",
                looked_at=config.path,
                found=f"{config.runtime}: CDI is "
                + ("off" if config.cdi is False else "on or off by version"),
                verdict=Verdict.DEGRADED,
                why="names are ignored silently; containers then see all devices in sysfs",
                next_step=f"write into {config.path}:\n{config.lines}\nthen {config.restart}",
            )


# --- the kubelet -------------------------------------------------------------------------------


def _kubelet(kubelet: KubeletFacts) -> Iterator[Finding]:
    socket = f"{kubelet.plugin_dir}/kubelet.sock"
    if not kubelet.plugin_dir_exists:
        yield Finding(
            check="kubelet.socket",
            looked_at=kubelet.plugin_dir,
            found="does not exist",
            verdict=Verdict.DEGRADED,
            why="without a kubelet nothing is scheduled here; podman and docker need none",
            next_step="install Kubernetes, or mount this directory into the agent's pod",
        )
        return
    if not kubelet.socket_exists or kubelet.socket_error:
        yield Finding(
            check="kubelet.socket",
            looked_at=socket,
            found=kubelet.socket_error or "does not exist",
            verdict=Verdict.BROKEN,
            why="the agent cannot register",
            next_step="`systemctl status kubelet` (k3s, rke2: their own service)",
        )
    else:
        yield Finding(check="kubelet.socket", looked_at=socket, found="answers")
    if kubelet.agent_error:
        yield Finding(
            check="agent.running",
            looked_at="the agent's socket",
            found=kubelet.agent_error,
            verdict=Verdict.DEGRADED,
            why="nothing is told to the kubelet while no agent runs",
            next_step="start it; `kubectl -n kube-system get pods` shows whether it should run",
        )
    for name, state, reason in kubelet.parts:
        yield Finding(
            check="agent.part",
            looked_at=f"part {name} of the agent",
            found=f"{state}: {reason}" if reason else state,
            verdict=Verdict.BROKEN,
            why="the agent is not ready without it",
            next_step="the reason says what is missing; the agent goes on trying",
        )
    for resource, is_registered in kubelet.registered.items():
        if is_registered is None:
            yield Finding(
                check="kubelet.resource",
                looked_at=resource,
                found="the kubelet could not be asked",
                verdict=Verdict.UNSEEN,
                why="pods that ask for it may stay pending",
                next_step="`kubectl get node -o yaml | grep hailo` shows what the kubelet counts",
            )
        else:
            yield Finding(
                check="kubelet.resource",
                looked_at=resource,
                found="counted by the kubelet"
                if is_registered
                else "no device of it is allocatable",
                verdict=Verdict.OK if is_registered else Verdict.DEGRADED,
                why="" if is_registered else "pods that ask for it stay pending",
                next_step="" if is_registered else "the findings above say why",
            )


# --- surroundings ------------------------------------------------------------------------------


def _surroundings(host: HostFacts) -> Iterator[Finding]:
    instances = host.inotify_instances
    if instances is not None and instances < NEEDED_INOTIFY_INSTANCES:
        yield Finding(
            check="system.inotify",
            looked_at="fs.inotify.max_user_instances",
            found=str(instances),
            verdict=Verdict.DEGRADED,
            why="without inotify, changes are seen by uevents or at the next resync only",
            next_step="`sysctl -w fs.inotify.max_user_instances=512`, and in /etc/sysctl.d",
        )
    if host.in_user_namespace:
        yield Finding(
            check="system.user-namespace",
            looked_at="/proc/self/uid_map",
            found="a user namespace of its own",
            verdict=Verdict.DEGRADED,
            why="the kernel's device events do not arrive here",
            next_step="set hostUsers: true, or live with inotify and the resync",
        )
    if host.selinux:
        yield Finding(
            check="system.selinux",
            looked_at="/sys/fs/selinux/enforce",
            found="enforcing",
            next_step="if registering is denied: seLinuxOptions.type: container_device_plugin_t",
        )
    if host.apparmor:
        yield Finding(
            check="system.apparmor",
            looked_at="/sys/module/apparmor/parameters/enabled",
            found="enabled",
            next_step="if mounts are denied, look for DENIED lines in the kernel log",
        )


def _place(function: PciFunction) -> str:
    model = model_of(function.pci_id)
    return f"PCI function {function.address} ({function.pci_id or 'id unreadable'}, {model})"


def _node(device: Device) -> str:
    return "" if device.devnode is None else device.devnode.name
