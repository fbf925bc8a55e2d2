"""What chips and their kernel drivers answer, asked in a way that survives no answer.

A call into a wedged kernel driver may never return, and nothing ends it. So a process of its own
makes the calls (`worker.py`), one device after the other. If it does not come back it is left
alone, because a firmware control that is cut short leaves its answer to whoever asks next; another
worker then serves the other devices. `senses` decides when to ask whom; what to ask and what the
answers mean is `core.ioctls`' and `core.control`'s.

Not asyncio's own subprocesses: these kill a child whose transport is collected, and on Python 3.11
cost a thread each.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from hailo_agent.core.chip import Chip, Trouble
from hailo_agent.core.control import (
    ControlRefused,
    FrameInvalid,
    Opcode,
    read_identity,
    read_state,
    read_temperatures,
    request,
)
from hailo_agent.core.device import DeviceId
from hailo_agent.core.ioctls import Ioctls, is_forbidden, size_of, table
from hailo_agent.errors import HostError
from hailo_agent.host.worker import CLOSE, HEAD, IOCTL, NOT_A_DEVICE, OPEN, RECORD

T = TypeVar("T")

COMMAND: Final = (sys.executable, "-I", "-S", str(Path(__file__).with_name("worker.py")))
"""A worker: an interpreter that looks at no environment and loads no site-packages."""

_ENVIRONMENT: Final = ("LD_LIBRARY_PATH",)  # where an interpreter may have its library

_START_SECONDS: Final = 10.0
_STOP_SECONDS: Final = 0.5
_REAP_SECONDS: Final = 0.01
_SLOWEST_REAP_SECONDS: Final = 2.0
_ERESTARTSYS: Final = 512  # the kernel's own, but a driver may let it slip
_INTERRUPTED: Final = frozenset({errno.EINTR, _ERESTARTSYS})
_DENIED: Final = frozenset({errno.EPERM, errno.EACCES})
_LOST: Final = frozenset({errno.ENODEV, errno.ENXIO})


# --- what is asked --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One ioctl."""

    number: int
    argument: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came of it."""

    error: int
    """An errno, or 0."""
    data: bytes
    """The argument as the kernel left it; empty after an error."""
    seconds: float


class Unanswered(HostError):
    """Raised when a device could not be asked, or not to the end."""

    def __init__(self, trouble: Trouble, message: str) -> None:
        """Say what that means for the device, and what happened."""
        super().__init__(message, edge="host")
        self.trouble = trouble


class _Unheard(Unanswered):
    """Raised when the worker died before it was reached."""


class Hung(Unanswered):
    """Raised when a call did not return in time, and for as long as it has not."""

    def __init__(self, message: str) -> None:
        """Say which."""
        super().__init__(Trouble.HUNG, message)


class Denied(Unanswered):
    """Raised when we may not open the devnode."""

    def __init__(self, message: str) -> None:
        """Say why not."""
        super().__init__(Trouble.DENIED, message)


# --- the prober -----------------------------------------------------------------------------------


class Prober:
    """Asks devices, one at a time. A lifetime: it has processes that end with it.

    `deadline_seconds`: after so long a call counts as hung. It must be longer than what the kernel
    driver waits for the firmware, twice, as somebody else may be before us.
    `idle_seconds`: after so long without a question no process is left.
    `most_hung`: with so many workers hung, no further one is started.
    """

    def __init__(
        self,
        *,
        deadline_seconds: float = 5.0,
        idle_seconds: float = 120.0,
        most_hung: int = 8,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """Start nothing yet."""
        self._deadline_seconds = deadline_seconds
        self._idle_seconds = idle_seconds
        self._most_hung = most_hung
        self._command = tuple(command)
        self._turn = asyncio.Lock()
        self._worker: _Worker | None = None
        self._hung: dict[DeviceId, _Worker] = {}
        self._retired: _Worker | None = None
        self._retirement: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        """Take it as open."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.close()

    async def close(self) -> None:
        """Let go of all workers, and wait only for one that has nothing to do.

        Whoever asks nevertheless has one started again.
        """
        self._expect_no_retirement()
        if not self._turn.locked():
            self._retire()
        try:
            if self._retired is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_STOP_SECONDS):
                        await self._retired.ended.wait()
        finally:  # also if nobody has time for that
            for worker in (self._worker, self._retired, *self._hung.values()):
                if worker is not None:
                    worker.abandon()
        await asyncio.sleep(0)  # transports close in the loop's next turn

    @property
    def hung(self) -> frozenset[DeviceId]:
        """Name the devices whose last call has not returned."""
        return frozenset(d for d, worker in self._hung.items() if not worker.has_ended)

    @property
    def pid(self) -> int | None:
        """Tell the process id of the worker, if there is one."""
        return None if self._worker is None else self._worker.pid

    async def ask(self, device_id: DeviceId, path: str, calls: Sequence[Call]) -> tuple[Reply, ...]:
        """Open a device, issue calls up to the first that fails, and close it.

        Raises:
            Unanswered: it could not be opened, or did not come back, or the worker died of it.
            HostError: no worker can be had.
        """
        replies: list[Reply] = []
        async with self._opened(device_id, path) as device:
            for call in calls:
                replies.append(await device.issue(call))
                if replies[-1].error:
                    break
        return tuple(replies)

    async def query(
        self, device_id: DeviceId, path: str, version: str, at: float, *, identify: bool = False
    ) -> Chip:
        """Ask a device all we know how to ask, its firmware for its identity only if told to.

        If nobody has read the kernel driver of that version, nothing is opened and nothing asked.

        Raises:
            HostError: no worker can be had. Of the device nothing is raised.
        """
        ioctls = table(version)
        if ioctls is None:
            return Chip(at=at)
        reading = _Reading(ioctls, at)
        try:
            async with self._opened(device_id, path) as device:
                await reading.take(device, identify=identify)
        except Unanswered as unanswered:
            return reading.ended(unanswered)
        return reading.chip

    # --- workers ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _opened(self, device_id: DeviceId, path: str) -> AsyncIterator[_Device]:
        """Have a device open, while nobody else has one."""
        async with self._turn:
            device = _Device(await self._find_worker(device_id), self._deadline_seconds)
            try:
                try:
                    await device.open(path)
                except _Unheard:  # the worker was killed while it had nothing to do
                    device = _Device(await self._find_worker(device_id), self._deadline_seconds)
                    await device.open(path)
                try:
                    yield device
                finally:
                    await device.close()
            finally:
                if device.worker.is_out:  # for too long, or somebody lost patience with us
                    self._leave(device_id, device.worker)
                else:
                    self._expect_retirement()

    async def _find_worker(self, device_id: DeviceId) -> _Worker:
        self._hung = {d: worker for d, worker in self._hung.items() if not worker.has_ended}
        if device_id in self._hung:
            raise Hung("the call before this one has not returned")
        self._expect_no_retirement()
        if self._worker is None or not self._worker.is_alive():
            if len(self._hung) >= self._most_hung:
                message = f"{len(self._hung)} processes hang in the kernel, and no more are risked"
                raise HostError(message, edge="host")
            self._worker = await _Worker.start(self._command)
        return self._worker

    def _leave(self, device_id: DeviceId, worker: _Worker) -> None:
        """Leave a worker where it is; it ends when its call has returned."""
        worker.dismiss()
        self._hung[device_id] = worker
        if self._worker is worker:
            self._worker = None

    def _expect_retirement(self) -> None:
        loop = asyncio.get_running_loop()
        self._retirement = loop.call_later(self._idle_seconds, self._retire)

    def _expect_no_retirement(self) -> None:
        if self._retirement is not None:
            self._retirement.cancel()
            self._retirement = None

    def _retire(self) -> None:
        if self._worker is not None and not self._turn.locked():
            self._worker.dismiss()
            self._retired = self._worker
            self._worker = None


