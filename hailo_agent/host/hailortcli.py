"""The vendor's own command as a second opinion: found, checked, run, and never cut short.

`hailortcli` belongs to one exact version of the kernel driver and is used with no other. It opens
what it identifies and sends a firmware control, whose answer would be taken for somebody else's if
the process died midway. So asyncio does not run it, which kills what still runs when a loop ends:
what outlives its deadline is left to itself, and nothing more is started until it has ended.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, TypeVar, cast

import anyio

from hailo_agent.core.device import PciAddress
from hailo_agent.core.drivers import Version
from hailo_agent.core.hailortcli import (
    MAX_BYTES,
    Identified,
    OutputInvalid,
    Reading,
    parse_identify,
    parse_scan,
    parse_version,
)
from hailo_agent.errors import HostError

T = TypeVar("T")

NAME: Final = "hailortcli"

_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
    # Else the library writes hailort.log where it is started, and below $HOME.
    "HAILORT_LOGGER_PATH": "NONE",
    "HOME": "/nonexistent",
}
_INHERITED: Final = ("LD_LIBRARY_PATH",)
"""Where the command is mounted from the host, so is its library, and that is how it is found."""
_DIRECTORY: Final = "/"

_GLANCE_SECONDS: Final = 0.02
"""Between two looks at whether it has ended, while it may be waited for."""
_ATTENTIVE_SECONDS: Final = 10.0
_GLANCE_LATER_SECONDS: Final = 1.0
_FLOOD_PAUSE_SECONDS: Final = 0.1
"""Between two reads of what is too much anyway: endless output must not cost endless time."""
_CHUNK_BYTES: Final = 64 * 1024
_MAX_WORDS: Final = 160


@dataclass(frozen=True, slots=True)
class _File:
    """What stood at a path; an upgrade puts something else there."""

    device: int
    inode: int
    size: int
    modified_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Printed:
    """How one run ended, and what it said."""

    status: int
    """Exit status, or a signal's number below 0."""
    output: bytes
    errors: bytes


@dataclass(slots=True, kw_only=True)
class HailortCli:
    """The command on this machine, if there is one that may be used."""

    command: str
    """Its path, or its name in PATH."""
    deadline_seconds: float
    """How long one run of it is waited for."""
    _running: asyncio.Task[_Printed] | None = field(default=None, init=False)
    _asked: str = field(default="", init=False)
    """What the last run was asked."""
    _known: tuple[_File, Version] | None = field(default=None, init=False)
    _identified: dict[PciAddress, Identified] = field(default_factory=dict, init=False)

    async def look(
        self, *, drivers: Collection[str], identify: Collection[PciAddress], at: float
    ) -> Reading:
        """Scan, and identify those devices of which the caller knows that nobody uses them.

        `drivers` are the versions of the kernel drivers that are loaded. What was identified before
        is told again for as long as it stays listed. Never raises: whatever went wrong is the
        reading's reason, in the same words each time.
        """
        try:
            binary = self._binary()
            version = await self._version(binary)
        except HostError as error:
            return Reading(at=at, reason=str(error))
        if str(version) not in drivers:
            self._identified = {}
            loaded = " and ".join(sorted(drivers)) or "not loaded"
            reason = f"{NAME} is {version}, the kernel driver is {loaded}: it is not used"
            return Reading(at=at, version=version, reason=reason)
        try:
            devices = await self._told(parse_scan, binary, "scan")
        except HostError as error:
            return Reading(at=at, version=version, reason=str(error))
        self._identified = {a: one for a, one in self._identified.items() if a in devices}
        reasons = []
        for address in sorted(set(identify) & set(devices)):
            try:
                await self._identify(binary, address)
            except HostError as error:
                reasons.append(str(error))
        return Reading(
            at=at,
            version=version,
            devices=devices,
            identified=tuple(self._identified.values()),
            reason=reasons[0] if reasons else "",
        )

    @property
    def is_there(self) -> bool:
        """Whether somebody installed it."""
        return Path(self.command).exists() or shutil.which(self.command) is not None

    async def rest(self, within_seconds: float) -> bool:
        """Wait until nothing of it runs any more; tells whether that is so."""
        if self._running is not None:
            await asyncio.wait({self._running}, timeout=within_seconds)
        return self._running is None or self._running.done()

    def _binary(self) -> Path:
        if "/" in self.command:
            return Path(self.command).absolute()
        found = shutil.which(self.command)
        if found is None:
            raise HostError(f"there is no {self.command} in PATH", edge="host")
        return Path(found).absolute()

    async def _version(self, binary: Path) -> Version:
        """Ask for its version, once for each file that stands there."""
        file = _find(binary)
        if self._known is None or self._known[0] != file:
            version = await self._told(parse_version, binary, "--version")
            if version is None:
                raise HostError(f"`{self._asked}` tells no version", edge="host")
            self._known = file, version
        return self._known[1]

    async def _identify(self, binary: Path, address: PciAddress) -> None:
        self._identified.pop(address, None)
        # Every version knows --bdf; --device-id came later.
        arguments = ("fw-control", "identify", "--bdf", str(address))
        for one in await self._told(parse_identify, binary, *arguments):
            if one.address == address:
                self._identified[address] = one

    async def _told(self, parse: Callable[[str], T], binary: Path, *arguments: str) -> T:
        """Run it and understand what it prints.

        Raises:
            HostError: it cannot be run, fails, does not end, or prints something else.
        """
        if self._running is not None and not self._running.done():
            raise HostError(f"`{self._asked}` has not ended yet", edge="host")
        self._asked = " ".join((NAME, *arguments))
        self._running = asyncio.create_task(_run(binary, arguments), name=self._asked)
        # Neither the deadline nor the cancellation of whoever waits reaches the task.
        await asyncio.wait({self._running}, timeout=self.deadline_seconds)
        if not self._running.done():
            raise HostError(
                f"`{self._asked}` did not end within {self.deadline_seconds:g} s", edge="host"
            )
        printed = self._running.result()
        _check(self._asked, printed)
        try:
            return parse(printed.output.decode("utf-8", "replace"))
        except OutputInvalid as error:
            raise HostError(f"`{self._asked}` is not understood: {error}", edge="host") from error


