"""What the kernel shows of Hailo's functions, classes and modules, as it stands, for a report.

Reads attributes that cost nothing and wake nothing. It may block in a driver, so it runs in a
thread, and what it has read by the time nobody waits for it any more is not lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from hailo_agent.core.device import FAMILIES, HAILO_VENDOR
from hailo_agent.core.drivers import MODULES
from hailo_agent.host.scan import read_attribute

MOST_ENTRIES: Final = 64
"""Of functions, and of entries of one class."""

_FUNCTION: Final = (
    *("vendor", "device", "subsystem_vendor", "subsystem_device", "class", "revision"),
    *("enable", "power_state", "numa_node", "irq", "d3cold_allowed"),
    *("current_link_speed", "current_link_width", "max_link_speed", "max_link_width"),
    *("aer_dev_correctable", "aer_dev_nonfatal", "aer_dev_fatal"),
    *("power/control", "power/runtime_status"),
)
_ENTRY: Final = ("dev", "device_id", "board_location", "accelerator_type")
_MODULE: Final = ("version", "srcversion", "refcnt", "initstate")


def read_sysfs(sys: Path, found: dict[str, str], *, more_classes: Iterable[str]) -> None:
    """Fill `found` with attributes by path below sysfs; what cannot be read says why.

    `more_classes` are the device classes that the operator told us of.
    """
    _functions(sys, found)
    for class_name in sorted({*(family.class_name for family in FAMILIES), *more_classes}):
        for entry in _listed(sys / "class" / class_name, found):
            at = f"class/{class_name}/{entry}"
            _link(sys, at, found)
            _attributes(sys, at, _ENTRY, found)
    for name in MODULES:
        if (sys / "module" / name).is_dir():
            _attributes(sys, f"module/{name}", _MODULE, found)
            parameters = _listed(sys / "module" / name / "parameters", found)
            _attributes(sys, f"module/{name}/parameters", parameters, found)


def _functions(sys: Path, found: dict[str, str]) -> None:
    vendor = f"0x{HAILO_VENDOR:04x}"
    count = 0
    for name in _listed(sys / "bus/pci/devices", found, most=None):
        at = f"bus/pci/devices/{name}"
        if _read(sys, f"{at}/vendor") != vendor:
            continue
        count += 1
        if count > MOST_ENTRIES:
            found["bus/pci/devices"] = f"(more than {MOST_ENTRIES} functions)"
            return
        _link(sys, at, found)
        _link(sys, f"{at}/driver", found)
        _attributes(sys, at, _FUNCTION, found)


def _attributes(sys: Path, at: str, names: Iterable[str], found: dict[str, str]) -> None:
    for name in names:
        text = _read(sys, f"{at}/{name}")
        if text is not None:
            found[f"{at}/{name}"] = text


def _read(sys: Path, path: str) -> str | None:
    """Read an attribute; None if there is none, and in brackets why it cannot be read."""
    try:
        return read_attribute(f"{sys}/{path}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return f"({error})"


def _link(sys: Path, path: str, found: dict[str, str]) -> None:
    try:
        found[path] = os.fsencode(os.readlink(f"{sys}/{path}")).decode("utf-8", "backslashreplace")  # noqa: PTH115 - text
    except OSError:
        return  # not bound, or not a link: what is said of it elsewhere will do


def _listed(
    directory: Path, found: dict[str, str], *, most: int | None = MOST_ENTRIES
) -> list[str]:
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208 - names
    except FileNotFoundError:
        return []
    except OSError as error:
        found[str(directory)] = f"({os.strerror(error.errno or 0)})"
        return []
    return names[:most]