# --- one reading ----------------------------------------------------------------------------------

_CONTROLS: Final[Mapping[Opcode, Callable[[Chip, bytes], Chip]]] = {
    Opcode.IDENTIFY: lambda chip, told: replace(chip, firmware=read_identity(told)),
    Opcode.GET_CHIP_TEMPERATURE: lambda chip, told: replace(
        chip, temperatures=read_temperatures(told)
    ),
    Opcode.GET_HEALTH_INFORMATION: lambda chip, told: replace(chip, state=read_state(told)),
}
"""What each answer of the firmware adds to a reading."""


class _Reading:
    """What a device has answered so far."""

    def __init__(self, ioctls: Ioctls, at: float) -> None:
        self._ioctls = ioctls
        self.chip = Chip(at=at)

    async def take(self, device: _Device, *, identify: bool) -> None:
        """Ask all there is to ask; raises Unanswered as soon as to go on makes no sense."""
        ioctls = self._ioctls
        driver = await self._ask(device, "driver info", ioctls.driver_info, ioctls.read_driver_info)
        self.chip = replace(self.chip, driver=driver)
        if driver != str(ioctls.version):  # then no number is sure to mean what we think it does
            message = f"the kernel driver says it is {driver}, its module {ioctls.version}"
            raise Unanswered(Trouble.FAILED, message)
        properties = await self._ask(
            device, "device properties", ioctls.properties, ioctls.read_properties
        )
        self.chip = replace(self.chip, properties=properties)
        for opcode in ioctls.opcodes_for(properties):
            if identify or opcode is not Opcode.IDENTIFY:
                await self._control(device, opcode)

    def ended(self, why: Unanswered) -> Chip:
        """Give what there is, and why there is no more."""
        return replace(self.chip, trouble=why.trouble, detail=str(why))

    async def _control(self, device: _Device, opcode: Opcode) -> None:
        try:
            self.chip = await self._ask(
                device,
                opcode.words,
                self._ioctls.control,
                lambda told: _CONTROLS[opcode](self.chip, told),
                request(opcode),
            )
        except ControlRefused as refused:
            # Not every board has every sensor; but what it is, each can say.
            if opcode is Opcode.IDENTIFY:
                raise Unanswered(Trouble.REFUSED, str(refused)) from refused

    async def _ask(
        self,
        device: _Device,
        what: str,
        number: int,
        read: Callable[[bytes], T],
        argument: bytes | None = None,
    ) -> T:
        argument = bytes(size_of(number)) if argument is None else argument
        reply = await device.issue(Call(number=number, argument=argument))
        self.chip = replace(self.chip, seconds=max(self.chip.seconds, reply.seconds))
        if reply.error:
            raise Unanswered(_meaning(reply.error), f"{what}: {os.strerror(reply.error)}")
        try:
            return read(reply.data)
        except FrameInvalid as invalid:
            raise Unanswered(Trouble.GARBAGE, f"{what}: {invalid.reason}") from invalid


