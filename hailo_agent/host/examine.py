"""What the doctor wants to know of the host, beyond what a look at the devices tells.

Reads only: no accelerator's devnode is ever opened, and what an ordinary user may not see is said
to be unseen. Nothing that stands below `root` is believed: not its type, size or encoding. It may
block, for it runs once, in a thread that the doctor gives up on if it takes too long.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from hailo_agent.core.cordon import Cordons
from hailo_agent.core.device import PciAddress
from hailo_agent.core.diagnosis.facts import HostFacts, Inotify, Module, Port
from hailo_agent.core.drivers import MODULES, Version, firmware_of
from hailo_agent.core.observation import Observation
from hailo_agent.host.cordons import CordonFile
from hailo_agent.host.scan import read_attribute
from hailo_agent.host.uevent import in_initial_user_namespace

_PARAMETERS: Final = ("force_desc_page_size", "no_power_mode", "support_soft_reset")
_RELEVANT = re.compile(r"hailo|h1x|1e60", re.IGNORECASE)
_MAX_LOG_BYTES: Final = 8 * 1024 * 1024
_MAX_LOG_LINES: Final = 2000
_MAX_RECORDS: Final = 200_000
"""More than fit into the largest ring that a kernel can have; whatever goes on longer is no log."""
_MAX_RECORD_BYTES: Final = 8192
_MAX_MODULES_DEP_BYTES: Final = 8 * 1024 * 1024
_PACKED: Final = ("", ".xz", ".zst")
"""How distributions pack firmware; the kernel unpacks it (CONFIG_FW_LOADER_COMPRESS)."""

_LIBRARIES: Final = (
    "usr/lib/libhailort.so.*",
    "usr/lib/*-linux-gnu/libhailort.so.*",
    "usr/lib64/libhailort.so.*",
    "usr/local/lib/libhailort.so.*",
)


def examine(
    observation: Observation | None, *, dev: Path, sys: Path, root: Path, kernel_log: Path
) -> HostFacts:
    """Gather everything; `root` is where the host's root directory is mounted."""
    addresses = tuple(f.address for f in observation.functions) if observation else ()
    log, log_unseen = _kernel_log(kernel_log, addresses)
    release = os.uname().release
    directories = _firmware_directories(root, sys, release)
    return HostFacts(
        modules=tuple(_modules(sys)),
        kernel_release=release,
        installed=_installed(root / "lib/modules" / release / "modules.dep"),
        firmware=_firmware(observation, directories),
        firmware_dir=f"/{directories[-1].relative_to(root)}",
        libraries=dict(_libraries(root)),
        kernel_log=log,
        kernel_log_path=str(kernel_log),
        kernel_log_unseen=log_unseen,
        page_bytes=os.sysconf("SC_PAGE_SIZE"),
        ports=dict(_ports(addresses, sys)),
        power_states=dict(_power_states(addresses, sys)),
        modes=dict(_modes(observation, dev)),
        char_links=_char_links(observation, dev) if _exists(root / "run/systemd/system") else None,
        inotify=_inotify(root),
        in_user_namespace=not in_initial_user_namespace(),
        selinux=_text(sys / "fs/selinux/enforce") == "1",
        apparmor=_text(sys / "module/apparmor/parameters/enabled") == "Y",
    )


def cordons(path: Path) -> tuple[Cordons, str]:
    """Read what an operator set aside, or why we may not: that says nothing about the file."""
    found = CordonFile(path).read()
    if found.trouble is None:
        return found, ""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
    except PermissionError as error:
        return Cordons(), _reason(error)
    except OSError:
        pass  # which is what is wrong with it
    return found, ""


# --- the driver, and what it needs ---------------------------------------------------------------


def _modules(sys: Path) -> Iterator[Module]:
    for name in MODULES:
        directory = sys / "module" / name
        if _exists(directory):
            parameters = {p: _text(directory / "parameters" / p) for p in _PARAMETERS}
            yield Module(
                name=name,
                version=_text(directory / "version"),
                parameters={p: value for p, value in parameters.items() if value is not None},
            )


def _installed(modules_dep: Path) -> frozenset[str] | None:
    """Find Hailo's modules among those that modprobe knows for the running kernel."""
    text = _read(modules_dep, _MAX_MODULES_DEP_BYTES)
    if text is None:
        return None
    names = re.findall(r"^(?:.*/)?([a-z0-9_-]+)\.ko(?:\.[a-z0-9]+)?:", text, re.MULTILINE)
    return frozenset(name for name in names if name in MODULES)


def _firmware_directories(root: Path, sys: Path, release: str) -> tuple[Path, ...]:
    """List where the kernel looks for firmware (fw_path[] in firmware_loader/main.c)."""
    custom = _text(sys / "module/firmware_class/parameters/path")
    usual = (f"updates/{release}", "updates", release, "")
    return (
        *([root / custom.lstrip("/")] if custom else []),
        *(root / "lib/firmware" / part for part in usual),
    )


def _firmware(
    observation: Observation | None, directories: tuple[Path, ...]
) -> Mapping[str, bool | None]:
    """Look for the files that the drivers of the present chips ask the kernel for."""
    functions = () if observation is None else observation.functions
    wanted = {name for function in functions for name in firmware_of(function.pci_id)}
    if _exists(directories[-1]) is not True:
        return dict.fromkeys(sorted(wanted))
    return {
        name: any(_exists(d / f"{name}{packed}") for d in directories for packed in _PACKED)
        for name in sorted(wanted)
    }


