"""Leaving no trace: what on this node is ours, and how it is removed and nothing else.

`hailo-agent uninstall` asks for `objections` first, and then takes `sweep` step by step. A path in
the settings says where to look, never that something is ours: a spec is known by what it says, a
socket by nobody answering there, a link, file or directory by its spelling and its kind. What is
not known so is left alone. From a directory of ours on no symlink is followed, and everything is
done relative to directories held open, so that nothing can be slipped in between.

Alone in this room it changes something; it needs no agent, and must not know how one runs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final

from hailo_agent import outfit
from hailo_agent.core.cdi import FILE_NAME, KIND
from hailo_agent.core.device import ALL, is_device_id
from hailo_agent.core.offer import endpoint_name
from hailo_agent.errors import EdgeError
from hailo_agent.kubelet.pods import pods
from hailo_agent.kubelet.session import KUBELET_SOCKET
from hailo_agent.runtime.reader import SpecInvalid, read
from hailo_agent.settings import Settings
from hailo_agent.web.listen import UnixAddress, parse_listen

HOME: Final = "hailo-agent"
"""What a directory is called that is ours whoever made it: /run/hailo-agent, for instance."""

_MAX_SPEC_BYTES: Final = 4 * 1024 * 1024
_MAX_NAMED: Final = 3
_PASSES: Final = 10
"""How often a directory is emptied again that somebody goes on filling."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_HEX: Final = "[0-9a-f]{8}"
_HIDDEN: Final = re.compile(rf"\.(.+)\.{_HEX}", re.DOTALL)
"""How sockets and links are called before they are renamed into place."""
_SPEC_TEMPORARY: Final = re.compile(rf"\.{re.escape(FILE_NAME)}\.{_HEX}\.tmp")
_WEB_TEMPORARY: Final = re.compile(rf"\.{_HEX}")
_MONITOR_TEMPORARY: Final = re.compile(r"\.(new|old)-[0-9a-f]{16}")
_SUNK: Final = re.compile(r"\.old-[0-9a-f]{16}")
"""How `_empty` calls what it moves up."""
_MACHINE_MARKER: Final = ".hailo-agent-machine"
_MACHINE: Final = frozenset({_MACHINE_MARKER, "dev", "sys", ".staging", ".commands.sock"})
"""What is in a directory of `hailo-agent simulate --machine`, which the demo has in ours."""
_ENDPOINT: Final = re.compile(r"hailo\.ai_[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\.sock")
"""An endpoint of any resource of this vendor: the settings that named it may be gone by now."""


class Outcome(StrEnum):
    """What became of one thing."""

    REMOVED = "removed"
    KEPT = "kept"
    """It is not ours."""
    STUCK = "stuck"
    """It is ours, or may be, and is still there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that was removed, or why it was not."""

    path: Path
    outcome: Outcome
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objection:
    """A reason not to remove anything yet, and what to do about it."""

    what: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Objections:
    """What speaks against it."""

    found: tuple[Objection, ...] = ()
    untold: str = ""
    """Why nobody could say whether pods hold devices, where there may be none to ask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where an agent with these settings leaves something."""

    cdi_dirs: tuple[Path, ...]
    plugin_dir: Path
    endpoints: frozenset[str]
    links_dir: Path
    monitor_dir: Path
    cordon_file: Path
    agent_socket: Path | None
    web_socket: Path | None

    @classmethod
    def of(cls, settings: Settings) -> Places:
        """Read them from the settings."""
        runtime, listen = settings.runtime, settings.web.listen
        address = parse_listen(listen) if listen else None
        return cls(
            cdi_dirs=(runtime.cdi_dir, *runtime.cdi_search_dirs),
            plugin_dir=settings.kubelet.plugin_dir,
            endpoints=frozenset(map(endpoint_name, outfit.resource_names(settings).all())),
            links_dir=runtime.links_dir,
            monitor_dir=settings.monitor.dir,
            cordon_file=settings.host.cordon_file,
            agent_socket=settings.subscribers.socket,
            web_socket=address.path if isinstance(address, UnixAddress) else None,
        )

    @property
    def own_dirs(self) -> tuple[Path, ...]:
        """Name the directories that are ours, the inner ones first."""
        return tuple(dict.fromkeys((self.links_dir, self.monitor_dir, *self.homes)))

    @property
    def homes(self) -> tuple[Path, ...]:
        """Name those that are ours by what they are called."""
        every = (self.links_dir, self.monitor_dir, self.cordon_file, *self.sockets)
        return tuple(dict.fromkeys(p.parent for p in every if p.parent.name == HOME))

    @property
    def sockets(self) -> tuple[Path, ...]:
        """Name the sockets that are ours alone."""
        return tuple(path for path in (self.agent_socket, self.web_socket) if path is not None)


