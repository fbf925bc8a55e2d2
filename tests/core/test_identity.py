"""Whose entry is it? Ids stay with the board, whatever the kernel calls it from look to look."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.cdi import Place, numbers, render
from hailo_agent.core.device import DeviceNumber, Family
from hailo_agent.core.health import FaultCode, Health
from hailo_agent.core.inventory import Inventory
from tests.strategies import (
    BOARDS,
    CLASSIC,
    RENAMED,
    SOC,
    TURNS,
    UNFIT,
    How,
    after,
    found,
    only,
    seen,
)

BOARD, NEIGHBOUR, TENTH, _ = BOARDS
ALL_FOUND = seen(*(found(board) for board in BOARDS))


def names(inventory: Inventory) -> dict[str, str | None]:
    """Tell the devnode of each device."""
    return {d.id: d.devnode.name if d.devnode else None for d in inventory.devices}


def injected(inventory: Inventory) -> dict[str, list[str]]:
    """Tell for each device which nodes a container would be given under its name."""
    spec = render(inventory, Place())
    assert spec is not None
    return {
        device.name: [node.path for node in device.container_edits.device_nodes or ()]
        for device in spec.devices
        if device.name != "all"
    }


@given(st.sampled_from(TURNS), st.sampled_from([CLASSIC, RENAMED]), st.sampled_from([507, 511]))
def test_a_board_keeps_its_id_whatever_its_entry_number_and_family(
    turn: tuple[int, ...], family: Family, major: int
) -> None:
    finds = [
        replace(found(board, index=index, major=major), family=family)
        for board, index in zip(BOARDS, turn, strict=True)
    ]
    before, now = after(ALL_FOUND), after(ALL_FOUND, seen(*finds))
    assert [device.id for device in now.devices] == [device.id for device in before.devices]
    for device, find in zip(now.devices, finds, strict=True):
        assert device.id == find.board.id
        assert device.health is Health.HEALTHY
        assert device.devnode is not None
        assert (device.devnode.name, device.devnode.number) == (find.entry, find.number)


def test_two_boards_that_swap_entries_swap_devnodes() -> None:
    swapped = seen(found(BOARD, index=1), found(NEIGHBOUR, index=0))
    now = after(seen(found(BOARD), found(NEIGHBOUR)), swapped)
    assert names(now) == {BOARD.id: "hailo1", NEIGHBOUR.id: "hailo0"}
    assert injected(now) == {BOARD.id: ["/dev/hailo1"], NEIGHBOUR.id: ["/dev/hailo0"]}
    assert all(device.health is Health.HEALTHY for device in now.devices)


@pytest.mark.parametrize("how", UNFIT)
def test_no_container_is_given_another_boards_node_when_one_of_two_swapped_is_ill(
    how: How,
) -> None:
    swapped = seen(found(BOARD, how, index=1), found(NEIGHBOUR, index=0))
    now = after(seen(found(BOARD), found(NEIGHBOUR)), swapped)
    assert now.by_id()[NEIGHBOUR.id].health is Health.HEALTHY
    assert now.by_id()[BOARD.id].health is Health.UNHEALTHY
    assert injected(now)[NEIGHBOUR.id] == ["/dev/hailo0"]
    assert injected(now).get(BOARD.id, []) != ["/dev/hailo0"]


def test_a_board_that_takes_the_entry_of_a_pulled_one_is_not_taken_for_it() -> None:
    now = after(seen(found(BOARD)), seen(found(NEIGHBOUR, index=0)))
    assert now.by_id()[BOARD.id].health is Health.UNHEALTHY
    assert names(now) == {BOARD.id: None, NEIGHBOUR.id: "hailo0"}


def test_a_reloaded_driver_gives_new_numbers_to_the_same_devices() -> None:
    now = after(seen(found(BOARD, major=507)), seen(found(BOARD, major=511)))
    assert numbers(now) == {BOARD.id: DeviceNumber(511, 0)}
    assert only(now).health is Health.HEALTHY


def test_a_device_on_the_soc_keeps_its_id_while_its_numbers_move() -> None:
    now = after(seen(found(SOC, major=507)), seen(found(SOC, major=511)))
    assert only(now).id == SOC.id
    assert numbers(now) == {SOC.id: DeviceNumber(511, len(BOARDS))}


# --- two entries for one board -------------------------------------------------------------------


def test_of_two_sound_entries_one_is_the_device_and_the_other_a_fault() -> None:
    old, new = found(BOARD), found(BOARD, family=RENAMED)
    for look in (seen(old, new), seen(new, old)):
        now = after(look)
        assert names(now) == {BOARD.id: "h1x-0"}
        assert only(now).health is Health.HEALTHY
        assert [(f.code, f.subject) for f in now.faults] == [
            (FaultCode.DUPLICATE, "hailo_chardev/hailo0")
        ]


@pytest.mark.parametrize("how", [h for h in UNFIT if h is not How.HUNG])
@pytest.mark.parametrize("ill", [CLASSIC, RENAMED])
def test_a_sound_entry_wins_over_a_broken_one(how: How, ill: Family) -> None:
    finds = [
        replace(found(BOARD, how if family is ill else How.SOUND), family=family)
        for family in (CLASSIC, RENAMED)
    ]
    for look in (seen(*finds), seen(*reversed(finds))):
        assert only(after(look)).health is Health.HEALTHY
        assert after(ALL_FOUND, look).by_id()[BOARD.id].health is Health.HEALTHY


def test_a_board_that_is_renamed_half_way_is_healthy_throughout() -> None:
    old, new = found(BOARD), found(BOARD, family=RENAMED)
    half = seen(found(BOARD, How.NO_NODE), new)
    for history in ([seen(old)], [seen(old), half], [seen(old), half, seen(new)]):
        assert only(after(*history)).health is Health.HEALTHY
    assert names(after(seen(old), half, seen(new))) == {BOARD.id: "h1x-0"}


# --- entries that do not tell whose they are -----------------------------------------------------


@pytest.mark.parametrize("how", [How.HUNG, How.NAMELESS])
def test_an_entry_that_falls_silent_is_still_the_device_it_was(how: How) -> None:
    now = after(seen(found(BOARD)), seen(found(BOARD, how)))
    assert only(now).id == BOARD.id
    assert only(now).health is Health.UNHEALTHY
    assert now.faults == ()


def test_an_entry_that_does_not_tell_whose_it_is_is_never_offered() -> None:
    # Another board may have taken the entry, as the driver gives away the lowest free index.
    now = after(seen(found(BOARD)), seen(found(NEIGHBOUR, How.NAMELESS, index=0)))
    assert not any(device.is_usable for device in now.devices)


def test_a_silent_entry_is_not_the_device_that_is_seen_elsewhere() -> None:
    now = after(
        seen(found(BOARD)), seen(found(BOARD, index=1), found(NEIGHBOUR, How.HUNG, index=0))
    )
    assert names(now) == {BOARD.id: "hailo1"}
    assert only(now).health is Health.HEALTHY
    assert FaultCode.UNRESPONSIVE in [fault.code for fault in now.faults]


def test_a_silent_entry_of_a_forgotten_name_is_a_fault_of_its_own() -> None:
    now = after(seen(found(BOARD)), seen(found(BOARD, How.HUNG, index=3)))
    assert only(now).faults[0].code is FaultCode.VANISHED
    assert FaultCode.UNRESPONSIVE in [fault.code for fault in now.faults]


def test_an_entry_of_the_same_name_in_another_class_is_another_entry() -> None:
    here = seen(found(BOARD))
    (sighting,) = seen(found(BOARD, How.HUNG)).sightings
    other = replace(sighting, family=replace(CLASSIC, class_name="other"))
    now = after(here, replace(here, sightings=(other,)))
    assert only(now).faults[0].code is FaultCode.VANISHED


def test_a_device_that_speaks_again_is_healthy_again() -> None:
    looks = [seen(found(BOARD, how)) for how in (How.SOUND, How.HUNG, How.SOUND)]
    assert only(after(*looks)).health is Health.HEALTHY
    assert only(after(*looks)).address == BOARD.address