def _libraries(root: Path) -> Iterator[tuple[str, str]]:
    """Find libhailort on the host; the version is in the name, `libhailort.so.4.23.0`."""
    for pattern in _LIBRARIES:
        with suppress(OSError):
            for path in sorted(root.glob(pattern)):
                version = path.name.partition(".so.")[2]
                if Version.parse(version) is not None:
                    yield f"/{path.relative_to(root)}", version


# --- devices -------------------------------------------------------------------------------------


def _ports(addresses: Iterable[PciAddress], sys: Path) -> Iterator[tuple[PciAddress, Port]]:
    """Read what the port above each function could do."""
    for address in addresses:
        try:
            function = os.readlink(sys / "bus/pci/devices" / str(address))  # noqa: PTH115 - text
        except OSError:
            continue
        bridge = function.split("/")[-2:-1]
        if not bridge or PciAddress.parse(bridge[0]) is None:
            continue
        port = sys / "bus/pci/devices" / bridge[0]
        speed = re.match(r"[0-9]{1,3}(?:\.[0-9]+)?", _text(port / "max_link_speed") or "")
        width = _text(port / "max_link_width") or ""
        if speed is not None and re.fullmatch(r"[0-9]{1,3}", width):
            yield address, Port(max_speed_gts=float(speed[0]), max_width=int(width))


def _power_states(addresses: Iterable[PciAddress], sys: Path) -> Iterator[tuple[PciAddress, str]]:
    for address in addresses:
        state = _text(sys / "bus/pci/devices" / str(address) / "power_state")
        if state is not None:
            yield address, state


def _modes(observation: Observation | None, dev: Path) -> Iterator[tuple[str, int]]:
    for sighting in () if observation is None else observation.sightings:
        with suppress(OSError):
            yield sighting.entry, stat.S_IMODE((dev / sighting.entry).lstat().st_mode)


def _char_links(observation: Observation | None, dev: Path) -> Mapping[str, bool]:
    """Say for each device number whether /dev/char leads to the node, as systemd's filter wants."""
    links = {}
    for sighting in () if observation is None else observation.sightings:
        if sighting.number is not None:
            link = dev / "char" / str(sighting.number)
            links[str(sighting.number)] = _leads_to(link, dev / sighting.entry)
    return links


def _leads_to(link: Path, node: Path) -> bool:
    try:
        return link.samefile(node)
    except OSError:
        return False


# --- the kernel log ------------------------------------------------------------------------------


def _kernel_log(path: Path, addresses: Iterable[PciAddress]) -> tuple[tuple[str, ...] | None, str]:
    """Read what of the kernel's log concerns us: from /dev/kmsg, or from a file of `dmesg`."""
    ours = tuple(map(str, addresses))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return None, _reason(error)
    try:
        relevant = [
            line
            for line in _lines(descriptor)
            if _RELEVANT.search(line) or any(address in line for address in ours)
        ]
    except OSError as error:
        return None, _reason(error)
    finally:
        os.close(descriptor)
    return tuple(relevant[-_MAX_LOG_LINES:]), ""


def _lines(descriptor: int) -> Iterable[str]:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        return _records(descriptor)
    # Of a long file the end matters: it tells of the last attempt.
    os.lseek(descriptor, max(0, found.st_size - _MAX_LOG_BYTES), os.SEEK_SET)
    return os.read(descriptor, _MAX_LOG_BYTES).decode("utf-8", "replace").splitlines()


def _records(descriptor: int) -> Iterator[str]:
    """Read records of /dev/kmsg (`priority,sequence,time,flags;text`) until there are no more."""
    for _ in range(_MAX_RECORDS):
        try:
            record = os.read(descriptor, _MAX_RECORD_BYTES)
        except BlockingIOError:
            return
        except BrokenPipeError:
            continue  # the record was overwritten before we came to it
        if not record:
            return
        yield record.decode("utf-8", "replace").partition(";")[2].partition("\n")[0]


# --- limits --------------------------------------------------------------------------------------


def _inotify(root: Path) -> Inotify:
    name = "proc/sys/fs/inotify/max_user_instances"
    text = _text(root / name) or _text(Path("/") / name)
    return Inotify(
        max_instances=int(text) if text is not None and re.fullmatch(r"[0-9]{1,9}", text) else None,
        is_exhausted=_is_inotify_exhausted(),
    )


def _is_inotify_exhausted() -> bool | None:
    """Try: the limit is per user, and who else of ours uses it up is not to be seen."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor >= 0:
        os.close(descriptor)
        return False
    return True if ctypes.get_errno() == errno.EMFILE else None


# --- reading -------------------------------------------------------------------------------------


def _exists(path: Path) -> bool | None:
    """Tell whether something is there; None if we may not know."""
    try:
        path.stat()
    except PermissionError:
        return None
    except OSError:
        return False
    return True


def _text(path: Path) -> str | None:
    """Read one attribute of sysfs; None if there is none, or none that can be read."""
    try:
        return read_attribute(str(path))
    except (OSError, ValueError):
        return None


def _read(path: Path, most_bytes: int) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(most_bytes).decode("utf-8", "replace")
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or 0)
