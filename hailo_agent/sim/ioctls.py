"""Devnodes that answer: real open(2) and ioctl(2) calls of another process, answered from here.

The process is unmodified. It is started under a seccomp filter (that is what this module does as a
command), and the kernel then hands us each of its calls that could be meant for a chip: we read
the argument from its memory, ask whoever stands behind the devnode, write the answer into its
memory, and tell what the call returns. No privilege is needed, and no kernel driver.

    python -m hailo_agent.sim.ioctls --socket PATH -- COMMAND …

`sim.node` is the caller; `sim.firmware` is what stands behind a devnode. See seccomp(2), and
seccomp_unotify(2) for what has to be checked when.
"""

import asyncio
import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import stat
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from hailo_agent.sim.firmware import FOR_EVER, Outcome
from hailo_agent.sim.machine import Machine

# --- what stands behind devnodes ------------------------------------------------------------------


class Chip(Protocol):
    """What stands behind one devnode; `SimulatedChip` does."""

    def open(self) -> Outcome:
        """Say what becomes of it when it is opened for reading and writing."""

    def ioctl(self, number: int, argument: bytes, /) -> Outcome:
        """Say what becomes of an ioctl. The argument is as long as the number says."""


class Devices(Protocol):
    """What stands behind all devnodes. None is for what the kernel itself shall answer."""

    def open(self, path: Path, /) -> Outcome | None:
        """Say what becomes of it when it is opened for reading and writing."""

    def ioctl(self, path: Path, number: int, argument: bytes, /) -> Outcome | None:
        """Say what becomes of an ioctl."""


class MachineDevices:
    """The chips of a simulated machine, by address. A function without one is left to the kernel.

    What is wrong with a devnode itself is wrong with it here too: a regular file is opened as
    such, and to a number that is not the board's no kernel driver answers.
    """

    def __init__(self, machine: Machine, chips: Mapping[str, Chip]) -> None:
        """Look into both whenever something is asked."""
        self._machine = machine
        self._chips = chips
        self._opened: dict[Path, tuple[str, str]] = {}
        """Whose devnode a path was when it was last opened, and under which kernel driver."""

    def open(self, path: Path) -> Outcome | None:
        """Open the chip that the devnode belongs to."""
        address = self._address(path)
        chip = None if address is None else self._chips.get(address)
        if address is None or chip is None:
            return None
        try:
            node = path.lstat()
        except OSError:
            return None
        number, generation = self._machine.number(address), self._machine.generation(address)
        if not stat.S_ISCHR(node.st_mode) or not number or not generation:
            return None
        if node.st_rdev != os.makedev(*number):
            return None
        if node.st_mode & 0o600 != 0o600:  # root in a container has no CAP_DAC_OVERRIDE
            return Outcome(error=errno.EACCES)
        self._opened[path] = address, generation.version
        return chip.open()

    def ioctl(self, path: Path, number: int, argument: bytes) -> Outcome | None:
        """Ask the chip that the devnode belonged to when it was opened."""
        if path not in self._opened:
            return None
        address, version = self._opened[path]
        if self._address(path) != address:  # an open file outlives its board
            return Outcome(error=errno.ENODEV if version < "5.0.1" else errno.ENXIO)
        chip = self._chips.get(address)
        return None if chip is None else chip.ioctl(number, argument)

    def _address(self, path: Path) -> str | None:
        if path.parent != self._machine.dev:
            return None
        entries = self._machine.entries.items()
        return next((address for address, entry in entries if entry == path.name), None)


# --- the filter -----------------------------------------------------------------------------------


class CannotSupervise(OSError):
    """The kernel or a sandbox around us does not let one process answer another's calls."""


@dataclass(frozen=True, slots=True)
class _Architecture:
    """Numbers of one machine: AUDIT_ARCH_*, of seccomp(2), and of the calls that are caught."""

    audit: int
    seccomp: int
    ioctl: int
    openat: int
    open: int | None = None
    """Newer architectures have none."""


_ARCHITECTURES: Final = {
    "x86_64": _Architecture(0xC000003E, 317, 16, 257, open=2),
    "aarch64": _Architecture(0xC00000B7, 277, 29, 56),
}
_CAUGHT_TYPES: Final = b"gnsv"
"""Type bytes of the vendor's ioctls: general, NNC, SOC, vDMA. The last must never be seen."""

