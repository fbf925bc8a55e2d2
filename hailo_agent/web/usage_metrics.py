"""What workloads say of their own work, as metrics.

Pure. `metrics` calls it at each scrape with what was read last. Names of networks are chosen by
whoever runs them, so how many are told is bounded here once more, and one device with many takes
nothing from another with few.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from prometheus_client.metrics_core import Metric

from hailo_agent.core.device import Device, DeviceId
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.usage import MAX_NETWORKS, DeviceUsage, Direction, NetworkUsage
from hailo_agent.web import definitions as names
from hailo_agent.web.definitions import Definition
from hailo_agent.web.device_metrics import UnixTime
from hailo_agent.web.families import MAX_NAME, Labels, Row, bounded, metric

MAX_NETWORKS_IN_ALL: Final = 1024
"""Of the whole node. With six series for each, this many make 6 144, whatever containers write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """One network, and whose it is."""

    labels: Labels
    network: NetworkUsage


Read = Callable[[NetworkUsage], Iterator[tuple[Labels, float | None]]]


def of_usage(
    inventory: Inventory, usage: Mapping[DeviceId, DeviceUsage], unix_time: UnixTime
) -> Iterator[Metric]:
    """Tell what is done on every device that somebody told of."""
    told = [
        (device, usage[device.id])
        for device in inventory.devices
        if device.id in usage and _is_of_this_card(device, usage[device.id], unix_time)
    ]
    yield metric(
        names.DEVICE_UTILISATION,
        (((device.id,), one.utilisation) for device, one in told if one.utilisation is not None),
    )
    yield metric(
        names.DEVICE_USAGE,
        (((device.id,), round(one.written_at, 1)) for device, one in told),
    )
    shown = _shown(told)
    for definition, read in _READERS.items():
        yield metric(definition, _rows(shown, read))


def _is_of_this_card(device: Device, usage: DeviceUsage, unix_time: UnixTime) -> bool:
    """Whether something was said of the card that is there."""
    return device.devnode is not None and usage.written_at >= unix_time(device.present_since)


def _shown(told: Collection[tuple[Device, DeviceUsage]]) -> tuple[_Shown, ...]:
    """Choose which networks are told: of every device its first before any has its second."""
    ranked = (
        _Shown(labels=_labels(device, usage, usage.networks[rank]), network=usage.networks[rank])
        for rank in range(MAX_NETWORKS)
        for device, usage in told
        if rank < len(usage.networks)
    )
    return tuple(islice(ranked, MAX_NETWORKS_IN_ALL))


def _labels(device: Device, usage: DeviceUsage, network: NetworkUsage) -> Labels:
    """Say whose a network is; nobody can tell if several hold the device, or another did then."""
    texts = ("", "", "")
    if len(device.holders) == 1 and usage.holders == device.holders:
        (holder,) = device.holders
        texts = (holder.namespace, holder.pod, holder.container)
    return (device.id, *(bounded(text, MAX_NAME) for text in texts), bounded(network.network))


def _rows(shown: Collection[_Shown], read: Read) -> Iterator[Row]:
    for one in shown:
        for labels, figure in read(one.network):
            if figure is not None:
                yield (*one.labels, *labels), float(figure)


# --- what each metric reads ----------------------------------------------------------------------


def _frames(network: NetworkUsage) -> Iterator[tuple[Labels, float | None]]:
    yield (), network.frames_per_second


def _utilisation(network: NetworkUsage) -> Iterator[tuple[Labels, float | None]]:
    yield (), network.utilisation


def _pending(network: NetworkUsage) -> Iterator[tuple[Labels, float | None]]:
    for direction in Direction:
        yield (direction.value,), network.pending(direction)


def _capacity(network: NetworkUsage) -> Iterator[tuple[Labels, float | None]]:
    for direction in Direction:
        yield (direction.value,), network.capacity(direction)


_READERS: Final[Mapping[Definition, Read]] = {
    names.NETWORK_FRAMES: _frames,
    names.NETWORK_UTILISATION: _utilisation,
    names.NETWORK_QUEUE: _pending,
    names.NETWORK_QUEUE_CAPACITY: _capacity,
}
