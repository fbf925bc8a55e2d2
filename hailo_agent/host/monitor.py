"""What workloads say of their own work, read from directories that they can write to.

`core.cdi` mounts `<directory>/<device id>` into each container that is granted the device, and
HailoRT leaves small files in it (`core.usage`). Whose they are is told by the directory alone: who
writes them may be root in its container and write whatever it likes. So from here no link is
followed, nothing but a regular file is opened, what is looked at is bounded in number, size and
time, and a directory that costs much is read last. Modification times are the writer's to choose;
the change time (ctime) is not, and it alone tells whether somebody who lives has written a file.

`agent` calls this: `prepare` before a spec names the directories, `renew` when a device is granted,
`read` as often as somebody wants to know.
"""

from __future__ import annotations

import heapq
import math
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from hailo_agent.core.device import ALL, Device, DeviceId, Holder, PciAddress
from hailo_agent.core.usage import (
    MAX_BYTES,
    TEMPORARY_SUFFIX,
    DeviceUsage,
    NetworkUsage,
    Usage,
    UsageInvalid,
    decode,
    is_fresh,
    known,
    together,
)
from hailo_agent.errors import HostError
from hailo_agent.host.scan import printable

_DIRECTORY_MODE: Final = 0o755
_MODE: Final = 0o1777
"""As /tmp: whoever the container's processes are, they can write, each its own files."""

_MAX_ENTRIES: Final = 1024
_MAX_FILES: Final = 4
_MAX_NAMES: Final = 64
"""Names of networks that one holder can make series of, for as long as it holds the device."""
_MAX_REMOVALS: Final = 1024
"""In one reading, of all directories together."""

_LEFT_SECONDS: Final = 10.0
"""What nobody has written for so long is nobody's, in the directory of a free device.

Not less: a container may have started of which the kubelet has not told us yet.
"""
_DEAD_SECONDS: Final = 600.0
"""What was left, in the directory of a held device, by a process that was killed."""