_SIZE_SHIFT: Final = 16  # of the argument, in an ioctl's number
_SIZE_MASK: Final = 0x3FFF

_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_MODE_FILTER: Final = 1
_NEW_LISTENER: Final = 8
_RET_USER_NOTIF: Final = 0x7FC00000
_RET_ALLOW: Final = 0x7FFF0000

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_SHIFT: Final = 0x74  # BPF_ALU | BPF_RSH | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_NUMBER_AT: Final = 0  # in struct seccomp_data
_AUDIT_AT: Final = 4
_ARGUMENTS_AT: Final = 16

# A devnode is of use only to who may write; O_CREAT is for files. All that is left is caught.
_OPEN_MASK: Final = os.O_ACCMODE | os.O_CREAT
_OPEN_CAUGHT: Final = os.O_RDWR

_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install_filter() -> int:
    """Put this process, and all it becomes, under supervision; returns the supervisor's end.

    Raises:
        CannotSupervise: the kernel refuses, or has been refused by a sandbox.
    """
    machine = platform.machine()
    architecture = _ARCHITECTURES.get(machine)
    if architecture is None:
        raise CannotSupervise(errno.ENOSYS, f"no system call numbers are known for {machine}")
    code = b"".join(struct.pack("=HBBI", *line) for line in _filter(architecture))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener: int = libc.syscall(
        architecture.seccomp, _SET_MODE_FILTER, _NEW_LISTENER, ctypes.byref(program)
    )
    if listener < 0:
        number = ctypes.get_errno()
        raise CannotSupervise(number, f"seccomp: {os.strerror(number)}")
    return listener


def _filter(architecture: _Architecture) -> Iterator[_Instruction]:
    yield (_LOAD, 0, 0, _AUDIT_AT)
    yield (_EQUAL, 1, 0, architecture.audit)
    yield (_RETURN, 0, 0, _RET_ALLOW)
    yield (_LOAD, 0, 0, _NUMBER_AT)
    yield from _when(architecture.ioctl, _catch_types())
    yield from _when(architecture.openat, _catch_flags(argument=2))
    if architecture.open is not None:
        yield from _when(architecture.open, _catch_flags(argument=1))
    yield (_RETURN, 0, 0, _RET_ALLOW)


def _when(number: int, block: Sequence[_Instruction]) -> Iterator[_Instruction]:
    """Enter a block for one system call; it returns, and whoever passes still has the number."""
    yield (_EQUAL, 0, len(block), number)
    yield from block


def _catch_types() -> Sequence[_Instruction]:
    count = len(_CAUGHT_TYPES)
    return (
        (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * 1),
        (_SHIFT, 0, 0, 8),
        (_AND, 0, 0, 0xFF),
        *((_EQUAL, count - at, 0, letter) for at, letter in enumerate(_CAUGHT_TYPES)),
        (_RETURN, 0, 0, _RET_ALLOW),
        (_RETURN, 0, 0, _RET_USER_NOTIF),
    )


def _catch_flags(argument: int) -> Sequence[_Instruction]:
    return (
        (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument),
        (_AND, 0, 0, _OPEN_MASK),
        (_EQUAL, 1, 0, _OPEN_CAUGHT),
        (_RETURN, 0, 0, _RET_ALLOW),
        (_RETURN, 0, 0, _RET_USER_NOTIF),
    )


def under_supervision(path: Path) -> tuple[str, ...]:
    """Name what to put before a command so that the supervisor who serves `path` answers it."""
    return (sys.executable, "-m", "hailo_agent.sim.ioctls", "--socket", str(path), "--")


def main(arguments: Sequence[str]) -> int:
    """Become a command under supervision; returns only if that fails."""
    if len(arguments) < 4 or arguments[0] != "--socket" or arguments[2] != "--":
        print("usage: python -m hailo_agent.sim.ioctls --socket PATH -- COMMAND …", file=sys.stderr)
        return os.EX_USAGE
    _, path, _, *command = arguments
    try:
        listener = install_filter()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
            supervisor.connect(path)
            socket.send_fds(supervisor, [b"."], [listener])
        os.close(listener)  # else we would wait for ourselves to answer
        os.execvp(command[0], command)  # noqa: S606 - no shell is the point
    except OSError as error:
        print(f"hailo-agent: {command[0]} cannot be supervised: {error}", file=sys.stderr)
    return 1


