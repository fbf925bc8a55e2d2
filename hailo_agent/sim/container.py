"""A container, as far as devices go: what its `/dev` and `/sys` show and what it may open.

`sim.runtime` collects what goes into one in a `Making` and starts it; tests look at the
`ContainerView`. Nothing is mounted or made: both are worked out on paper, by the rules of runc,
against a directory that stands for the host's root.
"""

import errno
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from hailo_agent.runtime import reader

_MOST_LINKS = 40  # as the kernel has it


class ContainerNotCreated(Exception):
    """Raised when the container cannot even be described: names, device nodes."""


class ContainerNotRun(Exception):
    """Raised when the container was created and cannot be started: its mounts do not work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """A device node that the kubelet asks for directly, without CDI."""

    container_path: str
    host_path: str
    permissions: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MountSpec:
    """A bind mount that the kubelet asks for directly."""

    container_path: str
    host_path: str
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A device node in a container."""

    type: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int

    @property
    def number(self) -> tuple[int, int]:
        """Major and minor."""
        return self.major, self.minor


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupRule:
    """What the device cgroup lets the container do with a device number."""

    type: str
    major: int
    minor: int
    access: str


@dataclass(slots=True, kw_only=True)
class _Mount:
    destination: PurePosixPath
    type: str
    source: Path | None
    read_only: bool
    made: set[PurePosixPath] = field(default_factory=set)
    hidden: bool = False

    def covers(self, path: PurePosixPath) -> bool:
        return path.is_relative_to(self.destination)

    def exists(self, path: PurePosixPath) -> bool:
        """Whether there is something of this mount at a path of the container."""
        if self.source is None:
            return path == self.destination or path in self.made
        return (self.source / path.relative_to(self.destination)).exists()

    def make(self, path: PurePosixPath) -> None:
        """Make a mountpoint, as runc does; on a writable bind that is a directory on the host."""
        if self.read_only:
            message = f"mkdir {path}: read-only file system"
            raise ContainerNotRun(message)
        if self.source is None:
            self.made.update(p for p in (path, *path.parents) if self.covers(p))
        else:
            (self.source / path.relative_to(self.destination)).mkdir(parents=True)

    def names(self, path: PurePosixPath) -> set[str]:
        """Name what is in a directory of this mount."""
        if self.source is None:
            return {made.name for made in self.made if made.parent == path and made != path}
        return {at.name for at in (self.source / path.relative_to(self.destination)).iterdir()}


class ContainerView:
    """A started container: what is in its `/dev` and `/sys`, and what it may do with it."""

    def __init__(
        self,
        *,
        nodes: Mapping[str, Node],
        cgroup: Sequence[CgroupRule],
        mounts: Sequence[_Mount],
        env: Mapping[str, str],
        hooks: Sequence[reader.Hook],
        user: tuple[int, int],
        gids: Sequence[int],
    ) -> None:
        self.nodes = dict(nodes)
        self.cgroup = tuple(cgroup)
        self.env = dict(env)
        self.hooks = tuple(hooks)
        self.user = user
        self.gids = tuple(gids)
        self._mounts = mounts

    @property
    def mounts(self) -> tuple[tuple[str, str], ...]:
        """Where something is mounted, and of which type, in the order it was."""
        return tuple((str(mount.destination), mount.type) for mount in self._mounts)

    def listdir(self, path: str) -> tuple[str, ...]:
        """List a directory as a process in the container would."""
        at = PurePosixPath(path)
        mount = _covering(self._mounts, at)
        if not mount.exists(at):
            raise FileNotFoundError(path)
        return tuple(sorted(mount.names(at)))

    def read(self, path: str) -> str:
        """Read a small file as a process in the container would."""
        at = PurePosixPath(path)
        mount = _covering(self._mounts, at)
        if mount.source is None:
            raise FileNotFoundError(path)
        return (mount.source / at.relative_to(mount.destination)).read_text()

    def class_entries(self, name: str) -> tuple[str, ...]:
        """List a class of sysfs; nothing if the class is not there."""
        try:
            return self.listdir(f"/sys/class/{name}")
        except FileNotFoundError:
            return ()

    def opens(self, path: str, access: str = "rw") -> bool:
        """Whether the container's user may open a device node so: device cgroup, then mode bits.

        Whether a device still answers to that number is another question.
        """
        node = self.nodes.get(path)
        if node is None or not any(
            (rule.type, rule.major, rule.minor) == (node.type, node.major, node.minor)
            and set(access) <= set(rule.access)
            for rule in self.cgroup
        ):
            return False
        uid, gid = self.user
        if uid == 0:
            return True
        shift = 6 if uid == node.uid else 3 if node.gid in (gid, *self.gids) else 0
        wanted = 4 * ("r" in access) + 2 * ("w" in access)
        return (node.mode >> shift) & wanted == wanted


def _covering(mounts: Sequence[_Mount], path: PurePosixPath) -> _Mount:
    """Find the mount that a path of the container is on."""
    visible = [mount for mount in mounts if not mount.hidden and mount.covers(path)]
    return max(visible, key=lambda mount: len(mount.destination.parts))


def below(root: Path, path: str) -> Path:
    """Find a path of the host below the directory that stands for its root."""
    return root / path.lstrip("/")