# --- whether to -----------------------------------------------------------------------------------


async def objections(settings: Settings) -> Objections:
    """Find out whether an agent runs here, and whether pods still hold devices."""
    places = Places.of(settings)
    found = [_running(path) for path in _answering(places)]
    untold = ""
    names = outfit.resource_names(settings).all()
    try:
        found += [
            Objection(
                what=f"pod {pod.namespace}/{pod.name}, container {held.container}, holds"
                f" {held.device_id}: it keeps it as long as it runs, but could not start again",
                remedy="delete the pod",
            )
            for pod in await pods(settings.kubelet.root, names)
            for held in pod.held
        ]
    except EdgeError as error:
        untold = str(error)
        if _is_there(settings.kubelet.root / "pod-resources" / KUBELET_SOCKET):
            what = f"whether pods hold devices cannot be told: {error}"
            found.append(Objection(what=what, remedy="start the kubelet"))
    return Objections(found=tuple(found), untold=untold)


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)


def _running(path: Path) -> Objection:
    return Objection(
        what=f"an agent runs here: it answers at {path}",
        remedy="stop it, in a cluster by deleting its DaemonSet",
    )


def _answering(places: Places) -> Iterator[Path]:
    """Name the sockets of ours at which somebody answers."""
    for path in places.sockets:
        with suppress(OSError), _opened(path.parent) as top:
            if _is_socket(top, path.name) and _answers(top, path.name):
                yield path
    with suppress(OSError), _opened(places.plugin_dir) as top:
        for name in filter(partial(_is_endpoint, places.endpoints), _names(top)):
            with suppress(OSError):
                if _is_socket(top, name) and _answers(top, name):
                    yield places.plugin_dir / name


# --- doing it -------------------------------------------------------------------------------------


def sweep(places: Places, *, dry_run: bool) -> Iterator[Step]:
    """Remove all that is ours, one thing after the other; goes on whatever fails.

    With `dry_run` the steps are those that would be taken, and nothing is touched.
    """
    yield from _Sweep(dry_run=dry_run).steps(places)


Judge = Callable[[int, str], str | None]
"""Looks at a name in an open directory: empty if it is ours, else why not; None if it is nothing
that could be."""


