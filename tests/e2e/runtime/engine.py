"""Podman and runc, in a mount namespace of their own.

There, `/run` is an empty tmpfs: `/var/run/cdi`, podman's own state and whatever else they leave
behind is in it and goes with it, so that the machine's own is neither read nor touched. An agent
started with `prefix` lives in the same namespace and writes where podman reads, at the real path.
Containers need no image: their root is a directory with busybox and `inside.sh`.
"""

import asyncio
import hashlib
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

INSIDE: Final = Path(__file__).with_name("inside.sh")
CDI_DIR: Final = "/var/run/cdi"
LINKS_DIR: Final = "/run/hailo-agent/devices"
SPEC: Final = "/run/cdi/hailo.ai-npu.json"
"""The agent's spec; not by way of /var/run, a link that would lead back to the machine's own."""

STANDARD_NODES: Final = frozenset(
    f"/dev/{name}"
    for name in ("null", "zero", "full", "random", "urandom", "tty", "pts/ptmx", "console")
)
"""What every container has (OCI runtime specification, "Default Devices")."""

_TOOLS: Final = {
    "podman": "podman",
    "runc": "runc",
    "busybox": "busybox-static",
    "unshare": "util-linux",
    "nsenter": "util-linux",
}
_RUN_SECONDS: Final = 60.0
_TIDY_SECONDS: Final = 10.0
_CGROUPS: Final = Path("/sys/fs/cgroup")

_PODMAN: Final = (
    "podman",
    "--root=/run/podman/root",
    "--runroot=/run/podman/runroot",
    "--tmpdir=/run/podman/tmp",
    "--storage-driver=vfs",
    "--cgroup-manager=cgroupfs",
    "--events-backend=none",
    "--runtime=runc",  # crun 1.8 refuses hosts with a hybrid cgroup hierarchy
)

_NAMESPACE: Final = """
set -e
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs /run
[ /var/run -ef /run ] || mount --bind /run /var/run
[ ! -d /etc/cdi ] || mount -t tmpfs -o mode=0755 tmpfs /etc/cdi
"""


class NoEngine(Exception):
    """Raised where containers cannot be run; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a podman ended and what it wrote."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A device node in a container."""

    number: tuple[int, int]
    owner: tuple[int, int]


@dataclass(slots=True)
class View:
    """What a container found in itself, until it ended or marked a point."""

    nodes: dict[str, Node] = field(default_factory=dict)
    """Device nodes beyond the standard ones, by path."""
    classes: dict[str, set[str]] = field(default_factory=dict)
    """Entries of each class directory that is there."""
    digests: dict[str, str] = field(default_factory=dict)
    """Of each file below a class entry, by `class/entry/file`."""
    opened: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    """Nodes that did not open, and the kernel's words."""
    scans: dict[str, int] = field(default_factory=dict)
    """libhailort's status for each class scanned."""
    found: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    """By class and entry, what the scan read there."""

    def take(self, line: str) -> None:
        """Take in one line of inside.sh."""
        match line.split():
            case ["node", path, number, owner] if path not in STANDARD_NODES:
                major, minor = (int(part, 16) for part in number.split(":"))
                uid, gid = (int(part) for part in owner.split(":"))
                self.nodes[path] = Node(number=(major, minor), owner=(uid, gid))
            case ["node", *_]:
                pass
            case ["class", name]:
                self.classes[name] = set()
            case ["entry", name, entry]:
                self.classes[name].add(entry)
            case ["file", _, path, digest]:
                self.digests[os.path.relpath(path, "/sys/class")] = digest
            case ["opened", path]:
                self.opened.add(path)
            case ["refused", path, *why]:
                self.refused[path] = " ".join(why)
            case ["scan", name, status, *_]:
                self.scans[name] = int(status)
            case ["found", name, entry, *texts]:
                self.found.setdefault(name, {})[entry] = tuple(texts)
            case _:
                raise ValueError(f"inside.sh says {line!r}")


