"""What the inventory tells of its devices, as metrics.

Pure. `metrics` calls it at each scrape with the newest inventory. What no sensor tells has no row
here, and what was read before the device was there was another card's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client.metrics_core import Metric

from hailo_agent.core.chip import Chip, ChipState, Zone
from hailo_agent.core.device import Device
from hailo_agent.core.health import Health, Sensor
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.offer import ResourceNames
from hailo_agent.core.vitals import Link, Vitals
from hailo_agent.web import definitions as names
from hailo_agent.web.definitions import Definition
from hailo_agent.web.families import MAX_NAME, Row, bounded, metric

_POWER_STATES: Final = frozenset({"D0", "D1", "D2", "D3hot", "D3cold"})
"""As the kernel names them; its `unknown` and `error` are no states."""

_GIGA: Final = 1e9

UnixTime = Callable[[float], float]
"""From the observation's clock to seconds since 1970."""

Read = Callable[["_Shown"], Iterator[Row]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """One device, what is known of it now, and in which words."""

    device: Device
    resource: str
    unix_time: UnixTime

    @property
    def vitals(self) -> Vitals | None:
        """The newest reading of this card by the kernel's word."""
        vitals = self.device.vitals
        return vitals if vitals is not None and self.is_of_this_card(vitals.at) else None

    @property
    def chip(self) -> Chip | None:
        """The newest answer of this card."""
        chip = self.device.chip
        return chip if chip is not None and self.is_of_this_card(chip.at) else None

    @property
    def state(self) -> ChipState | None:
        """What the firmware watches over."""
        return None if self.chip is None else self.chip.state

    @property
    def link(self) -> Link | None:
        """The link as it was read last: by its own sensor, or by the look at the machine."""
        if self.device.devnode is None:
            return None
        return (self.vitals and self.vitals.link) or self.device.link

    def is_of_this_card(self, at: float) -> bool:
        """Whether something read at this time was read of the card that is there."""
        return self.device.devnode is not None and at >= self.device.present_since


def of_devices(
    inventory: Inventory, resources: ResourceNames, unix_time: UnixTime
) -> Iterator[Metric]:
    """Tell everything about every device."""
    shown = [
        _Shown(
            device=device,
            resource=bounded(resources.of(device), MAX_NAME),
            unix_time=unix_time,
        )
        for device in inventory.devices
    ]
    for definition, read in _READERS.items():
        yield metric(definition, _rows(shown, read))


def _rows(shown: Collection[_Shown], read: Read) -> Iterator[Row]:
    for one in shown:
        for labels, figure in read(one):
            yield (one.device.id, *labels), figure


# --- what each metric reads; the device itself is always the first label --------------------------


def _info(shown: _Shown) -> Iterator[Row]:
    device, firmware = shown.device, shown.device.firmware
    numa_node = device.topology.numa_node
    texts = (
        device.model.value,
        firmware.product_name if firmware else "",
        firmware.part_number if firmware else "",
        firmware.serial if firmware else "",
        firmware.version if firmware else "",
        device.driver or "",
        device.driver_version or "",
        "" if device.address is None else str(device.address),
        "" if numa_node is None else str(numa_node),
        device.topology.pcie_root or "",
        "" if device.devnode is None else device.devnode.name,
    )
    yield (shown.resource, *map(bounded, texts)), 1.0


def _present(shown: _Shown) -> Iterator[Row]:
    yield (), float(shown.device.devnode is not None)


def _usable(shown: _Shown) -> Iterator[Row]:
    yield (), float(shown.device.is_usable)


def _health(shown: _Shown) -> Iterator[Row]:
    for health in Health:
        yield (health.value,), float(shown.device.health is health)


def _health_changed(shown: _Shown) -> Iterator[Row]:
    yield (), shown.unix_time(shown.device.history.since)


def _faults(shown: _Shown) -> Iterator[Row]:
    for fault in shown.device.faults:
        yield (fault.code.value, fault.severity.value), 1.0


def _held(shown: _Shown) -> Iterator[Row]:
    if shown.device.held is not None:
        yield (), float(shown.device.held)


def _allocation(shown: _Shown) -> Iterator[Row]:
    for holder in shown.device.holders:
        texts = (holder.namespace, holder.pod, holder.container)
        yield (shown.resource, *(bounded(text, MAX_NAME) for text in texts)), 1.0


def _in_use(shown: _Shown) -> Iterator[Row]:
    in_use = None if shown.vitals is None else shown.vitals.is_in_use
    if in_use is not None:
        yield (), float(in_use)


def _power_state(shown: _Shown) -> Iterator[Row]:
    if shown.vitals is not None and shown.vitals.power_state in _POWER_STATES:
        yield (shown.vitals.power_state,), 1.0


def _temperature(shown: _Shown) -> Iterator[Row]:
    temperatures = None if shown.chip is None else shown.chip.temperatures
    if temperatures is not None:
        yield ("ts0",), temperatures.ts0_celsius
        yield ("ts1",), temperatures.ts1_celsius


def _temperature_limit(shown: _Shown) -> Iterator[Row]:
    if shown.state is None:
        return
    limits = {Zone.ORANGE: shown.state.orange_celsius, Zone.RED: shown.state.red_celsius}
    for zone, limit in limits.items():
        if limit is not None:
            yield (zone.value,), float(limit)


def _throttling_level(shown: _Shown) -> Iterator[Row]:
    if shown.state is not None:
        level = shown.state.throttling_level
        yield (), 0.0 if level is None else level + 1.0


def _overcurrent(shown: _Shown) -> Iterator[Row]:
    if shown.state is not None:
        yield (), float(shown.state.overcurrent_zone is Zone.RED)


def _of_link(read: Callable[[Link], float]) -> Read:
    def rows(shown: _Shown) -> Iterator[Row]:
        if shown.link is not None:
            yield (), read(shown.link)

    return rows


def _aer_errors(shown: _Shown) -> Iterator[Row]:
    aer = None if shown.vitals is None else shown.vitals.aer
    if aer is None:
        return
    counts = {"correctable": aer.correctable, "nonfatal": aer.nonfatal, "fatal": aer.fatal}
    for severity, count in counts.items():
        if count is not None:
            yield (severity,), float(count)


def _query_duration(shown: _Shown) -> Iterator[Row]:
    if shown.chip is not None:
        yield (), shown.chip.seconds


def _readings(shown: _Shown) -> Iterator[Row]:
    for sensor, at in _read_at(shown.device).items():
        if shown.is_of_this_card(at):
            yield (sensor.value,), shown.unix_time(at)


def _read_at(device: Device) -> Mapping[Sensor, float]:
    """Tell when each sensor last read a device; what has only just been read is not weighed yet."""
    read_at = dict(device.history.weighed)
    for sensor, reading in ((Sensor.VITALS, device.vitals), (Sensor.QUERY, device.chip)):
        if reading is not None:
            read_at[sensor] = reading.at
    return read_at


_READERS: Final[Mapping[Definition, Read]] = {
    names.DEVICE_INFO: _info,
    names.DEVICE_PRESENT: _present,
    names.DEVICE_USABLE: _usable,
    names.DEVICE_HEALTH: _health,
    names.DEVICE_HEALTH_CHANGED: _health_changed,
    names.DEVICE_FAULT: _faults,
    names.DEVICE_HELD: _held,
    names.DEVICE_ALLOCATION: _allocation,
    names.DEVICE_IN_USE: _in_use,
    names.DEVICE_POWER_STATE: _power_state,
    names.DEVICE_TEMPERATURE: _temperature,
    names.DEVICE_TEMPERATURE_LIMIT: _temperature_limit,
    names.DEVICE_THROTTLING_LEVEL: _throttling_level,
    names.DEVICE_OVERCURRENT: _overcurrent,
    names.DEVICE_LINK: _of_link(lambda link: link.speed_gts * _GIGA),
    names.DEVICE_LINK_MAX: _of_link(lambda link: link.max_speed_gts * _GIGA),
    names.DEVICE_LANES: _of_link(lambda link: float(link.width)),
    names.DEVICE_LANES_MAX: _of_link(lambda link: float(link.max_width)),
    names.DEVICE_AER_ERRORS: _aer_errors,
    names.DEVICE_QUERY_DURATION: _query_duration,
    names.DEVICE_READING: _readings,
}