@dataclass(slots=True)
class _Sweep:
    dry_run: bool
    _told: dict[Path, Outcome] = field(default_factory=dict)
    _seen: set[tuple[int, int]] = field(default_factory=set)
    """Shared directories that were looked at: /run/cdi and /var/run/cdi are mostly one."""

    def steps(self, places: Places) -> Iterator[Step]:
        for directory in places.cdi_dirs:
            yield from self._within(directory, _judge_spec)
        yield from self._within(
            places.plugin_dir, partial(_judge_socket, partial(_is_endpoint, places.endpoints))
        )
        yield from self._within(places.links_dir, _judge_link, is_own=True)
        yield from self._within(places.monitor_dir, _judge_monitor, is_own=True)
        if places.agent_socket is not None:
            named = partial(_is_named, places.agent_socket.name)
            yield from self._within(places.agent_socket.parent, partial(_judge_socket, named))
        if places.web_socket is not None:
            named = partial(_is_web_socket, places.web_socket.name)
            yield from self._within(places.web_socket.parent, partial(_judge_socket, named))
        cordons = partial(_judge_cordons, places.cordon_file.name)
        yield from self._within(places.cordon_file.parent, cordons)
        for home in places.homes:
            yield from self._within(home, _judge_machine, is_own=True)
        for directory in places.own_dirs:
            yield from self._emptied(directory)

    def _within(self, directory: Path, judge: Judge, *, is_own: bool = False) -> Iterator[Step]:
        """Remove what is ours in a directory."""
        try:
            with _opened(directory, is_own=is_own) as top:
                identity = os.fstat(top).st_dev, os.fstat(top).st_ino
                if judge is _judge_spec and identity in self._seen:
                    return
                self._seen.add(identity)
                for name in _names(top):
                    yield from self._judged(top, directory / name, judge)
        except FileNotFoundError:
            return
        except _SymlinkInTheWay as error:
            yield from self._tell(error.path, Outcome.STUCK, str(error))
        except NotADirectoryError:
            yield from self._tell(directory, Outcome.KEPT, "it is no directory")
        except OSError as error:
            yield from self._tell(directory, Outcome.STUCK, _in_words(error))

    def _judged(self, top: int, path: Path, judge: Judge) -> Iterator[Step]:
        try:
            why_not = judge(top, path.name)
            if why_not is None:
                return
            if why_not:
                yield from self._tell(path, Outcome.KEPT, why_not)
                return
            if not self.dry_run:
                _remove(top, path.name)
        except FileNotFoundError:
            return  # somebody else removed it meanwhile
        except OSError as error:
            yield from self._tell(path, Outcome.STUCK, _in_words(error))
        else:
            yield from self._tell(path, Outcome.REMOVED)

    def _emptied(self, directory: Path) -> Iterator[Step]:
        """Remove a directory of ours if nothing is left in it."""
        try:
            with _opened(directory, is_own=True) as top:
                left = self._left(top, directory)
            if not left and not self.dry_run:
                with _opened(directory.parent) as above:
                    os.rmdir(directory.name, dir_fd=above)
        except FileNotFoundError:
            return
        except (_SymlinkInTheWay, NotADirectoryError):
            return  # told when it was looked into, or none of our directories
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                yield from self._tell(directory, Outcome.STUCK, _in_words(error))
                return
            left = ["what came meanwhile"]
        if not left:
            yield from self._tell(directory, Outcome.REMOVED)
            return
        strange = [name for name in left if directory / name not in self._told]
        if strange:
            yield from self._tell(directory, Outcome.KEPT, f"there is {_listed(strange)} in it")
        else:
            self._told.setdefault(directory, Outcome.KEPT)  # what is in it was told

    def _left(self, top: int, directory: Path) -> list[str]:
        gone = (Outcome.REMOVED,) if self.dry_run else ()
        return [n for n in _names(top) if self._told.get(directory / n) not in gone]

    def _tell(self, path: Path, outcome: Outcome, why: str = "") -> Iterator[Step]:
        if path not in self._told:
            self._told[path] = outcome
            yield Step(path=path, outcome=outcome, why=why)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{', '.join(names[:_MAX_NAMED])}{more}"


