"""Gone devices: listed as long as a pod may hold them, and forgotten once there is proof."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.device import DeviceId
from hailo_agent.core.health import FaultCode, Health
from hailo_agent.core.inventory import FORGET_GRACE_SECONDS, Inventory, Policy
from hailo_agent.core.observation import Holdings, Observation
from tests.strategies import (
    BOARDS,
    HOLDER,
    OTHER_RESOURCE,
    PHANTOM,
    POLICY,
    RESOURCE,
    UNFIT,
    How,
    after,
    found,
    histories,
    listed,
    only,
    replay,
    seen,
)

BOARD, NEIGHBOUR, TENTH, _ = BOARDS
GRACE = FORGET_GRACE_SECONDS
TOMBSTONE = POLICY.tombstone_seconds
PATIENT = replace(POLICY, tombstone_seconds=1e9)


def present(at: float, *, held: bool | None = None, heard_at: float | None = None) -> Observation:
    """Look while the board is there."""
    return look(found(BOARD).how, at, held=held, heard_at=heard_at)


def gone(
    at: float,
    *,
    held: bool | None = None,
    heard_at: float | None = None,
    granted_at: Mapping[DeviceId, float] | None = None,
) -> Observation:
    """Look while it is not; `held` is what the kubelet said at `heard_at`, None if it is silent."""
    return look(How.ABSENT, at, held=held, heard_at=heard_at, granted_at=granted_at)


def look(
    how: How,
    at: float,
    *,
    held: bool | None = None,
    heard_at: float | None = None,
    granted_at: Mapping[DeviceId, float] | None = None,
) -> Observation:
    when = at if heard_at is None else heard_at
    heard = None if held is None else listed(*([BOARD.id] if held else []), at=when)
    return replace(
        seen(found(BOARD, how), at=at, holdings=heard),
        granted_at=tuple((granted_at or {}).items()),
    )


def ids(inventory: Inventory) -> list[DeviceId]:
    return [device.id for device in inventory.devices]


# --- of every history ----------------------------------------------------------------------------


@given(histories())
def test_whoever_is_dropped_was_gone_and_proven_free(history: list[Observation]) -> None:
    for before, observation, decided in replay(history, PATIENT):
        told = {sighting.device_id for sighting in observation.sightings}
        for device_id in set(before.by_id()) - set(decided.by_id()):
            heard = observation.holdings
            assert device_id not in told
            assert heard is not None
            assert device_id not in {entry.device_id for entry in heard.entries}
            assert all(
                heard.at >= granted_at + GRACE
                for granted_id, granted_at in observation.granted_at
                if granted_id == device_id
            )


@given(histories())
def test_everybody_is_forgotten_once_the_kubelet_says_that_nobody_holds_anything(
    history: list[Observation],
) -> None:
    end = history[-1].at + GRACE
    vanished = replace(seen(at=end), holdings=listed(at=end))
    proof = replace(seen(at=end + GRACE), holdings=listed(at=end + GRACE))
    assert after(*history, vanished, proof).devices == ()


@given(histories())
def test_everybody_is_forgotten_in_the_end_though_the_kubelet_is_silent(
    history: list[Observation],
) -> None:
    silent = [replace(observation, holdings=None) for observation in history]
    end = history[-1].at + 1.0
    assert after(*silent, seen(at=end), seen(at=end + TOMBSTONE)).devices == ()


@given(histories())
def test_held_says_what_the_kubelet_said(history: list[Observation]) -> None:
    for _, observation, decided in replay(history):
        heard = observation.holdings
        holders = {entry.device_id: entry.holder for entry in heard.entries} if heard else {}
        for device in decided.devices:
            if heard is None:
                assert device.held is None
            elif device.id in holders:
                assert (device.held, device.holders) == (True, (holders[device.id],))
            else:
                young = [g for i, g in observation.granted_at if i == device.id]
                assert device.held == any(heard.at < granted_at + GRACE for granted_at in young)
                assert device.holders == ()


# --- one board that goes -------------------------------------------------------------------------


def test_a_vanished_device_is_unhealthy_before_it_is_forgotten() -> None:
    device = only(after(present(0.0), gone(5.0)))
    assert device.health is Health.UNHEALTHY
    assert [(fault.code, fault.since) for fault in device.faults] == [(FaultCode.VANISHED, 5.0)]


def test_a_gone_device_stays_listed_however_long_a_pod_holds_it() -> None:
    inventory = after(present(0.0), gone(5.0, held=True), gone(1e7, held=True))
    assert only(inventory).held
    assert only(inventory).holders == (HOLDER,)
    assert inventory.review_at is None


@pytest.mark.parametrize(
    ("heard_at", "is_listed"),
    [(0.0, True), (5.0, True), (14.9, True), (15.0, False), (60.0, False)],
)
def test_a_gone_device_is_forgotten_by_a_list_that_is_young_enough(
    heard_at: float, *, is_listed: bool
) -> None:
    inventory = after(present(0.0), gone(5.0), gone(60.0, held=False, heard_at=heard_at))
    assert bool(inventory.devices) == is_listed


def test_a_list_from_after_the_look_began_is_believed_a_moment_later() -> None:
    # The list may come in while the machine is being looked at.
    history = [present(0.0), gone(5.0), gone(60.0, held=False, heard_at=60.01)]
    early = after(*history)
    assert ids(early) == [BOARD.id]
    assert early.review_at == 60.01
    assert after(*history, gone(60.01, held=False)).devices == ()


def test_without_the_kubelet_a_gone_device_is_forgotten_in_time() -> None:
    history = [present(0.0), gone(5.0)]
    early = after(*history, gone(4.9 + TOMBSTONE))
    assert ids(early) == [BOARD.id]
    assert early.review_at == 5.0 + TOMBSTONE
    assert after(*history, gone(5.0 + TOMBSTONE)).devices == ()


def test_time_runs_from_the_disappearance_not_from_an_earlier_fault() -> None:
    # Broken for longer than a tombstone stands, then pulled: it is gone only since a moment ago.
    late = 2 * TOMBSTONE
    history = [present(0.0), look(How.NO_NODE, 1.0), look(How.NO_NODE, late), gone(late + 1.0)]
    inventory = after(*history)
    assert ids(inventory) == [BOARD.id]
    assert inventory.review_at == late + 1.0 + TOMBSTONE


def test_a_kubelet_that_fell_silent_is_like_one_that_never_spoke() -> None:
    # Its last list is older than the disappearance, and no younger one ever comes.
    history = [present(0.0, held=False), gone(5.0, held=False, heard_at=0.0)]
    waiting = after(*history)
    assert waiting.review_at == 5.0 + TOMBSTONE
    assert after(*history, gone(5.0 + TOMBSTONE, held=False, heard_at=0.0)).devices == ()


def test_a_device_that_comes_back_is_not_forgotten_by_the_old_proof() -> None:
    history = [present(0.0), gone(5.0), present(6.0), gone(7.0, held=False, heard_at=16.0)]
    assert ids(after(*history)) == [BOARD.id]


def test_a_forgotten_device_that_comes_back_is_a_new_one() -> None:
    history = [present(0.0), gone(5.0), gone(20.0, held=False)]
    device = only(after(*history, present(30.0)))
    assert (device.health, device.history.since) == (Health.HEALTHY, 30.0)


# --- grants that the kubelet does not list yet ---------------------------------------------------


@pytest.mark.parametrize(
    ("heard_at", "held"), [(0.0, True), (20.0, True), (29.9, True), (30.0, False), (31.0, False)]
)
def test_what_was_just_granted_is_held_until_a_younger_list_says_otherwise(
    heard_at: float, *, held: bool
) -> None:
    granted = replace(present(40.0, held=False, heard_at=heard_at), granted_at=((BOARD.id, 20.0),))
    assert only(after(present(0.0), granted)).held is held


def test_a_device_that_goes_right_after_its_grant_stays_listed() -> None:
    grant = {BOARD.id: 5.0}
    history = [present(0.0, held=False), gone(5.01, held=False, granted_at=grant)]
    for at in (6.0, 10.0, 14.9):
        history.append(gone(at, held=False, granted_at=grant))
        assert ids(after(*history)) == [BOARD.id]
    assert after(*history, gone(15.01, held=False, granted_at=grant)).devices == ()


def test_a_grant_between_the_look_and_the_news_of_it_still_counts() -> None:
    # Seen gone at 5, told at 5.05, and granted in between.
    grant = {BOARD.id: 5.04}
    history = [present(0.0, held=False), gone(5.0, held=False)]
    assert ids(after(*history, gone(15.0, held=False, granted_at=grant))) == [BOARD.id]
    assert after(*history, gone(15.04, held=False, granted_at=grant)).devices == ()


def test_nobody_can_tell_of_a_grant_while_the_kubelet_never_spoke() -> None:
    granted = replace(present(6.0), granted_at=((BOARD.id, 5.0),))
    assert only(after(granted)).held is None


# --- what only the kubelet remembers -------------------------------------------------------------


def test_a_held_device_that_the_machine_never_showed_is_listed() -> None:
    device = only(after(seen(at=3.0, holdings=listed(PHANTOM, at=3.0))))
    assert device.id == PHANTOM
    assert device.health is Health.UNHEALTHY
    assert [fault.code for fault in device.faults] == [FaultCode.UNKNOWN_TO_MACHINE]
    assert device.faults[0].since == 3.0
    assert device.devnode is None
    assert device.holders == (HOLDER,)


def test_a_phantom_keeps_its_reason_and_its_date() -> None:
    looks = [seen(at=at, holdings=listed(PHANTOM, at=at)) for at in (3.0, 4.0, 50.0)]
    (fault,) = only(after(*looks)).faults
    assert (fault.code, fault.since) == (FaultCode.UNKNOWN_TO_MACHINE, 3.0)


def test_a_phantom_whose_pod_ends_is_forgotten_like_any_other() -> None:
    history = [seen(at=3.0, holdings=listed(PHANTOM, at=3.0))]
    history.append(seen(at=12.9, holdings=listed(at=12.9)))
    assert ids(after(*history)) == [PHANTOM]
    history.append(seen(at=13.0, holdings=listed(at=13.0)))
    assert ids(after(*history)) == []


def test_what_is_held_of_other_peoples_resources_is_none_of_ours() -> None:
    heard = listed(PHANTOM, at=0.0, resource="nvidia.com/gpu")
    assert after(seen(holdings=heard)).devices == ()


def test_a_phantom_that_turns_up_is_the_same_device() -> None:
    heard = listed(BOARD.id, at=0.0)
    device = only(after(seen(holdings=heard), seen(found(BOARD), at=1.0, holdings=heard)))
    assert (device.health, device.held) == (Health.HEALTHY, True)


def test_the_kubelets_word_may_come_late() -> None:
    # At start nobody knows yet that a pod holds the board, which is not fit to be offered.
    broken = look(How.NO_NODE, 0.0)
    assert after(broken).devices == ()
    device = only(after(broken, look(How.NO_NODE, 5.0, held=True)))
    assert device.health is Health.UNHEALTHY
    assert [fault.code for fault in device.faults] == [FaultCode.DEVNODE_MISSING]
    assert device.held


@pytest.mark.parametrize("how", [How.ABSENT, How.NAMELESS, How.BLIND, How.ORPHAN, *UNFIT])
def test_a_device_that_cannot_tell_its_kind_is_under_the_resource_it_was_granted_from(
    how: How,
) -> None:
    heard = listed(TENTH.id, at=0.0, resource=OTHER_RESOURCE)
    device = only(after(seen(found(TENTH, how), holdings=heard)))
    assert device.pci_id is not None or device.resource == OTHER_RESOURCE


def test_a_phantom_is_still_under_its_resource_when_its_pod_is_gone() -> None:
    heard = listed(PHANTOM, at=0.0, resource=OTHER_RESOURCE)
    device = only(after(seen(holdings=heard), seen(at=1.0, holdings=listed(at=1.0))))
    assert device.resource == OTHER_RESOURCE


def test_a_device_stays_under_the_resource_it_is_held_under() -> None:
    # Configuration may name it otherwise by now: under both names it would be counted twice.
    heard = listed(TENTH.id, at=1.0, resource=OTHER_RESOURCE)
    device = only(after(seen(found(TENTH)), seen(found(TENTH), at=1.0, holdings=heard)))
    assert (device.resource, device.pci_id) == (OTHER_RESOURCE, TENTH.pci_id)
    freed = only(after(seen(found(TENTH)), seen(found(TENTH), at=2.0, holdings=listed(at=2.0))))
    assert freed.resource is None


def test_a_device_that_is_held_under_a_name_nobody_serves_is_not_given_again() -> None:
    heard = listed(TENTH.id, at=1.0, resource="hailo.ai/formerly")
    look = seen(found(TENTH), at=1.0, holdings=heard)
    device = only(after(seen(found(TENTH)), look))
    assert [fault.code for fault in device.faults] == [FaultCode.HELD_ELSEWHERE]
    assert "hailo.ai/formerly" in device.faults[0].message
    assert only(after(seen(found(TENTH)), look, seen(found(TENTH), at=99.0))).is_usable


# --- given by another plugin, which names devices after their devnodes ----------------------------


def by_devnode(*names: str, at: float, resource: str = RESOURCE) -> Holdings:
    return listed(*map(DeviceId, names), at=at, resource=resource)


@pytest.mark.parametrize("name", ["hailo0", "/dev/hailo0"])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_board_whose_devnode_another_plugin_gave_away_is_kept_back_until_the_pod_ends(
    name: str,
    is_known: bool,  # noqa: FBT001 - a parameter
) -> None:
    given = seen(found(BOARD), found(NEIGHBOUR), at=1.0, holdings=by_devnode(name, at=1.0))
    before = [seen(found(BOARD), found(NEIGHBOUR))] if is_known else []
    held = after(*before, given)
    assert ids(held) == sorted([DeviceId(name), BOARD.id, NEIGHBOUR.id])
    board = held.by_id()[BOARD.id]
    assert [fault.code for fault in board.faults] == [FaultCode.HELD_ELSEWHERE]
    assert name in board.faults[0].message
    assert board.faults[0].evidence == f"default/detector/main holds {name}"
    assert not board.is_usable
    assert held.by_id()[NEIGHBOUR.id].is_usable
    assert held.faults == ()
    # What the kubelet believes to be held stays on its list, whatever it is to us.
    stand_in = held.by_id()[DeviceId(name)]
    assert (stand_in.held, stand_in.health) == (True, Health.UNHEALTHY)
    # And for as long: nothing of it is forgotten on the way.
    late = seen(found(BOARD), found(NEIGHBOUR), at=9e5, holdings=by_devnode(name, at=9e5))
    assert ids(after(*before, given, late)) == ids(held)
    freed = replace(seen(found(BOARD), found(NEIGHBOUR), at=9.1e5), holdings=listed(at=9.1e5))
    ended = after(*before, given, late, freed)
    assert ids(ended) == [BOARD.id, NEIGHBOUR.id]
    assert all(device.is_usable for device in ended.devices)


def test_a_devnode_that_moved_to_another_board_takes_the_doubt_with_it() -> None:
    heard = by_devnode("hailo1", at=0.0)
    first = seen(found(BOARD, index=0), found(NEIGHBOUR, index=1), holdings=heard)
    swapped = seen(found(BOARD, index=1), found(NEIGHBOUR, index=0), at=1.0, holdings=heard)
    assert not after(first).by_id()[NEIGHBOUR.id].is_usable
    inventory = after(first, swapped)
    assert inventory.by_id()[NEIGHBOUR.id].is_usable
    assert not inventory.by_id()[BOARD.id].is_usable


def test_a_devnode_that_is_given_twice_names_both_holders() -> None:
    heard = by_devnode("hailo0", "/dev/hailo0", at=0.0)
    board = after(seen(found(BOARD), holdings=heard)).by_id()[BOARD.id]
    (fault,) = board.faults
    assert "/dev/hailo0, hailo0" in fault.message
    assert fault.evidence.count("default/detector/main") == 2


@pytest.mark.parametrize(
    ("name", "resource"), [("hailo0", "nvidia.com/gpu"), ("hailo7", RESOURCE), ("0", RESOURCE)]
)
def test_a_name_that_is_no_devnode_of_ours_keeps_nothing_back(name: str, resource: str) -> None:
    heard = by_devnode(name, at=0.0, resource=resource)
    assert after(seen(found(BOARD), holdings=heard)).by_id()[BOARD.id].is_usable


def test_a_denied_board_is_no_device_though_its_devnode_was_given_away() -> None:
    policy = replace(POLICY, deny=(BOARD.id,))
    heard = by_devnode("hailo0", at=0.0)
    inventory = after(seen(found(BOARD), holdings=heard), policy=policy)
    assert ids(inventory) == [DeviceId("hailo0")]
    assert [fault.code for fault in inventory.faults] == [FaultCode.DENIED]


# --- set aside, and gone -------------------------------------------------------------------------


def test_a_denied_device_that_is_held_and_then_vanishes_is_kept_while_held() -> None:
    policy: Policy = replace(POLICY, deny=("*",))
    history = [present(0.0, held=True), gone(5.0, held=True), gone(500.0, held=True)]
    device = only(after(*history, policy=policy))
    assert device.devnode is None
    assert device.denied
    assert not device.is_usable
    freed = after(*history, gone(520.0, held=False), policy=policy)
    assert freed.devices == ()
    assert freed.faults == ()


def test_a_denied_device_that_nobody_can_tell_of_is_forgotten_in_time() -> None:
    policy: Policy = replace(POLICY, deny=("*",))
    history = [present(0.0, held=True)]
    silent = [present(at) for at in (1.0, TOMBSTONE - 0.1)]
    assert ids(after(*history, *silent, policy=policy)) == [BOARD.id]
    assert after(*history, present(TOMBSTONE), policy=policy).devices == ()


@given(st.floats(0.0, 1e5), st.floats(0.0, 1e5))
def test_a_neighbour_that_goes_does_not_matter_to_who_stays(one: float, other: float) -> None:
    heard: Holdings = listed(at=one + other)
    looks = [
        seen(found(BOARD), found(NEIGHBOUR), at=one),
        seen(found(BOARD), at=one + other, holdings=heard),
    ]
    assert after(*looks).by_id()[BOARD.id].health is Health.HEALTHY
