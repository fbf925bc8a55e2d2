"""`core.vitals`: what each reading proves, what it says nothing about, and what it never does."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.health import (
    RULES,
    RULES_BY_SENSOR,
    Evidence,
    Fault,
    FaultCode,
    Health,
    History,
    Patience,
    Sensor,
    Severity,
    Standards,
    judge,
)
from hailo_agent.core.vitals import Aer, HostMemory, Link, Vitals, evidence, memory_fault

DEVICE = "pci-0000-01-00-0"
CODES = frozenset(RULES_BY_SENSOR[Sensor.VITALS])
AER = frozenset({FaultCode.AER_CORRECTABLE, FaultCode.AER_NONFATAL, FaultCode.AER_FATAL})
FULL = Link(speed_gts=8.0, width=4, max_speed_gts=8.0, max_width=4)
SLOW = Link(speed_gts=2.5, width=1, max_speed_gts=8.0, max_width=4)
WELL = Vitals(
    at=10.0,
    config_vendor=0x1E60,
    driver="hailo",
    driver_known=True,
    enabled=True,
    link=FULL,
    power_state="D3hot",
    power_managed=True,
    aer=Aer(correctable=3, nonfatal=2, fatal=1),
)
NOTHING_KNOWN = Vitals(at=10.0)


def codes(said: Evidence) -> set[FaultCode]:
    return {fault.code for fault in said.faults}


# --- one reading ---------------------------------------------------------------------------------

UNBOUND = replace(WELL, driver=None, enabled=False, power_managed=None, power_state="D0")

TABLE: dict[str, tuple[Vitals, set[FaultCode], set[FaultCode]]] = {
    "well": (WELL, set(), set()),
    "awake": (replace(WELL, power_state="D0"), set(), set()),
    "another vendor's chip": (replace(WELL, config_vendor=0x8086), set(), set()),
    "dead": (
        replace(WELL, config_vendor=0xFFFF, link=None),
        {FaultCode.PCI_DEAD},
        {FaultCode.LINK_DEGRADED},
    ),
    "dead, its link registers full of ones": (
        replace(
            WELL,
            config_vendor=0xFFFF,
            link=Link(speed_gts=2.5, width=63, max_speed_gts=64.0, max_width=63),
        ),
        {FaultCode.PCI_DEAD},
        {FaultCode.LINK_DEGRADED},
    ),
    "not ready after a reset": (
        replace(WELL, config_vendor=0x0001, link=SLOW),
        set(),
        {FaultCode.PCI_DEAD, FaultCode.LINK_DEGRADED},
    ),
    "config unread": (replace(WELL, config_vendor=None), set(), {FaultCode.PCI_DEAD}),
    "unbound": (UNBOUND, {FaultCode.PCI_UNBOUND}, set()),
    "unbound, and enable unread": (
        replace(UNBOUND, enabled=None),
        {FaultCode.PCI_UNBOUND},
        set(),
    ),
    "binding unread": (
        replace(WELL, driver=None, driver_known=False, enabled=False),
        set(),
        {FaultCode.PCI_UNBOUND, FaultCode.PCI_DISABLED},
    ),
    "disabled": (replace(WELL, enabled=False), {FaultCode.PCI_DISABLED}, set()),
    "enable unread": (replace(WELL, enabled=None), set(), {FaultCode.PCI_DISABLED}),
    "slow": (replace(WELL, link=SLOW), {FaultCode.LINK_DEGRADED}, set()),
    "narrow": (replace(WELL, link=replace(FULL, width=2)), {FaultCode.LINK_DEGRADED}, set()),
    "late": (replace(WELL, link=replace(FULL, speed_gts=5.0)), {FaultCode.LINK_DEGRADED}, set()),
    "link unread": (replace(WELL, link=None), set(), {FaultCode.LINK_DEGRADED}),
    "without error counters": (replace(WELL, aer=None), set(), set(AER)),
    "one counter unread": (
        replace(WELL, aer=Aer(correctable=3, fatal=1)),
        set(),
        {FaultCode.AER_NONFATAL},
    ),
    "nothing known": (NOTHING_KNOWN, set(), set(CODES)),
    "hung": (Vitals(at=10.0, hung=True), {FaultCode.UNRESPONSIVE}, set(CODES)),
    "hung, whatever else is said": (
        replace(WELL, config_vendor=0xFFFF, hung=True),
        {FaultCode.UNRESPONSIVE},
        set(CODES),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_reading_proves_what_it_shows_and_no_more(name: str) -> None:
    now, faults, unread = TABLE[name]
    said = evidence(DEVICE, now, WELL)
    assert codes(said) == faults
    assert said.unread == unread
    assert (said.sensor, said.at) == (Sensor.VITALS, now.at)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("correctable", FaultCode.AER_CORRECTABLE),
        ("nonfatal", FaultCode.AER_NONFATAL),
        ("fatal", FaultCode.AER_FATAL),
    ],
)
@pytest.mark.parametrize(
    ("before", "now", "shown"), [(0, 0, False), (7, 7, False), (7, 8, True), (0, 900, True)]
)
def test_errors_are_a_fault_only_while_they_grow(
    kind: str, code: FaultCode, before: int, now: int, *, shown: bool
) -> None:
    steady = Aer(correctable=5, nonfatal=5, fatal=5)
    said = evidence(
        DEVICE,
        replace(WELL, aer=replace(steady, **{kind: now})),
        replace(WELL, aer=replace(steady, **{kind: before})),
    )
    assert codes(said) == ({code} if shown else set())
    assert said.unread == frozenset()


@pytest.mark.parametrize("kind", ["correctable", "nonfatal", "fatal"])
def test_a_counter_that_went_down_was_reset_and_shows_no_error(kind: str) -> None:
    assert WELL.aer is not None
    fallen = replace(WELL, aer=replace(WELL.aer, **{kind: 0}))
    said = evidence(DEVICE, fallen, WELL)
    assert (said.faults, said.unread) == ((), frozenset())


@pytest.mark.parametrize(
    "before", [None, NOTHING_KNOWN, Vitals(at=5.0, hung=True), replace(WELL, aer=Aer())]
)
def test_the_first_count_is_no_growth_and_no_proof(before: Vitals | None) -> None:
    said = evidence(DEVICE, WELL, before)
    assert said.faults == ()
    assert said.unread == AER


def test_what_was_measured_is_told_beside_the_message() -> None:
    assert WELL.aer is not None
    now = replace(WELL, link=SLOW, aer=replace(WELL.aer, fatal=5))
    told = {fault.code: fault.evidence for fault in evidence(DEVICE, now, WELL).faults}
    assert told == {
        FaultCode.LINK_DEGRADED: "2.5 GT/s x1 of 8 GT/s x4",
        FaultCode.AER_FATAL: "4 more, 5 in all",
    }
    (dead,) = evidence(DEVICE, replace(WELL, config_vendor=0xFFFF), WELL).faults
    assert dead.evidence == "vendor id 0xffff"


# --- in use --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vitals", "in_use"),
    [
        (WELL, False),
        (replace(WELL, power_state="D0"), True),
        (replace(WELL, power_state="D0", power_managed=None), True),
        (replace(WELL, power_managed=None), False),
        (replace(WELL, power_state="D0", power_managed=False), None),
        (replace(WELL, power_managed=False), None),
        (replace(WELL, power_state="D3cold"), None),
        (replace(WELL, power_state="unknown"), None),
        (replace(WELL, power_state=None), None),
        (UNBOUND, None),  # it stays awake when its driver goes, and nobody can open it
        (NOTHING_KNOWN, None),
        (Vitals(at=1.0, hung=True), None),
    ],
)
def test_a_chip_that_is_awake_is_in_use_where_it_may_sleep_at_all(
    vitals: Vitals, *, in_use: bool | None
) -> None:
    assert vitals.is_in_use is in_use


# --- the host's memory ---------------------------------------------------------------------------

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("total", "free", "exhausted"),
    [
        (0, 0, False),  # a kernel without any, or a machine whose IOMMU makes it needless
        (64 * MIB, 64 * MIB, False),
        (64 * MIB, MIB, False),
        (64 * MIB, MIB - 1024, True),
        (64 * MIB, 0, True),
        (MIB // 2, MIB // 2, True),
    ],
)
def test_contiguous_memory_is_exhausted_below_one_mebibyte_where_there_is_any(
    total: int, free: int, *, exhausted: bool
) -> None:
    fault = memory_fault(HostMemory(cma_total_bytes=total, cma_free_bytes=free))
    assert (fault is not None) == exhausted
    if fault is not None:
        assert fault.code is FaultCode.HOST_CMA
        assert fault.severity is Severity.INFO
        assert fault.evidence == f"{free // 1024} of {total // 1024} KiB free"


def test_how_little_memory_is_left_does_not_change_the_fault() -> None:
    none, little = (
        memory_fault(HostMemory(cma_total_bytes=64 * MIB, cma_free_bytes=free))
        for free in (0, MIB // 2)
    )
    assert none is not None
    assert none == little


# --- any reading ---------------------------------------------------------------------------------

counts = st.none() | st.integers(0, 2**64 - 1) | st.integers(0, 3)
links = st.builds(
    Link,
    speed_gts=st.sampled_from([2.5, 5.0, 8.0, 64.0]),
    width=st.integers(0, 63),
    max_speed_gts=st.sampled_from([2.5, 5.0, 8.0, 64.0]),
    max_width=st.integers(0, 63),
)
vitals = st.builds(
    Vitals,
    at=st.floats(0, 1e6),
    config_vendor=st.none() | st.sampled_from([0x1E60, 0xFFFF, 0x0001, 0]) | st.integers(0, 0xFFFF),
    driver=st.none() | st.sampled_from(["hailo", "hailo1x", "vfio-pci"]),
    driver_known=st.booleans(),
    enabled=st.none() | st.booleans(),
    link=st.none() | links,
    power_state=st.none() | st.sampled_from(["D0", "D3hot", "D3cold", "unknown", "error"]),
    power_managed=st.none() | st.booleans(),
    aer=st.none() | st.builds(Aer, correctable=counts, nonfatal=counts, fatal=counts),
    hung=st.sampled_from([False, False, False, True]),
)


@given(now=vitals, before=st.none() | vitals)
def test_a_code_is_shown_or_unread_and_never_both(now: Vitals, before: Vitals | None) -> None:
    said = evidence(DEVICE, now, before)
    shown = [fault.code for fault in said.faults]
    assert len(shown) == len(set(shown))
    assert not said.unread & set(shown)
    assert said.unread <= CODES
    assert set(shown) <= CODES | {FaultCode.UNRESPONSIVE}


@given(
    now=vitals,
    before=st.none() | vitals,
    missing=st.sampled_from([f.name for f in fields(Vitals) if f.name not in {"at", "hung"}]),
)
def test_missing_data_is_neither_failure_nor_cure(
    now: Vitals, before: Vitals | None, missing: str
) -> None:
    less = replace(now, **{missing: getattr(NOTHING_KNOWN, missing)})
    if missing == "driver" and now.driver_known:
        less = replace(less, driver_known=False)
    whole, part = evidence(DEVICE, now, before), evidence(DEVICE, less, before)
    # Of a function known to be dead nothing else is believed; of one that may be alive, it is.
    assert codes(part) <= codes(whole) | whole.unread
    for code in codes(whole) - codes(part):
        # Not shown any more: it must be unread, or what it is about is not there to be judged.
        assert code in part.unread


@given(now=vitals, before=vitals)
def test_errors_are_shown_exactly_where_both_counts_are_known_and_the_later_is_more(
    now: Vitals, before: Vitals
) -> None:
    said = evidence(DEVICE, now, before)
    names = {
        FaultCode.AER_CORRECTABLE: "correctable",
        FaultCode.AER_NONFATAL: "nonfatal",
        FaultCode.AER_FATAL: "fatal",
    }
    for code, name in names.items():
        count, known = getattr(now.aer, name, None), getattr(before.aer, name, None)
        if now.hung or count is None or known is None:
            assert code in said.unread
        else:
            assert (code in codes(said)) == (count > known)


@given(now=vitals)
def test_a_reading_held_against_itself_shows_no_errors(now: Vitals) -> None:
    assert not codes(evidence(DEVICE, now, now)) & AER


@given(first=vitals, second=vitals, before=vitals)
def test_a_fault_reads_the_same_whatever_was_measured(
    first: Vitals, second: Vitals, before: Vitals
) -> None:
    """A message that moved would be a change: a line in the log, and a list for the kubelet."""
    one, other = (
        {fault.code: fault for fault in evidence(DEVICE, now, before).faults}
        for now in (first, second)
    )
    assert all(one[code] == other[code] for code in one.keys() & other.keys())


@given(now=vitals, before=st.none() | vitals)
def test_a_fault_names_its_device_and_says_what_to_do(now: Vitals, before: Vitals | None) -> None:
    for fault in evidence(DEVICE, now, before).faults:
        assert fault.subject == DEVICE
        for text in (fault.message, fault.remedy):
            assert text
            assert text.isprintable()
        assert fault.evidence.isprintable()


# --- weighed -------------------------------------------------------------------------------------

STANDARDS = Standards(
    patience=Patience(recovery_seconds=5.0, flap_window_seconds=60.0), rules=RULES
)


def weighed(readings: list[Vitals]) -> list[tuple[Health, tuple[Fault, ...]]]:
    """Have readings weighed one after the other, as they would be every five seconds."""
    verdicts: list[tuple[Health, tuple[Fault, ...]]] = []
    before: Vitals | None = None
    health: Health | None = None
    history = History()
    for now in readings:
        verdict = judge(
            DEVICE,
            [evidence(DEVICE, now, before)],
            at=now.at,
            before=health,
            history=history,
            standards=STANDARDS,
        )
        before, health, history = now, verdict.health, verdict.history
        verdicts.append((verdict.health, verdict.faults))
    return verdicts


def every_five_seconds(*states: Vitals) -> list[Vitals]:
    return [replace(state, at=5.0 * number) for number, state in enumerate(states)]


DEAD = replace(WELL, config_vendor=0xFFFF, link=None)


def test_a_dead_link_is_unhealthy_within_15_s_and_healthy_again_within_45_s() -> None:
    verdicts = weighed(every_five_seconds(WELL, *[DEAD] * 6, *[WELL] * 10))
    healths = [health for health, _ in verdicts]
    assert healths[0] is Health.HEALTHY
    assert healths.index(Health.UNHEALTHY) * 5.0 - 5.0 <= 15.0
    cured = next(n for n in range(7, len(healths)) if healths[n] is Health.HEALTHY)
    assert (cured - 7) * 5.0 <= 45.0
    assert set(healths[cured:]) == {Health.HEALTHY}


def test_one_reading_of_ones_condemns_nobody() -> None:
    healths = [health for health, _ in weighed(every_five_seconds(WELL, DEAD, WELL, DEAD, WELL))]
    assert set(healths) == {Health.HEALTHY}


def test_a_dead_device_stays_condemned_while_it_cannot_be_read() -> None:
    unread = replace(NOTHING_KNOWN, driver="hailo", driver_known=True)
    verdicts = weighed(every_five_seconds(WELL, DEAD, DEAD, *[unread] * 20))
    assert verdicts[-1][0] is Health.UNHEALTHY
    assert [fault.code for fault in verdicts[-1][1]] == [FaultCode.PCI_DEAD]


def test_growing_errors_stand_as_one_unchanging_fault_that_tells_the_newest_count() -> None:
    growing = [replace(WELL, aer=Aer(correctable=n, nonfatal=0, fatal=0)) for n in range(5)]
    verdicts = weighed(every_five_seconds(*growing))
    faults = [found for _, found in verdicts[1:]]
    assert all(found == faults[0] for found in faults)
    assert [found[0].evidence for found in faults] == [
        f"1 more, {count} in all" for count in (1, 2, 3, 4)
    ]
    assert {health for health, _ in verdicts} == {Health.HEALTHY}  # they only inform


def test_a_hung_device_is_unhealthy_until_it_answers() -> None:
    hung = Vitals(at=0.0, hung=True)
    verdicts = weighed(every_five_seconds(WELL, hung, hung, WELL))
    assert [health for health, _ in verdicts] == [
        Health.HEALTHY,
        Health.UNHEALTHY,
        Health.UNHEALTHY,
        Health.HEALTHY,
    ]
    assert [fault.code for fault in verdicts[1][1]] == [FaultCode.UNRESPONSIVE]