class _SymlinkInTheWay(OSError):
    """Raised when a directory of ours is reached by a symlink, which nobody of us makes."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.ELOOP, os.strerror(errno.ELOOP))
        self.path = path

    def __str__(self) -> str:
        return "it is a symlink, and none is followed; remove it, or set the path it leads to"


@contextmanager
def _opened(directory: Path, *, is_own: bool = False) -> Iterator[int]:
    """Hold a directory open. A shared one is where the settings say; below ours nothing leads away.

    Raises:
        _SymlinkInTheWay: a directory of ours is a symlink.
        OSError: it cannot be opened.
    """
    parts = directory.parts
    if HOME in parts:
        trusted = len(parts) - 1 - parts[::-1].index(HOME)
    else:
        trusted = len(parts) - 1 if is_own else len(parts)
    descriptor = os.open(Path(*parts[:trusted]), _DIRECTORY)
    try:
        for position in range(trusted, len(parts)):
            inner = _opened_inside(descriptor, Path(*parts[: position + 1]))
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _opened_inside(above: int, path: Path) -> int:
    try:
        return os.open(path.name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.ELOOP} and stat.S_ISLNK(_mode(above, path.name)):
            raise _SymlinkInTheWay(path) from error
        raise


# --- what is ours ---------------------------------------------------------------------------------


def _judge_spec(top: int, name: str) -> str | None:
    if _SPEC_TEMPORARY.fullmatch(name):
        return _unless_regular(top, name)
    if name != FILE_NAME:
        return None
    return _unless_regular(top, name) or _unless_spec(top, name)


def _unless_spec(top: int, name: str) -> str:
    """Know a spec of ours by its kind, and by no device having a name that is not of our spelling.

    Others write files of the same name: it is the one that the CDI library gives.
    """
    descriptor = os.open(name, _READ, dir_fd=top)
    with os.fdopen(descriptor, "rb") as file:
        text = file.read(_MAX_SPEC_BYTES)
    try:
        document = read(text, name=name)
    except SpecInvalid:
        return "it is no spec that this agent wrote"
    names = document.devices
    if document.kind == KIND and names and all(n == ALL or is_device_id(n) for n in names):
        return ""
    return "it is a spec of somebody else's, who names devices otherwise"


def _judge_link(top: int, name: str) -> str | None:
    hidden = _HIDDEN.fullmatch(name)
    if not is_device_id(hidden[1] if hidden else name):
        return None
    return "" if stat.S_ISLNK(_mode(top, name)) else "it is no link"


def _judge_monitor(top: int, name: str) -> str | None:
    if name != ALL and not is_device_id(name) and not _MONITOR_TEMPORARY.fullmatch(name):
        return None
    return "" if stat.S_ISDIR(_mode(top, name)) else "it is no directory"


def _judge_machine(top: int, name: str) -> str | None:
    """Know what a simulated machine left that was killed: by its marker, and nothing else in it.

    Or what we have moved out of one, and had no time for or could not remove.
    """
    if not stat.S_ISDIR(_mode(top, name)):
        return None
    if _SUNK.fullmatch(name):
        return ""
    with _inside(top, name) as within:
        names = _names(within)
        if _MACHINE_MARKER not in names:
            return None
        strange = [inner for inner in names if inner not in _MACHINE]
        if strange:
            return f"there is {_listed(strange)} in it"
        try:
            fcntl.flock(within, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as whoever keeps a machine does
        except BlockingIOError as error:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from error
    return ""


def _judge_cordons(file_name: str, top: int, name: str) -> str | None:
    temporary = rf"\.{re.escape(file_name)}\.{_HEX}\.tmp"
    if name in {file_name, f".{file_name}.lock"} or re.fullmatch(temporary, name):
        return _unless_regular(top, name)
    return None


def _judge_socket(is_named: Callable[[str], bool], top: int, name: str) -> str | None:
    if not is_named(name):
        return None
    if not _is_socket(top, name):
        return "it is no socket"
    if _answers(top, name):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    return ""


def _is_named(expected: str, name: str) -> bool:
    hidden = _HIDDEN.fullmatch(name)
    return expected in {name, hidden[1] if hidden else name}


def _is_web_socket(expected: str, name: str) -> bool:
    return name == expected or _WEB_TEMPORARY.fullmatch(name) is not None


def _is_endpoint(endpoints: frozenset[str], name: str) -> bool:
    hidden = _HIDDEN.fullmatch(name)
    name = hidden[1] if hidden else name
    return name in endpoints or _ENDPOINT.fullmatch(name) is not None


def _unless_regular(top: int, name: str) -> str:
    return "" if stat.S_ISREG(_mode(top, name)) else "it is no regular file"


def _is_socket(top: int, name: str) -> bool:
    return stat.S_ISSOCK(_mode(top, name))


def _mode(top: int, name: str) -> int:
    return os.stat(name, dir_fd=top, follow_symlinks=False).st_mode


def _answers(top: int, name: str) -> bool:
    """Tell whether somebody listens at a socket; by way of the directory, as no path is too long.

    Raises:
        OSError: it is gone, or nobody may connect.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(0)
        try:
            caller.connect(f"/proc/self/fd/{top}/{name}")
        except ConnectionRefusedError:
            return False
        except OSError as error:
            # A backlog that is full, or a socket of another type: somebody has it.
            if error.errno not in {errno.EAGAIN, errno.EPROTOTYPE}:
                raise
        return True