def _meaning(error: int) -> Trouble:
    """Tell what an errno of open() or ioctl() says of the device."""
    if error in _LOST:
        return Trouble.LOST
    return Trouble.TIMED_OUT if error == errno.ETIMEDOUT else Trouble.FAILED


# --- a device that is open ------------------------------------------------------------------------


class _Device:
    """A device that the worker has open. A call that was interrupted is repeated once."""

    def __init__(self, worker: _Worker, deadline_seconds: float) -> None:
        self.worker = worker
        self._deadline_seconds = deadline_seconds

    async def open(self, path: str) -> None:
        """Open it, or raise Unanswered."""
        reply = await self._do(OPEN, os.fsencode(path))
        if reply.error == NOT_A_DEVICE:
            raise Unanswered(Trouble.FAILED, f"{path} is not a character device")
        if reply.error in _DENIED:
            raise Denied(f"open: {os.strerror(reply.error)}")
        if reply.error == errno.ENOENT:
            raise Unanswered(Trouble.LOST, f"there is no {path}")
        if reply.error:
            raise Unanswered(_meaning(reply.error), f"open: {os.strerror(reply.error)}")

    async def issue(self, call: Call) -> Reply:
        """Issue one ioctl; raises Hung, or Unanswered if the worker does not survive it."""
        if is_forbidden(call.number):
            raise ValueError(f"{call.number:#x} does more than read")
        return await self._do(IOCTL, call.argument, call.number)

    async def close(self) -> None:
        """Close it, unless its worker is dead, or in a call."""
        if not self.worker.is_lost and not self.worker.is_out:
            await self._do(CLOSE)

    async def _do(self, what: int, body: bytes = b"", number: int = 0) -> Reply:
        request = HEAD.pack(what, number, len(body)) + body
        reply = await self._once(request)
        return await self._once(request) if reply.error in _INTERRUPTED else reply

    async def _once(self, request: bytes) -> Reply:
        try:
            async with asyncio.timeout(self._deadline_seconds):
                return await self.worker.ask(request)
        except TimeoutError:
            message = f"no return within {self._deadline_seconds:g} s"
            raise Hung(message) from None
        except _WorkerLost as lost:
            kind = _Unheard if self.worker.was_unheard else Unanswered
            raise kind(Trouble.FAILED, f"the process that asked {lost}") from None


# --- the worker's process -------------------------------------------------------------------------


class _WorkerLost(Exception):
    """Raised when a worker does not answer because it has ended; says how."""


