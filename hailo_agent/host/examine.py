"""What the doctor wants to know of the host, beyond what a look at the devices tells.

Reads only: no accelerator's devnode is ever opened, and what an ordinary user may not see is said
to be unseen. Blocking, for it runs once, in a process of its own.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from hailo_agent.core.diagnosis import HostFacts, Module
from hailo_agent.core.drivers import MODULES, firmware_of
from hailo_agent.core.observation import Observation
from hailo_agent.host.scan import read_attribute
from hailo_agent.host.uevent import in_initial_user_namespace

_PARAMETERS: Final = ("force_desc_page_size", "no_power_mode", "support_soft_reset")
_RELEVANT = re.compile(r"hailo|h1x|1e60", re.IGNORECASE)
_MAX_LOG_BYTES: Final = 8 * 1024 * 1024
_MAX_LOG_LINES: Final = 2000
_MAX_RECORD_BYTES: Final = 8192
_PACKED: Final = ("", ".xz", ".zst")
"""How distributions pack firmware; the kernel unpacks it."""


def examine(
    observation: Observation | None, *, dev: Path, sys: Path, root: Path, kernel_log: Path
) -> HostFacts:
    """Gather everything; `root` is where the host's root directory is mounted."""
    log, log_unseen = _kernel_log(kernel_log)
    return HostFacts(
        observation=observation,
        modules=tuple(_modules(sys)),
        firmware=_firmware(observation, root / "lib/firmware"),
        kernel_log=log,
        kernel_log_unseen=log_unseen,
        page_bytes=os.sysconf("SC_PAGE_SIZE"),
        modes=dict(_modes(observation, dev)),
        char_links=_char_links(observation, dev)
        if (root / "run/systemd/system").is_dir()
        else None,
        inotify_instances=_number(Path("/proc/sys/fs/inotify/max_user_instances")),
        in_user_namespace=not in_initial_user_namespace(),
        selinux=_text(sys / "fs/selinux/enforce") == "1",
        apparmor=_text(sys / "module/apparmor/parameters/enabled") == "Y",
    )


def _modules(sys: Path) -> Iterator[Module]:
    for name in MODULES:
        directory = sys / "module" / name
        if directory.is_dir():
            parameters = {p: _text(directory / "parameters" / p) for p in _PARAMETERS}
            yield Module(
                name=name,
                version=_text(directory / "version"),
                parameters={p: value for p, value in parameters.items() if value is not None},
            )


def _firmware(observation: Observation | None, directory: Path) -> Mapping[str, bool | None]:
    """Look for the files that the drivers of the present chips ask the kernel for."""
    functions = () if observation is None else observation.functions
    wanted = {n for f in functions if f.pci_id is not None for n in firmware_of(f.pci_id)}
    seen = directory.is_dir()
    return {
        name: any((directory / f"{name}{packed}").is_file() for packed in _PACKED) if seen else None
        for name in sorted(wanted)
    }


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


def _kernel_log(path: Path) -> tuple[tuple[str, ...] | None, str]:
    """Read what of the kernel's log concerns us: from /dev/kmsg, or from a file of `dmesg`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return None, f"{path}: {os.strerror(error.errno or 0)}"
    try:
        whole = stat.S_ISREG(os.fstat(descriptor).st_mode)
        lines = (
            os.read(descriptor, _MAX_LOG_BYTES).decode("utf-8", "replace").splitlines()
            if whole
            else _records(descriptor)
        )
        relevant = [line for line in lines if _RELEVANT.search(line)]
    except OSError as error:
        return None, f"{path}: {os.strerror(error.errno or 0)}"
    finally:
        os.close(descriptor)
    return tuple(relevant[-_MAX_LOG_LINES:]), ""


def _records(descriptor: int) -> Iterator[str]:
    """Read records of /dev/kmsg (`priority,sequence,time,flags;text`) until there are no more."""
    while True:
        try:
            record = os.read(descriptor, _MAX_RECORD_BYTES)
        except BlockingIOError:
            return
        except BrokenPipeError:
            continue  # the record was overwritten before we came to it
        if not record:
            return
        yield record.decode("utf-8", "replace").partition(";")[2].partition("\n")[0]


def _text(path: Path) -> str | None:
    try:
        return read_attribute(str(path))
    except (OSError, ValueError):
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdigit() else None