_NEW: Final = ".new-"
_OLD: Final = ".old-"
_SUNK: Final = ".sunk-"
"""Directories that `_dissolve` moved up and had no time for."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIN: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: else to open a file on which its owner has a lease takes up to 45 s (fcntl(2)).
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_ACLS: Final = ("system.posix_acl_access", "system.posix_acl_default")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A directory to read."""

    name: str
    holders: tuple[Holder, ...] = ()
    is_free: bool = True
    address: PciAddress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What was read in a directory."""

    written_at: float
    usage: Usage


@dataclass(slots=True, kw_only=True)
class _Memory:
    """What is remembered of a directory from one reading to the next."""

    holders: tuple[Holder, ...]
    told: _Told | None = None
    names: set[str] = field(default_factory=set)
    cost_seconds: float = 0.0


@dataclass(slots=True)
class _Allowance:
    """What one reading may still spend."""

    until: float
    removals: int = _MAX_REMOVALS

    def spend(self) -> bool:
        """Take one removal, if there is one left."""
        self.removals -= 1
        return self.removals >= 0 and time.monotonic() < self.until


@dataclass(slots=True, kw_only=True)
class MonitorReader:
    """Keeps and reads the directories. `read` may be called again only after it has returned."""

    directory: Path
    """Where they are for this process; the runtime may see them elsewhere."""
    timeout_seconds: float
    refusals: Mapping[DeviceId, str] = field(default_factory=dict)
    """Why the last reading took nothing, or not everything, from a directory; for a person."""
    _memories: dict[str, _Memory] = field(default_factory=dict)
    _stuck: threading.Event | None = None
    _threads: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(4))

    async def prepare(self, names: Iterable[str]) -> None:
        """Make the directories of these devices of the spec, where they are missing.

        Raises:
            HostError: a directory cannot be made; a container with such a mount would not start.
        """
        await self._in_thread(partial(self._prepare, tuple(names)))

    async def renew(self, names: Iterable[str]) -> None:
        """Put an empty directory into the place of each, for one that is about to hold it.

        Only for devices that nobody holds: who has the old directory mounted goes on writing there,
        and is not read any more. It takes no time, whatever is in there: that is removed later.

        Raises:
            HostError: a directory cannot be replaced; the old one may still be in its place.
        """
        await self._in_thread(partial(self._renew, tuple(names)))

    async def read(
        self, devices: Sequence[Device], *, now: float
    ) -> Mapping[DeviceId, DeviceUsage]:
        """Read what the holders of these devices say of now, in seconds since the epoch.

        Never fails: whoever says nothing that can be believed is not in the answer. `all` is in it
        if a container was given that name, as podman's users do. Clears away what was left behind.
        """
        if self._stuck is not None and not self._stuck.is_set():
            return self._nothing(devices, "an earlier reading has not returned")
        over = self._stuck = threading.Event()
        with anyio.move_on_after(self.timeout_seconds):
            return await anyio.to_thread.run_sync(
                partial(self._read, tuple(devices), now, over),
                abandon_on_cancel=True,
                limiter=self._threads,
            )
        return self._nothing(devices, f"no answer within {self.timeout_seconds:g} s")

    def _nothing(self, devices: Sequence[Device], why: str) -> Mapping[DeviceId, DeviceUsage]:
        self.refusals = {device.id: why for device in devices}
        return {}

    async def _in_thread(self, call: Callable[[], None]) -> None:
        try:
            with anyio.fail_after(self.timeout_seconds):
                await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._threads)
        except TimeoutError as error:
            message = f"{self.directory} does not answer within {self.timeout_seconds:g} s"
            raise HostError(message, edge="host") from error
        except OSError as error:
            message = f"{self.directory}: {os.strerror(error.errno or 0)}"
            raise HostError(message, edge="host") from error

    # Everything below runs in a thread.

    def _prepare(self, names: Collection[str]) -> None:
        with self._opened() as base:
            for name in names:
                os.close(_opened(base, name))

    def _renew(self, names: Collection[str]) -> None:
        """Have the new one ready first: a container that starts meanwhile must find one."""
        with self._opened() as base:
            for name in names:
                token = secrets.token_hex(8)
                os.close(_opened(base, f"{_NEW}{token}"))
                with suppress(FileNotFoundError):
                    os.rename(name, f"{_OLD}{token}", src_dir_fd=base, dst_dir_fd=base)
                os.rename(f"{_NEW}{token}", name, src_dir_fd=base, dst_dir_fd=base)

    def _read(
        self, devices: Sequence[Device], now: float, over: threading.Event
    ) -> Mapping[DeviceId, DeviceUsage]:
        refusals: dict[DeviceId, str] = {}
        try:
            places = _places(devices)
            told = self._told(places, now, refusals)
            return dict(self._attributed(places, told, refusals))
        except OSError as error:
            why = f"{self.directory}: {os.strerror(error.errno or 0)}"
            refusals = {device.id: why for device in devices}
            return {}
        finally:
            self.refusals = refusals
            over.set()

    def _told(
        self, places: Sequence[_Place], now: float, refusals: dict[DeviceId, str]
    ) -> dict[str, _Told]:
        """Read every directory, those first that were read quickly before."""
        allowance = _Allowance(until=time.monotonic() + 0.8 * self.timeout_seconds)
        self._memories = {place.name: self._memory(place) for place in places}
        told: dict[str, _Told] = {}
        with self._opened() as base:
            for place in sorted(places, key=lambda p: self._memories[p.name].cost_seconds):
                started_at = time.monotonic()
                if started_at >= allowance.until:
                    refusals[DeviceId(place.name)] = "no time was left for it"
                    continue
                memory = self._memories[place.name]
                try:
                    memory.told = _visit(base, place, now, allowance, refusals) or memory.told
                except OSError as error:
                    refusals[DeviceId(place.name)] = os.strerror(error.errno or 0)
                memory.cost_seconds = time.monotonic() - started_at
                if memory.told is not None and is_fresh(memory.told.written_at, now):
                    told[place.name] = memory.told
            _clear_old(base, allowance)
        return told

    def _memory(self, place: _Place) -> _Memory:
        """Find what is remembered of a directory; another holder begins anew."""
        memory = self._memories.get(place.name)
        if memory is None or memory.holders != place.holders:
            return _Memory(holders=place.holders)
        return memory

    def _attributed(
        self,
        places: Sequence[_Place],
        told: Mapping[str, _Told],
        refusals: dict[DeviceId, str],
    ) -> Iterator[tuple[DeviceId, DeviceUsage]]:
        """Give each device what was said of it by its own holder, and by nobody else."""
        for place in places:
            own = told.get(place.name)
            said = own or _neighbour(place, places, told)
            if said is None:
                if not place.holders:
                    self._memories[place.name].names.clear()
                continue
            yield (
                DeviceId(place.name),
                DeviceUsage(
                    written_at=said.written_at,
                    holders=place.holders,
                    utilisation=_load(place, said.usage),
                    networks=() if own is None else self._named(place, own.usage, refusals),
                ),
            )

    def _named(
        self, place: _Place, usage: Usage, refusals: dict[DeviceId, str]
    ) -> tuple[NetworkUsage, ...]:
        """Leave out new names once there were too many: each would be a series for ever."""
        names = self._memories[place.name].names
        for network in usage.networks:
            if len(names) < _MAX_NAMES:
                names.add(network.network)
            elif network.network not in names:
                refusals[DeviceId(place.name)] = f"more than {_MAX_NAMES} names of networks"
        return known(usage.networks, names)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the directory of the directories, ours alone to change; make it if need be."""
        self.directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.directory, _DIRECTORY)
        try:
            if stat.S_IMODE(os.fstat(descriptor).st_mode) != _DIRECTORY_MODE:
                os.fchmod(descriptor, _DIRECTORY_MODE)
            yield descriptor
        finally:
            os.close(descriptor)