# --- a call that waits for its answer -------------------------------------------------------------

_RECEIVE: Final = 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV
_SEND: Final = 0xC0182101
_IS_VALID: Final = 0x40082102
_ADD_DESCRIPTOR: Final = 0x40182103
_CONTINUE: Final = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif
_RESPONSE: Final = struct.Struct("=QqiI")  # struct seccomp_notif_resp
_DESCRIPTOR: Final = struct.Struct("=QIIII")  # struct seccomp_notif_addfd
_PATH_LIMIT: Final = 4096
_STAND_IN: Final = Path("/dev/full")  # what an opened devnode is to the kernel


@dataclass(frozen=True, slots=True)
class _Caller:
    """A thread that waits. Everything raises OSError once it was killed."""

    listener: int
    id: int
    pid: int

    @property
    def process(self) -> int:
        """Tell the id of its process."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("Tgid:")[2].split(maxsplit=1)[0])

    def peek(self, address: int, size: int) -> bytes:
        """Read its memory; less than asked for if there is no more."""
        with Path(f"/proc/{self.pid}/mem").open("rb", buffering=0) as memory:
            self._must_be_waiting()  # else that is the memory of whoever was given its id
            memory.seek(address)
            return memory.read(size)

    def poke(self, address: int, data: bytes) -> None:
        """Write its memory."""
        with Path(f"/proc/{self.pid}/mem").open("rb+", buffering=0) as memory:
            self._must_be_waiting()
            memory.seek(address)
            memory.write(data)

    def give(self, flags: int) -> int:
        """Open a character device for it; returns the descriptor, which is its own."""
        stand_in = os.open(_STAND_IN, os.O_RDWR)
        try:
            request = bytearray(_DESCRIPTOR.pack(self.id, 0, stand_in, 0, flags & os.O_CLOEXEC))
            descriptor: int = fcntl.ioctl(self.listener, _ADD_DESCRIPTOR, request)
        finally:
            os.close(stand_in)
        return descriptor

    def respond(self, *, value: int = 0, error: int = 0, flags: int = 0) -> None:
        """Let it go on."""
        fcntl.ioctl(self.listener, _SEND, _RESPONSE.pack(self.id, value, -error, flags))

    def _must_be_waiting(self) -> None:
        fcntl.ioctl(self.listener, _IS_VALID, struct.pack("=Q", self.id))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    caller: _Caller
    path: Path
    flags: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ioctl:
    caller: _Caller
    path: Path
    number: int
    address: int
    argument: bytes


# --- the supervisor -------------------------------------------------------------------------------


@dataclass(slots=True)
class IoctlSupervisor:
    """Answers for devices, to any number of processes. Lives on the running loop."""

    devices: Devices
    again_seconds: float | None = None
    """After how long it asks again for the outcome of a call that does not return; None: never."""
    opened: list[Path] = field(default_factory=list)
    """Every path that was to be opened for reading and writing, in order."""
    asked: list[tuple[Path, int]] = field(default_factory=list)
    """Every ioctl of the caught types that was issued: on what, and its number."""
    _listeners: set[int] = field(default_factory=set)
    _files: dict[tuple[int, int], Path] = field(default_factory=dict)
    """What the descriptors are that we gave out, by process."""
    _held_up: list[_Open | _Ioctl] = field(default_factory=list)

    @contextmanager
    def serving(self, path: Path) -> Iterator[None]:
        """Answer all who come to a socket at `path`. Who is left at the end gets ENOSYS."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
            door.bind(str(path))
            loop.add_reader(door, self._let_in, door)
            try:
                yield
            finally:
                loop.remove_reader(door)
                for listener in tuple(self._listeners):
                    self._dismiss(listener)
                path.unlink()

    @property
    def held_up(self) -> tuple[Path, ...]:
        """Name the devnode of each call that does not return."""
        return tuple(call.path for call in self._held_up)

    def ask_again(self) -> None:
        """Ask for the outcome of every call that does not return, now that it may be another."""
        for call in tuple(self._held_up):
            self._ask_again(call)

    def _ask_again(self, call: _Open | _Ioctl) -> None:
        if call in self._held_up:
            self._held_up.remove(call)
            self._decide(call)

    def _let_in(self, door: socket.socket) -> None:
        _, listeners, _, _ = socket.recv_fds(door, 1, 1)
        for listener in listeners:
            self._listeners.add(listener)
            asyncio.get_running_loop().add_reader(listener, self._receive, listener)

    def _dismiss(self, listener: int) -> None:
        asyncio.get_running_loop().remove_reader(listener)
        self._listeners.remove(listener)
        self._held_up = [call for call in self._held_up if call.caller.listener != listener]
        os.close(listener)

    def _receive(self, listener: int) -> None:
        # To receive would block, were there nothing to receive or the last process gone.
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        events = dict(poll.poll(0)).get(listener, 0)
        if not events & select.POLLIN:
            if events:
                self._dismiss(listener)
            return
        notification = bytearray(_NOTIFICATION.size)
        with suppress(OSError):  # who called was killed meanwhile
            fcntl.ioctl(listener, _RECEIVE, notification)
            id_, pid, _, system_call, _, _, *arguments = _NOTIFICATION.unpack(notification)
            caller = _Caller(listener, id_, pid)
            try:
                self._decide(self._read(caller, system_call, arguments))
            except OSError:  # a pointer to nowhere: that is for the kernel to say
                caller.respond(flags=_CONTINUE)

    def _read(self, caller: _Caller, system_call: int, arguments: Sequence[int]) -> _Open | _Ioctl:
        """Find out what is to be done with which devnode, and take it down."""
        architecture = _ARCHITECTURES[platform.machine()]
        if system_call == architecture.ioctl:
            descriptor, number, address, *_ = arguments
            number &= 0xFFFFFFFF
            path = self._path(caller, descriptor)
            argument = caller.peek(address, number >> _SIZE_SHIFT & _SIZE_MASK)
            self.asked.append((path, number))
            return _Ioctl(
                caller=caller, path=path, number=number, address=address, argument=argument
            )
        address, flags, *_ = arguments[system_call == architecture.openat :]
        path = Path(os.fsdecode(caller.peek(address, _PATH_LIMIT).partition(b"\0")[0]))
        self.opened.append(path)
        return _Open(caller=caller, path=path, flags=flags)

    def _path(self, caller: _Caller, descriptor: int) -> Path:
        """Tell what a descriptor is. One of ours may have been closed since, and given anew."""
        path = Path(f"/proc/{caller.pid}/fd/{descriptor}").readlink()
        ours = self._files.get((caller.process, descriptor))
        return ours if ours is not None and path == _STAND_IN else path

    def _decide(self, call: _Open | _Ioctl) -> None:
        if isinstance(call, _Ioctl):
            outcome = self.devices.ioctl(call.path, call.number, call.argument)
        else:
            outcome = self.devices.open(call.path)
        if outcome is None:
            with suppress(OSError):  # who called was killed meanwhile
                call.caller.respond(flags=_CONTINUE)
        elif outcome.seconds == FOR_EVER:
            self._held_up.append(call)
            if self.again_seconds is not None:
                loop = asyncio.get_running_loop()
                loop.call_later(self.again_seconds, self._ask_again, call)
        elif outcome.seconds > 0:
            loop = asyncio.get_running_loop()
            loop.call_later(outcome.seconds, self._carry_out, call, outcome)
        else:
            self._carry_out(call, outcome)

    def _carry_out(self, call: _Open | _Ioctl, outcome: Outcome) -> None:
        """Do to the caller what the kernel driver would have done, and let it go on."""
        if call.caller.listener not in self._listeners:
            return
        value = 0
        with suppress(OSError):  # it was killed while it waited
            if isinstance(call, _Ioctl):
                if not outcome.error:
                    call.caller.poke(call.address, outcome.data[: len(call.argument)])
            elif not outcome.error:
                value = call.caller.give(call.flags)
                self._files[call.caller.process, value] = call.path
            call.caller.respond(value=value, error=outcome.error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
