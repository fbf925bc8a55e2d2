"""The agent's own event stream: the inventory first, then each change, for whoever subscribes.

A subscriber that is slow or dead costs nothing: each stream remembers only what it told last and
compares it with the newest inventory when its reader is ready for more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from hailo_agent.aio.latest import Latest
from hailo_agent.aio.supervise import Roster
from hailo_agent.core.change import changes
from hailo_agent.core.chronicle import Chronicle
from hailo_agent.core.inventory import Inventory
from hailo_agent.subscribers.mapping import About, to_changes, to_inventory, to_recent
from hailo_agent.wire import agentapi


class DeviceEvents(agentapi.DeviceEventsBase):
    """Serves `hailo.agent.v1.DeviceEvents`."""

    def __init__(
        self,
        inventory: Latest[Inventory],
        roster: Roster,
        about: About,
        chronicle: Latest[Chronicle] | None = None,
    ) -> None:
        self._inventory = inventory
        self._roster = roster
        self._about = about
        self._chronicle = chronicle or Latest(Chronicle())
        self._last: tuple[Inventory, Inventory, agentapi.WatchResponse | None] | None = None

    async def get_inventory(
        self,
        message: agentapi.GetInventoryRequest,  # noqa: ARG002
    ) -> agentapi.GetInventoryResponse:
        """Tell the inventory of this moment."""
        return agentapi.GetInventoryResponse(inventory=self.whole())

    async def list_recent(self, message: agentapi.ListRecentRequest) -> agentapi.ListRecentResponse:
        """Tell what happened lately."""
        return to_recent(self._chronicle.value, message.subject, self._about)

    async def watch(
        self,
        message: agentapi.WatchRequest,  # noqa: ARG002
    ) -> AsyncIterator[agentapi.WatchResponse]:
        """Tell the inventory, then how each newer one differs from the one told last."""
        told: Inventory | None = None
        async for inventory in self._inventory.follow():
            if told is None:
                yield agentapi.WatchResponse(inventory=self._whole(inventory))
            elif (response := self._difference(told, inventory)) is not None:
                yield response
            told = inventory

    def whole(self) -> agentapi.Inventory:
        """Tell the inventory of this moment."""
        return self._whole(self._inventory.value)

    def _whole(self, inventory: Inventory) -> agentapi.Inventory:
        parts = self._roster.statuses.value
        return to_inventory(inventory, self._inventory.version, parts, self._about)

    def _difference(self, told: Inventory, inventory: Inventory) -> agentapi.WatchResponse | None:
        """Compare two inventories once for all subscribers that are equally far.

        None where a reader would find nothing new: what moved may have come back.
        """
        if self._last is not None and self._last[0] is told and self._last[1] is inventory:
            return self._last[2]
        found = changes(told, inventory)
        response = None
        if found:
            message = to_changes(found, self._inventory.version, self._about)
            response = agentapi.WatchResponse(changes=message)
        self._last = told, inventory, response
        return response
