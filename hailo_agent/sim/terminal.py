"""The prompt of the simulated node: where things are said while somebody types.

Used by `sim.playground`. Input may be a terminal, a pipe or a file; from what is no terminal each
command is shown before it is obeyed, so that the output can be read by itself.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Final, TextIO

from rich.console import Console, RenderableType

from hailo_agent.sim.view import duration

_CHUNK: Final = 4096
_RECENT_SECONDS: Final = 10.0


class Terminal:
    """Where things are said, and commands come from. What is said breaks no prompt."""

    def __init__(self, console: Console, stdin: TextIO | None) -> None:
        self.interactive = stdin is not None and stdin.isatty() and console.is_terminal
        self._console = console
        self._stdin = stdin
        self._prompted = False
        self._commanded_at: float | None = None

    def say(self, text: str) -> None:
        """Print lines, and the prompt again if there was one."""
        if self._prompted:
            print("\n" if self._console.is_dumb_terminal else "\r\x1b[K", end="")
        print(text, end="\n> " if self._prompted else "\n", flush=True)

    def show(self, what: RenderableType) -> None:
        """Print a table; only while a command runs, when there is no prompt."""
        self._console.print(what)

    def tell(self, who: str, text: str) -> None:
        """Say what somebody did, and when: how long after the last command, if that was lately."""
        now = asyncio.get_running_loop().time()
        since = _RECENT_SECONDS if self._commanded_at is None else now - self._commanded_at
        if since < _RECENT_SECONDS:
            when = f"+{duration(since)}"
        else:
            when = f"{datetime.now().astimezone():%H:%M:%S}"
        self.say(f"{when:>10}  {who:7}  {text}")

    async def commands(self) -> AsyncGenerator[str, None]:
        """Yield each line that is typed or piped in, until there are no more."""
        if self._stdin is None:
            return
        self._prompt()
        async with aclosing(_lines(self._stdin.fileno())) as lines:
            async for line in lines:
                self._prompted = False
                if not self.interactive:
                    print(f"> {line}", flush=True)
                self._commanded_at = asyncio.get_running_loop().time()
                yield line
                self._prompt()
        if self._prompted:  # Ctrl-D leaves the cursor behind the prompt
            self._prompted = False
            print(flush=True)

    def _prompt(self) -> None:
        if self.interactive:
            print("> ", end="", flush=True)
            self._prompted = True


async def _lines(descriptor: int) -> AsyncGenerator[str, None]:
    pending = b""
    while chunk := await _read(descriptor):
        *whole, pending = (pending + chunk).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace")
    if pending:
        yield pending.decode("utf-8", "replace")


async def _read(descriptor: int) -> bytes:
    """Read once there is something to read.

    The descriptor is not made non-blocking: that would be felt by everybody who shares the terminal
    with us, our own standard output first.
    """
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        loop.add_reader(descriptor, readable.set)
    except PermissionError:  # epoll refuses regular files and /dev/null, which never block
        return os.read(descriptor, _CHUNK)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)  # else it would call without end while a command runs
    return os.read(descriptor, _CHUNK)
