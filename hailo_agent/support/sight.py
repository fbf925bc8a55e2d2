"""What can be seen of this node now, by asking the agent, and the kubelet, and else the machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hailo_agent import agent, outfit
from hailo_agent.errors import EdgeError
from hailo_agent.kubelet.pods import Pod, pods
from hailo_agent.settings import Settings
from hailo_agent.subscribers import client
from hailo_agent.wire import agentapi

PLUGIN = "plugin "
"""What the names of those parts of the agent begin with that serve a resource to the kubelet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """Everything that was said, and why the others said nothing."""

    inventory: agentapi.Inventory
    silence: str = ""
    """Why no agent answered; the inventory is then one look at the machine. Empty if one did."""
    recent: tuple[agentapi.RecentChange, ...] = ()
    """What happened lately, the oldest first."""
    forgotten: int = 0
    """How many changes before that the agent does not remember any more."""
    unrecorded: str = ""
    """Why nobody could say what happened lately; empty if somebody did."""
    pods: tuple[Pod, ...] | None = None
    """Every pod that the kubelet names; None if it could not be asked."""
    unasked: str = ""
    """Why it could not be asked."""
    resources: tuple[str, ...] = ()
    """The resources that are served here."""

    def device(self, device_id: str) -> agentapi.Device | None:
        """Look a device up."""
        return next((d for d in self.inventory.devices if d.id == device_id), None)

    def part(self, name: str) -> agentapi.Part | None:
        """Look a part of the agent up."""
        readiness = self.inventory.readiness
        parts = [] if readiness is None else readiness.parts
        return next((part for part in parts if part.name == name), None)


async def look(settings: Settings) -> Sight:
    """Ask everybody.

    Raises:
        EdgeError: no agent answers, and the machine does not either.
    """
    silence, inventory = await _inventory(settings)
    recent, unrecorded = agentapi.ListRecentResponse(), silence
    if not silence and settings.subscribers.socket is not None:
        recent, unrecorded = await _recent(settings.subscribers.socket)
    resources = _resources(settings, inventory)
    known, unasked = await _pods(settings.kubelet.root, resources)
    return Sight(
        inventory=inventory,
        silence=silence,
        recent=tuple(recent.changes),
        forgotten=recent.forgotten,
        unrecorded=unrecorded,
        pods=known,
        unasked=unasked,
        resources=resources,
    )


async def _inventory(settings: Settings) -> tuple[str, agentapi.Inventory]:
    socket = settings.subscribers.socket
    silence = "subscribers.socket is empty"
    if socket is not None:
        try:
            return "", await client.get_inventory(socket)
        except EdgeError as error:
            silence = str(error)
    return silence, await agent.look(settings)


async def _recent(socket: Path) -> tuple[agentapi.ListRecentResponse, str]:
    try:
        return await client.list_recent(socket, ""), ""
    except EdgeError as error:
        return agentapi.ListRecentResponse(), str(error)


async def _pods(
    kubelet_root: Path, resources: tuple[str, ...]
) -> tuple[tuple[Pod, ...] | None, str]:
    try:
        return await pods(kubelet_root, resources), ""
    except EdgeError as error:
        return None, str(error)


def _resources(settings: Settings, inventory: agentapi.Inventory) -> tuple[str, ...]:
    """Name what is served: by the agent's own word, for it may run with other settings."""
    parts = [] if inventory.readiness is None else inventory.readiness.parts
    served = sorted(p.name.removeprefix(PLUGIN) for p in parts if p.name.startswith(PLUGIN))
    return tuple(served) or outfit.resource_names(settings).all()
