"""Changes: whoever applies all of them to what was knows what is."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given

from hailo_agent.core.change import Change, Kind, changes
from hailo_agent.core.device import Device, DeviceId, DeviceNumber, Devnode
from hailo_agent.core.health import Fault, FaultCode, Health
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.observation import Observation
from tests.strategies import (
    BOARDS,
    HOLDER,
    PHANTOM,
    How,
    after,
    found,
    histories,
    inventories,
    listed,
    replay,
    seen,
)

BOARD, NEIGHBOUR, *_ = BOARDS
FAULT = Fault(code=FaultCode.PCI_UNSERVED, subject="0000:01:00.0", message="a", remedy="b")
NODE = Devnode(name="hailo0", number=DeviceNumber(507, 0), class_name="hailo_chardev")
DEVICE = Device(id=BOARD.id, devnode=NODE)
ILL = replace(DEVICE, health=Health.UNHEALTHY, faults=(FAULT,))


def applied(
    before: Inventory, told: Iterable[Change]
) -> tuple[tuple[Device, ...], tuple[Fault, ...]]:
    """Apply changes as a subscriber would, who knows nothing but the words of each kind."""
    devices: dict[DeviceId, Device] = dict(before.by_id())
    faults = {(fault.code, fault.subject): fault for fault in before.faults}
    for change in told:
        match change:
            case Change(kind=Kind.REMOVED, device=Device() as device):
                del devices[device.id]
            case Change(kind=Kind.FAULT_FOUND, fault=Fault() as fault):
                faults[fault.code, fault.subject] = fault
            case Change(kind=Kind.FAULT_CLEARED, fault=Fault() as fault):
                del faults[fault.code, fault.subject]
            case Change(device=Device() as device):
                devices[device.id] = device
    return (
        tuple(devices[device_id] for device_id in sorted(devices)),
        tuple(faults[key] for key in sorted(faults)),
    )


def kinds(before: Inventory, now: Inventory) -> list[Kind]:
    return [change.kind for change in changes(before, now)]


def between(before: Device | None, now: Device | None) -> list[Kind]:
    """Tell what becomes of a single device."""
    old, new = (Inventory(devices=() if d is None else (d,)) for d in (before, now))
    return kinds(old, new)


@given(inventories(), inventories())
def test_changes_applied_to_what_was_give_what_is(before: Inventory, now: Inventory) -> None:
    assert applied(before, changes(before, now)) == (now.devices, now.faults)


@given(inventories(), inventories())
def test_there_is_a_change_exactly_if_there_is_a_difference(
    before: Inventory, now: Inventory
) -> None:
    differs = (before.devices, before.faults) != (now.devices, now.faults)
    assert bool(changes(before, now)) == differs


@given(inventories())
def test_nothing_changes_into_itself(inventory: Inventory) -> None:
    assert changes(inventory, inventory) == ()


@given(histories())
def test_changes_along_a_history_lead_from_nothing_to_its_end(history: list[Observation]) -> None:
    told = [change for before, _, now in replay(history) for change in changes(before, now)]
    end = after(*history)
    assert applied(Inventory(), told) == (end.devices, end.faults)


@given(inventories(), inventories())
def test_each_change_is_of_one_device_or_of_one_fault(before: Inventory, now: Inventory) -> None:
    for change in changes(before, now):
        of_fault = change.kind in {Kind.FAULT_FOUND, Kind.FAULT_CLEARED}
        assert (change.fault is not None) == of_fault
        assert (change.device is None) == of_fault


@given(inventories(), inventories())
def test_devices_come_in_order_and_faults_last(before: Inventory, now: Inventory) -> None:
    told = changes(before, now)
    ids = [change.device.id for change in told if change.device is not None]
    assert ids == sorted(ids)
    assert [change.device is None for change in told] == sorted(c.device is None for c in told)


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (None, DEVICE, [Kind.ADDED]),
        (None, ILL, [Kind.ADDED]),
        (DEVICE, None, [Kind.REMOVED]),
        (DEVICE, ILL, [Kind.FAULTED]),
        (ILL, DEVICE, [Kind.RECOVERED]),
        (ILL, replace(ILL, faults=(replace(FAULT, message="worse"),)), [Kind.FAULTED]),
        (ILL, replace(ILL, faults=(replace(FAULT, since=9.0),)), []),
        (DEVICE, replace(DEVICE, devnode=replace(NODE, name="hailo1")), [Kind.MOVED]),
        (DEVICE, replace(DEVICE, devnode=replace(NODE, class_name="hailo1x")), [Kind.MOVED]),
        (DEVICE, replace(ILL, devnode=None), [Kind.FAULTED]),
        (replace(ILL, devnode=None), DEVICE, [Kind.RECOVERED]),
        (DEVICE, replace(DEVICE, held=True), [Kind.HELD]),
        (replace(DEVICE, held=True), DEVICE, [Kind.FREED]),
        (DEVICE, replace(DEVICE, held=False), [Kind.UPDATED]),
        (DEVICE, replace(DEVICE, driver_version="4.23.0"), [Kind.UPDATED]),
        (DEVICE, replace(ILL, held=True), [Kind.FAULTED, Kind.HELD]),
        (DEVICE, replace(ILL, devnode=replace(NODE, name="x")), [Kind.MOVED, Kind.FAULTED]),
    ],
)
def test_a_change_is_of_the_kind_that_a_reader_expects(
    before: Device | None, now: Device | None, told: list[Kind]
) -> None:
    assert between(before, now) == told


def test_a_device_that_goes_from_hand_to_hand_is_held_anew() -> None:
    # What the API says of HELD: a pod holds it now, or another one does.
    first = replace(DEVICE, held=True, holders=(HOLDER,))
    second = replace(first, holders=(replace(HOLDER, pod="other"),))
    assert between(first, second) == [Kind.HELD]


def test_a_removed_device_is_told_as_it_was_last_known() -> None:
    (change,) = changes(Inventory(devices=(ILL,)), Inventory())
    assert change == Change(kind=Kind.REMOVED, device=ILL)


def test_a_fault_that_reads_differently_is_found_anew_and_not_cleared() -> None:
    other = replace(FAULT, message="c")
    told = changes(Inventory(faults=(FAULT,)), Inventory(faults=(other,)))
    assert told == (Change(kind=Kind.FAULT_FOUND, fault=other),)


def test_a_fault_of_the_machine_is_found_and_cleared() -> None:
    ill = Inventory(faults=(FAULT,))
    assert changes(Inventory(), ill) == (Change(kind=Kind.FAULT_FOUND, fault=FAULT),)
    assert changes(ill, Inventory()) == (Change(kind=Kind.FAULT_CLEARED, fault=FAULT),)


def test_the_life_of_a_board_is_told_in_full() -> None:
    looks = [
        seen(found(BOARD, How.NO_NODE), at=0.0),
        seen(found(BOARD), at=1.0),
        seen(found(BOARD, index=1), at=2.0, holdings=listed(BOARD.id, at=2.0)),
        seen(at=3.0, holdings=listed(BOARD.id, at=3.0)),
        seen(at=4.0, holdings=listed(at=4.0)),
        seen(at=20.0, holdings=listed(at=20.0)),
    ]
    told = [kinds(before, now) for before, _, now in replay(looks)]
    assert told == [
        [Kind.FAULT_FOUND],
        [Kind.ADDED, Kind.FAULT_CLEARED],
        [Kind.MOVED, Kind.HELD],
        [Kind.FAULTED],
        [Kind.FREED],
        [Kind.REMOVED],
    ]


def test_a_device_that_is_ill_from_the_start_is_told_once() -> None:
    assert kinds(Inventory(), after(seen(holdings=listed(PHANTOM, at=0.0)))) == [Kind.ADDED]
    assert kinds(Inventory(), after(seen(found(NEIGHBOUR)))) == [Kind.ADDED]
