"""The listener: what each device's firmware says by itself, heard by a process for each device.

Off unless ordered, for it has its price. Whoever listens has the device open: the chip stays awake
(D0), its power state no longer tells whether somebody uses it, and the kernel module
cannot be unloaded (`rmmod`: in use) until listening ends. It takes nothing from applications, whose
library listens too: the kernel driver wakes all of its readers. It keeps only the last notification
for them, so of several at once some are lost.

A process that waits here may be ended at any time, for no firmware control is cut short by that.
Devices whose kernel driver's exact version is unknown are not listened to, and neither are those
that the driver has no notifications for: a chip with a Linux of its own has none.
"""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import IO, Final, cast

import anyio

from hailo_agent.aio.supervise import Backoff
from hailo_agent.core.control import FrameInvalid
from hailo_agent.core.device import DeviceId
from hailo_agent.core.health import Evidence, Fault
from hailo_agent.core.ioctls import Ioctls, size_of, table
from hailo_agent.core.notifications import Heard, Kind, decode, evidence, remember
from hailo_agent.errors import HostError
from hailo_agent.host import listener

Report = Callable[[str], None]

_TURN_SECONDS: Final = 1.0
"""How often it is looked which devices there are, and whether silence has lasted long enough."""

_ENVIRONMENT: Final = ("LD_LIBRARY_PATH",)  # where an interpreter may have its library

_OPEN_SECONDS: Final = 10.0
_STOP_SECONDS: Final = 2.0
_GLANCE_SECONDS: Final = 0.02
_PAUSE_SECONDS: Final = 0.02
"""After each notification: a driver that never blocks must not keep us busy. The pipe holds 40."""

_REFUSED: Final = frozenset({errno.EINVAL, errno.ENOTTY})
"""What the kernel driver says for a device that has no notifications, and at a device's end."""

_REFUSALS: Final = 3
_LASTING_SECONDS: Final = 5.0
"""Who listened this long was not refused; it was the device that ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device to listen to. Any difference makes it another one, of which nothing is known."""

    id: DeviceId
    path: str
    """Its devnode, which is sound."""
    driver_version: str | None
    present_since: float


@dataclass(slots=True)
class _Ear:
    """What is known from listening to one device."""

    target: Target
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    is_open: bool = False
    """Whether a process of ours has it open, or tries to open it."""
    since: float | None = None
    """Since when it is listened to; None while it is not."""
    heard: Mapping[Kind, Heard] = field(default_factory=dict)
    reason: str = ""
    """Why it is not listened to, or was not a moment ago."""
    doubt: str = ""
    """Why its last notification was not understood."""
    refusals: int = 0
    told: frozenset[Fault] = frozenset()
    """What there was to be known when the bell was rung last."""


