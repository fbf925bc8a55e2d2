"""The agent inside the test's own process: for tests that start it a hundred times.

What a process adds (signals, exit codes, memory) is tested with `Node.agent()`; what is here is
everything else of it, started and stopped in milliseconds.
"""

import asyncio
import socket
from argparse import ArgumentParser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio

from hailo_agent.agent import Agent
from hailo_agent.settings import Settings, add_flags, flags_from, load
from hailo_agent.sim.node import Node


def settings_of(node: Node, *flags: str) -> Settings:
    """Read flags as the command line does, those of the node first."""
    parser = ArgumentParser(allow_abbrev=False)
    add_flags(parser)
    namespace, rest = parser.parse_known_args([*node.flags(), *flags])
    return load(flags=flags_from(namespace, rest), environ={}, config=None).settings


class Inside:
    """An agent that lives in a task of its own, until it is stopped or killed."""

    def __init__(self, node: Node, *flags: str) -> None:
        self.agent = Agent(settings_of(node, *flags))
        self._node = node
        self._ending = asyncio.Event()
        self._polite = True
        self._life = asyncio.create_task(self._live())

    async def stop(self) -> None:
        """End as after SIGTERM; raises what went wrong in it, ever."""
        self._ending.set()
        await self._life

    async def kill(self) -> None:
        """End as after SIGKILL: without a word, and with its sockets left behind."""
        self._polite = False
        await self.stop()
        for path in (self._node.plugin_dir / "hailo.ai_npu.sock", self._node.agent_socket):
            with suppress(OSError), socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))

    async def _live(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self.agent.start, group)
            await self._ending.wait()
            if self._polite:
                await self.agent.stop()
            group.cancel_scope.cancel()


@asynccontextmanager
async def agent_inside(node: Node, *flags: str) -> AsyncIterator[Agent]:
    """Run an agent on this node for the length of the block."""
    inside = Inside(node, *flags)
    try:
        yield inside.agent
    finally:
        await inside.stop()
