"""A simulated machine by itself, in a directory, for a kubelet and an agent that are real.

`hailo-agent simulate --machine DIR` keeps it until it is told to end; the same with a command after
it has that command done by whoever keeps the machine. Nothing of this knows the agent, nor that it
may run in a cluster.

All devnodes have the number of `/dev/null`. A number of their own would be one that the kernel may
have given to a real device, and a container that is granted the one would get the other.
"""

import asyncio
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Final

from hailo_agent.sim.generations import GENERATIONS, HAILO_8
from hailo_agent.sim.hands import HANDS, MODULES, CannotDo, named
from hailo_agent.sim.machine import Machine, MachineError, slot_address

MARKER: Final = ".hailo-agent-machine"
"""Tells that a directory is one of ours, and that what we make in it may be removed."""
SOCKET: Final = ".commands.sock"
NULL: Final = (1, 3)
"""The number of `/dev/null`: every container has that one already."""

DEVICES: Final = 2
GENERATION: Final = "4.23"

_MADE: Final = ("dev", "sys", ".staging", SOCKET)
_DIRECTORY_WAS_THERE: Final = (
    "A machine of `hailo-agent simulate`. What is beside this is removed.\n"
)
_DIRECTORY_IS_OURS: Final = "A machine of `hailo-agent simulate`. This directory is removed.\n"
_MOST_DEVICES: Final = 255
_LINE_BYTES: Final = 1024
_PATIENCE_SECONDS: Final = 5.0
_EX_FAILED: Final = 1
_EX_USAGE: Final = 2
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class CannotKeep(Exception):
    """Raised when a machine cannot be kept in a directory; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What machine is wanted; None where it is not said."""

    devices: int | None = None
    generation: str | None = None
    rehearse_seconds: float | None = None

    def mistake(self, words: Sequence[str]) -> str:
        """Say what is wrong with it, or nothing."""
        known = [name for name, row in GENERATIONS.items() if not row.integrated]
        if words and self != Order():
            return "how a machine is made is said when it is started, not with a command"
        if self.devices is not None and not 0 <= self.devices <= _MOST_DEVICES:
            return f"--devices {self.devices} is not between 0 and {_MOST_DEVICES}"
        if self.generation is not None and self.generation not in known:
            return f"--generation {self.generation} is none of {', '.join(known)}"
        if self.rehearse_seconds is not None and not 0 < self.rehearse_seconds < float("inf"):
            return f"--rehearse {self.rehearse_seconds:g} is no time to wait"
        return ""


def standalone(root: Path | None, words: Sequence[str], order: Order) -> int:
    """Keep a machine, or have a command done to the one that is kept; returns the exit code."""
    mistake = order.mistake(words)
    if root is None or mistake:
        mistake = mistake or "that is for a machine alone; name its directory: --machine DIR"
        print(f"hailo-agent: {mistake}", file=sys.stderr)
        return _EX_USAGE
    try:
        return _ask(root, words) if words else asyncio.run(_keep(root, order))
    except* (CannotKeep, MachineError) as group:
        reason = str(_first(group))
    except* OSError as group:
        error = _first(group)
        reason = str(error)
        if isinstance(error, OSError) and error.strerror:
            reason = f"{error.filename or root}: {error.strerror}"
    print(f"hailo-agent: {reason}", file=sys.stderr)
    return _EX_FAILED


# --- keeping it -----------------------------------------------------------------------------------


async def _keep(root: Path, order: Order) -> int:
    with _signals() as ended, _claimed(root) as directory:
        machine = Machine(root, number=NULL)
        with closing(machine):
            caretaker = Caretaker(machine, order.generation or GENERATION)
            caretaker.furnish(DEVICES if order.devices is None else order.devices)
            async with _listening(directory, caretaker):
                _log(f"the machine is {machine.dev} and {machine.sys}")
                rehearsal = asyncio.ensure_future(_rehearse(caretaker, order.rehearse_seconds))
                waiting = asyncio.ensure_future(ended.wait())
                await asyncio.wait({rehearsal, waiting}, return_when=asyncio.FIRST_COMPLETED)
                for task in (rehearsal, waiting):
                    task.cancel()
                if rehearsal.done() and not rehearsal.cancelled():
                    rehearsal.result()
            for address in reversed(machine.addresses):
                machine.pull(address)
        _log("the machine is gone")
    return 0