@dataclass(slots=True, kw_only=True)
class Listeners:
    """One ear for each device. The bell is rung when what has been heard proves something else."""

    targets: Callable[[], Collection[Target]]
    ring: Callable[[str], None]
    silence_seconds: float
    """How long what has no all-clear is held against a device."""
    _ears: dict[DeviceId, _Ear] = field(default_factory=dict, init=False)

    async def listen(self, report: Report) -> None:
        """Listen to every device there is, for ever."""
        try:
            async with anyio.create_task_group() as group:
                while True:
                    self._follow(group)
                    for ear in self._ears.values():
                        self._tell(ear)
                    report("; ".join(self._reasons()))
                    await anyio.sleep(_TURN_SECONDS)
        finally:
            self._ears.clear()

    def evidence(self, device_id: DeviceId, at: float) -> Evidence:
        """Say what has been heard of a device; of one that is not listened to, nothing is known."""
        ear = self._ears.get(device_id)
        return evidence(
            device_id,
            () if ear is None else ear.heard.values(),
            at=at,
            since=None if ear is None else ear.since,
            silence_seconds=self.silence_seconds,
        )

    def heard(self, device_id: DeviceId) -> tuple[Heard, ...]:
        """Tell of each kind the last notification, and how many there have been."""
        ear = self._ears.get(device_id)
        return () if ear is None else tuple(ear.heard.values())

    def keeps_awake(self, device_id: DeviceId) -> bool:
        """Tell whether it is us who have a device open: its power state proves nothing then."""
        ear = self._ears.get(device_id)
        return ear is not None and ear.is_open

    def _follow(self, group: anyio.abc.TaskGroup) -> None:
        """Have an ear for each target, and none for what is gone or has become another."""
        wanted = {target.id: target for target in self.targets()}
        for device_id, ear in tuple(self._ears.items()):
            if wanted.get(device_id) != ear.target:
                ear.scope.cancel()
                del self._ears[device_id]
        for device_id in wanted.keys() - self._ears.keys():
            ear = self._ears[device_id] = _Ear(wanted[device_id])
            group.start_soon(self._attend, ear)

    def _reasons(self) -> list[str]:
        """Say what is amiss; what fails as soon as it is open again has not recovered."""
        now = asyncio.get_running_loop().time()
        for ear in self._ears.values():
            if ear.since is not None and now - ear.since >= _TURN_SECONDS:
                ear.reason = ""
        reasons = {id_: ear.reason or ear.doubt for id_, ear in sorted(self._ears.items())}
        return [f"{id_}: {reason}" for id_, reason in reasons.items() if reason]

    def _tell(self, ear: _Ear) -> None:
        """Ring if there is something else to be known of a device than there was."""
        if ear.since is None or self._ears.get(ear.target.id) is not ear:
            return
        now = asyncio.get_running_loop().time()
        faults = frozenset(self.evidence(ear.target.id, now).faults)
        if faults != ear.told:
            ear.told = faults
            self.ring("notification")

    async def _attend(self, ear: _Ear) -> None:
        """Listen to one device, again and again."""
        ioctls = table(ear.target.driver_version)
        if ioctls is None:
            ear.reason = f"driver {ear.target.driver_version} is unknown: it is not listened to"
            return
        backoff = Backoff(first_seconds=1.0, most_seconds=60.0)
        loop = asyncio.get_running_loop()
        with ear.scope:
            while ear.refusals < _REFUSALS:
                started_at = loop.time()
                ear.is_open = True
                try:
                    await self._listen(ear, ioctls)
                except HostError as error:
                    ear.reason = str(error)
                finally:
                    ear.is_open, ear.since = False, None
                ran_seconds = loop.time() - started_at
                if ran_seconds >= _LASTING_SECONDS:
                    ear.refusals = 0
                await anyio.sleep(backoff.next(ran_seconds))

    async def _listen(self, ear: _Ear, ioctls: Ioctls) -> None:
        """Hear what a device says until there is no more to be heard.

        Raises:
            HostError: always, and why.
        """
        loop = asyncio.get_running_loop()
        async with _process(ear.target.path, ioctls.notification) as pipe:
            try:
                with anyio.fail_after(_OPEN_SECONDS):
                    await self._next(ear, pipe, 0)
            except TimeoutError:
                raise HostError(f"{ear.target.path} does not open", edge="host") from None
            ear.since = loop.time()
            while True:
                argument = await self._next(ear, pipe, size_of(ioctls.notification))
                try:
                    said = decode(argument, ioctls)
                except FrameInvalid as error:
                    ear.doubt = f"it is not understood: {error}"
                else:
                    ear.doubt = ""
                    ear.heard = remember(ear.heard, said, loop.time())
                    self._tell(ear)
                await anyio.sleep(_PAUSE_SECONDS)

    async def _next(self, ear: _Ear, pipe: IO[bytes], size: int) -> bytes:
        """Read the next record, which has so many bytes.

        Raises:
            HostError: there is none, and why.
        """
        error, length = listener.RECORD.unpack(await _read(pipe, listener.RECORD.size))
        if not error and length == size:
            return await _read(pipe, length)
        path = ear.target.path
        if not error:
            raise HostError(f"the process that listened said {length} bytes", edge="host")
        if error == listener.NOT_A_DEVICE:
            raise HostError(f"{path} is no character device", edge="host")
        if ear.since is None:
            raise HostError(f"{path} cannot be opened: {os.strerror(error)}", edge="host")
        if error in _REFUSED:
            ear.refusals += 1
            raise HostError("the kernel driver has no notifications for it", edge="host")
        raise HostError(f"listening ended: {os.strerror(error)}", edge="host")


@asynccontextmanager
async def _process(path: str, number: int) -> AsyncIterator[IO[bytes]]:
    """Run a listener for the length of the block, and give what it writes.

    It ends with us, even if we are killed: then the pipe that is its standard input ends.
    """
    process = _start([sys.executable, "-I", "-S", listener.__file__, path, str(number)])
    lifeline, output = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
    with output:
        try:
            yield output
        finally:
            lifeline.close()
            process.terminate()
            # One that hangs in the kernel driver ends when that lets it go.
            with anyio.move_on_after(_STOP_SECONDS, shield=True):
                while process.poll() is None:  # noqa: ASYNC110 - see hailortcli.py
                    await anyio.sleep(_GLANCE_SECONDS)


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603 - our own script
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            start_new_session=True,
        )
    except OSError as error:
        raise HostError(f"no process can listen: {error.strerror}", edge="host") from error


async def _read(pipe: IO[bytes], size: int) -> bytes:
    """Read exactly so much.

    Raises:
        HostError: there is no more.
    """
    read = b""
    while len(read) < size:
        await anyio.wait_readable(pipe)
        part = os.read(pipe.fileno(), size - len(read))
        if not part:
            raise HostError("the process that listened has ended", edge="host")
        read += part
    return read