def views(out: str) -> list[View]:
    """Read what inside.sh wrote: a view up to each mark, and one up to the end if it got there."""
    found = [View()]
    for line in out.splitlines():
        if line.startswith("mark ") or line == "end":
            found.append(View())
        else:
            found[-1].take(line)
    return found[:-1]


def digests_on_host(sys: Path, class_name: str, entries: Sequence[str]) -> dict[str, str]:
    """Tell of each file in these class entries what `View.digests` tells of it."""
    told = {}
    for entry in entries:
        base = sys / "class" / class_name / entry
        for directory, _, names in os.walk(base):
            for name in names:
                path = Path(directory, name)
                if path.is_file() and not path.is_symlink():
                    told[f"{class_name}/{entry}/{path.relative_to(base)}"] = _digest(path)
    return told


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "unreadable"


@dataclass(slots=True, kw_only=True)
class Engine:
    """Podman in its namespace. Made by `started`."""

    pid: int
    """Of the process that holds the namespace."""
    rootfs: Path
    cgroup: str
    sys: Path | None = None
    """A tree to be the containers' `/sys`; None for the kernel's own."""

    @property
    def prefix(self) -> tuple[str, ...]:
        """The command that runs another one in this namespace."""
        return ("nsenter", f"--mount=/proc/{self.pid}/ns/mnt", "--")

    def seen(self, path: str) -> Path:
        """Tell where a path of the namespace is for this process."""
        return Path(f"/proc/{self.pid}/root{path}")

    def command(self, *arguments: str) -> tuple[str, ...]:
        """Spell the command that runs podman in this namespace."""
        return *self.prefix, *_PODMAN, *arguments

    async def run(self, *arguments: str) -> Finished:
        """Run podman to its end."""
        async with self.running(*arguments) as process:
            async with asyncio.timeout(_RUN_SECONDS):
                out, err = await process.communicate()
            assert process.returncode is not None
            return Finished(code=process.returncode, out=out.decode(), err=err.decode())

    @asynccontextmanager
    async def running(self, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run podman for the length of the block at most."""
        process = await asyncio.create_subprocess_exec(
            *self.command(*arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.communicate()

    def container(self, *flags: str, inside: str) -> tuple[str, ...]:
        """Spell `podman run` with these flags and what inside.sh is to tell."""
        own_sys = () if self.sys is None else ("--volume", f"{self.sys}:/sys:ro")
        return (
            "run",
            "--rm",
            "--read-only",
            "--network=none",
            "--log-driver=none",
            # Podman would raise them, which takes a privilege that root in a box may not have.
            "--ulimit=nofile=1024:1024",
            "--ulimit=nproc=1000:1000",
            f"--cgroup-parent=/{self.cgroup}",
            *own_sys,
            *flags,
            "--rootfs",
            str(self.rootfs),
            "/bin/sh",
            "/inside",
            *inside.split(),
        )

    async def look(self, *flags: str, inside: str) -> View:
        """Run a container that has to succeed, and tell what it found."""
        finished = await self.run(*self.container(*flags, inside=inside))
        assert finished.code == 0, finished
        [view] = views(finished.out)
        return view

    def changed_since(self, before: Mapping[str, list[str]]) -> dict[str, set[str]]:
        """Tell which traces came or went since `before`."""
        now = self.traces()
        changed = {what: set(before[what]) ^ set(now[what]) for what in before}
        return {what: traces for what, traces in changed.items() if traces}

    def traces(self) -> dict[str, list[str]]:
        """List all that a container might leave behind: devices, mounts, cgroups, files.

        Whatever else goes on on this machine is left out, as far as it can be told apart.
        """
        files = [*_walk(self.seen("/run")), *_walk(self.rootfs)]
        return {
            "devices": [
                *map(str, Path("/dev").glob("vcs*")),
                *map(str, Path("/sys/class/vc").iterdir()),
            ],
            "mounts of the host": [m for m in _mounts("self") if self._could_be_of_containers(m)],
            "mounts of the namespace": _mounts(self.pid),
            "cgroups": [str(path) for path in _cgroups(self.cgroup)],
            "files": sorted(f.removeprefix(str(self.seen(""))) for f in files),
        }

    def _could_be_of_containers(self, mount: str) -> bool:
        marks = (str(self.rootfs), self.cgroup, "/run/podman", "libpod", "/sys/class", "/dev/vcs")
        return any(mark in mount for mark in marks)


@contextmanager
def started(rootfs: Path, *, setup: str = "", sys: Path | None = None) -> Iterator[Engine]:
    """Have a namespace in which podman runs; `setup` is shell for what else is mounted in it.

    Raises:
        NoEngine: the tools are not here, or may not be used.
    """
    missing = sorted({package for tool, package in _TOOLS.items() if shutil.which(tool) is None})
    if missing:
        raise NoEngine(f"no containers here: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise NoEngine("no containers here: only root may make device cgroups")
    cgroup = f"hailo-agent-e2e-{secrets.token_hex(4)}"
    # It waits for the end of its input, so that it ends with us however we end.
    script = f"{_NAMESPACE}\n{setup}\necho ready\nexec cat"
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation=private", "--", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stderr is not None
        try:
            if holder.stdout.readline() != "ready\n":
                raise NoEngine(f"no mount namespace here: {holder.stderr.read().strip()}")
            yield Engine(pid=holder.pid, rootfs=rootfs, cgroup=cgroup, sys=sys)
        finally:
            holder.stdin.close()
            _remove_cgroups(cgroup)


def try_out(engine: Engine) -> None:
    """See that a container runs at all.

    Raises:
        NoEngine: it does not; says why, in podman's words.
    """
    tried = subprocess.run(
        engine.command(*engine.container(inside="nodes")),
        capture_output=True,
        text=True,
        timeout=_RUN_SECONDS,
        check=False,
    )
    if tried.returncode:
        raise NoEngine(f"no containers here: {tried.stderr.strip()}")


def build_rootfs(directory: Path) -> None:
    """Make the root of a container: busybox, inside.sh, and the places podman mounts onto."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise NoEngine("no containers here: apt-get install busybox-static")
    for name in ("bin", "dev", "etc", "proc", "run", "sys", "tmp", "var/tmp"):
        (directory / name).mkdir(parents=True)
    for name in ("etc/hosts", "etc/hostname", "etc/resolv.conf", "run/.containerenv"):
        (directory / name).touch()
    (directory / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (directory / "etc/group").write_text("root:x:0:\n")
    (directory / "etc/mtab").symlink_to("/proc/mounts")
    shutil.copy(busybox, directory / "bin/busybox")
    shutil.copy(INSIDE, directory / "inside")
    for applet in subprocess.check_output([busybox, "--list"], text=True).split():
        with suppress(FileExistsError):
            (directory / "bin" / applet).symlink_to("busybox")


def device_flags(names: Sequence[str]) -> list[str]:
    """Spell names of the spec as podman's users do."""
    return [f"--device=hailo.ai/npu={name}" for name in names]


def numbers(view: View) -> Mapping[str, tuple[int, int]]:
    """Tell the number of each node beyond the standard ones."""
    return {path: node.number for path, node in view.nodes.items()}


def _mounts(process: int | str) -> list[str]:
    lines = Path(f"/proc/{process}/mountinfo").read_text().splitlines()
    return sorted(line.partition(" ")[2] for line in lines)  # without the mount's own number


def _cgroups(name: str) -> list[Path]:
    tops = [*_CGROUPS.glob(name), *_CGROUPS.glob(f"*/{name}")]
    return [Path(path) for top in tops for path, _, _ in os.walk(top)]


def _remove_cgroups(name: str) -> None:
    """Remove what podman keeps: its conmon is in there for a moment longer than the container."""
    deadline = time.monotonic() + _TIDY_SECONDS
    while (left := sorted(_cgroups(name), reverse=True)) and time.monotonic() < deadline:
        for directory in left:
            with suppress(OSError):
                directory.rmdir()
        time.sleep(0.005)


def _walk(top: Path) -> Iterator[str]:
    for directory, names, files in os.walk(top):
        yield from (f"{directory}/{name}" for name in [*names, *files])
