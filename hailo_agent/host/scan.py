"""One look at the machine: class entries, devnodes and PCI functions, as the kernel shows them.

`Scanner.look` runs in a thread, because a read from sysfs may hang in a driver; what hangs costs
that thread and earns a fault, and the next look goes around it. Nothing is opened but attributes of
sysfs, and nothing that stands there is believed: not its type, not its size, not its encoding.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from hailo_agent.core.device import (
    HAILO_VENDOR,
    DeviceNumber,
    Family,
    Identity,
    PciAddress,
    PciId,
    Topology,
)
from hailo_agent.core.health import Fault, FaultCode
from hailo_agent.core.observation import NodeKind, Observation, PciFunction, Sighting
from hailo_agent.core.vitals import Link
from hailo_agent.errors import HostError

T = TypeVar("T")

MAX_ATTRIBUTE_BYTES: Final = 4096
"""A sysfs attribute is one page at most; on this scale 16 KiB pages change nothing."""

MAX_FAULTS_PER_CLASS: Final = 64
"""Beyond so many strange entries, one more fault counts the rest."""

_MAX_HUNG_DEVICES: Final = 256
"""Each costs a thread; they must not use up those that others share."""

_PCI_ROOT = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}", re.ASCII)

Step = tuple[str, str]
"""What is being looked at: a class and an entry, or `pci` and an address."""


class _Unreadable(ValueError):
    """Raised when an attribute exists but cannot be taken at its word; says why."""


class _Vanished(Exception):
    """Raised when something that was listed is not there any more."""


@dataclass(slots=True)
class _Look:
    """One look under way: filled by its thread, watched by the loop."""

    hung: frozenset[Step]
    thorough: bool
    step: Step | None = None
    since: float = field(default_factory=time.monotonic)
    over: threading.Event = field(default_factory=threading.Event)
    faults: list[Fault] = field(default_factory=list)
    versions: dict[str, str | None] = field(default_factory=dict)
    """Versions of kernel modules, read once per look."""

    def at(self, step: Step | None) -> bool:
        """Go on to the next step; False if it is one to go around."""
        self.step, self.since = step, time.monotonic()
        return step not in self.hung


@dataclass(slots=True)
class Scanner:
    """Looks at one machine. `look` may be called again only after it has returned."""

    dev: Path
    sys: Path
    families: Sequence[Family]
    timeout_seconds: float
    """How long one step, which is the reading of one device, may take."""
    _hung: dict[Step, threading.Event] = field(default_factory=dict)
    # Of its own, so that looking never waits for the threads of others.
    _threads: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1))
    _known: dict[str, tuple[object, PciFunction | None]] = field(default_factory=dict)

    async def look(self, at: float, *, thorough: bool) -> Observation:
        """Look once.

        What can move is read each time: entries, numbers, devnodes, addresses, bindings. What a PCI
        function is can only change with its directory, and how its link runs can wait: both are
        read when the directory is new, and whenever the look is thorough.

        Raises:
            HostError: listing itself hangs, so that there is nothing to go around.
        """
        while True:
            self._hung = {step: over for step, over in self._hung.items() if not over.is_set()}
            if len(self._hung) >= _MAX_HUNG_DEVICES:
                raise HostError(f"{len(self._hung)} devices hang in {self.sys}", edge="host")
            look = _Look(hung=frozenset(self._hung), thorough=thorough)
            found = await self._within_reason(look, at)
            if found is not None:
                return found
            if look.step is None:
                raise HostError(
                    f"listing {self.sys} takes longer than {self.timeout_seconds:g} s", edge="host"
                )
            self._hung[look.step] = look.over

    async def _within_reason(self, look: _Look, at: float) -> Observation | None:
        """Run one look in a thread; None, and the thread left to itself, when one step hangs."""
        found: Observation | None = None

        def work() -> Observation:
            try:
                return self._scan(look, at)
            finally:
                look.over.set()

        async def run() -> None:
            nonlocal found
            found = await anyio.to_thread.run_sync(
                work, abandon_on_cancel=True, limiter=self._threads
            )
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            # The deadline moves with each step, so there is no one event to wait for.
            while (  # noqa: ASYNC110
                left := look.since + self.timeout_seconds - time.monotonic()
            ) > 0:
                await anyio.sleep(left)
            group.cancel_scope.cancel()
        return found

    # Everything below runs in the thread.

    def _scan(self, look: _Look, at: float) -> Observation:
        functions = {function.address: function for function in self._functions(look)}
        sightings: list[Sighting] = []
        class_names = []
        for class_name in sorted({family.class_name for family in self.families}):
            look.at(None)
            entries = self._list(f"{self.sys}/class/{class_name}", look)
            if entries:
                class_names.append(class_name)
                sightings += self._sightings(class_name, entries, functions, look)
        return Observation(
            at=at,
            sightings=tuple(sightings),
            functions=tuple(functions.values()),
            class_names=tuple(class_names),
            faults=tuple(look.faults),
        )

    def _functions(self, look: _Look) -> Iterator[PciFunction]:
        names = self._list(f"{self.sys}/bus/pci/devices", look) or []
        for gone in self._known.keys() - set(names):
            self._known.pop(gone, None)
        for name in names:
            if not look.at(("pci", name)):
                look.faults.append(_unresponsive(f"PCI function {name}", self.timeout_seconds))
                continue
            function = self._function_now(name, look)
            if function is not None:
                yield function

    def _function_now(self, name: str, look: _Look) -> PciFunction | None:
        """Look at one PCI function, or remember it if it cannot have become another."""
        path = f"{self.sys}/bus/pci/devices/{name}"
        try:
            found = os.stat(path)  # noqa: PTH116 - strings: this runs for a thousand devices
        except OSError:
            return None
        driver = attempt(os.readlink, f"{path}/driver")
        now = (found.st_dev, found.st_ino, found.st_ctime_ns, driver)
        before, function = self._known.get(name, (None, None))
        if look.thorough or now != before:
            function = self._function(name, driver, look)
            self._known[name] = now, function
        return function

    def _sightings(
        self,
        class_name: str,
        entries: Sequence[str],
        functions: Mapping[PciAddress, PciFunction],
        look: _Look,
    ) -> Iterator[Sighting]:
        strangers = []
        for entry in entries:
            family = self._family(class_name, entry)
            if family is None:
                strangers.append(entry)
            elif not look.at((class_name, entry)):
                yield self._hung_sighting(family, entry)
            else:
                try:
                    yield self._sight(family, entry, functions, look)
                except _Vanished:
                    look.faults.append(_vanished(class_name, entry))
        if self._is_exclusive(class_name):
            look.faults += _strangers(class_name, strangers)

    def _family(self, class_name: str, entry: str) -> Family | None:
        return next(
            (f for f in self.families if f.class_name == class_name and f.owns(entry)), None
        )

    def _is_exclusive(self, class_name: str) -> bool:
        return all(f.exclusive for f in self.families if f.class_name == class_name)

    def _list(self, path: str, look: _Look) -> list[str] | None:
        """List a directory of sysfs; None if there is none, which only says that nobody made it."""
        try:
            return sorted(os.listdir(path))  # noqa: PTH208 - names, not paths; and half the time
        except FileNotFoundError:
            return None
        except OSError as error:
            look.faults.append(_unlistable(path, error))
            return []

    def _sight(
        self,
        family: Family,
        entry: str,
        functions: Mapping[PciAddress, PciFunction],
        look: _Look,
    ) -> Sighting:
        """Look at one class entry.

        Raises:
            _Vanished: it is gone since it was listed.
        """
        base = f"{self.sys}/class/{family.class_name}"
        path = f"{base}/{entry}"
        subject = f"{family.class_name}/{entry}"
        faults: list[Fault] = []
        try:
            link = os.readlink(path)  # noqa: PTH115 - strings: this runs for a thousand devices
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise _Vanished from error
            link = entry  # not a link: whatever it is, its attributes will tell

        def attribute(name: str) -> str | None:
            try:
                return read_attribute(f"{path}/{name}")
            except FileNotFoundError:
                return None
            except _Unreadable as error:
                faults.append(_broken(subject, name, str(error)))
                return None

        number_text = attribute("dev")
        number = None if number_text is None else DeviceNumber.parse(number_text)
        if number_text is not None and number is None:
            faults.append(_broken(subject, "dev", f"{printable(number_text)} is no MAJOR:MINOR"))
        address = self._address(family, path, attribute)
        accelerator_type = attribute("accelerator_type")
        if number is None and not faults:
            if not os.path.lexists(path):
                raise _Vanished
            faults.append(_incomplete(subject))
        node, node_number = self._node(entry)
        function = None if address is None else self._function_behind(address, functions, look)
        return Sighting(
            family=family,
            entry=entry,
            sysfs_path=os.path.normpath(f"{base}/{link}").removeprefix(str(self.sys)),
            number=number,
            node=node,
            node_number=node_number,
            address=address,
            accelerator_type=accelerator_type,
            function=function,
            function_is_gone=address is not None and function is None and self._is_gone(address),
            faults=tuple(faults[:1]),
        )

    def _hung_sighting(self, family: Family, entry: str) -> Sighting:
        """Say what can be said of an entry that does not answer."""
        subject = f"{family.class_name}/{entry}"
        node, node_number = self._node(entry)
        base = f"{self.sys}/class/{family.class_name}"
        # A link is kept by sysfs itself: reading it asks no driver.
        link = attempt(os.readlink, f"{base}/{entry}") or entry
        sysfs_path = os.path.normpath(f"{base}/{link}").removeprefix(str(self.sys))
        return Sighting(
            family=family,
            entry=entry,
            sysfs_path=sysfs_path,
            address=_parent(sysfs_path) if family.identity is Identity.PCI else None,
            node=node,
            node_number=node_number,
            faults=(_unresponsive(subject, self.timeout_seconds),),
        )

    def _address(
        self, family: Family, path: str, attribute: Callable[[str], str | None]
    ) -> PciAddress | None:
        """Find the PCI address: in the attributes where this family tells it, else behind the link.

        `device_id` was vendor:device until driver 5.2 and is the address since 5.3, so what does
        not parse as an address is passed over.
        """
        if family.identity is not Identity.PCI:
            return None
        for name in family.address_attributes:
            text = attribute(name)
            address = None if text is None else PciAddress.parse(text)
            if address is not None:
                return address
        try:
            return PciAddress.parse(_last(os.readlink(f"{path}/device")))  # noqa: PTH115 - as above
        except OSError:
            return None

    def _node(self, entry: str) -> tuple[NodeKind, DeviceNumber | None]:
        try:
            found = os.lstat(f"{self.dev}/{entry}")
        except FileNotFoundError:
            return NodeKind.MISSING, None
        except OSError:
            return NodeKind.OTHER, None
        if stat.S_ISLNK(found.st_mode):
            return NodeKind.SYMLINK, None
        if not stat.S_ISCHR(found.st_mode):
            return NodeKind.OTHER, None
        return NodeKind.CHARACTER, DeviceNumber(os.major(found.st_rdev), os.minor(found.st_rdev))

    def _function(self, name: str, driver: str | None, look: _Look) -> PciFunction | None:
        """Look at one PCI function; None if it is not Hailo's, or says nothing sensible."""
        address = PciAddress.parse(name)
        path = f"{self.sys}/bus/pci/devices/{name}"
        vendor = _hexadecimal(attempt(read_attribute, f"{path}/vendor"))
        if address is None or vendor != HAILO_VENDOR:
            return None
        device = _hexadecimal(attempt(read_attribute, f"{path}/device"))
        return self._facts(address, None if device is None else PciId(vendor, device), driver, look)

    def _facts(
        self, address: PciAddress, pci_id: PciId | None, driver: str | None, look: _Look
    ) -> PciFunction:
        path = f"{self.sys}/bus/pci/devices/{address}"
        return PciFunction(
            address=address,
            pci_id=pci_id,
            topology=Topology(
                numa_node=_numa_node(attempt(read_attribute, f"{path}/numa_node")),
                bridges=tuple(_bridges(attempt(os.readlink, path) or "")),
            ),
            link=read_link(path),
            driver=None if driver is None else printable(_last(driver)),
            driver_version=None if driver is None else self._version(path, look.versions),
        )

    def _function_behind(
        self, address: PciAddress, functions: Mapping[PciAddress, PciFunction], look: _Look
    ) -> PciFunction | None:
        """Find a class entry's function, also one that does not tell that it is Hailo's."""
        if address in functions or ("pci", str(address)) in look.hung:
            return functions.get(address)
        path = f"{self.sys}/bus/pci/devices/{address}"
        if not os.path.isdir(path):  # noqa: PTH112 - strings, as everywhere here
            return None
        return self._facts(address, None, attempt(os.readlink, f"{path}/driver"), look)

    def _is_gone(self, address: PciAddress) -> bool:
        """Tell whether the bus can be looked at, and has nothing there."""
        bus = f"{self.sys}/bus/pci/devices"
        return os.path.isdir(bus) and not os.path.lexists(f"{bus}/{address}")  # noqa: PTH112

    def _version(self, path: str, versions: dict[str, str | None]) -> str | None:
        """Read the version of the module behind a bound driver, once per look and module."""
        module = attempt(os.readlink, f"{path}/driver/module")
        if module is None:
            return None
        name = _last(module)
        if name not in versions:
            version = attempt(read_attribute, f"{self.sys}/module/{name}/version")
            versions[name] = None if version is None else printable(version)
        return versions[name]


