"""What the agent itself does and has done, as metrics.

Pure. `metrics` calls it at each scrape. Counts of which the labels are known beforehand begin at 0,
so that the first event is seen as an increase.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Final

from prometheus_client.metrics_core import Metric

from hailo_agent.aio.supervise import State, Status
from hailo_agent.aio.tally import Durations, Tally
from hailo_agent.core.change import Kind
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.offer import ResourceNames
from hailo_agent.errors import DeviceUnavailable, UnknownOffer
from hailo_agent.web import definitions as names
from hailo_agent.web.definitions import Definition
from hailo_agent.web.device_metrics import UnixTime
from hailo_agent.web.families import MAX_NAME, Labels, Row, bounded, histogram, metric, summary

_REGISTERED: Final = ("accepted", "rejected", "failed")
_REFUSED: Final = (UnknownOffer.__name__, DeviceUnavailable.__name__)
_WRITTEN: Final = ("replaced", "restored", "removed", "refused")
_CHANGED: Final = tuple(kind.value for kind in Kind)


def of_parts(statuses: Iterable[Status], *, is_ready: bool) -> Iterator[Metric]:
    """Tell how the agent's parts are."""
    parts = [(bounded(status.name), status) for status in statuses]
    yield metric(names.AGENT_READY, [((), float(is_ready))])
    yield metric(
        names.AGENT_PART_STATE,
        (
            ((name, state.value), float(status.state is state))
            for name, status in parts
            for state in State
        ),
    )
    yield metric(
        names.AGENT_PART_RESTARTS,
        (((name,), float(status.restarts)) for name, status in parts),
    )


def of_inventory(
    inventory: Inventory, resources: ResourceNames, unix_time: UnixTime
) -> Iterator[Metric]:
    """Tell what the agent as a whole has found."""
    counts = dict.fromkeys(resources.all(), 0)
    for device in inventory.devices:
        resource = resources.of(device)
        counts[resource] = counts.get(resource, 0) + 1
    yield metric(
        names.AGENT_DEVICES,
        (((bounded(resource, MAX_NAME),), float(count)) for resource, count in counts.items()),
    )
    faults: dict[Labels, float] = {}
    for fault in inventory.faults:
        labels = (fault.code.value, fault.severity.value)
        faults[labels] = faults.get(labels, 0.0) + 1.0
    yield metric(names.AGENT_FAULTS, faults.items())
    looked: list[Row] = [((), unix_time(inventory.at))] if inventory.at else []
    yield metric(names.AGENT_LOOK, looked)


def of_tally(tally: Tally, resources: ResourceNames, inventory: Inventory) -> Iterator[Metric]:
    """Tell what has happened so far."""
    served = resources.all()

    def counter(definition: Definition, name: str, *known: Iterable[str]) -> Metric:
        return metric(definition, _counts(tally.counts(name), product(*known) if known else ()))

    yield counter(names.AGENT_REGISTRATIONS, "registrations", served, _REGISTERED)
    yield counter(names.AGENT_DEVICE_LISTS, "lists", served)
    yield counter(names.AGENT_REFUSALS, "refusals", served, _REFUSED)
    yield counter(names.AGENT_RECONCILE_REASONS, "reconcile_reasons")
    yield counter(names.AGENT_SPEC_WRITES, "spec_writes", _WRITTEN)
    yield counter(names.AGENT_CHANGES, "changes", _CHANGED)
    yield metric(names.DEVICE_NOTIFICATIONS, _notifications(tally, inventory))
    yield histogram(
        names.AGENT_ALLOCATION_DURATION,
        _timed(tally.durations("allocations"), [(resource,) for resource in served]),
    )
    yield histogram(names.AGENT_RECONCILE_DURATION, _timed(tally.durations("reconciles"), [()]))
    yield histogram(names.AGENT_HOTPLUG_DURATION, _timed(tally.durations("hotplug"), [()]))
    yield summary(names.AGENT_RPC_DURATION, _timed(tally.durations("rpcs"), ()))


def _counts(counts: Mapping[Labels, float], known: Iterable[Labels]) -> Iterator[Row]:
    yield from ((_bounded(labels), 0.0) for labels in known)
    yield from ((_bounded(labels), count) for labels, count in counts.items())


def _notifications(tally: Tally, inventory: Inventory) -> Iterator[Row]:
    """Count what devices said that are still there; what went beyond all bounds is nobody's."""
    here = {"other", *(device.id for device in inventory.devices)}
    for labels, count in tally.counts("notifications").items():
        if labels[0] in here:
            yield _bounded(labels), count


def _timed(
    durations: Mapping[Labels, Durations], known: Iterable[Labels]
) -> Mapping[Labels, Durations]:
    timed = {_bounded(labels): Durations() for labels in known}
    for labels, more in durations.items():
        _add(timed, _bounded(labels), more)
    return timed


def _add(timed: dict[Labels, Durations], labels: Labels, more: Durations) -> None:
    known = timed.get(labels, Durations())
    timed[labels] = Durations(
        classes=[a + b for a, b in zip(known.classes, more.classes, strict=True)],
        sum_seconds=known.sum_seconds + more.sum_seconds,
    )


def _bounded(labels: Labels) -> Labels:
    return tuple(bounded(label, MAX_NAME) for label in labels)