def has_own_filesystem(directory: Path) -> bool:
    """Tell whether what workloads write there can fill up nothing else.

    How much they write is bounded by nothing but the filesystem and their own memory limit, to
    which a tmpfs is charged.
    """
    try:
        return directory.stat().st_dev != directory.parent.stat().st_dev
    except OSError:
        return False


def _places(devices: Sequence[Device]) -> tuple[_Place, ...]:
    return (
        *(
            _Place(
                name=device.id,
                holders=device.holders,
                is_free=device.held is False,
                address=device.address,
            )
            for device in devices
        ),
        _Place(name=ALL),
    )


def _neighbour(place: _Place, places: Sequence[_Place], told: Mapping[str, _Told]) -> _Told | None:
    """Find what was said of a device in the directory of another one of the same container."""
    if not place.holders:
        return None
    for other in places:
        said = told.get(other.name)
        if other.holders == place.holders and said and _load(place, said.usage) is not None:
            return said
    return None


def _load(place: _Place, usage: Usage) -> float | None:
    if place.address is None:
        return None
    return next((load.utilisation for load in usage.loads if load.address == place.address), None)


# --- one directory -------------------------------------------------------------------------------


def _opened(base: int, name: str) -> int:
    """Open the directory of a device; made if it is missing."""
    with suppress(FileNotFoundError):
        return os.open(name, _DIRECTORY, dir_fd=base)
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=base)
    descriptor = os.open(name, _DIRECTORY, dir_fd=base)
    os.fchmod(descriptor, _MODE)  # not by mkdir: there is a umask
    return descriptor


def _visit(
    base: int, place: _Place, now: float, allowance: _Allowance, refusals: dict[DeviceId, str]
) -> _Told | None:
    """Read a directory, and clear away what nobody needs; None if it tells nothing of now."""
    top = _opened(base, place.name)
    try:
        if place.is_free:
            _mend(top)
        reports: list[tuple[float, Usage]] = []
        for name in _candidates(top, now):
            try:
                reports.append(_report(top, name))
            except UsageInvalid as invalid:
                refusals[DeviceId(place.name)] = f"{printable(name)}: {invalid}"
            except OSError as error:
                if not isinstance(error, FileNotFoundError):  # its process has ended meanwhile
                    why = os.strerror(error.errno or 0)
                    refusals[DeviceId(place.name)] = f"{printable(name)}: {why}"
        _clear(top, now - (_LEFT_SECONDS if place.is_free else _DEAD_SECONDS), allowance)
        return _summed(place, reports, refusals)
    finally:
        os.close(top)


def _summed(
    place: _Place, reports: Sequence[tuple[float, Usage]], refusals: dict[DeviceId, str]
) -> _Told | None:
    """Make one of what the processes of a container say; the newest speaks for the devices."""
    if not reports:
        return None
    written_at, newest = max(reports, key=lambda report: report[0])
    try:
        networks = together(n for _, usage in reports for n in usage.networks)
    except UsageInvalid as invalid:
        refusals[DeviceId(place.name)] = str(invalid)
        return None
    return _Told(written_at=written_at, usage=replace(newest, networks=networks))


def _candidates(top: int, now: float) -> list[str]:
    """Name the files that may tell of now, the newest first; a few of a few."""
    found: list[tuple[float, str]] = []
    with os.scandir(top) as entries:
        for entry in islice(entries, _MAX_ENTRIES):
            if entry.name.endswith(TEMPORARY_SUFFIX):
                continue
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if _is_report(status) and status.st_size and is_fresh(status.st_ctime, now):
                    found.append((status.st_ctime, entry.name))
    return [name for _, name in heapq.nlargest(_MAX_FILES, found)]