def _resolved(root: Path, path: str) -> Path:
    """Follow links as the host would, for which `root` is the root of everything.

    Raises:
        OSError: a link leads nowhere, or in circles.
    """
    for _ in range(_MOST_LINKS):
        found = below(root, path)
        if not found.is_symlink():
            found.lstat()
            return found
        target = found.readlink()
        path = os.path.normpath(PurePosixPath(path).parent / target)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def device_at(path: Path) -> Node:
    """Look at a device node; anything else there, a symlink too, is none."""
    status = path.lstat()
    kinds = {stat.S_IFBLK: "b", stat.S_IFCHR: "c", stat.S_IFIFO: "p"}
    kind = kinds.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        message = "not a device node"
        raise OSError(message)
    return Node(
        type=kind,
        major=os.major(status.st_rdev),
        minor=os.minor(status.st_rdev),
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
    )


@dataclass(slots=True, kw_only=True)
class Making:
    """The OCI spec of a container on its way."""

    root: Path
    user: tuple[int, int]
    env: dict[str, str]
    nodes: dict[str, Node] = field(default_factory=dict)
    cgroup: list[CgroupRule] = field(default_factory=list)
    mounts: dict[str, tuple[str, str, tuple[str, ...]]] = field(default_factory=dict)
    hooks: list[reader.Hook] = field(default_factory=list)
    gids: list[int] = field(default_factory=list)

    def add_env(self, env: Iterable[str]) -> None:
        """Set variables; one that is there is replaced in its place."""
        for text in env:
            key, _, value = text.partition("=")
            self.env[key] = value

    def add_gids(self, gids: Iterable[int]) -> None:
        """Add groups, without root's and without repetition."""
        self.gids.extend(gid for gid in dict.fromkeys(gids) if gid and gid not in self.gids)

    def adddevice_at(self, device: DeviceSpec) -> None:
        """Add a plain device (containerd's `WithDevices`): symlinks followed, host's owner kept."""
        try:
            node = device_at(_resolved(self.root, device.host_path))
        except OSError as error:
            why = os.strerror(error.errno).lower() if error.errno else str(error)
            message = f'failed to apply device "{device.host_path}": {why}'
            raise ContainerNotCreated(message) from error
        self.nodes[device.container_path] = node
        self._allow(node, device.permissions)

    def add_node(self, node: reader.DeviceNode, type_: str, major: int, minor: int) -> None:
        """Add a node of a CDI spec; it replaces one at the same path, the rule is added anyway.

        Without an owner in the spec it is the container's user's own, which is why a process that
        is not root can open it.
        """
        uid, gid = self.user
        made = Node(
            type=type_,
            major=major,
            minor=minor,
            mode=0o666 if node.file_mode is None else stat.S_IMODE(node.file_mode),
            uid=uid if node.uid is None else node.uid,
            gid=gid if node.gid is None else node.gid,
        )
        self.nodes.pop(node.path, None)
        self.nodes[node.path] = made
        if type_ in {"b", "c"}:
            self._allow(made, node.permissions or "rwm")

    def _allow(self, node: Node, access: str) -> None:
        self.cgroup.append(
            CgroupRule(type=node.type, major=node.major, minor=node.minor, access=access)
        )

    def add_mount(
        self, host_path: str, container_path: str, *, type_: str, options: Iterable[str]
    ) -> None:
        """Add a mount; one at the same place is removed first, so the last one wins."""
        self.mounts.pop(container_path, None)
        self.mounts[container_path] = (host_path, type_, tuple(options))

    def started(self) -> ContainerView:
        """Make the mounts, in the order of their depth, as runc does."""
        mounted = [
            _Mount(destination=PurePosixPath("/"), type="rootfs", source=None, read_only=False),
            _Mount(destination=PurePosixPath("/dev"), type="tmpfs", source=None, read_only=False),
            _Mount(
                destination=PurePosixPath("/sys"),
                type="sysfs",
                source=self.root / "sys",
                read_only=True,
            ),
        ]
        by_depth = sorted(self.mounts.items(), key=lambda item: len(PurePosixPath(item[0]).parts))
        for container_path, (host_path, type_, options) in by_depth:
            self._mount(mounted, PurePosixPath(container_path), host_path, type_, options)
        return ContainerView(
            nodes=self.nodes,
            cgroup=self.cgroup,
            mounts=mounted,
            env=self.env,
            hooks=self.hooks,
            user=self.user,
            gids=self.gids,
        )

    def _mount(
        self,
        mounted: list[_Mount],
        destination: PurePosixPath,
        host_path: str,
        type_: str,
        options: tuple[str, ...],
    ) -> None:
        bind = type_ == "bind" or "bind" in options or "rbind" in options
        source: Path | None = None
        if bind:
            source = below(self.root, host_path)
            if not source.exists():
                message = f"failed to fulfil mount request: open {host_path}: no such file"
                raise ContainerNotRun(message)
            source = source.resolve()  # mount(2) follows a symlink: the container has what it means
        under = _covering(mounted, destination)
        if not under.exists(destination):
            under.make(destination)
        for other in mounted:
            other.hidden = other.hidden or other.destination.is_relative_to(destination)
        mounted.append(
            _Mount(
                destination=destination,
                type="bind" if bind else type_,
                source=source,
                read_only="ro" in options,
            )
        )
