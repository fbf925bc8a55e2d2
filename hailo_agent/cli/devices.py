"""`hailo-agent devices`: what a person types first on a node.

An agent that runs on this node is asked, for it knows who holds what. Without one the machine is
looked at directly, once.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hailo_agent import agent
from hailo_agent.errors import EdgeError
from hailo_agent.settings import Settings
from hailo_agent.subscribers import client
from hailo_agent.wire import agentapi

_PIPE_WIDTH = 200
_WIDEST = 1000
_UNKNOWN = "-"

_WORDS = {
    agentapi.ChangeKind.ADDED: "added",
    agentapi.ChangeKind.REMOVED: "removed",
    agentapi.ChangeKind.MOVED: "moved",
    agentapi.ChangeKind.HELD: "held",
    agentapi.ChangeKind.FREED: "freed",
    agentapi.ChangeKind.UPDATED: "updated",
    agentapi.ChangeKind.FAULT_FOUND: "fault found",
    agentapi.ChangeKind.FAULT_CLEARED: "fault cleared",
}


def devices(settings: Settings, *, as_json: bool, follow: bool) -> int:
    """Show the devices of this node, and with `follow` every change until interrupted."""
    show = _show_json if as_json else _show
    socket = settings.subscribers.socket
    if follow:
        if socket is None:
            raise EdgeError("subscribers.socket is off: there is nothing to watch", edge="cli")
        return asyncio.run(_watch(socket, as_json=as_json))
    asked, inventory = asyncio.run(_inventory(settings, socket))
    if not asked and not as_json:
        print("No agent answers on this node; this is what the machine shows.", file=sys.stderr)
    show(inventory)
    return 0


async def _inventory(settings: Settings, socket: Path | None) -> tuple[bool, agentapi.Inventory]:
    if socket is not None:
        try:
            return True, await client.get_inventory(socket)
        except EdgeError:
            pass  # no agent, or not one that we may ask: look for ourselves
    return False, await agent.look(settings)


async def _watch(socket: Path, *, as_json: bool) -> int:
    async for response in client.watch(socket):
        if as_json:
            print(json.dumps(response.to_dict()), flush=True)
        elif response.inventory is not None:
            _show(response.inventory)
        elif response.changes is not None:
            for change in response.changes.changes:
                print(_line(change), flush=True)
    return 0


def _show_json(inventory: agentapi.Inventory) -> None:
    print(json.dumps(inventory.to_dict(), indent=2))


def _show(inventory: agentapi.Inventory) -> None:
    console = _console()
    if inventory.devices:
        table = _table(inventory.devices)
        # On a narrow terminal lines wrap, as kubectl's do: a cut id is of no use to anybody.
        wide = _console(_WIDEST)
        _console(max(console.width, wide.measure(table).maximum)).print(table)
    else:
        console.print("No Hailo device is usable on this node.")
    if inventory.faults:
        console.print()
        console.print(_faults("Seen, but not usable", inventory.faults))
    parts = [] if inventory.readiness is None else inventory.readiness.parts
    limping = [part for part in parts if part.reason]
    if limping:
        console.print()
        for part in limping:
            console.print(f"{part.name}: {part.state}: {part.reason}", soft_wrap=True)


def _console(width: int | None = None) -> Console:
    piped = None if sys.stdout.isatty() else _PIPE_WIDTH
    # A height, which nothing here uses, or rich takes a dumb terminal to be 80 columns wide.
    return Console(width=width or piped, height=25, highlight=False)


def _table(found: Sequence[agentapi.Device]) -> Table:
    columns: dict[str, Callable[[agentapi.Device], str | Text]] = {
        "ID": lambda device: device.id,
        "MODEL": lambda device: device.model,
        "NODE": lambda device: device.path or _UNKNOWN,
        "NUMA": lambda device: _UNKNOWN if device.numa_node is None else str(device.numa_node),
        "LINK": lambda device: _link(device.link),
        "DRIVER": lambda device: (
            " ".join(filter(None, (device.driver, device.driver_version))) or _UNKNOWN
        ),
        "TEMP": _temperature,
        "RESOURCE": lambda device: device.resource,
        "HELD BY": _holders,
    }
    if not any(device.vitals and device.vitals.temperatures_celsius for device in found):
        del columns["TEMP"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in columns:
        table.add_column(heading, no_wrap=True)
    table.add_column("HEALTH", overflow="fold")
    for device in found:
        table.add_row(*(show(device) for show in columns.values()), _health(device))
    return table


def _faults(title: str, faults: Iterable[agentapi.Fault]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for heading in ("WHAT", "WHY", "WHAT TO DO"):
        table.add_column(heading, overflow="fold")
    for fault in faults:
        table.add_row(fault.subject, fault.message, fault.remedy)
    return table


def _link(link: agentapi.Link | None) -> Text:
    if link is None:
        return Text(_UNKNOWN)
    now = f"{link.speed_gts:g} GT/s x{link.width}"
    if (link.speed_gts, link.width) == (link.max_speed_gts, link.max_width):
        return Text(now)
    return Text(f"{now} (of {link.max_speed_gts:g} x{link.max_width})", style="yellow")


def _holders(device: agentapi.Device) -> str:
    if device.holders:
        return ", ".join(f"{h.namespace}/{h.pod}" for h in device.holders)
    return {None: "?", True: "(a pod)", False: _UNKNOWN}[device.held]


def _temperature(device: agentapi.Device) -> str:
    found = [] if device.vitals is None else device.vitals.temperatures_celsius
    return f"{max(found):.0f} °C" if found else _UNKNOWN


_STYLES = {
    agentapi.Health.HEALTHY: ("Healthy", "green"),
    agentapi.Health.DEGRADED: ("Degraded", "yellow"),
    agentapi.Health.UNKNOWN: ("Unknown", "yellow"),
    agentapi.Health.UNHEALTHY: ("Unhealthy", "red"),
}


def _health(device: agentapi.Device) -> Text:
    word, style = _STYLES.get(device.health, (str(device.health), ""))
    return Text(f"{word}: {_reasons(device)}" if device.faults else word, style=style)


def _reasons(device: agentapi.Device) -> str:
    return "; ".join(
        fault.message + (f" ({fault.evidence})" if fault.evidence else "")
        for fault in device.faults
    )


def _line(change: agentapi.Change) -> str:
    device, fault = change.device, change.fault
    if fault is not None:
        return f"{_WORDS[change.kind]}: {fault.subject}: {fault.message}"
    if device is None:
        return "changed"
    if change.kind is agentapi.ChangeKind.HEALTH:
        word, _ = _STYLES.get(device.health, (str(device.health), ""))
        return f"{device.id} is {word.lower()}" + (f": {_reasons(device)}" if device.faults else "")
    words: list[Any] = [device.id, _WORDS[change.kind]]
    if change.kind in {agentapi.ChangeKind.ADDED, agentapi.ChangeKind.MOVED}:
        words += ["at" if change.kind is agentapi.ChangeKind.ADDED else "to", device.path]
    elif device.holders:
        words += ["by", _holders(device)]
    return " ".join(words)