class Caretaker:
    """Does to a machine what is asked for, and logs it."""

    def __init__(self, machine: Machine, generation: str) -> None:
        self.machine = machine
        self._generation = GENERATIONS[generation]
        driven = self._generation.pci_ids
        by_id = {pci_id: word for word, pci_id in MODULES.items() if pci_id in driven}
        self._module = by_id.get(HAILO_8) or next(iter(by_id.values()))

    def furnish(self, devices: int) -> None:
        """Load the kernel driver, and plug so many modules that it serves."""
        self.machine.load(self._generation.name)
        for number in range(devices):
            self.machine.plug(slot_address(number), pci_id=MODULES[self._module])

    def do(self, line: str, *, who: str) -> tuple[bool, str]:
        """Do what a line says; tells whether it could be done, and what there is to say."""
        name, *words = line.split() or [""]
        if name == "help":
            return True, "\n".join(
                [*(f"{n} {hand.arguments}" for n, hand in HANDS.items()), "devices"]
            )
        if name == "devices":
            return True, self._devices()
        try:
            said = self._by_hand(name, words)
        except (CannotDo, MachineError) as error:
            _log(f"{who} cannot {line}: {error}")
            return False, str(error)
        how = words[1:] if name in {"ail", "break"} else []
        _log(" ".join([f"{who}:", name, said, *how]))
        return True, said

    def _by_hand(self, name: str, words: list[str]) -> str:
        """Do it; tells to what, by the names that it had or has now."""
        hand = named(HANDS, name, words)
        if name == "plug" and not any(word.lower() in MODULES for word in words):
            words = [*words, self._module]
        before = dict(self.machine.entries)
        done = hand.do(self.machine, words)
        entries = {**before, **self.machine.entries}
        return ", ".join(f"{a} ({entries.get(a, 'no kernel driver')})" for a in done.addresses)

    def _devices(self) -> str:
        """Tell what is plugged in, by which name, and what ails it."""
        machine = self.machine
        return "\n".join(
            f"{address}  {machine.entry(address) or '-'}"
            f"  {', '.join(sorted(machine.ailments(address))) or 'well'}"
            for address in sorted(machine.addresses)
        )


async def _rehearse(caretaker: Caretaker, seconds: float | None) -> None:
    """Let something happen every so often, for ever: pulled, plugged in, ill, well, the next."""
    if seconds is None:
        await asyncio.Event().wait()
        return
    for turn in count():
        await asyncio.sleep(seconds)
        there = [
            address for address in caretaker.machine.addresses if caretaker.machine.entry(address)
        ]
        if not there:
            continue
        address = sorted(there)[turn % len(there)]
        steps = (f"pull {address}", f"plug {address}", f"ail {address} dead-link")
        for line in steps:
            caretaker.do(line, who="rehearsal")
            await asyncio.sleep(seconds)
        caretaker.do(f"cure {address}", who="rehearsal")


@contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """Have an event that is set when we are to end."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    # What is ignored stays so: that is how nohup, and a shell's background, shield a process.
    heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    for number in heeded:
        loop.add_signal_handler(number, ended.set)
    try:
        yield ended
    finally:
        for number in heeded:
            loop.remove_signal_handler(number)


def _log(text: str) -> None:
    print(f"{datetime.now().astimezone():%H:%M:%S}  {text}", flush=True)


# --- the directory --------------------------------------------------------------------------------


@contextmanager
def _claimed(root: Path) -> Iterator[int]:
    """Have the directory, empty but for a marker; whatever is made in it goes with the block.

    The lock is on the directory itself: it needs no file, and the kernel drops it with the process.
    """
    is_new = not root.exists()
    if is_new:
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o755)
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(directory, root)
        _take_over(root, is_new=is_new)
        try:
            yield directory
        finally:
            _leave(root)
    finally:
        os.close(directory)


def _lock(directory: int, root: Path) -> None:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CannotKeep(f"{root}: another machine is kept there") from None
    here = os.fstat(directory)
    with suppress(FileNotFoundError):
        found = root.stat()
        if (found.st_dev, found.st_ino) == (here.st_dev, here.st_ino):
            return
    raise CannotKeep(f"{root}: another machine has just been removed from there; try again")


def _take_over(root: Path, *, is_new: bool) -> None:
    """See that the directory may be used, and remove what one that was killed has left there."""
    names = {path.name for path in root.iterdir()}
    if MARKER not in names:
        if names:
            raise CannotKeep(
                f"{root} is not empty, and holds no machine of ours: name another directory"
            )
        text = _DIRECTORY_IS_OURS if is_new else _DIRECTORY_WAS_THERE
        (root / MARKER).write_text(text)
        return
    strange = sorted(names - {MARKER, *_MADE})
    if strange:
        raise CannotKeep(f"{root} holds {strange[0]}, which is no part of a machine: move it away")
    for name in names - {MARKER}:
        if (root / name).is_mount():
            raise CannotKeep(f"{root / name} is a mount point: unmount it")
    _clear(root)
    if names != {MARKER}:
        _log(f"{root} is taken over from one that was killed")


def _leave(root: Path) -> None:
    """Remove all that we made, the marker last; strangers stay."""
    _clear(root)
    marker = root / MARKER
    is_ours = marker.read_text() == _DIRECTORY_IS_OURS
    marker.unlink()
    if is_ours:
        with suppress(OSError):  # somebody put something there, or mounted it meanwhile
            root.rmdir()


def _clear(root: Path) -> None:
    for name in _MADE:
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


# --- commands from outside ------------------------------------------------------------------------


@asynccontextmanager
async def _listening(directory: int, caretaker: Caretaker) -> AsyncIterator[None]:
    """Obey lines that come in by a socket; that it is there tells that the machine is complete."""
    path = _socket_path(directory)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(SOCKET, 0o600, dir_fd=directory)  # before anybody can connect
    server = await asyncio.start_unix_server(
        _answering(caretaker), sock=listener, limit=_LINE_BYTES
    )
    try:
        yield
    finally:
        server.close()


def _answering(
    caretaker: Caretaker,
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError):
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    line = (await reader.readline()).decode("utf-8", "replace").strip()
                could, said = caretaker.do(line, who="somebody") if line else (False, "no command")
            except ValueError:  # too long a line
                could, said = False, f"a command has at most {_LINE_BYTES} bytes"
            writer.write(json.dumps({"could": could, "said": said}).encode() + b"\n")
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await writer.drain()
        writer.close()

    return answer


def _ask(root: Path, words: Sequence[str]) -> int:
    """Have a command done by whoever keeps the machine, and print what came of it."""
    line = " ".join(words)
    if len(line.encode()) >= _LINE_BYTES or not line.isprintable():
        raise CannotKeep("that is no command; help names all there are")
    try:
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CannotKeep(f"{root}: no machine is kept there") from None
    try:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(_PATIENCE_SECONDS)
            peer.connect(_socket_path(directory))
            peer.sendall(line.encode() + b"\n")
            with peer.makefile() as answers:
                answer = json.loads(answers.readline() or "{}")
    except (FileNotFoundError, ConnectionRefusedError):
        raise CannotKeep(f"{root}: no machine is kept there") from None
    except (TimeoutError, ConnectionError, ValueError) as error:
        raise CannotKeep(f"{root}: whoever keeps the machine does not answer: {error}") from None
    finally:
        os.close(directory)
    if not answer.get("could"):
        raise CannotKeep(f"cannot {line}: {answer.get('said', 'there was no answer')}")
    if answer["said"]:
        print(answer["said"])
    return 0


def _socket_path(directory: int) -> str:
    """Name the socket by way of the open directory: a path of its own may be too long for one."""
    return f"/proc/self/fd/{directory}/{SOCKET}"


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