class _Worker(asyncio.Protocol):
    """The other end of a worker: one request at a time, and its death."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.is_lost = False
        """Whether it cannot be spoken to any more."""
        self.was_unheard = False
        """Whether it ended without having read the last request."""
        self.is_out = False
        """Whether it has been sent for an answer, and is not back."""
        self.ended = asyncio.Event()
        self._exit: int | None = None
        self._received = bytearray()
        self._moved = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def start(cls, command: Sequence[str]) -> _Worker:
        """Start one; raises HostError if there is none that answers."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                worker = cls(_spawn(command, theirs.fileno()))
            except OSError as error:
                ours.close()
                message = f"cannot start {command[0]}: {error.strerror}"
                raise HostError(message, edge="host") from error
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: worker, sock=ours)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await worker.ask(b"")
        except TimeoutError:
            message = f"{command[0]} did not start within {_START_SECONDS:g} s"
            raise HostError(message, edge="host") from None
        except _WorkerLost as lost:
            message = f"{' '.join(command)} {lost} as soon as it was started"
            raise HostError(message, edge="host") from None
        finally:
            if worker.is_out:
                worker.abandon()
        return worker

    async def ask(self, request: bytes) -> Reply:
        """Send a request and wait for its record; raises _WorkerLost."""
        self.is_out = True
        if self._transport is not None and not self.is_lost:
            self._transport.write(request)
        while (reply := self._take()) is None:
            if self.is_lost:
                self.is_out = False
                raise _WorkerLost(await self._obituary())
            self._moved.clear()
            await self._moved.wait()
        self.is_out = False
        return reply

    def is_alive(self) -> bool:
        """Look whether it is still there."""
        self._look()
        return not self.is_lost and not self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether its process is gone, and with it all that it had open."""
        return self.ended.is_set()

    def dismiss(self) -> None:
        """Have it end as soon as it is not in a call."""
        if self._transport is not None and not self.is_lost:
            self._transport.write_eof()

    def abandon(self) -> None:
        """Hear nothing more of it; for it that is a dismissal too."""
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio's side ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of a socket it always is
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Take a part of a record."""
        self._received += data
        self._moved.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Learn that it has closed its end: it has ended, or is about to."""
        self.is_lost = True
        # unix_release_sock() resets the connection if there was anything left to read.
        self.was_unheard = isinstance(exc, ConnectionError)
        self._moved.set()
        self._reap()

    # --- the end ---

    def _take(self) -> Reply | None:
        """Take a record off what was received."""
        if len(self._received) < RECORD.size:
            return None
        error, seconds, size = RECORD.unpack_from(self._received)
        end = RECORD.size + size
        if len(self._received) < end:
            return None
        data = bytes(self._received[RECORD.size : end])
        del self._received[:end]
        return Reply(error=error, data=data, seconds=seconds)

    async def _obituary(self) -> str:
        """Say how it ended, if that can be known soon."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await self.ended.wait()
        if self._exit is None:
            return "ended"
        if self._exit < 0:
            return f"was killed by {signal.Signals(-self._exit).name}"
        return f"ended with exit code {self._exit}"

    def _reap(self, delay_seconds: float = _REAP_SECONDS) -> None:
        """Look until the process is gone: it closes the device after it has closed our socket.

        By pid and not by signal, because SIGCHLD and the children of others are none of ours.
        """
        self._look()
        if not self.has_ended:
            again = min(2 * delay_seconds, _SLOWEST_REAP_SECONDS)
            asyncio.get_running_loop().call_later(delay_seconds, self._reap, again)

    def _look(self) -> None:
        if self.has_ended:
            return
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:  # somebody collects all children of this process
            self.ended.set()
            return
        if pid:
            self._exit = os.waitstatus_to_exitcode(status)
            self.ended.set()


def _spawn(command: Sequence[str], descriptor: int) -> int:
    """Start a process with one socket for both standard input and output; returns its id.

    It has a session of its own, so that no terminal and no process group's end reaches it, and all
    signals are blocked from its first instruction on.
    """
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return os.posix_spawn(
        command[0],
        tuple(command),
        {**environment, "LC_ALL": "C"},  # a locale of its own would only take up memory
        file_actions=[
            (os.POSIX_SPAWN_DUP2, descriptor, 0),
            (os.POSIX_SPAWN_DUP2, descriptor, 1),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ],
        setsid=True,
        setsigmask=signal.valid_signals(),
    )
