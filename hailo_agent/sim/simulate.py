"""`hailo-agent simulate`: a node in a box, for the demo's story or to play with.

Called by `cli` alone. Here is what both have in common with being a command: signals, what is
cleaned up, exit codes. The story is `sim.scenario`, the commands are `sim.commands`.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Final

from rich.console import Console

from hailo_agent.settings import Settings
from hailo_agent.sim.chips import Chips, why_no_chips
from hailo_agent.sim.commands import is_quit, obey
from hailo_agent.sim.follow import Follower
from hailo_agent.sim.machine import Machine, MachineError
from hailo_agent.sim.node import Node, temporary_root
from hailo_agent.sim.playground import Playground
from hailo_agent.sim.scenario import Story, furnish
from hailo_agent.sim.terminal import Terminal
from hailo_agent.sim.view import Plain, Screen, can_draw, new_console, summary, verdict

_EX_FAILED: Final = 1
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PAUSE_SECONDS: Final = 1.8
"""On a screen, after each chapter: whoever watches wants to read."""


def simulate(settings: Settings, *, story: bool) -> int:
    """Tell the story, or let people play; returns the exit code.

    The story's agent has default settings. The one to play with has those given, but for its paths.
    """
    try:
        return asyncio.run(_interruptible(_story(settings) if story else _play(settings)))
    except* BrokenPipeError:
        _hang_up()
    except* (MachineError, OSError) as group:
        _hang_up()  # it may be standard output that cannot be written
        print(f"hailo-agent: the node cannot be simulated: {_first(group)}", file=sys.stderr)
    return _EX_FAILED


async def _interruptible(work: Coroutine[None, None, int]) -> int:
    """Do work until it ends, or a signal ends it; its clean-up is never cut short."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    caught: list[int] = []

    def interrupt(number: int) -> None:
        if not caught:  # a second Ctrl-C would leave processes and directories behind
            caught.append(number)
            task.cancel()

    # What is ignored stays so: that is how nohup, and a shell's background, shield a process.
    heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    for number in heeded:
        loop.add_signal_handler(number, interrupt, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not caught:
            raise
        return 128 + caught[0]
    finally:
        for number in heeded:
            loop.remove_signal_handler(number)


async def _story(settings: Settings) -> int:
    if settings != Settings():
        print("The story is told with default settings; yours are left out.", file=sys.stderr)
    console = new_console()
    began_at = asyncio.get_running_loop().time()
    async with temporary_root() as root, Node.build(root, chips=await _chips()) as node:
        _mention_numbers(node.machine)
        story = await (_on_screen(node, console) if can_draw(console) else _in_lines(node))
    console.print()
    console.print(summary(story.titles, story.results, console.width))
    console.print()
    print(verdict(story.results, asyncio.get_running_loop().time() - began_at), flush=True)
    return 0 if all(result.ok for result in story.results) else _EX_FAILED


async def _in_lines(node: Node) -> Story:
    story = Story(node, Plain())
    await story.tell()
    return story


async def _on_screen(node: Node, console: Console) -> Story:
    follower = Follower(node.agent_socket)
    with Screen(console, node.kubelet, follower) as screen:
        story = Story(node, screen, pause_seconds=_PAUSE_SECONDS)
        async with asyncio.TaskGroup() as group:
            meanwhile = [group.create_task(follower.run()), group.create_task(screen.run())]
            await story.tell()
            for task in meanwhile:
                task.cancel()
    return story


async def _play(settings: Settings) -> int:
    terminal = Terminal(new_console(), sys.stdin)
    async with temporary_root() as root, Node.build(root, chips=await _chips()) as node:
        _mention_numbers(node.machine)
        furnish(node.machine)
        ground = Playground(node, settings, terminal)
        ground.introduce()
        async with asyncio.TaskGroup() as group:
            meanwhile = [
                group.create_task(ground.keeper.run()),
                group.create_task(ground.follower.run()),
                group.create_task(ground.narrate_kubelet()),
            ]
            await ground.settle()
            could = await _obey_all(ground)
            for task in meanwhile:
                task.cancel()
    return 0 if could or terminal.interactive else _EX_FAILED


async def _obey_all(ground: Playground) -> bool:
    """Obey every line, and tell whether all could be done."""
    could = True
    async with aclosing(ground.terminal.commands()) as commands:
        async for line in commands:
            if is_quit(line):
                break
            could = await obey(ground, line) and could
    return could


async def _chips() -> type[Chips] | None:
    """Put chips behind devnodes, or say why that cannot be done here."""
    reason = await why_no_chips()
    if not reason:
        return Chips
    print(f"No chips are behind the device nodes, for nobody may answer: {reason}", file=sys.stderr)
    return None


def _mention_numbers(machine: Machine) -> None:
    if not machine.numbered:
        print(
            "Without root no device node can have a number: all are 0:0 here, in /sys too.",
            file=sys.stderr,
        )


def _hang_up() -> None:
    """Let what is still buffered go nowhere: whoever read our output has seen enough."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
