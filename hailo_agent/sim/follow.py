"""A subscriber that stays: the agent's own event stream as a state, and as news in words.

The demo and the simulator's prompt show it beside the kubelet's view. It follows whichever agent
answers on the socket, so that one which is killed and comes back is followed again. It knows
nothing of how agents are started.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hailo_agent.errors import EdgeError
from hailo_agent.subscribers import client
from hailo_agent.wire import agentapi

_REDIAL_SECONDS: Final = 0.05
_REMEMBERED: Final = 200

_WORDS: Final = {
    agentapi.ChangeKind.REMOVED: "is forgotten",
    agentapi.ChangeKind.FREED: "is free",
    agentapi.ChangeKind.UPDATED: "has changed in detail",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """One thing that the agent told, and when it was heard (on the loop's clock)."""

    at: float
    text: str


class Follower:
    """What the agent holds to be true, as it told us, and what it told last."""

    def __init__(self, socket: Path, heard: Callable[[News], None] = lambda _: None) -> None:
        self.devices: dict[str, agentapi.Device] = {}
        self.faults: dict[tuple[str, str], agentapi.Fault] = {}
        self.news: deque[News] = deque(maxlen=_REMEMBERED)
        self.answered = False
        """Whether there is an agent, and it has told us everything."""
        self._socket = socket
        self._heard = heard

    async def run(self) -> None:
        """Follow for ever."""
        while True:
            with suppress(EdgeError):
                async with aclosing(client.watch(self._socket)) as responses:
                    async for response in responses:
                        self._take(response)
            if self.answered:
                self.answered = False
                self._tell("the agent does not answer any more")
            await asyncio.sleep(_REDIAL_SECONDS)

    def _take(self, response: agentapi.WatchResponse) -> None:
        if response.inventory is not None:
            self._take_all(response.inventory)
        if response.changes is not None:
            for change in response.changes.changes:
                self._take_change(change)

    def _take_all(self, inventory: agentapi.Inventory) -> None:
        self.devices = {device.id: device for device in inventory.devices}
        self.faults = {(fault.code, fault.subject): fault for fault in inventory.faults}
        self.answered = True
        count = len(self.devices)
        self._tell(f"the agent answers: {count} device{'' if count == 1 else 's'}")

    def _take_change(self, change: agentapi.Change) -> None:
        device, fault = change.device, change.fault
        before = self.devices.get(device.id) if device is not None else None
        if device is not None:
            if change.kind is agentapi.ChangeKind.REMOVED:
                self.devices.pop(device.id, None)
            else:
                self.devices[device.id] = device
        if fault is not None:
            if change.kind is agentapi.ChangeKind.FAULT_CLEARED:
                self.faults.pop((fault.code, fault.subject), None)
            else:
                self.faults[fault.code, fault.subject] = fault
        for text in _in_words(change, before):
            self._tell(text)

    def _tell(self, text: str) -> None:
        news = News(at=asyncio.get_running_loop().time(), text=text)
        self.news.append(news)
        self._heard(news)


def _in_words(change: agentapi.Change, before: agentapi.Device | None) -> Iterator[str]:
    device, fault = change.device, change.fault
    if fault is not None:
        if change.kind is agentapi.ChangeKind.FAULT_CLEARED:
            yield f"{fault.subject}: no longer: {fault.message}"
        else:
            yield f"{fault.subject}: {fault.message}"
    elif device is None:
        yield "something changed"
    elif change.kind is agentapi.ChangeKind.ADDED:
        yield f"{device.id} is here: {device.model} at {device.path}"
    elif change.kind is agentapi.ChangeKind.MOVED:
        yield f"{device.id} is at {device.path} now"
    elif change.kind is agentapi.ChangeKind.HELD or _learned_holders(device, before):
        holders = ", ".join(f"{holder.namespace}/{holder.pod}" for holder in device.holders)
        yield f"{device.id} is held by {holders or 'a pod'}"
    elif change.kind is agentapi.ChangeKind.HEALTH:
        if device.health is agentapi.Health.HEALTHY:
            yield f"{device.id} is healthy"
        else:
            yield f"{device.id} is unhealthy: {'; '.join(f.message for f in device.faults)}"
    else:
        yield f"{device.id} {_WORDS.get(change.kind, 'has changed')}"


def _learned_holders(device: agentapi.Device, before: agentapi.Device | None) -> bool:
    """Whether the names of those who hold it are news: the kubelet tells them a while later."""
    return bool(device.holders) and before is not None and device.holders != before.holders
