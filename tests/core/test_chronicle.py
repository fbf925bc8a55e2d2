"""What happened lately is remembered in order, in words, and never without end."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.change import Change, Kind, changes
from hailo_agent.core.chronicle import MOST_ENTRIES, Chronicle, recorded
from hailo_agent.core.device import Device, DeviceId, Holder
from hailo_agent.core.health import Fault, FaultCode, Health
from hailo_agent.core.inventory import Inventory
from tests.strategies import BOARDS, after, found, inventories, listed, only, seen

HOLDER = Holder(namespace="default", pod="a", container="main")
FAULT = Fault(
    code=FaultCode.DEVNODE_MISSING, subject="pci-0", message="/dev/hailo0 does not exist", remedy=""
)


def device(number: int) -> Device:
    return Device(id=DeviceId(f"pci-{number}"))


def updated(*numbers: int) -> list[Change]:
    return [Change(kind=Kind.UPDATED, device=device(number)) for number in numbers]


def words(change: Change) -> str:
    (entry,) = recorded(Chronicle(), [change], at=1.0).entries
    return entry.words


def test_changes_are_remembered_in_the_order_in_which_they_came() -> None:
    first = recorded(Chronicle(), updated(1, 2), at=1.0)
    both = recorded(first, updated(1), at=2.0)
    assert [(e.at, e.subject) for e in both.entries] == [
        (1.0, "pci-1"),
        (1.0, "pci-2"),
        (2.0, "pci-1"),
    ]
    assert both.forgotten == 0
    assert len(first.entries) == 2  # a value: whoever reads it is not disturbed


def test_nothing_new_changes_nothing() -> None:
    chronicle = recorded(Chronicle(), updated(1), at=1.0)
    assert recorded(chronicle, [], at=9.0) == chronicle


@given(st.lists(st.lists(st.integers(0, 5), max_size=12), max_size=12), st.integers(1, 9))
def test_it_is_bounded_counts_what_it_forgets_and_keeps_the_newest_of_everybody(
    rounds: list[list[int]], most: int
) -> None:
    chronicle = Chronicle()
    total = 0
    for at, numbers in enumerate(rounds):
        total += len(numbers)
        chronicle = recorded(chronicle, updated(*numbers), at=float(at), most=most)
        assert len(chronicle.entries) == min(total, most)
        assert len(chronicle.entries) + chronicle.forgotten == total
        times = [entry.at for entry in chronicle.entries]
        assert times == sorted(times)
        kept = Counter(entry.subject for entry in chronicle.entries)
        told = {f"pci-{n}" for numbers in rounds[: at + 1] for n in numbers}
        if len(told) <= most:
            assert set(kept) == told  # nobody's whole past is washed away by another's


def test_a_device_that_flaps_washes_away_its_own_past_and_not_that_of_others() -> None:
    chronicle = recorded(Chronicle(), updated(1), at=0.0)
    for at in range(10 * MOST_ENTRIES):
        chronicle = recorded(chronicle, updated(2), at=1.0 + at)
    assert len(chronicle.entries) == MOST_ENTRIES
    assert (chronicle.entries[0].subject, chronicle.entries[0].at) == ("pci-1", 0.0)
    assert chronicle.entries[1].at == 1.0 + 10 * MOST_ENTRIES - (MOST_ENTRIES - 1)
    assert chronicle.forgotten == 10 * MOST_ENTRIES + 1 - MOST_ENTRIES


@pytest.mark.parametrize(
    ("kind", "of", "expected"),
    [
        (Kind.ADDED, device(0), "found as no devnode, healthy"),
        (Kind.REMOVED, device(0), "forgotten"),
        (Kind.UPDATED, device(0), "details changed"),
        (Kind.FREED, device(0), "held by no pod any more"),
        (Kind.HELD, replace(device(0), holders=(HOLDER,)), "held by default/a (main)"),
        (Kind.HELD, device(0), "held by a pod that the kubelet does not name yet"),
        (
            Kind.FAULTED,
            replace(device(0), health=Health.UNHEALTHY, faults=(FAULT,)),
            "unhealthy: /dev/hailo0 does not exist",
        ),
        (Kind.RECOVERED, device(0), "healthy"),
    ],
)
def test_each_change_of_a_device_has_its_words(kind: Kind, of: Device, expected: str) -> None:
    assert words(Change(kind=kind, device=of)) == expected


def test_a_fault_of_no_device_is_told_with_its_code_and_when_it_is_over_as_over() -> None:
    found_, over = recorded(
        Chronicle(),
        [
            Change(kind=Kind.FAULT_FOUND, fault=FAULT),
            Change(kind=Kind.FAULT_CLEARED, fault=FAULT),
        ],
        at=3.0,
    ).entries
    assert (found_.subject, found_.codes) == ("pci-0", (FaultCode.DEVNODE_MISSING,))
    assert found_.health is None
    assert found_.words == "/dev/hailo0 does not exist"
    assert over.words == "over: /dev/hailo0 does not exist"


def test_words_are_bounded_whatever_stands_in_sysfs() -> None:
    endless = replace(FAULT, message="x" * 100_000, subject="y" * 100_000)
    (entry,) = recorded(Chronicle(), [Change(kind=Kind.FAULT_FOUND, fault=endless)], at=0.0).entries
    assert len(entry.words) <= 500
    assert len(entry.subject) <= 500
    assert entry.words.endswith("…")


@given(inventories(), inventories())
def test_every_change_there_can_be_is_told_in_words(before: Inventory, now: Inventory) -> None:
    entries = recorded(Chronicle(), changes(before, now), at=1.0).entries
    assert all(entry.words and entry.subject for entry in entries)
    assert len(entries) == min(len(changes(before, now)), MOST_ENTRIES)


def test_what_is_told_of_a_device_is_how_it_was_after_the_change() -> None:
    before = after(seen(found(BOARDS[0])))
    holdings = listed(BOARDS[0].id, at=1.0)
    now = after(seen(found(BOARDS[0])), seen(found(BOARDS[0]), at=2.0, holdings=holdings))
    entries = recorded(Chronicle(), changes(before, now), at=2.0).entries
    (held,) = [entry for entry in entries if entry.kind is Kind.HELD]
    assert held.held is True
    assert held.holders == only(now).holders
    assert held.health is Health.HEALTHY
