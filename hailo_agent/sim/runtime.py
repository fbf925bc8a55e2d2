"""A container runtime, as far as devices go: CDI names and plain devices in, a container out.

Tests and the demo hand it what the kubelet got from Allocate and look at what the container could
then see and open. It resolves names from spec directories through its own reader
(`runtime.reader`), and refreshes what it has read when - and only when - the CDI library's cache
would: that cache reacts to writes, renames and removals, not to creations, and never looks again
because a name is missing.

Two things are kinder here than in reality. The real cache handles events as they come, this one
when it is asked (or when `attach`ed to a running loop), so that a file which sneaked in between may
be seen. And nothing is mounted: see `sim.container`.
"""

import asyncio
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from hailo_agent.runtime import reader
from hailo_agent.runtime.reader import Document, Edits, SpecInvalid
from hailo_agent.sim import inotify
from hailo_agent.sim.container import (
    CgroupRule,
    ContainerNotCreated,
    ContainerNotRun,
    ContainerView,
    DeviceSpec,
    Making,
    MountSpec,
    Node,
    below,
    device_at,
)
from hailo_agent.sim.inotify import Inotify

__all__ = [
    "CdiSupport",
    "CgroupRule",
    "ContainerNotCreated",
    "ContainerNotRun",
    "ContainerView",
    "DeviceSpec",
    "MountSpec",
    "Node",
    "Runtime",
]

ANNOTATION_PREFIX: Final = "cdi.k8s.io/"
_SUFFIXES: Final = (".json", ".yaml")

CdiSupport = Literal["on", "ignored", "refused"]
"""Switched on; off and silent (containerd below 2.3); off and saying so (2.3 and later)."""


@dataclass(slots=True, kw_only=True)
class _Spec:
    """A file that was read, and the device numbers that injections have put into it since."""

    path: Path
    priority: int
    document: Document
    numbers: dict[tuple[str, int], tuple[str, int, int]] = field(default_factory=dict)