def read_attribute(path: str) -> str:
    """Read one attribute of sysfs, without the newline that some have and some do not.

    Raises:
        FileNotFoundError: there is none.
        _Unreadable: it is no regular file, too big, not text, or the kernel says no.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _Unreadable("is not a regular file")
            data = os.read(descriptor, MAX_ATTRIBUTE_BYTES + 1)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(error.errno, path) from error
    except OSError as error:
        raise _Unreadable(os.strerror(error.errno or 0)) from error
    if len(data) > MAX_ATTRIBUTE_BYTES:
        raise _Unreadable(f"is larger than {MAX_ATTRIBUTE_BYTES} bytes")
    try:
        return data.decode().strip()
    except UnicodeDecodeError as error:
        raise _Unreadable("is not UTF-8") from error


def attempt(read: Callable[[str], str], path: str) -> str | None:
    """Read what a device can do without: unknown is an answer here."""
    try:
        return read(path)
    except (OSError, _Unreadable):
        return None


def _parent(sysfs_path: str) -> PciAddress | None:
    """Find the PCI function that a class device hangs below; a virtual one hangs below none."""
    steps = reversed(sysfs_path.split("/"))
    return next((a for a in map(PciAddress.parse, steps) if a is not None), None)


def _last(link: str) -> str:
    return link.rpartition("/")[2]


def _hexadecimal(text: str | None) -> int | None:
    match = re.fullmatch(r"0x[0-9a-fA-F]{1,8}", text or "")
    return None if match is None else int(match[0], 16)


def _numa_node(text: str | None) -> int | None:
    """Read a NUMA node; the kernel writes -1 where it knows none."""
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,6}", text) else None


def _bridges(link: str) -> Iterator[str]:
    """Cut the way from the root complex to the last bridge out of a link into /sys/devices.

    On ARM other buses come first: `devices/platform/…/pci0001:00/0001:00:00.0/0001:01:00.0`.
    """
    below_root = False
    for step in link.split("/")[:-1]:
        below_root = below_root or _PCI_ROOT.fullmatch(step) is not None
        if below_root:
            yield step


def read_link(path: str) -> Link | None:
    """Read a function's PCIe link; None unless the kernel knows all of it (it says `Unknown`).

    At best it is as good as the worse of both ends: a slot with one lane is all there is.
    """
    now = _end(path, "current")
    best = _end(path, "max")
    if now is None or best is None:
        return None
    port = _end(f"{path}/..", "max") or best  # the kernel follows the link before it goes up
    return Link(
        speed_gts=now[0],
        width=now[1],
        max_speed_gts=min(best[0], port[0]),
        max_width=min(best[1], port[1]),
    )


def _end(path: str, when: str) -> tuple[float, int] | None:
    speed = _speed(attempt(read_attribute, f"{path}/{when}_link_speed"))
    width = _width(attempt(read_attribute, f"{path}/{when}_link_width"))
    return None if speed is None or width is None else (speed, width)


def _speed(text: str | None) -> float | None:
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]+)?) GT/s(?: PCIe)?", text or "")
    return None if match is None else float(match[1])


def _width(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,3}", text) else None


def printable(text: str) -> str:
    """Make text from the machine fit to be shown: short, of one line, valid UTF-8."""
    clean = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in clean)[:128]


def _broken(subject: str, attribute: str, why: str) -> Fault:
    return Fault(
        code=FaultCode.ENTRY_BROKEN,
        subject=printable(subject),
        message=f"attribute {attribute}: {why}",
        remedy="reload the driver; a library that scans this class would fail as well",
    )


def _incomplete(subject: str) -> Fault:
    return Fault(
        code=FaultCode.ENTRY_INCOMPLETE,
        subject=printable(subject),
        message="has no dev attribute",
        remedy="none if the driver is just loading; else reload the driver",
    )


def _vanished(class_name: str, entry: str) -> Fault:
    return Fault(
        code=FaultCode.ENTRY_VANISHED,
        subject=printable(f"{class_name}/{entry}"),
        message="was listed but is not there any more",
        remedy="none: the next look will tell",
    )


def _strangers(class_name: str, entries: Sequence[str]) -> Iterator[Fault]:
    shown = entries[:MAX_FAULTS_PER_CLASS]
    subjects = [
        (f"{class_name}/{entry}", "is no name that a known driver gives") for entry in shown
    ]
    if len(entries) > len(shown):
        more = len(entries) - len(shown)
        subjects.append((class_name, f"has {more} more entries that no known driver makes"))
    for subject, message in subjects:
        yield Fault(
            code=FaultCode.ENTRY_UNEXPECTED,
            subject=printable(subject),
            message=message,
            remedy="if it is a device of a newer driver, add its naming under host.families",
        )


def _unlistable(path: str, error: OSError) -> Fault:
    return Fault(
        code=FaultCode.CLASS_UNREADABLE,
        subject=path,
        message=f"cannot be listed: {os.strerror(error.errno or 0)}",
        remedy="check that sysfs is mounted there and may be read",
    )


def _unresponsive(subject: str, seconds: float) -> Fault:
    return Fault(
        code=FaultCode.UNRESPONSIVE,
        subject=printable(subject),
        message=f"reading its attributes takes longer than {seconds:g} s",
        remedy="its kernel driver hangs: read the kernel log, then power-cycle the device",
    )
