"""What subscribers are told: everything, in the API's words, and enough to keep up by changes."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.aio.supervise import State, Status
from hailo_agent.core.change import Change, Kind, changes
from hailo_agent.core.chip import Architecture, Chip, Firmware, Temperatures
from hailo_agent.core.health import Fault, FaultCode, Health, Severity
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.offer import ResourceNames
from hailo_agent.core.vitals import Vitals
from hailo_agent.subscribers.mapping import About, to_changes, to_device, to_fault, to_inventory
from hailo_agent.wire import agentapi
from tests.strategies import (
    BOARDS,
    HOLDER,
    OTHER_RESOURCE,
    PHANTOM,
    RESOURCE,
    SOC,
    How,
    after,
    found,
    inventories,
    listed,
    only,
    reachable,
    seen,
)

BOARD = BOARDS[0]
ABOUT = About(
    node="edge-7",
    version="0.1.0",
    instance="c0ffee",
    names=ResourceNames(default=RESOURCE),
    host_dev="/dev",
    epoch=1_000_000.0,
)
FAULT = Fault(
    code=FaultCode.DEVNODE_MISSING, subject="x", message="is missing", remedy="look", since=7.5
)


def told(inventory: Inventory, about: About = ABOUT) -> agentapi.Inventory:
    return to_inventory(inventory, 1, (), about)


def device(inventory: Inventory) -> agentapi.Device:
    return to_device(only(inventory), ABOUT)


def undated(faults: Iterable[agentapi.Fault]) -> list[agentapi.Fault]:
    """Leave the dates out: a fault that lasts is told once, with the date it had then."""
    return [
        agentapi.Fault(code=f.code, subject=f.subject, message=f.message, remedy=f.remedy)
        for f in faults
    ]


def undated_device(device: agentapi.Device) -> agentapi.Device:
    copy = agentapi.Device.parse(bytes(device))
    copy.faults = undated(device.faults)
    return copy


# --- keeping up ----------------------------------------------------------------------------------


@given(inventories(), inventories())
def test_a_subscriber_that_applies_every_change_holds_the_newest_inventory(
    before: Inventory, now: Inventory
) -> None:
    first = told(before)
    devices = {device.id: device for device in first.devices}
    faults = {(fault.code, fault.subject): fault for fault in first.faults}
    for change in to_changes(changes(before, now), 2, ABOUT).changes:
        if change.device is None:
            assert change.fault is not None
            key = change.fault.code, change.fault.subject
            faults.pop(key, None)
            if change.kind is agentapi.ChangeKind.FAULT_FOUND:
                faults[key] = change.fault
        else:
            devices.pop(change.device.id, None)
            if change.kind is not agentapi.ChangeKind.REMOVED:
                devices[change.device.id] = change.device
    last = told(now)
    assert [undated_device(devices[i]) for i in sorted(devices)] == [
        undated_device(device) for device in last.devices
    ]
    assert undated(faults[key] for key in sorted(faults)) == undated(last.faults)


@given(reachable())
def test_every_inventory_survives_the_wire(inventory: Inventory) -> None:
    message = told(inventory)
    assert agentapi.Inventory.parse(bytes(message)) == message


@given(inventories())
def test_every_device_is_told_in_order_and_once(inventory: Inventory) -> None:
    message = told(inventory)
    assert [d.id for d in message.devices] == [d.id for d in inventory.devices]
    assert len(message.faults) == len(inventory.faults)


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_of_change_has_a_word_in_the_api(kind: Kind) -> None:
    message = to_changes([Change(kind=kind, fault=FAULT)], 5, ABOUT)
    assert message.revision == 5
    assert message.changes[0].kind is not agentapi.ChangeKind.UNSPECIFIED
    assert message.changes[0].fault == to_fault(FAULT, ABOUT)
    assert message.changes[0].device is None


def test_turning_ill_and_turning_well_are_both_news_of_health() -> None:
    kinds = {
        kind: to_changes([Change(kind=kind)], 1, ABOUT).changes[0].kind
        for kind in (Kind.FAULTED, Kind.RECOVERED)
    }
    assert set(kinds.values()) == {agentapi.ChangeKind.HEALTH}


# --- one device ----------------------------------------------------------------------------------


def test_a_device_is_told_in_full() -> None:
    heard = listed(BOARD.id, at=0.0)
    assert device(after(seen(found(BOARD), holdings=heard))) == agentapi.Device(
        id="pci-0000-01-00-0",
        resource=RESOURCE,
        model="hailo-8",
        family="hailo_chardev",
        index="hailo0",
        path="/dev/hailo0",
        major=507,
        minor=0,
        pci_address="0000:01:00.0",
        pci_id="1e60:2864",
        driver="hailo",
        driver_version="4.23.0",
        numa_node=0,
        pcie_root="pci0000:00",
        link=agentapi.Link(speed_gts=8.0, width=4, max_speed_gts=8.0, max_width=4),
        health=agentapi.Health.HEALTHY,
        held=True,
        holders=[
            agentapi.Holder(namespace=HOLDER.namespace, pod=HOLDER.pod, container=HOLDER.container)
        ],
        fit=True,
    )


def test_what_was_measured_and_what_the_firmware_says_is_told() -> None:
    known = only(after(seen(found(BOARD))))
    asked = replace(
        known,
        firmware=Firmware(version="4.23.0", architecture=Architecture.HAILO_8L, serial="HLL1"),
        vitals=Vitals(at=7.5, power_state="D0", power_managed=True),
        chip=Chip(at=8.5, temperatures=Temperatures(ts0_celsius=41.5, ts1_celsius=42.0)),
    )
    told = to_device(asked, ABOUT)
    assert told.firmware == agentapi.Firmware(
        version="4.23.0", architecture="hailo-8l", serial="HLL1"
    )
    assert told.vitals == agentapi.Vitals(
        at_unix_seconds=ABOUT.epoch + 7.5,
        power_state="D0",
        in_use=True,
        temperatures_celsius=[41.5, 42.0],
        temperatures_at_unix_seconds=ABOUT.epoch + 8.5,
    )
    assert to_device(replace(asked, vitals=None, chip=Chip(at=8.5)), ABOUT).vitals is None


@pytest.mark.parametrize("health", list(Health))
def test_every_health_has_its_own_word(health: Health) -> None:
    told = to_device(replace(only(after(seen(found(BOARD)))), health=health), ABOUT)
    assert told.health.name == health.name


def test_zero_is_told_and_unknown_is_not() -> None:
    whole, bare = device(after(seen(found(BOARD)))), device(after(seen(found(SOC))))
    assert (whole.minor, whole.numa_node) == (0, 0)
    assert (bare.numa_node, bare.pci_address, bare.pci_id, bare.link) == (None,) * 4
    assert bare.pcie_root == ""
    assert (whole.held, bare.held) == (None, None)
    again = agentapi.Device.parse(bytes(whole))
    assert (again.minor, again.numa_node, again.held) == (0, 0, None)


def test_nobody_holding_it_is_something_else_than_nobody_knowing() -> None:
    free = device(after(seen(found(BOARD), holdings=listed(at=0.0))))
    assert free.held is False
    assert agentapi.Device.parse(bytes(free)).held is False


def test_a_phantom_is_told_by_what_the_kubelet_remembers() -> None:
    heard = listed(PHANTOM, at=0.0, resource=OTHER_RESOURCE)
    phantom = device(after(seen(holdings=heard)))
    assert (phantom.id, phantom.resource, phantom.model) == (PHANTOM, OTHER_RESOURCE, "unknown")
    assert (phantom.path, phantom.index, phantom.family) == ("", "", "")
    assert (phantom.major, phantom.minor) == (None, None)
    assert phantom.health is agentapi.Health.UNHEALTHY
    assert [fault.code for fault in phantom.faults] == ["device.unknown-to-machine"]


def test_a_path_is_that_of_the_host() -> None:
    about = replace(ABOUT, host_dev="/host/dev")
    assert to_device(only(after(seen(found(BOARD)))), about).path == "/host/dev/hailo0"


@pytest.mark.parametrize("how", [How.NO_NODE, How.HUNG, How.ABSENT])
def test_an_unhealthy_device_says_why_and_since_when(how: How) -> None:
    ill = device(after(seen(found(BOARD), at=1.0), seen(found(BOARD, how), at=2.5)))
    assert ill.health is agentapi.Health.UNHEALTHY
    (fault,) = ill.faults
    assert fault.message
    assert fault.since_unix_seconds == 1_000_002.5


def test_a_fault_is_told_with_code_words_and_date() -> None:
    assert to_fault(FAULT, ABOUT) == agentapi.Fault(
        code="devnode.missing",
        subject="x",
        message="is missing",
        remedy="look",
        since_unix_seconds=1_000_007.5,
        severity="fatal",
    )
    hot = replace(FAULT, severity=Severity.DEGRADED, evidence="99 °C")
    assert (to_fault(hot, ABOUT).severity, to_fault(hot, ABOUT).evidence) == ("degraded", "99 °C")


# --- the agent itself ----------------------------------------------------------------------------


def test_an_inventory_says_whose_it_is() -> None:
    message = to_inventory(Inventory(), 9, (), ABOUT)
    assert (message.node, message.agent_version, message.instance, message.revision) == (
        "edge-7",
        "0.1.0",
        "c0ffee",
        9,
    )


@given(st.lists(st.tuples(st.sampled_from(State), st.booleans()), min_size=1, max_size=4))
def test_the_agent_is_ready_if_every_essential_part_runs(
    parts: list[tuple[State, bool]],
) -> None:
    statuses = [
        Status(name=f"p{n}", state=state, essential=essential, reason="why")
        for n, (state, essential) in enumerate(parts)
    ]
    readiness = to_inventory(Inventory(), 1, iter(statuses), ABOUT).readiness
    assert readiness is not None
    assert readiness.ready == all(s is State.RUNNING for s, essential in parts if essential)
    assert [(p.name, p.state, p.reason) for p in readiness.parts] == [
        (status.name, status.state.value, "why") for status in statuses
    ]
