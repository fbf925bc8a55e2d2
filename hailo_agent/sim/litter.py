"""Rubbish among the entries of a class directory, not to be trusted and not to be choked on.

`Machine.litter()` leaves it, `Machine.sweep()` takes it away. Each kind wears the name of an entry,
with a high index, and but for one flaw looks as much like a board as it can.
"""

import os
from pathlib import Path
from typing import Final, Literal

from hailo_agent.sim.generations import Generation

LitterKind = Literal[
    "fifo",  # in place of an entry
    "regular-file",  # in place of an entry
    "symlink-loop",  # in place of an entry
    "dangling-link",  # in place of an entry: its device is gone
    "empty-entry",  # a directory with nothing in it
    "half-built",  # everything but `dev`: as device_add() leaves it for a moment
    "no-node",  # everything, but devtmpfs made no node
    "forbidden",  # mode 000; root reads it all the same
    "bad-name",  # not UTF-8
    "bad-attribute",  # the address is not UTF-8
    "bogus-address",  # the address leads out of the directory
    "empty-attribute",  # the address is empty
    "huge-attribute",  # the address is 10 MB long
    "endless-attribute",  # the address never ends
    "fifo-attribute",  # the address is a FIFO: open() blocks unless told not to
    "directory-attribute",  # the address is a directory
    "bad-dev",  # `dev` says nonsense
]

_FIRST_INDEX: Final = 900
_NOWHERE: Final = "../../devices/virtual/gone"
_KINDS: Final[tuple[LitterKind, ...]] = LitterKind.__args__  # type: ignore[attr-defined]


class Litter:
    """One piece of rubbish. There is at most one of each kind in a class directory."""

    def __init__(self, kind: LitterKind, class_directory: Path, row: Generation) -> None:
        index = _FIRST_INDEX + _KINDS.index(kind)
        name = row.entry_name(index)
        if row.integrated:  # one board, one name: rubbish needs another
            name = f"{name}{index}"
        if kind == "bad-name":
            name += os.fsdecode(b"\xff\xfe")
        self.path = class_directory / name
        self._address = row.attributes[0][0]
        self._drop(kind, index)

    def sweep(self) -> None:
        """Take it away."""
        if self.path.is_symlink() or not self.path.is_dir():
            self.path.unlink(missing_ok=True)
            return
        self.path.chmod(0o755)
        for file in self.path.iterdir():
            if file.is_dir() and not file.is_symlink():
                file.rmdir()
            else:
                file.unlink()
        self.path.rmdir()

    def _drop(self, kind: LitterKind, index: int) -> None:
        path = self.path
        address = f"00ff:{index % 256:02x}:00.0".encode()
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "regular-file":
            path.write_bytes(address)
        elif kind == "symlink-loop":
            path.symlink_to(path.name)
        elif kind == "dangling-link":
            path.symlink_to(f"{_NOWHERE}/{path.name}")
        elif kind == "empty-entry":
            path.mkdir()
        else:
            self._drop_entry(kind, address, index)

    def _drop_entry(self, kind: LitterKind, address: bytes, index: int) -> None:
        path = self.path
        path.mkdir()
        (path / "uevent").write_bytes(b"")
        attribute = path / self._address
        if kind == "fifo-attribute":
            os.mkfifo(attribute)
        elif kind == "endless-attribute":
            attribute.symlink_to("/dev/zero")
        elif kind == "directory-attribute":
            attribute.mkdir()
        else:
            attribute.write_bytes(_ADDRESSES.get(kind, address))
        if kind != "half-built":
            (path / "dev").write_bytes(b"five:one\n" if kind == "bad-dev" else b"507:%d\n" % index)
        if kind == "forbidden":
            path.chmod(0)


_ADDRESSES: Final[dict[LitterKind, bytes]] = {
    "bad-attribute": b"0000:\xff\xfe:00.0",
    "bogus-address": b"../../../../../../../../tmp",
    "empty-attribute": b"",
    "huge-attribute": b"0000:01:00.0" + b"0" * 10_000_000,
}
