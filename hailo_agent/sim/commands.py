"""What can be typed at the simulated node: each command a function, all of them in one table.

`simulate` passes every line to `obey`. A command that cannot be done says why, and changes nothing.
"""

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from textwrap import fill
from typing import Final

from rich.table import Table

from hailo_agent.sim.cancel import heed_cancellation
from hailo_agent.sim.hands import (
    BREAKAGES,
    HANDS,
    LINKS,
    SEEN_AT_ONCE,
    CannotDo,
    Hand,
    Words,
    device_id,
    named,
)
from hailo_agent.sim.kubelet import AdmissionFailed, Container, ContainerNotStarted
from hailo_agent.sim.machine import Ailment, MachineError
from hailo_agent.sim.node import Line
from hailo_agent.sim.playground import Playground
from hailo_agent.sim.runtime import ContainerNotCreated, ContainerNotRun
from hailo_agent.sim.scenario import in_words
from hailo_agent.sim.view import device_table

_MAKES_GOOD: Final = frozenset({"mend", "pull", "swap"})
"""After these the node of a device is as it should be: it is made anew, or gone with the device."""
_POD: Final = re.compile(r"(?:[a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z0-9]([-.a-z0-9]*[a-z0-9])?")
_LOG_LINES: Final = 10
_OWN_COLUMNS: Final = frozenset({"@timestamp", "log.level", "message"})
_STATIC: Final = frozenset({"service.name", "service.version", "k8s.node.name"})
_HELP_WIDTH: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What is typed after the name, what it is good for, and what it does."""

    arguments: str = ""
    purpose: str
    do: Callable[[Playground, Words], Awaitable[None]]
    least: int = 0
    most: int = 0
    settles: bool = True
    """Whether the prompt waits until everybody has heard of it."""


async def obey(ground: Playground, line: str) -> bool:
    """Do what a line says; tells whether it could be done."""
    name, *words = line.split() or [""]
    if not name or name.startswith("#"):
        return True
    try:
        command = named(COMMANDS, name.lower(), words)
        await command.do(ground, words)
        if command.settles:
            await ground.settle()
    except (CannotDo, MachineError, ContainerNotStarted) as error:
        heed_cancellation()
        ground.terminal.say(f"  cannot: {error}")
        return False
    return True


def is_quit(line: str) -> bool:
    """Whether a line asks to end."""
    return line.strip().lower() in {"quit", "exit"}


# --- the machine ----------------------------------------------------------------------------------


def _by_hand(name: str, hand: Hand) -> Command:
    """Have a hand's command among ours, which also know what the agent may be expected to see."""

    async def do(ground: Playground, words: Words) -> None:
        done = hand.do(ground.node.machine, words)
        devices = set(map(device_id, done.addresses))
        if name == "break" and words[1].lower() in SEEN_AT_ONCE:
            ground.spoilt |= devices
        elif name in _MAKES_GOOD:
            ground.spoilt -= devices
        if done.text:
            ground.terminal.say(f"  {done.text}")

    return Command(
        arguments=hand.arguments, purpose=hand.purpose, do=do, least=hand.least, most=hand.most
    )


# --- kubelet and agent ----------------------------------------------------------------------------


async def _restart_kubelet(ground: Playground, _: Words) -> None:
    await ground.node.kubelet.restart()


async def _kill_agent(ground: Playground, _: Words) -> None:
    if not await ground.keeper.kill():
        raise CannotDo("there is none; it is started again in a moment")


async def _pod(ground: Playground, words: Words) -> None:
    name = _pod_name(words[0])
    count = _count(words[1], "how many devices") if len(words) > 1 else 1
    resource = words[2] if len(words) > 2 else ground.resource
    kubelet = ground.node.kubelet
    if name in kubelet.pods:
        raise CannotDo(f"there is a pod {name} already")
    try:
        container = await kubelet.admit(name, {resource: count})
    except AdmissionFailed as error:
        await kubelet.remove(name)  # the kubelet would keep it as Failed; nobody wants it here
        raise CannotDo(str(error)) from None
    _show_container(ground, container)


async def _restart_pod(ground: Playground, words: Words) -> None:
    name = _known_pod(ground, words[0])
    _show_container(ground, await ground.node.kubelet.restart_container(name))


async def _delete_pod(ground: Playground, words: Words) -> None:
    await ground.node.kubelet.remove(_known_pod(ground, words[0]))


