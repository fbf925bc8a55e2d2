"""Agents for tests, forked from a process that has imported everything already.

An agent's start is mostly imports: half a second of processor time, hundreds of times in a run of
the tests. What the nursery lends differs from `python -m hailo_agent run` in nothing else: a
process of its own with its own descriptors, environment, log and exit code. Where the start itself
is the matter - benchmarks, end-to-end tests, agents under another command - it is not used.

Run as a program this module is the nursery; imported, it asks one.
"""

import asyncio
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import NoReturn

_MOST_BYTES = 1 << 17
_OF_THE_INTERPRETER = ("PYTHON", "LANG", "LC_", "LD_")
"""Variables that are read at an interpreter's start, and never again."""


class Lent:
    """One agent, as `asyncio.subprocess.Process` would show it."""

    def __init__(self, pid: int, stderr: asyncio.StreamReader, status: int) -> None:
        self.pid = pid
        self.stderr: asyncio.StreamReader | None = stderr
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        self._status = status
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(status, self._end)

    def _end(self) -> None:
        self._loop.remove_reader(self._status)
        told = os.read(self._status, 32)
        os.close(self._status)
        self.returncode = int(told) if told else -signal.SIGKILL  # the nursery itself is gone
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """Whom to ask for an agent."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def close(self) -> None:
        """Close it, and whatever it has lent and nobody ended."""
        self._control.close()
        self._process.wait()

    async def lend(self, flags: tuple[str, ...], env: Mapping[str, str]) -> Lent:
        """Start `hailo-agent run` with these flags and nothing but this environment."""
        log, their_log = os.pipe()
        status, their_status = os.pipe()
        try:
            request = json.dumps([flags, dict(env)]).encode()
            socket.send_fds(self._control, [request], [their_log, their_status])
            pid = int(self._control.recv(32))
        finally:
            os.close(their_log)
            os.close(their_status)
        reader = asyncio.StreamReader(limit=1 << 20)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(log, "rb", 0)
        )
        return Lent(pid, reader, status)


def can_lend(env: Mapping[str, str]) -> bool:
    """Whether a forked interpreter would do with this environment what a fresh one does."""
    return all(
        os.environ.get(name) == value
        for name, value in env.items()
        if name.startswith(_OF_THE_INTERPRETER)
    )


# --- the nursery itself ---------------------------------------------------------------------------


def _serve(control: socket.socket) -> None:
    _import_all()
    gc.collect()
    gc.freeze()
    statuses: dict[int, int] = {}
    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which end us
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if woken in ready:
                os.read(woken, 4096)
                _reap(statuses)
            if control not in ready:
                continue
            request, descriptors, _, _ = socket.recv_fds(control, _MOST_BYTES, 2)
            if not request:
                break
            log, status = descriptors
            pid = os.fork()
            if pid == 0:
                _become_an_agent(log, *json.loads(request))
            statuses[pid] = status
            os.close(log)
            control.send(str(pid).encode())
    for pid in statuses:
        os.kill(pid, signal.SIGKILL)


def _import_all() -> None:
    import hailo_agent.agent  # noqa: PLC0415
    import hailo_agent.cli.run  # noqa: PLC0415
    import hailo_agent.outfit  # noqa: PLC0415
    import hailo_agent.web.server  # noqa: F401, PLC0415


def _reap(statuses: dict[int, int]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        told = statuses.pop(pid)
        os.write(told, str(os.waitstatus_to_exitcode(status)).encode())
        os.close(told)


def _become_an_agent(log: int, flags: list[str], env: dict[str, str]) -> NoReturn:
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(log, 2)
        os.closerange(3, 1 << 12)
        os.environ.clear()
        os.environ.update(env)
        time.tzset()
        sys.argv = ["hailo-agent", "run", *flags]
        from hailo_agent.cli import main  # noqa: PLC0415

        main()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 70
    finally:
        os._exit(code)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as control:
        _serve(control)
