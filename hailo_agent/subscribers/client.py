"""A subscriber: what `hailo-agent devices` asks an agent that runs on this node."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

from hailo_agent.errors import SubscriberError
from hailo_agent.rpc.dial import dialing, translating
from hailo_agent.wire import agentapi

_TIMEOUT_SECONDS = 5.0


async def get_inventory(socket: Path) -> agentapi.Inventory:
    """Ask a running agent for its inventory.

    Raises:
        EdgeError: no agent answers there.
    """
    with translating("subscribers", f"asking the agent at {socket}"):
        async with dialing(socket) as channel:
            answer = await agentapi.DeviceEventsStub(channel).get_inventory(
                agentapi.GetInventoryRequest(), timeout=_TIMEOUT_SECONDS
            )
    if answer.inventory is None:
        raise SubscriberError(f"the agent at {socket} sent no inventory", edge="subscribers")
    return answer.inventory


async def list_recent(socket: Path, subject: str) -> agentapi.ListRecentResponse:
    """Ask a running agent what happened lately; to one subject, unless that is empty.

    Raises:
        EdgeError: no agent answers there, or one that is too old to know.
    """
    with translating("subscribers", f"asking the agent at {socket}"):
        async with dialing(socket) as channel:
            return await agentapi.DeviceEventsStub(channel).list_recent(
                agentapi.ListRecentRequest(subject=subject), timeout=_TIMEOUT_SECONDS
            )


async def watch(socket: Path) -> AsyncGenerator[agentapi.WatchResponse, None]:
    """Follow a running agent; ends when the agent stops.

    Raises:
        EdgeError: no agent answers there, or it went away without a word.
    """
    with translating("subscribers", f"following the agent at {socket}"):
        async with dialing(socket) as channel:
            async for response in agentapi.DeviceEventsStub(channel).watch(agentapi.WatchRequest()):
                yield response
