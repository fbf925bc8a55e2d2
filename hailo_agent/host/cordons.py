"""The cordon file: devices that an operator set aside, in a place that survives a reboot.

`hailo-agent cordon` changes it, the agent reads it on each look. Whoever can break it can only
keep devices from being offered: what cannot be read takes no cordon back. It may block, so whoever
must not wait calls it in a thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hailo_agent.core.cordon import (
    MAX_BYTES,
    Cordon,
    CordonInvalid,
    Cordons,
    cordoned,
    find,
    mentioned,
    parse,
    replaced,
    serialise,
    trouble,
)
from hailo_agent.core.device import DeviceId
from hailo_agent.errors import HostError

_MODE: Final = 0o644  # anybody may ask why a device is not offered
_LOCK_MODE: Final = 0o600  # but nobody else can keep an operator waiting
_DIRECTORY_MODE: Final = 0o755
_LOCK_SECONDS: Final = 10.0
_LOCK_STEP_SECONDS: Final = 0.02

_KINDS: Final = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What a change did to one device."""

    before: Cordon | None
    after: Cordon | None


@dataclass(slots=True)
class CordonFile:
    """One file of cordons, and what was known when it could last be read."""

    path: Path
    _known: Cordons = field(default_factory=lambda: Cordons(is_complete=False))
    _text: bytes | None = None
    """What `_known` was read from; the same text says the same again."""

    def read(self) -> Cordons:
        """Tell what is cordoned. Never fails: in trouble, what was known before holds."""
        text = None
        try:
            text = _read(self.path)
            if text is not None and text == self._text:
                return self._known
            known = Cordons(entries=() if text is None else parse(text))
        except CordonInvalid as invalid:
            known = self._kept(text or b"", invalid)
        self._known, self._text = known, text
        return known

    def change(self, device_id: DeviceId, reason: str | None) -> Changed:
        """Cordon a device for this reason, or lift its cordon with None; nothing else is lost.

        Raises:
            CordonInvalid: the reason is none, or the file is full.
            HostError: the file cannot be read or written; it is as it was.
        """
        before = find(self._load(), device_id)
        if before is None and reason is None:
            return Changed(before=None, after=None)  # which needs no permission, nor a directory
        try:
            _make(self.path.parent)
            with self._locked():
                return self._change(device_id, reason)
        except OSError as error:
            raise HostError(_in_words(self.path, error), edge="host") from error

    def _kept(self, text: bytes, invalid: CordonInvalid) -> Cordons:
        entries = self._known.entries
        if not self._known.is_complete:
            for cordon in mentioned(text):
                if find(entries, cordon.device_id) is None:
                    entries = replaced(entries, cordon.device_id, cordon)
        return Cordons(
            entries=entries,
            trouble=trouble(str(self.path), invalid),
            is_complete=self._known.is_complete,
        )

    def _load(self) -> tuple[Cordon, ...]:
        """Read what is to be changed; a broken file is not, for something in it would be lost."""
        try:
            text = _read(self.path)
            return () if text is None else parse(text)
        except CordonInvalid as invalid:
            raise HostError(f"{self.path}: {invalid}", edge="host") from invalid

    def _change(self, device_id: DeviceId, reason: str | None) -> Changed:
        cordons = self._load()
        before = find(cordons, device_id)
        now = datetime.now(UTC)
        after = None if reason is None else cordoned(before, device_id, reason, now)
        if after != before:
            _publish(self.path, serialise(replaced(cordons, device_id, after)))
        return Changed(before=before, after=after)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep others who change it out; the lock has a file of its own, for ours is replaced."""
        path = self.path.with_name(f".{self.path.name}.lock")
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path, flags, _LOCK_MODE)
        try:
            self._lock(descriptor, path)
            for leftover in self.path.parent.glob(f".{self.path.name}.*.tmp"):
                leftover.unlink(missing_ok=True)  # of one who was killed: nobody else writes now
            yield
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int, path: Path) -> None:
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            if time.monotonic() >= until:
                raise HostError(
                    f"{path} has been locked by another process for {_LOCK_SECONDS:g} s;"
                    " `lslocks` tells which one: end it, and try again",
                    edge="host",
                )
            time.sleep(_LOCK_STEP_SECONDS)


def _read(path: Path) -> bytes | None:
    """Read the file, at most one byte more than it may have; None if there is none.

    Raises:
        CordonInvalid: it cannot be read, or is no file of its own.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(error) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
            raise CordonInvalid(
                f"it is {kind}, not a regular file", remedy="remove it and cordon again"
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(error) from error
    finally:
        os.close(descriptor)


def _unreadable(error: OSError) -> CordonInvalid:
    if error.errno == errno.ELOOP:
        return CordonInvalid(
            "it is a symlink",
            remedy="put the file itself there, or set host.cordon_file to where it is",
        )
    if error.errno == errno.ENXIO:
        return CordonInvalid("it is a socket", remedy="remove it and cordon again")
    remedy = "let the agent read it, or set host.cordon_file to a file that it can read"
    return CordonInvalid(f"it cannot be read: {os.strerror(error.errno or 0)}", remedy=remedy)


def _make(directory: Path) -> None:
    """Make a directory that everybody may look into, and those above it, whatever the umask."""
    missing = []
    while not directory.is_dir():
        missing.append(directory)
        directory = directory.parent
    for path in reversed(missing):
        try:
            path.mkdir()
        except FileExistsError:
            if path.is_dir():
                continue  # another one who cordons was faster
            raise
        path.chmod(_DIRECTORY_MODE)
        _sync_directory(path.parent)


def _publish(path: Path, text: bytes) -> None:
    """Put a whole file in the place of `path`, and have it survive a power cut."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, _MODE)
    try:
        try:
            os.fchmod(descriptor, _MODE)  # whatever the umask says
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(text)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _in_words(path: Path, error: OSError) -> str:
    remedies = {
        errno.EROFS: "it is mounted read-only; mount it writable or set host.cordon_file",
        errno.EACCES: "no permission; run as root, as the agent does",
        errno.EPERM: "not permitted; run as root, as the agent does",
        errno.ENOSPC: "no space left on that filesystem; free some",
        errno.EDQUOT: "the disk quota is used up; free some",
        errno.ENOTDIR: "a part of the path is not a directory; set host.cordon_file",
        errno.EEXIST: "a file stands in its directory's place; remove it or set host.cordon_file",
        errno.EISDIR: "a directory stands in its place; remove it",
        errno.ELOOP: f"a symlink stands in the place of {error.filename}; remove it",
    }
    reason = remedies.get(error.errno or 0, os.strerror(error.errno or 0))
    return f"cannot write {path}: {reason}"
