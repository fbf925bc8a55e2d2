"""A directory that changes as sysfs does: files appear complete, links read as the kernel's do.

Called by `kernel.py`, and by `machine.py` for faults. Paths are relative to the top, as sysfs
itself thinks of them: `class/hailo_chardev`. Nothing here knows what the files mean.
"""

# Paths are strings here: a big machine has fifty thousand, and pathlib would double the time.
# ruff: noqa: PTH101, PTH102, PTH103, PTH104, PTH106, PTH108, PTH119, PTH123, PTH211

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final

READ_ONLY: Final = 0o444
# What has another mode than 0444 (drivers/base, drivers/pci/pci-sysfs.c), by its own name.
_MODES: Final = {
    "uevent": 0o644,
    "config": 0o644,
    "enable": 0o644,
    "numa_node": 0o644,
    "driver_override": 0o644,
    "d3cold_allowed": 0o644,
    "msi_bus": 0o644,
    "broken_parity_status": 0o644,
    "reset_method": 0o644,
    "control": 0o644,
    "autosuspend_delay_ms": 0o644,
    "o_dbg": 0o644,
    "bind": 0o200,
    "unbind": 0o200,
    "new_id": 0o200,
    "remove_id": 0o200,
    "remove": 0o200,
    "rescan": 0o200,
    "reset": 0o200,
}
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

Files = Mapping[str, bytes]


def link_text(directory: str, target: str) -> str:
    """Write a link as kernfs_get_target_path() does: up to an ancestor of the target, then down."""
    here, there = directory.split("/"), target.split("/")
    shared = 0
    while shared < min(len(here), len(there) - 1) and here[shared] == there[shared]:
        shared += 1
    return "../" * (len(here) - shared) + "/".join(there[shared:])


class Sysfs:
    """A sysfs in an ordinary directory; what is being built lies in `staging` until it is done."""

    def __init__(self, top: Path, staging: Path) -> None:
        self._top = f"{top}/"
        self._staging = f"{staging}/"
        self._numbers = count()
        self._models: dict[tuple[str, bytes], str] = {}

    def exists(self, path: str) -> bool:
        """Tell whether something is there, be it a dangling link."""
        return os.path.lexists(self._top + path)

    def directory(self, path: str) -> None:
        """Make a directory, and what lies above it."""
        os.makedirs(self._top + path, exist_ok=True)

    def build(
        self,
        path: str,
        files: Files,
        *,
        alike: Files | None = None,
        links: Mapping[str, str] | None = None,
    ) -> None:
        """Make a directory appear with its files and links already in it.

        Files that are `alike` in a thousand directories are hard links to one, because making an
        inode is what takes time.
        """
        built = self._stage()
        os.mkdir(built)
        made = {""}
        for create, group in ((_create, files), (self._create_alike, alike or {})):
            for name, content in group.items():
                folder = name.rpartition("/")[0]
                if folder not in made:
                    os.mkdir(f"{built}/{folder}")
                    made.add(folder)
                create(f"{built}/{name}", content)
        for name, target in (links or {}).items():
            os.symlink(link_text(path, target), f"{built}/{name}")
        self.directory(path.rpartition("/")[0])
        os.rename(built, self._top + path)

    def put(self, path: str, content: bytes) -> None:
        """Make a file appear, or change, at once: nobody reads the half of a sysfs attribute."""
        built = self._stage()
        _create(built, content, os.path.basename(path))
        os.rename(built, self._top + path)

    def link(self, path: str, target: str) -> None:
        """Make a symlink."""
        os.symlink(link_text(path.rpartition("/")[0], target), self._top + path)

    def read(self, path: str) -> bytes:
        """Read a file back."""
        with open(self._top + path, "rb") as file:
            return file.read()

    def drop(self, path: str) -> None:
        """Remove a file or link, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(self._top + path)

    def clear(self, path: str) -> None:
        """Remove everything in a directory but the directory."""
        with suppress(FileNotFoundError):
            _clear(self._top + path)

    def raze(self, path: str) -> None:
        """Remove a directory with all that is in it, if it is there."""
        with suppress(FileNotFoundError):
            _clear(self._top + path)
            os.rmdir(self._top + path)

    def raze_if_empty(self, path: str) -> None:
        """Remove a directory if nothing is left in it, as cleanup_glue_dir() does."""
        with suppress(OSError):
            os.rmdir(self._top + path)

    def _create_alike(self, path: str, content: bytes) -> None:
        kind = (os.path.basename(path), content)
        model = self._models.get(kind)
        if model is None:
            model = self._models[kind] = self._stage()
            _create(model, content, kind[0])
        try:
            os.link(model, path)
        except OSError as error:
            if error.errno != errno.EMLINK:  # ext4 has room for 65 000
                raise
            del self._models[kind]
            self._create_alike(path, content)

    def _stage(self) -> str:
        return f"{self._staging}{next(self._numbers)}"


def _create(path: str, content: bytes, name: str = "") -> None:
    descriptor = os.open(path, _CREATE, _MODES.get(name or os.path.basename(path), READ_ONLY))
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
    finally:
        os.close(descriptor)


def _clear(directory: str) -> None:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                with suppress(
                    PermissionError
                ):  # an entry that litter made unreadable, and we are not root
                    os.chmod(entry.path, 0o700)
                _clear(entry.path)
                os.rmdir(entry.path)
            else:
                os.unlink(entry.path)
