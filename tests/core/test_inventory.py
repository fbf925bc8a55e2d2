"""What one look makes of what was held to be true: properties of every history, then tables."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from random import Random
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.device import (
    MAX_ID_LENGTH,
    DeviceNumber,
    Identity,
    Model,
    PciAddress,
    PciId,
    Topology,
)
from hailo_agent.core.health import Fault, FaultCode, Health
from hailo_agent.core.inventory import Inventory, Policy, bad_news, covered, decide
from hailo_agent.core.observation import NodeKind, Observation, PciFunction
from tests.strategies import (
    BOARDS,
    CLASSIC,
    GONE,
    IDS,
    OTHER_RESOURCE,
    POLICY,
    RENAMED,
    SOC,
    TELLING,
    UNFIT,
    How,
    after,
    found,
    histories,
    listed,
    only,
    policies,
    reachable,
    replay,
    seen,
)

BOARD, NEIGHBOUR, TENTH, FAR = BOARDS
STEADY = tuple(how for how in How if how is not How.NAMELESS)
"""All ways of finding a board in which an entry that is well tells whose it is."""

Histories = list[Observation]
T = TypeVar("T")


def codes(faults: Iterable[Fault]) -> list[FaultCode]:
    return [fault.code for fault in faults]


# --- of every history ----------------------------------------------------------------------------


@given(histories(), policies())
def test_deciding_twice_is_deciding_once(history: Histories, policy: Policy) -> None:
    for _, observation, decided in replay(history, policy):
        assert asdict(decide(decided, observation, policy)) == asdict(decided)


@given(histories(), policies(), st.integers(0, 1 << 16))
def test_the_order_in_which_things_were_seen_does_not_matter(
    history: Histories, policy: Policy, seed: int
) -> None:
    random = Random(seed)

    def shuffled(items: Sequence[T]) -> tuple[T, ...]:
        return tuple(random.sample(items, len(items)))

    for before, observation, decided in replay(history, policy):
        heard = observation.holdings
        other = replace(
            observation,
            sightings=shuffled(observation.sightings),
            functions=shuffled(observation.functions),
            class_names=shuffled(observation.class_names),
            granted_at=shuffled(observation.granted_at),
            holdings=heard and replace(heard, entries=shuffled(heard.entries)),
        )
        assert asdict(decide(before, other, policy)) == asdict(decided)


@given(histories(), policies())
def test_a_healthy_device_was_seen_with_its_own_devnode(history: Histories, policy: Policy) -> None:
    for _, observation, decided in replay(history, policy):
        good = {
            (sighting.family.class_name, sighting.entry, sighting.number)
            for sighting in observation.sightings
            if sighting.node is NodeKind.CHARACTER and sighting.number == sighting.node_number
        }
        for device in decided.devices:
            if device.health is Health.HEALTHY:
                assert device.devnode is not None
                assert device.devnode.is_sound
                node = device.devnode
                assert (node.class_name, node.name, node.number) in good


@given(histories(STEADY), policies())
def test_an_unseen_device_is_never_healthy(history: Histories, policy: Policy) -> None:
    for _, observation, decided in replay(history, policy):
        told = {s.device_id for s in observation.sightings if not s.faults}
        for device in decided.devices:
            assert device.health is Health.UNHEALTHY or device.id in told


@given(histories())
def test_what_is_in_order_is_healthy_or_recovers(history: Histories) -> None:
    for _, observation, decided in replay(history):
        devices = decided.by_id()
        for sighting in observation.sightings:
            sound = sighting.node_number == sighting.number and not sighting.faults
            known = sighting.function is not None or sighting.family.identity is Identity.SYSFS
            if sighting.device_id is not None and sound and known:
                faults = devices[sighting.device_id].faults
                assert codes(faults) in ([], [FaultCode.RECOVERING])


@given(histories(), policies())
def test_ids_are_unique_sorted_and_of_a_board_or_a_pod(history: Histories, policy: Policy) -> None:
    for _, _, decided in replay(history, policy):
        ids = [device.id for device in decided.devices]
        assert ids == sorted(set(ids))
        assert set(ids) <= set(IDS)
        assert all(len(i) <= MAX_ID_LENGTH and re.fullmatch(r"[a-z][a-z0-9-]*", i) for i in ids)


@given(histories(), policies())
def test_no_two_devices_share_a_devnode(history: Histories, policy: Policy) -> None:
    for _, _, decided in replay(history, policy):
        nodes = [device.devnode.name for device in decided.devices if device.devnode is not None]
        assert len(nodes) == len(set(nodes))


@given(histories(), policies())
def test_a_device_is_healthy_exactly_if_it_has_no_fault(history: Histories, policy: Policy) -> None:
    for _, _, decided in replay(history, policy):
        for device in decided.devices:
            assert (device.health is Health.HEALTHY) == (not device.faults)
            assert device.is_usable == (device.health is Health.HEALTHY)


@given(histories(), policies())
def test_a_denied_device_is_unhealthy_whatever_else_is_wrong(
    history: Histories, policy: Policy
) -> None:
    for _, _, decided in replay(history, policy):
        for device in decided.devices:
            assert device.denied == policy.denies(device)
            assert device.denied == (codes(device.faults) == [FaultCode.DENIED])


@given(histories(), policies())
def test_a_held_device_is_never_dropped(history: Histories, policy: Policy) -> None:
    for before, observation, decided in replay(history, policy):
        if observation.holdings is not None:
            held = {entry.device_id for entry in observation.holdings.entries}
            assert held <= set(decided.by_id())
            assert all(decided.by_id()[device_id].held for device_id in held)
        elif policy.tombstone_seconds > 700:
            assert set(before.by_id()) <= set(decided.by_id())


@given(histories(), policies())
def test_nothing_is_dated_in_the_future_or_due_in_the_past(
    history: Histories, policy: Policy
) -> None:
    for _, observation, decided in replay(history, policy):
        dates = [fault.since for device in decided.devices for fault in device.faults]
        dates += [fault.since for fault in decided.faults]
        dates += [device.history.since for device in decided.devices]
        assert all(history[0].at <= date <= observation.at for date in dates)
        assert decided.review_at is None or decided.review_at > observation.at
        assert decided.at == observation.at


@given(histories())
def test_a_fault_keeps_its_date_as_long_as_it_lasts(history: Histories) -> None:
    for before, _, decided in replay(history):
        olds = before.by_id()
        for device in decided.devices:
            known = olds[device.id].faults if device.id in olds else ()
            dates = {(fault.code, fault.subject): fault.since for fault in known}
            for fault in device.faults:
                assert fault.since == dates.get((fault.code, fault.subject), fault.since)


@given(histories())
def test_loose_faults_are_told_once_each_and_in_order(history: Histories) -> None:
    for _, _, decided in replay(history):
        keys = [(fault.code, fault.subject) for fault in decided.faults]
        assert keys == sorted(set(keys))


@given(histories(), policies(), st.sampled_from([0.25, 0.5, 0.99]))
def test_nothing_changes_by_itself_before_the_review(
    history: Histories, policy: Policy, part: float
) -> None:
    *_, (_, observation, decided) = replay(history, policy)
    span = 10_000.0 if decided.review_at is None else decided.review_at - observation.at
    later = replace(observation, at=observation.at + part * span)
    assert decide(decided, later, policy) == decided


# --- one device, look by look --------------------------------------------------------------------


def test_a_new_board_is_a_healthy_device() -> None:
    assert BOARD.address is not None
    device = only(after(seen(found(BOARD), at=7.0)))
    assert device.id == "pci-0000-01-00-0"
    assert device.health is Health.HEALTHY
    assert device.model is Model.HAILO_8
    assert (device.address, device.pci_id) == (BOARD.address, BOARD.pci_id)
    assert (device.topology, device.link) == (BOARD.topology, BOARD.link)
    assert (device.driver, device.driver_version) == ("hailo", "4.23.0")
    assert device.history.since == 7.0
    assert device.held is None


def test_a_board_on_the_soc_is_a_device_without_an_address() -> None:
    device = only(after(seen(found(SOC))))
    assert device.id == SOC.id
    assert device.health is Health.HEALTHY
    assert (device.address, device.pci_id, device.model) == (None, None, Model.UNKNOWN)


def test_no_machine_is_an_empty_inventory() -> None:
    assert after(seen()) == Inventory()


@pytest.mark.parametrize(
    ("how", "code"),
    [
        (How.NO_NODE, FaultCode.DEVNODE_MISSING),
        (How.LINK, FaultCode.DEVNODE_LINK),
        (How.NO_DEVICE, FaultCode.DEVNODE_FOREIGN),
        (How.OTHER_NUMBER, FaultCode.DEVNODE_NUMBER),
        (How.INCOMPLETE, FaultCode.ENTRY_INCOMPLETE),
        (How.BROKEN, FaultCode.ENTRY_BROKEN),
        (How.HUNG, FaultCode.UNRESPONSIVE),
        (How.NAMELESS, FaultCode.IDENTITY_UNREADABLE),
        (How.ORPHAN, FaultCode.PCI_MISSING),
        (How.ABSENT, FaultCode.VANISHED),
        (How.UNSERVED, FaultCode.VANISHED),
    ],
)
def test_a_known_device_that_is_not_in_order_is_unhealthy_for_a_named_reason(
    how: How, code: FaultCode
) -> None:
    device = only(after(seen(found(BOARD), at=1.0), seen(found(BOARD, how), at=2.0)))
    assert device.health is Health.UNHEALTHY
    assert codes(device.faults) == [code]
    assert device.faults[0].since == 2.0


@pytest.mark.parametrize("how", [*UNFIT, How.ORPHAN])
def test_a_board_that_was_never_fit_is_a_fault_and_no_device(how: How) -> None:
    inventory = after(seen(found(BOARD, how)))
    assert inventory.devices == ()
    assert len(inventory.faults) >= 1


def test_an_entry_that_never_told_whose_it_is_is_a_fault_and_no_device() -> None:
    inventory = after(seen(found(BOARD, How.NAMELESS)))
    assert inventory.devices == ()
    assert FaultCode.IDENTITY_UNREADABLE in codes(inventory.faults)


def test_an_entry_without_a_number_is_incomplete_even_if_nobody_says_so() -> None:
    (sighting,) = seen(found(BOARD)).sightings
    look = replace(seen(), sightings=(replace(sighting, number=None, node_number=None),))
    assert FaultCode.ENTRY_INCOMPLETE in codes(after(look).faults)


@pytest.mark.parametrize("how", [*UNFIT, How.ORPHAN, *GONE])
def test_a_device_that_comes_back_is_healthy_again(how: How) -> None:
    device = only(after(*[seen(found(BOARD, h)) for h in (How.SOUND, how, How.SOUND)]))
    assert device.health is Health.HEALTHY


def test_a_review_is_due_when_a_flapping_device_would_be_trusted() -> None:
    ways = [How.SOUND, How.ABSENT, How.SOUND, How.ABSENT, How.SOUND]
    looks = [seen(found(BOARD, how), at=float(at)) for at, how in enumerate(ways)]
    waiting = after(*looks)
    assert codes(only(waiting).faults) == [FaultCode.RECOVERING]
    assert waiting.review_at == 9.0
    assert only(after(*looks, seen(found(BOARD), at=9.0))).health is Health.HEALTHY


@pytest.mark.parametrize("how", [*UNFIT, How.ORPHAN])
def test_a_device_that_is_ill_keeps_what_is_known_of_it(how: How) -> None:
    well, ill = seen(found(BOARD)), seen(found(BOARD, how))
    before, now = only(after(well)), only(after(well, ill))
    assert (now.model, now.address, now.pci_id) == (before.model, before.address, before.pci_id)
    assert (now.topology, now.devnode) == (before.topology, before.devnode)


def test_a_device_that_is_gone_has_no_devnode() -> None:
    device = only(after(seen(found(BOARD)), seen()))
    assert device.devnode is None
    assert device.model is Model.HAILO_8


@pytest.mark.parametrize("how", TELLING)
def test_an_ill_device_is_injected_only_by_a_node_that_is_really_there(how: How) -> None:
    (sighting,) = seen(found(BOARD, how)).sightings
    device = only(after(seen(found(BOARD)), seen(found(BOARD, how))))
    assert device.devnode is not None
    node_is_there = sighting.node is NodeKind.CHARACTER
    node_is_ours = sighting.number is None or sighting.node_number == sighting.number
    assert device.devnode.is_sound == (node_is_there and node_is_ours)


@pytest.mark.parametrize("broken", [False, True])
def test_a_missing_node_is_not_injected_even_if_an_attribute_is_broken_too(*, broken: bool) -> None:
    look = seen(found(BOARD, How.BROKEN if broken else How.SOUND))
    (sighting,) = look.sightings
    nodeless = replace(sighting, node=NodeKind.MISSING, node_number=None)
    device = only(after(seen(found(BOARD)), replace(look, sightings=(nodeless,))))
    assert device.health is Health.UNHEALTHY
    assert device.devnode is None or not device.devnode.is_sound


def test_a_new_number_is_known_even_if_an_attribute_is_broken() -> None:
    # A reloaded driver has another major; readers of the spec remember the old one until told.
    reloaded = seen(found(BOARD, How.BROKEN, major=510))
    device = only(after(seen(found(BOARD, major=507)), reloaded))
    assert device.devnode is None or device.devnode.number == DeviceNumber(510, 0)


# --- what is true of the whole machine -----------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "words"), [("vfio-pci", "vfio-pci"), (None, "no kernel driver")]
)
def test_a_pci_function_without_an_entry_is_told(driver: str | None, words: str) -> None:
    assert BOARD.function is not None
    function = replace(BOARD.function, driver=driver)
    (fault,) = after(replace(seen(), functions=(function,))).faults
    assert fault.code is FaultCode.PCI_UNSERVED
    assert fault.subject == "0000:01:00.0"
    assert words in fault.message
    assert "hailo-8" in fault.message


def test_a_pci_function_of_unknown_make_is_told_too() -> None:
    function = PciFunction(address=PciAddress(0, 1, 0, 0), pci_id=None)
    assert codes(after(replace(seen(), functions=(function,))).faults) == [FaultCode.PCI_UNSERVED]


@pytest.mark.parametrize("how", [How.HUNG, How.NAMELESS])
def test_a_device_whose_entry_is_there_is_not_unserved(how: How) -> None:
    assert after(seen(found(BOARD)), seen(found(BOARD, how))).faults == ()


def test_faults_of_the_look_itself_are_passed_on_and_dated() -> None:
    trouble = Fault(code=FaultCode.CLASS_UNREADABLE, subject="/sys/class/x", message="", remedy="")
    looks = [replace(seen(at=at), faults=(trouble,)) for at in (3.0, 4.0)]
    (fault,) = after(*looks).faults
    assert (fault, fault.since) == (trouble, 3.0)
    assert after(*looks, seen(at=5.0)).faults == ()


def test_class_names_are_told_in_order() -> None:
    look = seen(found(BOARD, family=RENAMED), found(NEIGHBOUR, family=CLASSIC))
    other = replace(look, class_names=look.class_names[::-1])
    assert after(look).class_names == after(other).class_names == ("hailo1x", "hailo_chardev")


@pytest.mark.parametrize("name", [BOARD.id, "all"])
def test_a_name_that_somebody_else_defines_too_is_a_conflict(name: str) -> None:
    look = replace(seen(found(BOARD)), foreign_names=(("/etc/cdi/old.json", name),))
    (fault,) = after(look).faults
    assert fault.code is FaultCode.SPEC_CONFLICT
    assert fault.subject == f"/etc/cdi/old.json: {name}"
    assert "/etc/cdi/old.json" in fault.message
    assert POLICY.spec_path in fault.message
    assert only(after(look)).health is Health.HEALTHY


@pytest.mark.parametrize("name", [BOARD.id, "all"])
def test_a_name_that_only_somebody_else_defines_is_no_conflict(name: str) -> None:
    look = replace(seen(), foreign_names=(("/etc/cdi/old.json", name),))
    assert after(look).faults == ()


# --- what the operator sets aside ----------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern", ["pci-0000-01-00-0", "pci-0000-01-*", "0000:01:00.?", "hailo-8", "1e60:2864", "*"]
)
def test_a_device_is_denied_by_any_of_its_names(pattern: str) -> None:
    inventory = after(seen(found(BOARD)), policy=replace(POLICY, deny=(pattern,)))
    assert inventory.devices == ()
    assert codes(inventory.faults) == [FaultCode.DENIED]
    assert after(seen(found(BOARD)), policy=replace(POLICY, allow=(pattern,))).devices


@pytest.mark.parametrize("pattern", ["pci-0000-02-*", "HAILO-8", "hailo", "1e60:45c4", ""])
def test_a_pattern_that_fits_none_of_its_names_denies_nothing(pattern: str) -> None:
    assert only(after(seen(found(BOARD)), policy=replace(POLICY, deny=(pattern,)))).is_usable
    assert after(seen(found(BOARD)), policy=replace(POLICY, allow=(pattern,))).devices == ()


def test_deny_wins_over_allow() -> None:
    policy = replace(POLICY, allow=("hailo-8",), deny=("0000:02:00.0",))
    inventory = after(seen(*(found(board) for board in BOARDS)), policy=policy)
    assert [device.id for device in inventory.devices] == [BOARD.id]


def test_a_denied_device_stays_listed_while_a_pod_holds_it() -> None:
    policy = replace(POLICY, deny=("*",))
    held = seen(found(BOARD), at=5.0, holdings=listed(BOARD.id, at=4.0))
    device = only(after(held, policy=policy))
    assert codes(device.faults) == [FaultCode.DENIED]
    assert device.denied
    assert device.held
    assert device.devnode is not None  # its container may restart
    freed = seen(found(BOARD), at=20.0, holdings=listed(at=20.0))
    inventory = after(held, freed, policy=policy)
    assert inventory.devices == ()
    assert codes(inventory.faults) == [FaultCode.DENIED]


def test_forgetting_a_denied_device_whose_entry_fell_silent_is_final() -> None:
    policy = replace(POLICY, deny=("*",))
    held = seen(found(BOARD), holdings=listed(BOARD.id, at=0.0))
    freed = seen(found(BOARD, How.HUNG), at=20.0, holdings=listed(at=20.0))
    once = after(held, freed, policy=policy)
    assert decide(once, freed, policy) == once


# --- what a PCI function that cannot be read must not undo ---------------------------------------


def test_a_device_stays_what_it_was_while_its_pci_function_cannot_be_read() -> None:
    look = seen(found(TENTH, How.BLIND))
    device = only(after(seen(found(TENTH)), look))
    assert device.model is Model.HAILO_10H
    assert device.pci_id == TENTH.pci_id


def test_a_function_that_cannot_be_read_is_not_taken_for_one_that_is_gone() -> None:
    assert only(after(seen(found(TENTH)), seen(found(TENTH, How.BLIND)))).is_usable


def test_a_board_whose_function_was_never_read_is_not_offered_yet() -> None:
    # Nobody knows yet what it is, so neither whether it is denied nor under which resource it goes.
    assert after(seen(found(TENTH, How.BLIND))).devices == ()
    assert only(after(seen(found(TENTH, How.BLIND)), seen(found(TENTH)))).is_usable


def test_a_model_is_not_forgotten_with_an_attribute_that_cannot_be_read() -> None:
    # 1e60:45c4 is a Hailo-15H by its accelerator_type alone.
    look, ill = seen(found(TENTH)), seen(found(TENTH, How.BROKEN))
    well = replace(look, sightings=(replace(look.sightings[0], accelerator_type="0"),))
    mute = replace(ill, sightings=(replace(ill.sightings[0], accelerator_type=None),))
    assert only(after(well)).model is Model.HAILO_15H
    assert only(after(well, mute)).model is Model.HAILO_15H


def test_a_denied_model_is_not_offered_while_its_pci_function_cannot_be_read() -> None:
    policy = replace(POLICY, deny=("hailo-10h",))
    blind = after(seen(found(TENTH)), seen(found(TENTH, How.BLIND)), policy=policy)
    assert not any(device.is_usable for device in blind.devices)


def test_an_allowed_model_is_not_denied_while_its_pci_function_cannot_be_read() -> None:
    policy = replace(POLICY, allow=("hailo-10h",))
    blind = after(seen(found(TENTH)), seen(found(TENTH, How.BLIND)), policy=policy)
    assert not only(blind).denied


def test_a_board_behind_a_vanished_bus_is_not_known_to_lie_elsewhere() -> None:
    assert only(after(seen(found(FAR)), seen(found(FAR, How.BLIND)))).topology == FAR.topology
    assert only(after(seen(found(SOC)))).topology == Topology()


def test_another_board_in_the_same_slot_is_known_by_its_own_make() -> None:
    other = replace(BOARD, pci_id=PciId(0x1E60, 0x26A2))
    finds = [found(BOARD), replace(found(BOARD), board=other)]
    device = only(after(*(seen(find) for find in finds)))
    assert (device.id, device.model) == (BOARD.id, Model.HAILO_12L)


# --- when the spec could not be written ----------------------------------------------------------


@given(reachable(), st.sets(st.sampled_from(IDS)))
def test_what_no_spec_covers_is_not_offered_and_nothing_else_changes(
    inventory: Inventory, names: set[str]
) -> None:
    told = covered(inventory, names, "no space left")
    assert [device.id for device in told.devices] == [device.id for device in inventory.devices]
    assert replace(told, devices=()) == replace(inventory, devices=())
    assert told.review_at == inventory.review_at
    for device, decided in zip(told.devices, inventory.devices, strict=True):
        if device.id in names or not decided.is_usable:
            assert device == decided
        else:
            assert codes(device.faults) == [FaultCode.SPEC_UNWRITTEN]
            assert device.faults[0].message == "no space left"
            assert device.health is Health.UNHEALTHY


@given(reachable(), reachable())
def test_before_anything_is_written_only_bad_news_is_told(
    told: Inventory, decided: Inventory
) -> None:
    first = bad_news(told, decided)
    assert replace(first, devices=()) == replace(told, devices=())
    assert [device.id for device in first.devices] == [device.id for device in told.devices]
    for device, known in zip(first.devices, told.devices, strict=True):
        coming = decided.by_id().get(device.id, known)
        assert device == (known if coming.is_usable else coming)


def test_bad_news_is_told_though_no_spec_covers_it() -> None:
    ill = after(seen(found(BOARD)), seen(found(BOARD, How.NO_NODE)))
    assert covered(ill, (), "no space left") == ill


def test_a_device_is_listed_under_the_resource_of_its_kind_again_once_freed() -> None:
    held = listed(TENTH.id, at=0.0, resource=OTHER_RESOURCE)
    phantom = only(after(seen(holdings=held)))
    assert phantom.resource == OTHER_RESOURCE
    looks = [seen(holdings=held), seen(found(TENTH), at=1.0, holdings=held)]
    back = only(after(*looks))
    assert (back.resource, back.model) == (OTHER_RESOURCE, Model.HAILO_10H)
    freed = only(after(*looks, seen(found(TENTH), at=2.0, holdings=listed(at=2.0))))
    assert freed.resource is None