# --- removing -------------------------------------------------------------------------------------


def _remove(top: int, name: str) -> None:
    if stat.S_ISDIR(_mode(top, name)):
        _dissolve(top, name)
    else:
        os.unlink(name, dir_fd=top)


def _dissolve(top: int, name: str) -> None:
    """Remove a directory that containers wrote into, whatever they made of it.

    Directories in it are moved up first, so that none is too deep; what is mounted there is not
    entered. What cannot be removed keeps nothing else.

    Raises:
        OSError: the first thing that could not be removed, or somebody goes on writing.
    """
    trouble: OSError | None = None
    pending = [name]
    while pending:
        name, sunk = pending.pop(), list[str]()
        try:
            with _inside(top, name) as within:
                _empty(top, within, sunk)
            os.rmdir(name, dir_fd=top)
        except FileNotFoundError:
            pass
        except OSError as error:
            trouble = trouble or error
        pending += sunk
    if trouble is not None:
        raise trouble


@contextmanager
def _inside(top: int, name: str) -> Iterator[int]:
    descriptor = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _empty(top: int, within: int, sunk: list[str]) -> None:
    """Empty a directory; names the directories in it, which are in the top one from then on."""
    if _mount_of(within) != _mount_of(top):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    trouble: OSError | None = None
    for _ in range(_PASSES):
        names = sorted(_names(within), key=_MACHINE_MARKER.__eq__)
        for name in names:
            if name == _MACHINE_MARKER and trouble is not None:
                break  # without it nobody would know the rest again
            try:
                if stat.S_ISDIR(_mode(within, name)):
                    # As the agent names what it is to clear away, should we be killed.
                    aside = f".old-{secrets.token_hex(8)}"
                    os.rename(name, aside, src_dir_fd=within, dst_dir_fd=top)
                    sunk.append(aside)
                else:
                    os.unlink(name, dir_fd=within)
            except FileNotFoundError:
                pass
            except OSError as error:
                trouble = trouble or error
        if trouble is not None:
            raise trouble
        if not names:
            return
    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))


def _mount_of(descriptor: int) -> str:
    """Name the mount it was opened in; a bind mount of the same filesystem is another one, too."""
    told = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    return next((line for line in told.splitlines() if line.startswith("mnt_id:")), "")


def _names(directory: int) -> list[str]:
    return sorted(os.listdir(directory))


def _in_words(error: OSError) -> str:
    remedies = {
        errno.EROFS: "it is mounted read-only; mount it writable",
        errno.EACCES: "no permission; run as root, in a container with the capability DAC_OVERRIDE",
        errno.EPERM: "not permitted; run as root, and see with lsattr whether it is immutable",
        errno.EBUSY: "something is mounted there; unmount it, in a pod mount the directory above",
        errno.EADDRINUSE: "somebody answers there; stop who does",
        errno.ENOTEMPTY: "a container goes on writing there; stop it",
        errno.EIO: "the disk fails; see the kernel's log",
    }
    return remedies.get(error.errno or 0, os.strerror(error.errno or 0))
