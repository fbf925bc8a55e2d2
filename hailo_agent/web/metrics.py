"""Everything that is told at `/metrics`, read at the time of the scrape.

Nothing is stored between scrapes, so no series outlives what it tells of. `agent` hands in where
the state is; `server` calls `Exposition.render`. It must run where the state lives: on the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from hailo_agent.aio.latest import Latest
from hailo_agent.aio.supervise import Roster
from hailo_agent.aio.tally import Tally
from hailo_agent.core.device import DeviceId
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.offer import ResourceNames
from hailo_agent.core.usage import DeviceUsage
from hailo_agent.web import definitions as names
from hailo_agent.web.agent_metrics import of_inventory, of_parts, of_tally
from hailo_agent.web.device_metrics import of_devices
from hailo_agent.web.exposition import Exposition
from hailo_agent.web.families import bounded, metric
from hailo_agent.web.usage_metrics import of_usage


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Which agent this is."""

    version: str
    python: str


class DeviceCollector(Collector):
    """Reads devices and agent at scrape time."""

    def __init__(
        self,
        *,
        inventory: Latest[Inventory],
        roster: Roster,
        tally: Tally,
        resources: ResourceNames,
        about: About,
        unix_offset: Callable[[], float],
        usage: Callable[[], Mapping[DeviceId, DeviceUsage]] = dict,
    ) -> None:
        """Take the places where the state is.

        `unix_offset` tells what to add to the observation's clock to get Unix time, in seconds; it
        is asked at each scrape, since clocks are set. `usage` is what workloads last said of their
        devices, and nothing where nobody listens to them.
        """
        self._inventory = inventory
        self._roster = roster
        self._tally = tally
        self._resources = resources
        self._about = about
        self._unix_offset = unix_offset
        self._usage = usage

    def collect(self) -> Iterator[Metric]:
        """Tell everything there is to tell now; a metric without a series is left out."""
        return (told for told in self._all() if told.samples)

    def _all(self) -> Iterator[Metric]:
        inventory, resources, offset = self._inventory.value, self._resources, self._unix_offset()

        def unix_time(at: float) -> float:
            # Two clocks read one after the other: finer than this is noise, and a new value in each
            # scrape of what has not changed.
            return round(at + offset, 1)

        about = (self._about.version, self._about.python)
        yield metric(names.AGENT_BUILD, [(tuple(map(bounded, about)), 1.0)])
        yield from of_parts(self._roster.statuses.value, is_ready=self._roster.is_ready)
        yield from of_inventory(inventory, resources, unix_time)
        yield from of_tally(self._tally, resources, inventory)
        yield from of_devices(inventory, resources, unix_time)
        yield from of_usage(inventory, self._usage(), unix_time)


def exposition(devices: DeviceCollector) -> Exposition:
    """Put together what is told: devices, agent, and what the process costs."""
    return Exposition(collectors=(devices, ProcessCollector(registry=None)))
