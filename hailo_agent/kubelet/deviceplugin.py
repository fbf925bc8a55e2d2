"""The device-plugin API, v1beta1: what the kubelet may ask of one resource.

A translation. What is offered, granted and preferred is decided in `core`; this answers from the
inventory in memory, without I/O, for the kubelet waits in its sync loop and without a deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from hailo_agent.aio.latest import Latest
from hailo_agent.aio.tally import Tally
from hailo_agent.core.cdi import Place
from hailo_agent.core.device import DeviceId
from hailo_agent.core.grant import Delivery, Grant, grant
from hailo_agent.core.health import Health
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.offer import Offer, OfferId, ResourceNames, offers
from hailo_agent.core.standing import Told
from hailo_agent.core.topology import prefer
from hailo_agent.errors import Refusal
from hailo_agent.kubelet.mapping import to_container, to_devices, to_places
from hailo_agent.wire import deviceplugin

LIST_METHOD = "/v1beta1.DevicePlugin/ListAndWatch"
REST_SECONDS = 1.0
"""The kubelet syncs a checkpoint to disk for every list: a storm is folded to one a second."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms on which one resource is offered."""

    resource: str
    names: ResourceNames
    delivery: frozenset[Delivery]
    place: Place
    granted: Callable[[Sequence[DeviceId]], Awaitable[None]]
    """Told of every grant, before the kubelet is; the kubelet waits for it."""
    tally: Tally


class DevicePlugin(deviceplugin.DevicePluginBase):
    """Serves one resource for the length of one session."""

    def __init__(self, inventory: Latest[Inventory], terms: Terms) -> None:
        self._inventory = inventory
        self._terms = terms
        self.told: Told | None = None
        """What has been sent; None before the first list, and while one is under way."""
        self._stream = 0
        self._offered: tuple[Inventory, tuple[Offer, ...]] | None = None

    def close(self) -> None:
        """End every stream cleanly; the kubelet then hangs up by itself."""
        self._stream += 1
        self._inventory.nudge()

    @staticmethod
    def options() -> deviceplugin.DevicePluginOptions:
        """Tell which optional calls matter. Pre-start would make restarts depend on us."""
        return deviceplugin.DevicePluginOptions(
            pre_start_required=False, get_preferred_allocation_available=True
        )

    async def get_device_plugin_options(
        self,
        message: deviceplugin.Empty,  # noqa: ARG002
    ) -> deviceplugin.DevicePluginOptions:
        """Tell the options; the kubelet heeds these, not those sent with Register."""
        return self.options()

    async def list_and_watch(
        self,
        message: deviceplugin.Empty,  # noqa: ARG002
    ) -> AsyncIterator[deviceplugin.ListAndWatchResponse]:
        """Send the list, then each one that differs. A newer stream takes the place of this one.

        The first change travels at once. Further ones within a second are folded, and the last
        state is always told.
        """
        self.close()
        mine = self._stream

        def is_over() -> bool:
            return self._stream != mine

        loop = asyncio.get_running_loop()
        told: list[deviceplugin.Device] | None = None
        rested_at = loop.time()
        async for _ in self._inventory.follow(until=is_over):
            devices = to_devices(self._offers())
            if devices == told:
                continue
            if rested_at > loop.time():
                await self._inventory.rest(rested_at - loop.time(), until=is_over)
                devices = to_devices(self._offers())
                if devices == told or is_over():
                    continue
            if told is not None:
                rested_at = loop.time() + REST_SECONDS
            told = devices
            self.told = None
            yield deviceplugin.ListAndWatchResponse(devices=devices)
            if not is_over():
                self.told = Told(healthy=_healthy(devices), at=loop.time())
            self._terms.tally.count("lists", self._terms.resource)
            _log.info("list.sent", resource=self._terms.resource, list=_counts(devices))

    async def get_preferred_allocation(
        self, message: deviceplugin.PreferredAllocationRequest
    ) -> deviceplugin.PreferredAllocationResponse:
        """Advise. An error here would fail the pod, so there is an answer to everything."""
        return deviceplugin.PreferredAllocationResponse(
            container_responses=[
                deviceplugin.ContainerPreferredAllocationResponse(
                    device_ids=list(self._preferred(request))
                )
                for request in message.container_requests
            ]
        )

    def _preferred(
        self, request: deviceplugin.ContainerPreferredAllocationRequest
    ) -> Sequence[str]:
        available, must = request.available_device_ids, request.must_include_device_ids
        try:
            places = to_places(self._offers())
            return prefer(places, available, must, request.allocation_size)
        except Exception:  # noqa: BLE001 - see get_preferred_allocation
            _log.exception("preference.failed", resource=self._terms.resource)
            return list(dict.fromkeys([*must, *available]))[: max(request.allocation_size, 0)]

    async def allocate(
        self, message: deviceplugin.AllocateRequest
    ) -> deviceplugin.AllocateResponse:
        """Grant what every container asks for, or refuse all of it."""
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        asked = [request.device_ids for request in message.container_requests]
        try:
            grants = [self._grant(device_ids) for device_ids in asked]
        except Refusal as refusal:
            self._terms.tally.count("refusals", self._terms.resource, type(refusal).__name__)
            _log.warning(
                "allocation.refused",
                resource=self._terms.resource,
                devices=[str(device_id) for device_ids in asked for device_id in device_ids],
                error={"type": type(refusal).__name__, "message": str(refusal)},
            )
            raise
        granted = [device.id for granted in grants for device in granted.devices]
        await self._terms.granted(granted)
        response = deviceplugin.AllocateResponse(
            container_responses=[to_container(granted) for granted in grants]
        )
        took = loop.time() - started_at
        self._terms.tally.time("allocations", self._terms.resource, seconds=took)
        _log.info(
            "allocation.granted",
            resource=self._terms.resource,
            devices=[str(device_id) for device_id in granted],
            delivery=sorted(self._terms.delivery),
            duration_ms=round(1000 * took, 3),
        )
        return response

    async def pre_start_container(
        self,
        message: deviceplugin.PreStartContainerRequest,  # noqa: ARG002
    ) -> deviceplugin.PreStartContainerResponse:
        """Do nothing: we ask not to be called, and being called anyway is harmless."""
        return deviceplugin.PreStartContainerResponse()

    def _grant(self, device_ids: Iterable[str]) -> Grant:
        return grant(
            self._offers(),
            [OfferId(device_id) for device_id in device_ids],
            resource=self._terms.resource,
            delivery=self._terms.delivery,
            place=self._terms.place,
        )

    def _offers(self) -> tuple[Offer, ...]:
        newest = self._inventory.value
        if self._offered is None or self._offered[0] is not newest:
            self._offered = newest, offers(newest, self._terms.resource, self._terms.names)
        return self._offered[1]


def _healthy(devices: Sequence[deviceplugin.Device]) -> frozenset[str]:
    return frozenset(device.id for device in devices if device.health == Health.HEALTHY.value)


def _counts(devices: Sequence[deviceplugin.Device]) -> dict[str, int]:
    return {"capacity": len(devices), "allocatable": len(_healthy(devices))}
