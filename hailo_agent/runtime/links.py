"""A name for each device that stays when its devnode is renamed.

The kubelet keeps the answer to Allocate for a pod's whole life, and uses it again at every restart
of its containers. `/dev/hailo0` is an index that another device may have by then; a link named
after the device id is not. containerd, CRI-O, podman and docker resolve such a link when they
create a container, and fail if it is absent, as it is while the device is away.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from hailo_agent.errors import SpecStoreError
from hailo_agent.runtime.specs import make_public

_DEADLINE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class DeviceLinks:
    """A directory of links, each named after a device id."""

    directory: Path

    async def replace(self, targets: Mapping[str, str]) -> bool:
        """Make the directory say exactly this; tells whether anything had to change.

        Raises:
            SpecStoreError: it cannot be written; says why.
        """
        try:
            with anyio.fail_after(_DEADLINE_SECONDS):
                return await anyio.to_thread.run_sync(
                    partial(self._replace, targets), abandon_on_cancel=True
                )
        except TimeoutError as error:
            message = f"{self.directory} does not answer within {_DEADLINE_SECONDS:g} s"
            raise SpecStoreError(message, edge="runtime") from error
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            message = f"cannot write links into {self.directory}: {reason}; set runtime.links_dir"
            raise SpecStoreError(message, edge="runtime") from error

    def covered(self, targets: Mapping[str, str]) -> frozenset[str]:
        """Tell which of these links stand on disk and lead where they should."""
        return frozenset(n for n, target in targets.items() if self._target(n) == target)

    def _replace(self, targets: Mapping[str, str]) -> bool:
        make_public(self.directory)
        with os.scandir(self.directory) as entries:
            present = {entry.name for entry in entries if _is_ours(entry)}
        gone = present - targets.keys()
        for name in gone:
            (self.directory / name).unlink(missing_ok=True)
        moved = {n: t for n, t in targets.items() if self._target(n) != t}
        for name, target in moved.items():
            self._link(name, target)
        return bool(moved or gone)

    def _link(self, name: str, target: str) -> None:
        """Put a link in the place of whatever has its name, in one step."""
        temporary = self.directory / f".{name}.{secrets.token_hex(4)}"
        try:
            temporary.symlink_to(target)
            temporary.rename(self.directory / name)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    def _target(self, name: str) -> str | None:
        try:
            return os.readlink(f"{self.directory}/{name}")  # noqa: PTH115 - text, for a thousand
        except OSError:
            return None


def _is_ours(entry: os.DirEntry[str]) -> bool:
    """Recognise a link of ours: whatever else stands in the directory is left alone."""
    return entry.name.lstrip(".").startswith(("pci-", "soc-")) and entry.is_symlink()