def _report(top: int, name: str) -> tuple[float, Usage]:
    """Read one file; returns when it was changed, and what it says.

    Raises:
        UsageInvalid: it is not what HailoRT writes, or not whole.
    """
    descriptor = _open_report(top, name)
    try:
        before = os.fstat(descriptor)
        data = os.read(descriptor, MAX_BYTES + 1)
        after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if (before.st_ctime_ns, before.st_size) != (after.st_ctime_ns, len(data)):
        raise UsageInvalid("it is being written")
    return before.st_ctime, decode(data)


def _open_report(top: int, name: str) -> int:
    """Open a file once it is known to be one.

    A container may make device nodes, and merely to open one can do something on the host. So it is
    held first (O_PATH opens nothing), looked at, and then opened by what is held, whatever the name
    has come to mean by then.
    """
    pin = os.open(name, _PIN, dir_fd=top)
    try:
        status = os.fstat(pin)
        if not _is_report(status) or status.st_dev != os.fstat(top).st_dev:
            raise UsageInvalid("it is no small file of its own")
        return os.open(f"/proc/self/fd/{pin}", _READ)
    finally:
        os.close(pin)


def _is_report(status: os.stat_result) -> bool:
    """Tell a file that may be one of HailoRT's; it has one name, or none if replaced meanwhile."""
    return stat.S_ISREG(status.st_mode) and status.st_nlink <= 1 and status.st_size <= MAX_BYTES


# --- clearing away -------------------------------------------------------------------------------


def _mend(top: int) -> None:
    """Make the directory of a free device again what it was: who held it could change that."""
    status = os.fstat(top)
    if os.geteuid() == 0 and (status.st_uid, status.st_gid) != (0, 0):
        os.fchown(top, 0, 0)
    if stat.S_IMODE(status.st_mode) != _MODE:
        os.fchmod(top, _MODE)
    for acl in _ACLS:
        with suppress(OSError):
            os.removexattr(top, acl)


def _clear(top: int, before: float, allowance: _Allowance) -> None:
    """Remove what has not been changed since, as far as the allowance goes."""
    with os.scandir(top) as entries:
        for entry in islice(entries, _MAX_ENTRIES):
            with suppress(OSError):  # it is gone, or cannot be removed: then it stays
                status = entry.stat(follow_symlinks=False)
                if status.st_ctime > before and not entry.name.startswith(_SUNK):
                    continue
                if not allowance.spend():
                    return
                if stat.S_ISDIR(status.st_mode):
                    _dissolve(top, entry.name, allowance)
                else:
                    os.unlink(entry.name, dir_fd=top)


def _dissolve(top: int, name: str, allowance: _Allowance) -> None:
    """Remove a directory; those in it are moved up first, so that no tree is too deep."""
    pending = [name]
    while pending and allowance.spend():
        name = pending.pop()
        within = os.open(name, _DIRECTORY, dir_fd=top)
        try:
            if os.fstat(within).st_dev == os.fstat(top).st_dev:
                pending += _emptied(top, within, allowance)
        finally:
            os.close(within)
        with suppress(OSError):  # something is left in it: another time
            os.rmdir(name, dir_fd=top)


def _emptied(top: int, within: int, allowance: _Allowance) -> list[str]:
    """Empty a directory into the top one; returns the directories that were moved there."""
    sunk: list[str] = []
    with os.scandir(within) as entries:
        for entry in entries:
            if not allowance.spend():
                break
            if entry.is_dir(follow_symlinks=False):
                sunk.append(f"{_SUNK}{secrets.token_hex(8)}")
                os.rename(entry.name, sunk[-1], src_dir_fd=within, dst_dir_fd=top)
            else:
                os.unlink(entry.name, dir_fd=within)
    return sunk


def _clear_old(base: int, allowance: _Allowance) -> None:
    """Remove the directories that were renewed."""
    with os.scandir(base) as entries:
        old = [entry.name for entry in entries if entry.name.startswith(_OLD)]
    for name in old:
        with suppress(OSError):
            top = os.open(name, _DIRECTORY, dir_fd=base)
            try:
                _clear(top, math.inf, allowance)
            finally:
                os.close(top)
            os.rmdir(name, dir_fd=base)