def _find(binary: Path) -> _File:
    try:
        found = binary.stat()
    except OSError as error:
        raise HostError(f"{binary} cannot be run: {error.strerror}", edge="host") from error
    return _File(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _check(asked: str, printed: _Printed) -> None:
    if printed.status < 0:
        name = signal.strsignal(-printed.status) or f"signal {-printed.status}"
        raise HostError(f"`{asked}` crashed: {name}", edge="host")
    if printed.status > 0:
        said = _last_line(printed.errors) or _last_line(printed.output) or "without a word"
        raise HostError(f"`{asked}` failed with status {printed.status}: {said}", edge="host")
    if len(printed.output) > MAX_BYTES:
        raise HostError(f"`{asked}` prints more than {MAX_BYTES // 1024} KiB", edge="host")


def _last_line(text: bytes) -> str:
    """Show the end of what it said in one line: there the reason is."""
    lines = text.decode("utf-8", "replace").split("\n")
    shown = ("".join(c for c in line if c.isprintable()).strip() for line in lines)
    return next((line for line in reversed([*shown]) if line), "")[:_MAX_WORDS]


# --- one run -------------------------------------------------------------------------------------


async def _run(binary: Path, arguments: Collection[str]) -> _Printed:
    """Run it to its end, however long that takes.

    Raises:
        HostError: it cannot be run.
    """
    process, output, errors = _start([str(binary), *arguments])
    said, complained = bytearray(), bytearray()
    with output, errors:
        async with anyio.create_task_group() as readers:
            readers.start_soon(_read, output, said)
            readers.start_soon(_read, errors, complained)
            await _until_ended(process)
            # What it left behind may still hold its pipes, and is not waited for.
            readers.cancel_scope.cancel()
        _drain(output, said)
        _drain(errors, complained)
    return _Printed(status=process.returncode, output=bytes(said), errors=bytes(complained))


def _start(command: list[str]) -> tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]:
    """Start it in a session of its own, where no signal reaches it that is meant for us."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    try:
        process = subprocess.Popen(  # noqa: S603 - what the operator installed, and no shell
            command,
            bufsize=0,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=_DIRECTORY,
            env={**_ENVIRONMENT, **inherited},
            start_new_session=True,
            restore_signals=False,  # leaves SIGPIPE ignored: nor does a closed pipe cut it short
        )
    except OSError as error:
        raise HostError(f"{command[0]} cannot be run: {error.strerror}", edge="host") from error
    output, errors = cast("IO[bytes]", process.stdout), cast("IO[bytes]", process.stderr)
    os.set_blocking(output.fileno(), False)
    os.set_blocking(errors.fileno(), False)
    return process, output, errors


async def _until_ended(process: subprocess.Popen[bytes]) -> None:
    loop = asyncio.get_running_loop()
    later = loop.time() + _ATTENTIVE_SECONDS
    while process.poll() is None:  # noqa: ASYNC110 - a pidfd is not to be had in every container
        await anyio.sleep(_GLANCE_SECONDS if loop.time() < later else _GLANCE_LATER_SECONDS)


async def _read(pipe: IO[bytes], kept: bytearray) -> None:
    """Keep a pipe empty until its other end is closed, and of its content as much as matters."""
    while True:
        await anyio.wait_readable(pipe)
        if not _drain(pipe, kept):
            return
        if len(kept) > MAX_BYTES:
            await anyio.sleep(_FLOOD_PAUSE_SECONDS)


def _drain(pipe: IO[bytes], kept: bytearray) -> bool:
    """Take what is there, one chunk at most; tells whether more may come."""
    try:
        chunk = os.read(pipe.fileno(), _CHUNK_BYTES)
    except BlockingIOError:
        return True
    kept += chunk[: MAX_BYTES + 1 - len(kept)]
    return bool(chunk)