class Runtime:
    """A runtime with its CDI cache over some spec directories, later ones of higher priority.

    `root` stands for the host's root: `/dev/hailo0` of a spec is looked for at `root/dev/hailo0`.
    `newest` is the CDI version of the vendored library; the other switches tell runtimes apart.
    """

    def __init__(
        self,
        spec_dirs: Sequence[Path],
        *,
        root: Path = Path("/"),
        newest: str = reader.NEWEST,
        cdi: CdiSupport = "on",
        reads_cri: bool = True,
        reads_annotations: bool = True,
        drops_duplicates: bool = True,
        watches: bool = True,
    ) -> None:
        self.root = root
        self.refreshes = 0
        self.errors: dict[Path, list[str]] = {}
        self._dirs = tuple(spec_dirs)
        self._newest = newest
        self._cdi = cdi
        self._reads_cri = reads_cri
        self._reads_annotations = reads_annotations
        self._drops_duplicates = drops_duplicates
        self._devices: dict[str, tuple[_Spec, str]] = {}
        self._watches: dict[Path, int | None] = dict.fromkeys(self._dirs)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inotify: Inotify | None = None
        if watches:
            try:
                self._inotify = Inotify()
            except OSError:  # out of descriptors or instances: then it reads before every use
                self._inotify = None
        self._watch_missing()
        self._refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def attach(self) -> None:
        """Handle events as they come, on the running loop, instead of when asked."""
        if self._inotify is not None and self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._inotify.fd, self._handle_events)

    def close(self) -> None:
        """Stop watching."""
        watching, self._inotify = self._inotify, None
        if watching is None:
            return
        if self._loop is not None:
            self._loop.remove_reader(watching.fd)
            self._loop = None
        watching.close()

    # --- the cache (pkg/cdi/cache.go) ---

    @property
    def devices(self) -> tuple[str, ...]:
        """Every name that could be injected now."""
        self._refresh_if_required()
        return tuple(sorted(self._devices))

    def _watch_missing(self) -> bool:
        """Watch the directories that are not watched yet; tell whether any has appeared."""
        appeared = False
        if self._inotify is not None:
            for directory, watch in self._watches.items():
                if watch is None:
                    try:
                        self._watches[directory] = self._inotify.add(directory)
                    except OSError:
                        continue
                    appeared = True
        return appeared

    def _handle_events(self) -> None:
        """Refresh after Write, Rename and Remove; a Create and a Chmod are nothing to this cache.

        Thus a file that is linked here, or renamed here from another directory, goes unnoticed.
        """
        if self._inotify is None:
            return
        stale = False
        for event in self._inotify.read():
            if event.mask & (inotify.MOVED_FROM | inotify.MOVE_SELF | inotify.DELETE):
                stale = True
            elif event.mask & inotify.DELETE_SELF:
                stale = True
                for directory, watch in self._watches.items():
                    if watch == event.watch:
                        self._watches[directory] = None
            elif event.mask & inotify.MODIFY and event.name.endswith(_SUFFIXES):
                stale = True
        if stale:
            self._refresh()

    def _refresh_if_required(self) -> None:
        """Refresh if a directory has appeared; there is no looking again for a missing name."""
        self._handle_events()
        if self._watch_missing() or self._inotify is None:
            self._refresh()

    def _refresh(self) -> None:
        """Read every file anew (`refresh`, `scanSpecDirs`)."""
        self.refreshes += 1
        self.errors = {}
        devices: dict[str, tuple[_Spec, str]] = {}
        conflicts: set[str] = set()
        for spec in self._scan():
            for name in spec.document.devices:
                qualified = f"{spec.document.kind}={name}"
                other = devices.get(qualified)
                if other is not None and other[0].priority == spec.priority:
                    conflicts.add(qualified)
                    for path in (spec.path, other[0].path):
                        self._record(
                            path,
                            f'conflicting device "{qualified}" '
                            f'(specs "{spec.path}", "{other[0].path}")',
                        )
                    continue
                devices[qualified] = (spec, name)
        for qualified in conflicts:
            del devices[qualified]
        self._devices = devices

    def _record(self, path: Path, message: str) -> None:
        self.errors.setdefault(path, []).append(message)

    def _scan(self) -> Iterable[_Spec]:
        for priority, directory in enumerate(self._dirs):
            try:
                names = _file_names(directory)
            except FileNotFoundError:
                continue
            except OSError:
                return  # and the directories after it are not scanned at all
            for name in names:
                path = directory / name
                try:
                    document = reader.load(path, newest=self._newest)
                except (OSError, SpecInvalid) as error:
                    self._record(path, f"failed to load CDI Spec {error}")
                    continue
                yield _Spec(path=path, priority=priority, document=document)

    # --- a container ---

    def inject(
        self,
        names: Iterable[str] = (),
        *,
        annotations: Mapping[str, str] | None = None,
        devices: Iterable[DeviceSpec] = (),
        mounts: Iterable[MountSpec] = (),
        env: Mapping[str, str] | None = None,
        user: tuple[int, int] = (0, 0),
    ) -> ContainerView:
        """Create a container with these devices, and start it."""
        making = Making(root=self.root, user=user, env=dict(env or {}))
        for device in devices:
            making.adddevice_at(device)
        for mount in mounts:
            making.add_mount(
                mount.host_path,
                mount.container_path,
                type_="bind",
                options=("ro",) if mount.read_only else (),
            )
        asked = self._asked(names, annotations or {})
        if asked:
            self._inject(asked, making)
        return making.started()

    def _asked(self, names: Iterable[str], annotations: Mapping[str, str]) -> list[str]:
        """Merge both ways in which names come: the CRI field first, annotations after it."""
        asked = list(names) if self._reads_cri else []
        if self._drops_duplicates:
            asked = list(dict.fromkeys(asked))
        if self._reads_annotations:
            for key in sorted(annotations):
                if not key.startswith(ANNOTATION_PREFIX):
                    continue
                for name in annotations[key].split(","):
                    if reader.split_name(name) is None:
                        message = f'invalid CDI device name "{name}" in annotation "{key}"'
                        raise ContainerNotCreated(message)
                    if name not in asked:
                        asked.append(name)
        if asked and self._cdi == "refused":
            message = f"CDI is disabled, and CDI devices {', '.join(asked)} were asked for"
            raise ContainerNotCreated(message)
        return asked if self._cdi == "on" else []

    def _inject(self, names: Sequence[str], making: "Making") -> None:
        """Apply the edits of each file once, and of each device in the order asked for."""
        self._refresh_if_required()
        unresolved = [name for name in names if name not in self._devices]
        if unresolved:
            message = (
                f"CDI device injection failed: unresolvable CDI devices {', '.join(unresolved)}"
            )
            raise ContainerNotCreated(message)
        applied: list[tuple[_Spec, str, Edits]] = []
        seen: list[_Spec] = []
        for name in names:
            spec, device = self._devices[name]
            if not any(spec is other for other in seen):
                seen.append(spec)
                applied.append((spec, "", spec.document.edits))
            applied.append((spec, device, spec.document.devices[device]))
        for _, _, edits in applied:
            making.add_env(edits.env)
        for spec, device, edits in applied:
            for index, node in enumerate(edits.device_nodes):
                making.add_node(node, *self._number(spec, (device, index), node))
        for _, _, edits in applied:
            for mount in edits.mounts:
                making.add_mount(
                    mount.host_path,
                    mount.container_path,
                    type_=mount.type or "bind",
                    options=mount.options,
                )
        for _, _, edits in applied:
            making.hooks.extend(edits.hooks)
            making.add_gids(edits.additional_gids)

    def _number(
        self, spec: _Spec, key: tuple[str, int], node: reader.DeviceNode
    ) -> tuple[str, int, int]:
        """Find type and numbers of a node (`fillMissingInfo`), and leave them in the cached spec.

        So they are looked up once: until the file is read again, a driver that came back under
        another major is injected with the number it had. Given numbers are not checked at all.
        """
        type_, major, minor = spec.numbers.get(key, (node.type, node.major, node.minor))
        if type_ and (major or type_ == "p"):
            return type_, major, minor
        host_path = node.host_path or node.path
        try:
            found = device_at(below(self.root, host_path))
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            message = (
                "CDI device injection failed: failed to inject devices: "
                f'failed to stat CDI host device "{host_path}": {why.lower()}'
            )
            raise ContainerNotCreated(message) from error
        if type_ and type_ != found.type:
            message = (
                "CDI device injection failed: failed to inject devices: CDI device "
                f'("{node.path}", "{host_path}"), host type mismatch ({type_}, {found.type})'
            )
            raise ContainerNotCreated(message)
        if found.type != "p":
            major, minor = found.number
        spec.numbers[key] = (found.type, major, minor)
        return found.type, major, minor


def _file_names(directory: Path) -> list[str]:
    """List what a scan reads in a directory (`filepath.Walk`): the suffix decides, dots do not.

    A directory that is a symlink is not walked into; one that may not be listed is an empty one.
    """
    if not stat.S_ISDIR(directory.lstat().st_mode):
        return []
    try:
        with os.scandir(directory) as entries:
            return sorted(
                entry.name
                for entry in entries
                if entry.name.endswith(_SUFFIXES) and not entry.is_dir(follow_symlinks=False)
            )
    except PermissionError:
        return []
