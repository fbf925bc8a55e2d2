"""A file whose open() does not return: how a hung kernel driver looks from userspace.

`Machine.wedge()` is the only caller. A FIFO would not do: careful readers open with O_NONBLOCK.
fanotify's permission events hold up every open() until they are answered. They need CAP_SYS_ADMIN.
"""

import ctypes
import errno
import os
import select
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_FAN_CLASS_CONTENT: Final = 0x04
_FAN_CLOEXEC: Final = 0x01
_FAN_NONBLOCK: Final = 0x02
_FAN_REPORT_TID: Final = 0x100
_FAN_MARK_ADD: Final = 0x01
_FAN_MARK_REMOVE: Final = 0x02
_FAN_OPEN_PERM: Final = 0x0001_0000
_FAN_ALLOW: Final = 0x01
_AT_FDCWD: Final = -100
_EVENT: Final = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata
_RESPONSE: Final = struct.Struct("=iI")  # struct fanotify_response


class CannotWedge(OSError):
    """This process may not use fanotify permission events, or the kernel was built without them."""


class Wedge:
    """What waits at a wedged file."""

    def __init__(self, group: int, owner: int) -> None:
        self._group = group
        self._owner = owner
        self._pending: list[int] = []
        self._seen = 0
        self._arrived = threading.Condition()
        self._stop_reading, self._stop = os.pipe2(os.O_CLOEXEC)
        self._reader = threading.Thread(target=self._read, name="wedge", daemon=True)
        self._reader.start()

    @property
    def seen(self) -> int:
        """How many open() calls have been held up since the file was wedged."""
        return self._seen

    def wait(self, seen: int = 1, *, timeout_seconds: float = 10.0) -> None:
        """Wait until so many open() calls have been held up."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: self._seen >= seen, timeout_seconds):
                message = f"{self._seen} of {seen} open() calls came within {timeout_seconds} s"
                raise TimeoutError(message)

    def release(self) -> None:
        """Let everybody through, now and from now on."""
        os.write(self._stop, b".")
        self._reader.join()
        self._drain()
        for descriptor in self._pending:
            self._allow(descriptor)
        self._pending.clear()
        # What came in between is let through by fanotify_release(); so is all, should we die.
        os.close(self._group)
        os.close(self._stop)
        os.close(self._stop_reading)

    def _read(self) -> None:
        poll = select.poll()
        poll.register(self._group, select.POLLIN)
        poll.register(self._stop_reading, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _events in poll.poll()}
            if self._stop_reading in ready:
                return
            self._drain()

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            while True:
                self._take(os.read(self._group, 4096))

    def _take(self, events: bytes) -> None:
        offset = 0
        while offset < len(events):
            length, _version, _reserved, _metadata, _mask, descriptor, thread = _EVENT.unpack_from(
                events, offset
            )
            offset += length
            if thread == self._owner:  # it could never leave the block again
                self._allow(descriptor)
                continue
            with self._arrived:
                self._pending.append(descriptor)
                self._seen += 1
                self._arrived.notify_all()

    def _allow(self, descriptor: int) -> None:
        try:
            os.write(self._group, _RESPONSE.pack(descriptor, _FAN_ALLOW))
        except OSError as error:
            if error.errno != errno.ENOENT:  # who waited was killed: the kernel took its event back
                raise
        finally:
            os.close(descriptor)


@contextmanager
def wedged(path: Path) -> Iterator[Wedge]:
    """Let open() of a file hang for every thread but this one, until the block is left."""
    libc = ctypes.CDLL(None, use_errno=True)
    mark = libc.fanotify_mark
    mark.argtypes = (
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint64,
        ctypes.c_int,
        ctypes.c_char_p,
    )
    group = libc.fanotify_init(
        _FAN_CLASS_CONTENT | _FAN_CLOEXEC | _FAN_NONBLOCK | _FAN_REPORT_TID,
        os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_LARGEFILE", 0),
    )
    if group < 0:
        raise _cannot(path)
    if mark(group, _FAN_MARK_ADD, _FAN_OPEN_PERM, _AT_FDCWD, os.fsencode(path)) < 0:
        error = _cannot(path)
        os.close(group)
        raise error
    wedge = Wedge(group, threading.get_native_id())
    try:
        yield wedge
    finally:
        # the mark may have gone with its file, if the device was pulled meanwhile
        mark(group, _FAN_MARK_REMOVE, _FAN_OPEN_PERM, _AT_FDCWD, os.fsencode(path))
        wedge.release()


def _cannot(path: Path) -> CannotWedge:
    number = ctypes.get_errno()
    reason = {
        errno.EPERM: "fanotify permission events need CAP_SYS_ADMIN: run as root",
        errno.ENOSYS: "this kernel has no fanotify",
        errno.EINVAL: "this kernel has no fanotify permission events (FANOTIFY_ACCESS_PERMISSIONS)",
    }.get(number, os.strerror(number))
    return CannotWedge(number, reason, str(path))
