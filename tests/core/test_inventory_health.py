"""What readings and cordons make of devices: properties of every history, then tables."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.cdi import Place, render
from hailo_agent.core.change import Kind, changes
from hailo_agent.core.device import Device, DeviceId, Model
from hailo_agent.core.grant import Delivery, grant
from hailo_agent.core.health import (
    Evidence,
    Fault,
    FaultCode,
    Health,
    Sensor,
    Standards,
)
from hailo_agent.core.inventory import Inventory, Policy, decide
from hailo_agent.core.observation import Observation, Readings
from hailo_agent.core.offer import OfferId, ResourceNames, offers
from hailo_agent.core.vitals import Aer, Vitals
from hailo_agent.errors import DeviceUnavailable
from hailo_agent.kubelet.mapping import to_devices
from tests.strategies import (
    BOARDS,
    OTHER_RESOURCE,
    PATIENCE,
    POLICY,
    RESOURCE,
    Answer,
    Pulse,
    after,
    chip,
    found,
    heard,
    listed,
    only,
    policies,
    read,
    read_histories,
    replay,
    seen,
    set_aside,
    vitals,
)

BOARD, NEIGHBOUR, TENTH, FAR = BOARDS
WITHHOLDING = replace(POLICY, standards=Standards(patience=PATIENCE, offers_unknown=False))
NAMES = ResourceNames(default=RESOURCE, by_kind={Model.HAILO_8L.value: OTHER_RESOURCE})

Histories = list[Observation]


def looked(
    pulse: Pulse | None = None,
    answer: Answer | None = None,
    *others: Evidence,
    at: float,
    held: bool = False,
) -> Observation:
    """Look at the one board, in good order, and have it read at the same time."""
    return read(
        seen(found(BOARD), at=at, holdings=listed(BOARD.id, at=at) if held else None),
        {
            BOARD.id: Readings(
                vitals=None if pulse is None else vitals(BOARD, pulse, at=at),
                chip=None if answer is None else chip(answer, at=at),
                others=others,
            )
        },
    )


def codes(faults: Iterable[Fault]) -> list[FaultCode]:
    return [fault.code for fault in faults]


def by_id(inventory: Inventory, *, but: DeviceId) -> Mapping[DeviceId, dict[str, object]]:
    return {device.id: asdict(device) for device in inventory.devices if device.id != but}


# --- of every history ----------------------------------------------------------------------------


@given(read_histories(), policies())
def test_deciding_twice_is_deciding_once(history: Histories, policy: Policy) -> None:
    for _, observation, decided in replay(history, policy):
        assert asdict(decide(decided, observation, policy)) == asdict(decided)


@given(read_histories(), policies(), st.integers(0, 1 << 16))
def test_the_order_in_which_things_were_read_does_not_matter(
    history: Histories, policy: Policy, seed: int
) -> None:
    random = Random(seed)
    for before, observation, decided in replay(history, policy):
        readings = list(observation.readings.items())
        other = replace(
            observation,
            sightings=tuple(random.sample(observation.sightings, len(observation.sightings))),
            readings=dict(random.sample(readings, len(readings))),
        )
        assert asdict(decide(before, other, policy)) == asdict(decided)


@given(read_histories(), read_histories(), policies())
def test_what_is_found_out_about_one_device_never_changes_another(
    history: Histories, other: Histories, policy: Policy
) -> None:
    readings = [observation.readings.get(BOARD.id, Readings()) for observation in other]
    disturbed = [
        replace(
            observation,
            readings={**observation.readings, BOARD.id: readings[n % len(readings)]},
            cordons=replace(
                observation.cordons,
                entries=() if observation.cordons.entries else set_aside(BOARD.id).entries,
            )
            if observation.cordons.get(NEIGHBOUR.id) is None
            else observation.cordons,
        )
        for n, observation in enumerate(history)
    ]
    pairs = zip(replay(history, policy), replay(disturbed, policy), strict=True)
    for (_, _, decided), (_, _, and_yet) in pairs:
        assert by_id(decided, but=BOARD.id) == by_id(and_yet, but=BOARD.id)


@given(read_histories(), policies())
def test_what_was_read_before_a_device_was_there_says_nothing_of_it(
    history: Histories, policy: Policy
) -> None:
    for before, observation, decided in replay(history, policy):
        since = {device.id: device.present_since for device in decided.devices}
        cleaned = {
            device_id: read_since(readings, since.get(device_id, observation.at))
            for device_id, readings in observation.readings.items()
        }
        assert asdict(decide(before, read(observation, cleaned), policy)) == asdict(decided)


def read_since(readings: Readings, at: float) -> Readings:
    return Readings(
        vitals=readings.vitals if readings.vitals and readings.vitals.at >= at else None,
        chip=readings.chip if readings.chip and readings.chip.at >= at else None,
        others=tuple(evidence for evidence in readings.others if evidence.at >= at),
    )


@given(read_histories(), policies())
def test_the_kubelet_hears_two_words_and_the_good_one_of_what_may_be_handed_out(
    history: Histories, policy: Policy
) -> None:
    for _, _, decided in replay(history, policy):
        devices = decided.by_id()
        told = [to_devices(offers(decided, resource, NAMES)) for resource in NAMES.all()]
        assert sorted(one.id for some in told for one in some) == sorted(devices)
        for one in (one for some in told for one in some):
            device = devices[DeviceId(one.id)]
            may = policy.standards.permits(device.health)
            assert one.health == ("Healthy" if may else "Unhealthy")
            assert device.fit == may


@given(read_histories(), policies())
def test_a_device_that_is_away_is_unhealthy_and_nothing_is_known_of_what_was_there(
    history: Histories, policy: Policy
) -> None:
    for _, _, decided in replay(history, policy):
        for device in decided.devices:
            if device.present_since == inf:
                assert device.health is Health.UNHEALTHY
                assert (device.vitals, device.chip, device.firmware) == (None, None, None)
                sensors = {track.sensor for track in device.history.tracks}
                assert sensors <= {Sensor.LOOK, Sensor.OPERATOR}


@given(read_histories())
def test_a_fault_is_told_with_its_subject_its_remedy_and_when_it_began(history: Histories) -> None:
    for _, observation, decided in replay(history):
        for device in decided.devices:
            for fault in device.faults:
                assert fault.since <= observation.at
                assert fault.message
                assert "\n" not in fault.message + fault.remedy + fault.evidence


# --- what a reading does -------------------------------------------------------------------------

TWICE, ONCE = 2, 1


@pytest.mark.parametrize(
    ("pulse", "times", "code", "health"),
    [
        (Pulse.DEAD, TWICE, FaultCode.PCI_DEAD, Health.UNHEALTHY),
        (Pulse.LOOSE, TWICE, FaultCode.PCI_UNBOUND, Health.UNHEALTHY),
        (Pulse.RESET, TWICE, FaultCode.PCI_DISABLED, Health.UNHEALTHY),
        (Pulse.NARROW, TWICE, FaultCode.LINK_DEGRADED, Health.DEGRADED),
        (Pulse.STUCK, ONCE, FaultCode.UNRESPONSIVE, Health.UNHEALTHY),
    ],
)
def test_what_the_kernel_tells_counts_for_the_kubelet_too(
    pulse: Pulse, times: int, code: FaultCode, health: Health
) -> None:
    history = [looked(Pulse.WELL, at=0.0)]
    history += [looked(pulse, at=5.0 * n) for n in range(1, times + 1)]
    early, late = only(after(*history[:times])), only(after(*history))
    assert (early.health, early.faults) == (Health.HEALTHY, ())
    assert (late.health, codes(late.faults)) == (health, [code])
    assert late.is_usable == (health is Health.DEGRADED)


@pytest.mark.parametrize(
    ("answer", "times", "code", "health"),
    [
        (Answer.WARM, 2, FaultCode.TEMPERATURE_HIGH, Health.DEGRADED),
        (Answer.HOT, 2, FaultCode.TEMPERATURE_CRITICAL, Health.UNHEALTHY),
        (Answer.SLOW, 3, FaultCode.QUERY_SLOW, Health.DEGRADED),
        (Answer.BARE, 1, FaultCode.FIRMWARE_NOT_LOADED, Health.UNHEALTHY),
        (Answer.SILENT, 2, FaultCode.FIRMWARE_HUNG, Health.UNHEALTHY),
        (Answer.GARBLED, 3, FaultCode.FIRMWARE_GARBAGE, Health.UNHEALTHY),
        (Answer.STUCK, 1, FaultCode.QUERY_HUNG, Health.UNHEALTHY),
        (Answer.FAILED, 3, FaultCode.QUERY_FAILED, Health.UNKNOWN),
        (Answer.LOST, 2, FaultCode.DEVICE_LOST, Health.UNHEALTHY),
    ],
)
def test_what_driver_and_firmware_answer_counts_after_its_strikes_and_is_cured_by_an_answer(
    answer: Answer, times: int, code: FaultCode, health: Health
) -> None:
    history = [looked(Pulse.WELL, Answer.WELL, at=0.0)]
    history += [looked(Pulse.WELL, answer, at=60.0 * n) for n in range(1, times + 1)]
    early, late = only(after(*history[:times])), only(after(*history))
    assert (early.health, early.faults) == (Health.HEALTHY, ())
    assert (late.health, codes(late.faults)) == (health, [code])
    history += [looked(Pulse.WELL, at=60.0 * times + 50.0)]
    assert only(after(*history)).faults == late.faults  # nobody has asked again
    history += [looked(Pulse.WELL, Answer.WELL, at=1000.0 * n) for n in (1, 2)]
    cured = only(after(*history))
    assert (cured.health, cured.faults) == (Health.HEALTHY, ())


@pytest.mark.parametrize("unasked", [Answer.DENIED, None])
def test_a_device_that_nobody_may_ask_is_as_healthy_as_it_can_be_seen_to_be(
    unasked: Answer | None,
) -> None:
    device = only(after(*(looked(Pulse.WELL, unasked, at=60.0 * n) for n in range(5))))
    assert (device.health, device.model) == (Health.HEALTHY, Model.HAILO_8)
    ill = only(after(*(looked(Pulse.DEAD, unasked, at=60.0 * n) for n in range(5))))
    assert ill.health is Health.UNHEALTHY


@pytest.mark.parametrize("answer", [Answer.SILENT, Answer.STUCK, Answer.SLOW, Answer.FAILED])
@pytest.mark.parametrize("sign", ["the kubelet says so", "it is awake"])
def test_a_device_in_use_may_be_slow_to_answer(answer: Answer, sign: str) -> None:
    is_held = sign == "the kubelet says so"
    pulse = Pulse.WELL if is_held else Pulse.USED
    busy = [looked(pulse, answer, at=60.0 * n, held=is_held) for n in range(6)]
    device = only(after(*busy))
    assert device.health in {Health.HEALTHY, Health.DEGRADED}
    assert device.is_usable
    idle = looked(Pulse.WELL, answer, at=360.0)
    assert only(after(*busy, idle)).health.rank > device.health.rank


@pytest.mark.parametrize("answer", [Answer.GARBLED, Answer.LOST, Answer.HOT, Answer.BARE])
def test_use_excuses_nothing_else(answer: Answer) -> None:
    busy = [looked(Pulse.USED, answer, at=60.0 * n, held=True) for n in range(6)]
    assert only(after(*busy)).health is Health.UNHEALTHY


def test_no_sensor_clears_what_another_one_found() -> None:
    history = [looked(Pulse.DEAD, Answer.HOT, at=60.0 * n) for n in range(2)]
    assert codes(only(after(*history)).faults) == [
        FaultCode.PCI_DEAD,
        FaultCode.TEMPERATURE_CRITICAL,
    ]
    history += [looked(Pulse.WELL, at=200.0 + 60.0 * n) for n in range(2)]
    assert codes(only(after(*history)).faults) == [FaultCode.TEMPERATURE_CRITICAL]
    history += [looked(Pulse.STUCK, Answer.WELL, at=400.0 + 60.0 * n) for n in range(2)]
    assert codes(only(after(*history)).faults) == [FaultCode.UNRESPONSIVE]


def test_the_worst_wins_until_it_is_over() -> None:
    notified = heard(FaultCode.NOTIFIED_ECC, at=120.0)
    history = [looked(Pulse.NARROW, Answer.HOT, at=60.0 * n) for n in range(2)]
    history += [looked(Pulse.NARROW, Answer.HOT, notified, at=120.0)]
    device = only(after(*history))
    assert codes(device.faults) == [
        FaultCode.TEMPERATURE_CRITICAL,
        FaultCode.LINK_DEGRADED,
        FaultCode.NOTIFIED_ECC,
    ]
    assert device.health is Health.UNHEALTHY
    history += [looked(Pulse.NARROW, Answer.WELL, notified, at=180.0 + 60.0 * n) for n in range(2)]
    assert only(after(*history)).health is Health.DEGRADED
    history += [looked(Pulse.WELL, Answer.WELL, notified, at=300.0 + 60.0 * n) for n in range(2)]
    device = only(after(*history))
    assert (device.health, codes(device.faults)) == (Health.HEALTHY, [FaultCode.NOTIFIED_ECC])


def errors(count: int, *, at: float) -> Vitals:
    return replace(vitals(BOARD, at=at), aer=Aer(nonfatal=count))


def counted(*counts: tuple[float, int | None]) -> list[Observation]:
    """Look at these times, and find the board with so many errors; None: find no board."""
    return [
        seen(at=at)
        if count is None
        else read(seen(found(BOARD), at=at), {BOARD.id: Readings(vitals=errors(count, at=at))})
        for at, count in counts
    ]


def test_errors_count_only_while_they_grow_in_front_of_our_eyes() -> None:
    assert only(after(*counted((0, 7), (5, 7)))).faults == ()
    grown = [(0.0, 7), (5.0, 9), (10.0, 9)]
    assert codes(only(after(*counted(*grown))).faults) == [FaultCode.AER_NONFATAL]
    assert codes(only(after(*counted(*grown, (309.0, 9)))).faults) == [FaultCode.AER_NONFATAL]
    assert only(after(*counted(*grown, (310.0, 9)))).faults == ()


def test_errors_that_came_while_nobody_could_count_them_count_afterwards() -> None:
    blind = read(seen(found(BOARD), at=5.0), {BOARD.id: Readings(vitals=Vitals(at=5.0))})
    before, later = counted((0, 7)), counted((10, 8))
    assert codes(only(after(*before, blind, *later)).faults) == [FaultCode.AER_NONFATAL]
    assert only(after(*before, blind, *counted((10, 7)))).faults == ()


def test_the_errors_of_another_card_are_none_of_this_one() -> None:
    device = only(after(*counted((0, 7), (5, None), (10, 900), (15, 900))))
    assert device.faults == ()


# --- what a reading does not do ------------------------------------------------------------------


def test_an_unchanged_reading_leaves_a_device_the_very_same_object() -> None:
    first = looked(Pulse.WELL, Answer.LESSER, heard(at=0.0), at=0.0)
    before = after(first)
    for at in (0.0, 1.0, 30.0):
        again = read(seen(found(BOARD), at=at), first.readings)
        assert only(decide(before, again, POLICY)) is only(before)


@pytest.mark.parametrize("pulse", Pulse)
@pytest.mark.parametrize("answer", Answer)
def test_an_unchanged_reading_changes_nothing_that_is_told(pulse: Pulse, answer: Answer) -> None:
    newest = looked(pulse, answer, heard(FaultCode.NOTIFIED_ECC, at=120.0), at=120.0)
    before = after(*(looked(pulse, answer, at=60.0 * n) for n in range(2)), newest)
    for at in (120.0, 121.0, 150.0, 10_000.0):
        again = read(seen(found(BOARD), at=at), newest.readings)
        assert decide(before, again, POLICY) == before


@pytest.mark.parametrize("pulse", Pulse)
@pytest.mark.parametrize("answer", Answer)
def test_a_late_reading_is_passed_over(pulse: Pulse, answer: Answer) -> None:
    before = after(
        looked(Pulse.WELL, Answer.REDUCED, heard(at=0.0), at=0.0),
        looked(Pulse.WELL, Answer.REDUCED, heard(at=60.0), at=60.0),
    )
    late = looked(pulse, answer, heard(FaultCode.NOTIFIED_DATAFLOW, at=59.0), at=59.0)
    again = read(seen(found(BOARD), at=61.0), late.readings)
    assert only(decide(before, again, POLICY)) is only(before)


def test_what_was_found_out_about_a_card_is_void_once_it_was_away() -> None:
    ill = [looked(Pulse.DEAD, Answer.SILENT, at=60.0 * n) for n in range(3)]
    old = ill[-1].readings
    assert len(only(after(*ill)).faults) == 2
    back = [seen(at=130.0), read(seen(found(BOARD), at=131.0), old)]
    device = only(after(*ill, *back))
    assert (device.health, device.faults) == (Health.HEALTHY, ())
    assert (device.vitals, device.chip) == (None, None)


@pytest.mark.parametrize("denied", [(), (BOARD.id,)])
def test_so_it_is_where_another_card_took_its_place_unseen(denied: tuple[str, ...]) -> None:
    policy = replace(POLICY, deny=denied)
    ill = [looked(Pulse.DEAD, Answer.LESSER, at=60.0 * n) for n in range(3)]
    other = replace(BOARD, pci_id=TENTH.pci_id)
    swapped = read(seen(found(other, index=0), at=121.0), ill[-1].readings)
    before = decide(after(*ill), swapped, policy)
    assert only(before).model is Model.HAILO_10H
    assert only(before).firmware is None
    assert codes(only(before).faults) == ([FaultCode.DENIED] if denied else [])


# --- what it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "model"),
    [
        (None, Model.HAILO_8),
        (Answer.WELL, Model.HAILO_8),
        (Answer.LESSER, Model.HAILO_8L),
        (Answer.REDUCED, Model.HAILO_8R),
        (Answer.SILENT, Model.HAILO_8),
        (Answer.DENIED, Model.HAILO_8),
    ],
)
def test_the_firmware_knows_the_three_models_of_one_pci_id_apart(
    answer: Answer | None, model: Model
) -> None:
    assert only(after(looked(None, answer, at=0.0))).model is model


def test_what_the_firmware_said_once_is_believed_until_another_card_may_be_there() -> None:
    known = [looked(None, Answer.LESSER, at=0.0), looked(None, Answer.SILENT, at=60.0)]
    silent = only(after(*known))
    assert silent.model is Model.HAILO_8L
    assert silent.firmware is not None
    assert only(after(*known, seen(at=61.0))).model is Model.HAILO_8L
    assert only(after(*known, seen(at=61.0), seen(found(BOARD), at=62.0))).model is Model.HAILO_8
    updated = looked(None, Answer.REDUCED, at=61.0)
    assert only(after(*known, updated)).model is Model.HAILO_8R


def offered_as(device: Device) -> str:
    return NAMES.of(device)


def test_a_device_is_offered_under_its_models_name_but_a_held_one_stays_where_it_was_granted() -> (
    None
):
    unasked = seen(found(BOARD), at=0.0, holdings=listed(BOARD.id, at=0.0, resource=RESOURCE))
    asked = replace(
        looked(None, Answer.LESSER, at=60.0),
        holdings=listed(BOARD.id, at=60.0, resource=RESOURCE),
    )
    freed = replace(looked(None, Answer.LESSER, at=120.0), holdings=listed(at=120.0))
    assert offered_as(only(after(unasked))) == RESOURCE
    held = only(after(unasked, asked))
    assert (held.model, offered_as(held), held.is_usable) == (Model.HAILO_8L, RESOURCE, True)
    assert offered_as(only(after(unasked, asked, freed))) == OTHER_RESOURCE


def test_a_device_denied_for_what_its_firmware_says_stays_denied() -> None:
    policy = replace(POLICY, deny=("hailo-8l",), tombstone_seconds=30.0)
    told = looked(None, Answer.LESSER, at=1.0).readings
    history = [seen(found(BOARD), at=0.0)]
    history += [read(seen(found(BOARD), at=at), told) for at in (1.0, 2.0, 60.0, 61.0)]
    history += [
        replace(look, at=look.at + 99, holdings=listed(at=look.at + 99)) for look in history[1:]
    ]
    offered = [
        [device.id for device in decided.devices if device.is_usable]
        for _, _, decided in replay(history, policy)
    ]
    assert offered == [[BOARD.id], *[[]] * 8]


# --- who may have it -----------------------------------------------------------------------------


def grants(inventory: Inventory) -> bool:
    offered = offers(inventory, RESOURCE, ResourceNames(default=RESOURCE))
    try:
        grant(
            offered,
            [OfferId(BOARD.id)],
            resource=RESOURCE,
            delivery=frozenset({Delivery.CRI}),
            place=Place(),
        )
    except DeviceUnavailable:
        return False
    return True


@pytest.mark.parametrize(
    ("answer", "health", "policy", "is_offered"),
    [
        (Answer.WELL, Health.HEALTHY, POLICY, True),
        (Answer.WARM, Health.DEGRADED, POLICY, True),
        (Answer.WARM, Health.DEGRADED, WITHHOLDING, True),
        (Answer.FAILED, Health.UNKNOWN, POLICY, True),
        (Answer.FAILED, Health.UNKNOWN, WITHHOLDING, False),
        (Answer.LOST, Health.UNHEALTHY, POLICY, False),
        (Answer.LOST, Health.UNHEALTHY, WITHHOLDING, False),
    ],
)
def test_who_is_degraded_is_handed_out_and_who_is_unknown_as_the_policy_has_it(
    answer: Answer, health: Health, policy: Policy, *, is_offered: bool
) -> None:
    history = [looked(None, answer, at=60.0 * n) for n in range(3)]
    inventory = after(*history, policy=policy)
    assert only(inventory).health is health
    assert only(inventory).fit == is_offered
    assert grants(inventory) == is_offered
    (told,) = to_devices(offers(inventory, RESOURCE, ResourceNames(default=RESOURCE)))
    assert told.health == ("Healthy" if is_offered else "Unhealthy")


@pytest.mark.parametrize("pulse", [Pulse.WELL, Pulse.DEAD])
@pytest.mark.parametrize("how", ["free", "held"])
def test_a_cordoned_device_is_unhealthy_says_why_and_is_offered_again_when_that_is_lifted(
    pulse: Pulse, how: str
) -> None:
    well = [looked(Pulse.WELL, at=5.0 * n, held=how == "held") for n in range(2)]
    aside = replace(looked(pulse, at=10.0, held=how == "held"), cordons=set_aside(BOARD.id))
    inventory = after(*well, aside)
    (told,) = only(inventory).faults
    assert told.code is FaultCode.CORDONED
    assert "it squeaks" in told.message
    assert BOARD.id in told.remedy
    assert only(inventory).health is Health.UNHEALTHY
    assert not grants(inventory)
    spec = render(inventory, Place())
    assert spec is not None
    assert BOARD.id in [device.name for device in spec.devices]  # who holds it may restart
    assert grants(after(*well, aside, looked(Pulse.WELL, at=15.0, held=how == "held")))


def test_a_cordon_stays_whatever_becomes_of_the_card() -> None:
    history = [seen(found(BOARD), at=0.0), seen(at=5.0), seen(found(BOARD), at=10.0)]
    aside = [replace(look, cordons=set_aside(BOARD.id)) for look in history]
    for count in (1, 2, 3):
        device = only(after(*aside[:count]))
        assert FaultCode.CORDONED in codes(device.faults)
        assert device.health is Health.UNHEALTHY
    assert codes(only(after(*aside)).faults) == [FaultCode.CORDONED]


def test_a_cordon_of_what_is_not_there_makes_no_device() -> None:
    nothing = replace(seen(at=0.0), cordons=set_aside(BOARD.id))
    assert after(nothing) == Inventory()


def test_while_nobody_can_tell_what_is_cordoned_nothing_is_handed_out() -> None:
    doubt = replace(set_aside(), is_complete=False)
    device = only(after(replace(seen(found(BOARD), at=0.0), cordons=doubt)))
    assert (device.health, codes(device.faults)) == (
        Health.UNHEALTHY,
        [FaultCode.CORDONS_UNREADABLE],
    )


# --- flapping ------------------------------------------------------------------------------------


def test_a_link_that_dies_again_and_again_is_one_transition_after_the_first() -> None:
    told = ""
    history = [looked(Pulse.WELL, at=0.0)]
    for n in range(1, 40):
        pulse = Pulse.WELL if n % 4 == 0 else Pulse.DEAD
        history.append(looked(pulse, at=5.0 * n))
    for _, _, decided in replay(history):
        told += "H" if only(decided).health is Health.HEALTHY else "u"
    assert told == "HH" + "u" * 38


def test_one_reading_of_a_sick_board_among_well_ones_is_never_told() -> None:
    history = [looked(Pulse.DEAD if n % 2 else Pulse.WELL, at=5.0 * n) for n in range(40)]
    for before, _, decided in replay(history):
        assert only(decided).health is Health.HEALTHY
        assert not before.devices or decided == before


# --- what is told of it --------------------------------------------------------------------------


def alarm(words: str, *, at: float) -> Observation:
    evidence = heard(FaultCode.NOTIFIED_TEMPERATURE, at=at)
    faults = tuple(replace(fault, message=words) for fault in evidence.faults)
    return looked(Pulse.WELL, None, replace(evidence, faults=faults), at=at)


def test_an_alarm_that_gets_worse_is_no_recovery() -> None:
    hot = after(alarm("hot", at=0.0))
    for words, kinds in (("hot", []), ("too hot", [Kind.FAULTED])):
        later = decide(hot, alarm(words, at=5.0), POLICY)
        assert [change.kind for change in changes(hot, later)] == kinds
    over = decide(hot, looked(Pulse.WELL, None, heard(at=5.0), at=5.0), POLICY)
    assert [change.kind for change in changes(hot, over)] == [Kind.RECOVERED]


def test_what_is_measured_moves_without_anybody_being_told() -> None:
    history = [looked(Pulse.WELL, Answer.WARM, at=60.0 * n) for n in range(3)]
    hotter = chip(Answer.WARM, at=180.0)
    assert hotter.temperatures is not None
    hotter = replace(hotter, temperatures=replace(hotter.temperatures, ts0_celsius=101.5))
    before = after(*history)
    now = decide(
        before, read(seen(found(BOARD), at=180.0), {BOARD.id: Readings(chip=hotter)}), POLICY
    )
    assert changes(before, now) == ()
    (fault,) = only(now).faults
    assert "101.5" in fault.evidence
    assert "101.5" not in fault.message
    assert fault.since == 0.0
