"""The kernel's inotify, bare: what a Go program's fsnotify sees, event by event.

`sim.runtime` needs to know whether a file came by a write or by a rename, which is what the CDI
library's cache goes by. The agent's own watching goes another way and another library.
"""

import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MODIFY: Final = 0x0000_0002
ATTRIB: Final = 0x0000_0004
MOVED_FROM: Final = 0x0000_0040
MOVED_TO: Final = 0x0000_0080
CREATE: Final = 0x0000_0100
DELETE: Final = 0x0000_0200
DELETE_SELF: Final = 0x0000_0400
MOVE_SELF: Final = 0x0000_0800

_WATCHED: Final = (
    MODIFY | ATTRIB | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF
)
_HEADER: Final = struct.Struct("iIII")  # struct inotify_event, without the name


@dataclass(frozen=True, slots=True)
class Event:
    """One event: of which watch, what, and to which name in the watched directory."""

    watch: int
    mask: int
    name: str


class Inotify:
    """One inotify instance; reading it never waits."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._checked(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def _checked(self, result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def add(self, path: Path) -> int:
        """Watch a directory, with the events that fsnotify asks for."""
        return self._checked(self._libc.inotify_add_watch(self.fd, os.fsencode(path), _WATCHED))

    def read(self) -> Iterator[Event]:
        """Take whatever events there are."""
        while True:
            try:
                data = os.read(self.fd, 65536)
            except BlockingIOError:
                return
            offset = 0
            while offset < len(data):
                watch, mask, _, length = _HEADER.unpack_from(data, offset)
                offset += _HEADER.size
                name = data[offset : offset + length].rstrip(b"\0")
                offset += length
                yield Event(watch, mask, os.fsdecode(name))

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)