def _show_container(ground: Playground, container: Container) -> None:
    """Say what a container was given, as the runtime would start it now."""
    granted = [name for names in container.device_ids.values() for name in names]
    ground.terminal.say(f"  {container.pod} holds {', '.join(granted) or 'no device'}")
    try:
        view = ground.node.runtime.inject(
            container.cdi_devices,
            annotations=container.annotations,
            devices=container.devices,
            mounts=container.mounts,
            env=container.envs,
        )
    except (ContainerNotCreated, ContainerNotRun) as error:
        raise CannotDo(f"its container does not start: {error}") from None
    entries = [
        f"/sys/class/{class_name}/{entry}"
        for class_name in view.listdir("/sys/class")
        for entry in view.class_entries(class_name)
    ]
    ground.terminal.say(f"  its container sees {', '.join([*in_words(view.nodes), *entries])}")


def _pod_name(text: str) -> str:
    if not _POD.fullmatch(text):
        raise CannotDo(f"{text!r} is no name for a pod: lower-case letters, digits and dashes are")
    return text if "/" in text else f"default/{text}"


def _known_pod(ground: Playground, text: str) -> str:
    name, pods = _pod_name(text), ground.node.kubelet.pods
    if name not in pods:
        raise CannotDo(f"there is no pod {name}, only {', '.join(sorted(pods)) or 'none at all'}")
    return name


def _count(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise CannotDo(f"{text!r} does not say {what}")
    return int(text)


# --- looking --------------------------------------------------------------------------------------


async def _devices(ground: Playground, _: Words) -> None:
    ground.terminal.show(device_table(ground.follower, ground.node.kubelet))
    ill = (fault for device in ground.follower.devices.values() for fault in device.faults)
    for fault in (*ill, *ground.follower.faults.values()):
        ground.terminal.say(f"  {fault.subject}: {fault.message}; {fault.remedy}")


async def _log(ground: Playground, words: Words) -> None:
    count = _count(words[0], "how many lines") if words else _LOG_LINES
    for line in ground.keeper.log(count):
        ground.terminal.say(_log_text(line))


def _log_text(line: Line) -> str:
    hidden = _OWN_COLUMNS | _STATIC
    rest = {key: value for key, value in line.fields.items() if key not in hidden}
    at = str(line.fields.get("@timestamp", ""))[11:23]
    text = json.dumps(rest, ensure_ascii=False) if rest else ""
    return f"  {at} {line.fields.get('log.level', ''):7} {line.event} {text}".rstrip()


async def _where(ground: Playground, _: Words) -> None:
    ground.locate()


async def _help(ground: Playground, _: Words) -> None:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, command in COMMANDS.items():
        table.add_row(f"  {name} {command.arguments}", command.purpose)
    ground.terminal.show(table)
    *others, last = Ailment
    either = f"{', '.join(others)} or {last}"
    ground.terminal.say(
        "DEVICE is an address (0000:01:00.0, 01:00.0), id (pci-0000-01-00-0) or node (hailo0).\n"
        f"HOW is {', '.join(BREAKAGES)},\nor {', '.join(LINKS)}.\n"
        f"{fill(f'AILMENT is {either}.', _HELP_WIDTH, break_on_hyphens=False)}"
    )


async def _quit(_: Playground, __: Words) -> None:
    """Do nothing: whoever reads the lines asks `is_quit` first."""


COMMANDS: Final[Mapping[str, Command]] = {
    **{name: _by_hand(name, hand) for name, hand in HANDS.items()},
    "pod": Command(
        arguments="NAME [N] [RESOURCE]",
        purpose="start a pod that asks for N devices",
        do=_pod,
        least=1,
        most=3,
    ),
    "restart-pod": Command(
        arguments="NAME", purpose="start its container again", do=_restart_pod, least=1, most=1
    ),
    "delete-pod": Command(arguments="NAME", purpose="delete it", do=_delete_pod, least=1, most=1),
    "restart-kubelet": Command(purpose="stop it and start it again", do=_restart_kubelet),
    "kill-agent": Command(purpose="SIGKILL; it is started again after a second", do=_kill_agent),
    "devices": Command(
        purpose="what the agent says of each device, and the kubelet", do=_devices, settles=False
    ),
    "log": Command(
        arguments="[N]", purpose="the agent's last lines", do=_log, most=1, settles=False
    ),
    "where": Command(purpose="the paths of all this", do=_where, settles=False),
    "help": Command(purpose="this list", do=_help, settles=False),
    "quit": Command(purpose="end; so does Ctrl-D", do=_quit, settles=False),
}
