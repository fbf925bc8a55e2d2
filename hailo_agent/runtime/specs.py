"""The CDI specification on disk: where a container runtime finds what our device names mean.

`reconcile` hands in a whole spec and gets it written or an error; what the file was before does not
matter. Readers refresh on rename, not on create, and load whatever ends in `.json`, so a spec is
written under a name that does not, in the same directory, and then renamed.
"""

from __future__ import annotations

import errno
import math
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.to_thread
import orjson

from hailo_agent.core.cdi import FILE_NAME, KIND, Outcome, Spec
from hailo_agent.core.device import ALL, DeviceNumber
from hailo_agent.errors import SpecStoreError
from hailo_agent.runtime.reader import SpecInvalid, read

_DEADLINE_SECONDS: Final = 5.0
_MAX_SPEC_BYTES: Final = 4 * 1024 * 1024
_MODE: Final = 0o644  # rootless tools and people read it, too
_ECHO_SECONDS: Final = 60.0
_READABLE: Final = 0o444

Numbers = Mapping[str, DeviceNumber]
T = TypeVar("T")


@dataclass(slots=True)
class SpecStore:
    """One spec file in one directory, and a look at what others keep beside it."""

    directory: Path
    search: Sequence[Path]
    """Every directory that runtimes read: ours may have leftovers there, others conflicts."""
    _written: Spec | None = None
    _numbers: Numbers | None = None
    _file: tuple[int, ...] | None = None
    """The file as we left it: whoever touched it since, it was not us."""
    _repeated_at: float = -math.inf
    _foreign: dict[Path, tuple[tuple[int, ...], tuple[str, ...]]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where the spec is written."""
        return self.directory / FILE_NAME

    async def replace(self, spec: Spec | None, numbers: Numbers) -> Outcome:
        """Make the disk say exactly this spec; None removes the file.

        Raises:
            SpecStoreError: it cannot be written; says why and what to do. Nothing is half-written.
        """
        return await self._in_thread(partial(self._replace, spec, numbers))

    async def covered(self, spec: Spec | None, numbers: Numbers) -> frozenset[str]:
        """Tell which devices of this spec the file on disk covers as it stands."""
        return await self._in_thread(partial(self._covered, spec, numbers))

    async def remove_leftovers(self) -> tuple[Path, ...]:
        """Remove what we left elsewhere: specs in other directories, temporary files in ours."""
        return await self._in_thread(self._remove_leftovers)

    async def leftovers(self) -> tuple[Path, ...]:
        """List what `remove_leftovers` would remove."""
        return await self._in_thread(lambda: tuple(self._leftovers()))

    async def foreign_names(self) -> tuple[tuple[str, str], ...]:
        """List the devices of our kind that files of others define, as (path, device name)."""
        return await self._in_thread(self._foreign_names)

    def is_intact(self) -> bool:
        """Whether the file still is as we left it: one stat, cheap enough to ask all the time."""
        return _fingerprint(self.path) == self._file

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            with anyio.fail_after(_DEADLINE_SECONDS):
                return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
        except TimeoutError as error:
            raise SpecStoreError(
                f"{self.directory} does not answer within {_DEADLINE_SECONDS:g} s", edge="runtime"
            ) from error
        except OSError as error:
            raise SpecStoreError(_in_words(self.path, error), edge="runtime") from error

    # Everything below runs in a thread.

    def _replace(self, spec: Spec | None, numbers: Numbers) -> Outcome:
        current = _read(self.path)
        if spec is None:
            if current is not None:
                self.path.unlink(missing_ok=True)
            self._written = self._numbers = self._file = None
            return Outcome.UNCHANGED if current is None else Outcome.REMOVED
        text = spec.to_json()
        touched = self._file is not None and not self.is_intact()
        # After a restart the numbers that readers remember are unknown: publish once anew.
        same = current == text and self._numbers == numbers and _is_public(self.path)
        if same and (not touched or self._is_echo()):
            self._file = _fingerprint(self.path)
            return Outcome.UNCHANGED
        make_public(self.directory)
        _publish(self.path, text)
        known, self._written, self._numbers = self._written, spec, numbers
        self._file = _fingerprint(self.path)
        return Outcome.RESTORED if touched and known == spec else Outcome.REPLACED

    def _is_echo(self) -> bool:
        """Tell whether somebody who says the same as we do is to be left alone.

        Readers overlook some ways of replacing a file, so the same text is published again. But
        another agent would do the same upon that, and so on for ever.
        """
        now = time.monotonic()
        is_echo = now - self._repeated_at < _ECHO_SECONDS
        if not is_echo:
            self._repeated_at = now
        return is_echo

    def _covered(self, spec: Spec | None, numbers: Numbers) -> frozenset[str]:
        text = _read(self.path)
        if spec is None or text is None:
            return frozenset()
        try:
            on_disk = {device["name"]: device for device in orjson.loads(text)["devices"]}
        except (ValueError, KeyError, TypeError):
            return frozenset()
        published = numbers if self._numbers is None else self._numbers
        return frozenset(
            device.name
            for device in spec.devices
            if on_disk.get(device.name) == device.to_document()
            and published.get(device.name) == numbers.get(device.name)
        )

    def _remove_leftovers(self) -> tuple[Path, ...]:
        removed = []
        for path in self._leftovers():
            with suppress(OSError):
                path.unlink()
                removed.append(path)
        return tuple(removed)

    def _leftovers(self) -> Iterable[Path]:
        if self.directory.is_dir():
            yield from self.directory.glob(f".{FILE_NAME}.*.tmp")
        for directory in self.search:
            path = directory / FILE_NAME
            if not _is_same(directory, self.directory) and _is_ours(_try_read(path)):
                yield path

    def _foreign_names(self) -> tuple[tuple[str, str], ...]:
        found: dict[Path, tuple[tuple[int, ...], tuple[str, ...]]] = {}
        for path in self._foreign_files():
            fingerprint = _fingerprint(path)
            if fingerprint is None:
                continue
            known = self._foreign.get(path)
            names = known[1] if known and known[0] == fingerprint else _names(_try_read(path), path)
            found[path] = fingerprint, names
        self._foreign = found
        return tuple(
            (str(path), name) for path, (_, names) in sorted(found.items()) for name in names
        )

    def _foreign_files(self) -> Iterable[Path]:
        seen: list[Path] = []
        for directory in (self.directory, *self.search):
            if any(_is_same(directory, other) for other in seen):
                continue
            seen.append(directory)
            with suppress(OSError):
                for path in sorted(directory.iterdir()):
                    if path.suffix in {".json", ".yaml"} and path != self.path:
                        yield path


def make_public(directory: Path) -> None:
    """Make a directory that everybody may look into, whatever the umask."""
    if not directory.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)


def _publish(path: Path, text: bytes) -> None:
    """Put a whole file in the place of `path`, never partly visible to anybody."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, _MODE)
    try:
        try:
            os.fchmod(descriptor, _MODE)  # whatever the umask says
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(text)
            durable = not _is_tmpfs(descriptor)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_tmpfs(descriptor: int) -> bool:
    """Tell whether fsync would be pointless, as it is in /var/run."""
    device = os.fstat(descriptor).st_dev
    with suppress(OSError), Path("/proc/self/mountinfo").open() as mounts:
        wanted = f"{os.major(device)}:{os.minor(device)}"
        for line in mounts:
            fields = line.split()
            if fields[2] == wanted:
                return fields[fields.index("-") + 1] == "tmpfs"
    return False


def _read(path: Path) -> bytes | None:
    """Read a file of bounded size; None if there is none, or something that we would replace."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            return None  # a symlink or a socket: the rename will replace it
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None  # a directory, perhaps: publishing will say so
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(_MAX_SPEC_BYTES)
    finally:
        os.close(descriptor)


def _try_read(path: Path) -> bytes | None:
    with suppress(OSError):
        return _read(path)
    return None


def _fingerprint(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _is_public(path: Path) -> bool:
    """Tell whether rootless tools and people may read it."""
    try:
        return path.lstat().st_mode & _READABLE == _READABLE
    except OSError:
        return False


def _is_same(one: Path, other: Path) -> bool:
    """Tell whether two paths lead to one directory, as /run/cdi and /var/run/cdi do."""
    try:
        return one.samefile(other)
    except OSError:
        return one == other


def _names(text: bytes | None, path: Path) -> tuple[str, ...]:
    """List what a spec of our kind defines; a file that no reader would accept defines nothing."""
    if text is None:
        return ()
    try:
        document = read(text, name=path.name)
    except SpecInvalid:
        return ()
    return tuple(sorted(document.devices)) if document.kind == KIND else ()


def _is_ours(text: bytes | None) -> bool:
    """Recognise what this agent wrote: its kind, and no device name but of its spelling."""
    names = _names(text, Path(FILE_NAME))
    return bool(names) and all(name == ALL or name.startswith(("pci-", "soc-")) for name in names)


def _in_words(path: Path, error: OSError) -> str:
    remedies = {
        errno.EROFS: "it is mounted read-only; mount it writable or set runtime.cdi_dir",
        errno.EACCES: "no permission; run as root or set runtime.cdi_dir",
        errno.EPERM: "not permitted; run as root or set runtime.cdi_dir",
        errno.ENOSPC: "no space left on that filesystem; free some",
        errno.EDQUOT: "the disk quota is used up; free some",
        errno.ENOTDIR: "a part of the path is not a directory; set runtime.cdi_dir",
        errno.EEXIST: "a file stands in its directory's place; remove it or set runtime.cdi_dir",
        errno.EISDIR: "a directory stands in its place; remove it",
    }
    reason = remedies.get(error.errno or 0, os.strerror(error.errno or 0))
    return f"cannot write {path}: {reason}"
