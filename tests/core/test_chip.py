"""What a reading shows to be wrong, what it shows to be right, and what it leaves open."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.chip import (
    Architecture,
    BoardType,
    Chip,
    ChipState,
    Firmware,
    Limits,
    Properties,
    Temperatures,
    ThrottlingLevel,
    Trouble,
    Zone,
    evidence,
)
from hailo_agent.core.health import RULES_BY_SENSOR, Evidence, Fault, FaultCode, Sensor

SUBJECT = "pci-0000-01-00-0"
LIMITS = Limits(temperature_high_celsius=80.0, temperature_critical_celsius=100.0, slow_seconds=0.5)
QUERY = frozenset(RULES_BY_SENSOR[Sensor.QUERY])
FIRMWARE_CODES = {
    FaultCode.FIRMWARE_NOT_LOADED,
    FaultCode.FIRMWARE_HUNG,
    FaultCode.FIRMWARE_GARBAGE,
    FaultCode.FIRMWARE_REFUSED,
    FaultCode.FIRMWARE_MISMATCH,
}
HEAT = {FaultCode.TEMPERATURE_HIGH, FaultCode.TEMPERATURE_CRITICAL}
STATE = {FaultCode.THROTTLED, FaultCode.OVERCURRENT}

COOL = ChipState(
    temperature_zone=Zone.GREEN,
    orange_celsius=104,
    orange_until_celsius=94,
    red_celsius=120,
    red_until_celsius=110,
    throttling_level=None,
    throttling_levels=(
        ThrottlingLevel(from_celsius=104.0, until_celsius=94.0, clock_hertz=350_000_000),
        ThrottlingLevel(from_celsius=107.0, until_celsius=97.0, clock_hertz=300_000_000),
    ),
    overcurrent_zone=Zone.GREEN,
    throttles_when_hot=True,
    throttles_on_overcurrent=True,
    protects_from_overcurrent=True,
    temperature_clock_hertz=400_000_000,
    overcurrent_clock_hertz=400_000_000,
)
WARM = Temperatures(ts0_celsius=48.5, ts1_celsius=47.25)
LOADED = Properties(board_type=BoardType.HAILO_8, firmware_loaded=True)
FIRMWARE = Firmware(version="4.23.0", architecture=Architecture.HAILO_8, board_name="Hailo-8")
WELL = Chip(
    at=7.0,
    driver="4.23.0",
    properties=LOADED,
    firmware=FIRMWARE,
    temperatures=WARM,
    state=COOL,
    seconds=0.03,
)
EARLY = Chip(at=7.0, driver="4.23.0", properties=LOADED)
"""A reading that ended before the firmware had said anything."""


def weighed(chip: Chip, *, driver_version: str | None = "4.23.0") -> Evidence:
    return evidence(SUBJECT, chip, LIMITS, driver_version=driver_version)


def codes(found: Evidence) -> set[FaultCode]:
    return {fault.code for fault in found.faults}


def the(found: Evidence, code: FaultCode) -> Fault:
    (fault,) = (fault for fault in found.faults if fault.code is code)
    return fault


# --- well ----------------------------------------------------------------------------------------


def test_a_chip_that_is_well_leaves_nothing_open() -> None:
    found = weighed(WELL)
    assert found == Evidence(sensor=Sensor.QUERY, at=7.0)


def test_the_time_of_the_reading_is_the_time_of_the_evidence() -> None:
    assert weighed(replace(WELL, at=1234.5)).at == 1234.5


def test_throttling_that_stands_by_is_no_throttling() -> None:
    assert COOL.throttles_when_hot
    assert not codes(weighed(WELL))


# --- every trouble -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "fault", "settled"),
    [
        (
            Trouble.TIMED_OUT,
            FaultCode.FIRMWARE_HUNG,
            {FaultCode.DEVICE_LOST, FaultCode.FIRMWARE_NOT_LOADED, FaultCode.QUERY_HUNG},
        ),
        (Trouble.HUNG, FaultCode.QUERY_HUNG, {FaultCode.FIRMWARE_NOT_LOADED}),
        (
            Trouble.GARBAGE,
            FaultCode.FIRMWARE_GARBAGE,
            {
                FaultCode.DEVICE_LOST,
                FaultCode.FIRMWARE_HUNG,
                FaultCode.FIRMWARE_NOT_LOADED,
                FaultCode.QUERY_FAILED,
                FaultCode.QUERY_HUNG,
                FaultCode.QUERY_SLOW,
            },
        ),
        (
            Trouble.REFUSED,
            FaultCode.FIRMWARE_REFUSED,
            {
                FaultCode.DEVICE_LOST,
                FaultCode.FIRMWARE_GARBAGE,
                FaultCode.FIRMWARE_HUNG,
                FaultCode.FIRMWARE_NOT_LOADED,
                FaultCode.QUERY_FAILED,
                FaultCode.QUERY_HUNG,
                FaultCode.QUERY_SLOW,
            },
        ),
        (
            Trouble.LOST,
            FaultCode.DEVICE_LOST,
            {FaultCode.FIRMWARE_NOT_LOADED, FaultCode.QUERY_HUNG},
        ),
        (
            Trouble.FAILED,
            FaultCode.QUERY_FAILED,
            {FaultCode.DEVICE_LOST, FaultCode.FIRMWARE_NOT_LOADED, FaultCode.QUERY_HUNG},
        ),
    ],
)
def test_each_trouble_is_one_fault_and_leaves_the_rest_open(
    trouble: Trouble, fault: FaultCode, settled: set[FaultCode]
) -> None:
    found = weighed(replace(EARLY, trouble=trouble, detail="errno 110"))
    assert codes(found) == {fault}
    assert QUERY - found.unread == {fault, FaultCode.SENSOR_FAILED, *settled}
    assert the(found, fault).evidence == "errno 110"


def test_who_may_not_look_says_nothing() -> None:
    found = weighed(Chip(at=7.0, trouble=Trouble.DENIED, detail="EACCES"))
    assert found.faults == ()
    assert found.unread == QUERY


@pytest.mark.parametrize("trouble", [None, *(t for t in Trouble if t is not Trouble.DENIED)])
def test_whoever_could_look_has_a_sensor_that_works(trouble: Trouble | None) -> None:
    assert FaultCode.SENSOR_FAILED not in weighed(replace(EARLY, trouble=trouble)).unread


def test_a_firmware_that_falls_silent_halfway_hangs_and_yet_has_said_what_it_is() -> None:
    found = weighed(
        replace(WELL, temperatures=None, state=None, trouble=Trouble.TIMED_OUT, seconds=1.0)
    )
    assert codes(found) == {FaultCode.FIRMWARE_HUNG}
    assert FaultCode.FIRMWARE_MISMATCH not in found.unread
    assert FaultCode.FIRMWARE_REFUSED not in found.unread
    assert found.unread >= HEAT | STATE | {FaultCode.QUERY_SLOW, FaultCode.FIRMWARE_GARBAGE}


def test_a_call_that_hangs_halfway_does_not_undo_what_was_read() -> None:
    hot = Temperatures(ts0_celsius=90.0, ts1_celsius=89.0)
    found = weighed(replace(WELL, temperatures=hot, state=None, trouble=Trouble.HUNG))
    assert codes(found) == {FaultCode.QUERY_HUNG, FaultCode.TEMPERATURE_HIGH}
    assert FaultCode.FIRMWARE_HUNG in found.unread


# --- firmware ------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [None, Trouble.LOST, Trouble.TIMED_OUT, Trouble.FAILED])
def test_a_chip_without_firmware_has_this_one_fault_however_the_driver_puts_it(
    trouble: Trouble | None,
) -> None:
    bare = replace(LOADED, firmware_loaded=False)
    found = weighed(replace(EARLY, properties=bare, trouble=trouble))
    assert codes(found) == {FaultCode.FIRMWARE_NOT_LOADED}
    settled = {FaultCode.QUERY_HUNG, FaultCode.DEVICE_LOST, FaultCode.SENSOR_FAILED}
    assert found.unread == QUERY - settled - {FaultCode.FIRMWARE_NOT_LOADED}


def test_temperatures_alone_clear_nothing_of_the_firmware() -> None:
    found = weighed(replace(WELL, firmware=None))
    assert not codes(found)
    assert found.unread == FIRMWARE_CODES - {FaultCode.FIRMWARE_NOT_LOADED}


def test_firmware_that_answers_is_loaded_whatever_the_driver_tells() -> None:
    bare = replace(LOADED, firmware_loaded=False)
    assert not codes(weighed(replace(WELL, properties=bare)))


def test_a_driver_that_does_not_tell_leaves_open_whether_firmware_is_loaded() -> None:
    silent = replace(LOADED, firmware_loaded=None)
    assert FaultCode.FIRMWARE_NOT_LOADED in weighed(replace(EARLY, properties=silent)).unread
    assert FaultCode.FIRMWARE_NOT_LOADED in weighed(replace(EARLY, properties=None)).unread


@pytest.mark.parametrize("version", ["4.22.0", "4.23.1", "5.23.0", "4.2.0"])
def test_firmware_of_any_other_version_is_a_mismatch(version: str) -> None:
    found = weighed(replace(WELL, firmware=replace(FIRMWARE, version=version)))
    assert codes(found) == {FaultCode.FIRMWARE_MISMATCH}
    fault = the(found, FaultCode.FIRMWARE_MISMATCH)
    assert fault.message == f"firmware {version} runs under kernel driver 4.23.0"
    assert "4.23.0" in fault.remedy


def test_the_running_driver_is_asked_before_the_file_is_believed() -> None:
    updated = replace(WELL, driver="4.22.0", firmware=replace(FIRMWARE, version="4.22.0"))
    assert not codes(weighed(updated, driver_version="4.23.0"))


@pytest.mark.parametrize("driver_version", [None, "", "  "])
def test_without_a_version_of_the_driver_there_is_nothing_to_compare(
    driver_version: str | None,
) -> None:
    found = weighed(replace(WELL, driver=None), driver_version=driver_version)
    assert not codes(found)
    assert found.unread == {FaultCode.FIRMWARE_MISMATCH}


def test_the_version_in_sysfs_may_end_in_a_newline() -> None:
    assert not codes(weighed(replace(WELL, driver=None), driver_version="4.23.0\n"))


def test_a_chip_with_a_linux_of_its_own_leaves_its_firmware_open() -> None:
    soc = Properties(board_type=BoardType.HAILO_10H, firmware_loaded=True)
    found = weighed(Chip(at=7.0, driver="5.3.0", properties=soc, seconds=0.001))
    assert not codes(found)
    not_told = (FIRMWARE_CODES - {FaultCode.FIRMWARE_NOT_LOADED}) | HEAT | STATE
    assert found.unread == not_told


# --- heat ----------------------------------------------------------------------------------------


def at(celsius: float, **state: object) -> Chip:
    both = Temperatures(ts0_celsius=20.0, ts1_celsius=celsius)
    return replace(WELL, temperatures=both, state=replace(COOL, **state))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("chip", "expected"),
    [
        (at(103.9), set()),
        (at(104.0), {FaultCode.TEMPERATURE_HIGH}),
        (at(119.9), {FaultCode.TEMPERATURE_HIGH}),
        (at(120.0), {FaultCode.TEMPERATURE_CRITICAL}),
        # The firmware leaves a zone later than it enters it.
        (at(97.0, temperature_zone=Zone.ORANGE), {FaultCode.TEMPERATURE_HIGH}),
        (at(112.0, temperature_zone=Zone.RED), {FaultCode.TEMPERATURE_CRITICAL}),
        # It tells no thresholds: ours count.
        (at(79.9, orange_celsius=None, red_celsius=None), set()),
        (at(80.0, orange_celsius=None, red_celsius=None), {FaultCode.TEMPERATURE_HIGH}),
        (at(100.0, orange_celsius=None, red_celsius=None), {FaultCode.TEMPERATURE_CRITICAL}),
        (at(90.0, red_celsius=None), set()),
        (at(101.0, red_celsius=None), {FaultCode.TEMPERATURE_CRITICAL}),
        (replace(at(79.9), state=None), set()),
        (replace(at(80.0), state=None), {FaultCode.TEMPERATURE_HIGH}),
        (replace(at(100.0), state=None), {FaultCode.TEMPERATURE_CRITICAL}),
        # It tells its zone alone.
        (replace(at(0, temperature_zone=Zone.GREEN), temperatures=None), set()),
        (
            replace(at(0, temperature_zone=Zone.ORANGE), temperatures=None),
            {FaultCode.TEMPERATURE_HIGH},
        ),
        (
            replace(at(0, temperature_zone=Zone.RED), temperatures=None),
            {FaultCode.TEMPERATURE_CRITICAL},
        ),
    ],
)
def test_heat_is_judged_by_the_chip_itself_and_else_by_our_limits(
    chip: Chip, expected: set[FaultCode]
) -> None:
    found = weighed(chip)
    assert codes(found) & HEAT == expected
    assert not found.unread & HEAT


def test_what_told_no_temperature_leaves_heat_open() -> None:
    found = weighed(replace(WELL, temperatures=None, state=None))
    assert not codes(found)
    assert found.unread == HEAT | STATE


def test_the_hotter_sensor_counts() -> None:
    for pair in ((90.0, 20.0), (20.0, 90.0)):
        both = Temperatures(ts0_celsius=pair[0], ts1_celsius=pair[1])
        assert codes(weighed(replace(WELL, temperatures=both, state=None))) == {
            FaultCode.TEMPERATURE_HIGH
        }


def test_the_figures_are_in_the_evidence_alone() -> None:
    first, second = weighed(at(104.5)), weighed(at(105.5))
    assert first.faults == second.faults  # evidence is not compared
    assert the(first, FaultCode.TEMPERATURE_HIGH).evidence == "20.0 and 104.5 °C; green zone"
    assert the(second, FaultCode.TEMPERATURE_HIGH).evidence == "20.0 and 105.5 °C; green zone"


# --- throttling, overcurrent, slowness -----------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "shown"), [(0, "level 0; 350 MHz"), (1, "level 1; 300 MHz"), (3, "level 3")]
)
def test_a_throttled_chip_says_how_much(level: int, shown: str) -> None:
    found = weighed(replace(WELL, state=replace(COOL, throttling_level=level)))
    assert codes(found) == {FaultCode.THROTTLED}
    assert the(found, FaultCode.THROTTLED).evidence == f"{shown}; 48.5 and 47.2 °C; green zone"


def test_a_chip_that_draws_too_much_is_overcurrent() -> None:
    found = weighed(replace(WELL, state=replace(COOL, overcurrent_zone=Zone.RED)))
    assert codes(found) == {FaultCode.OVERCURRENT}
    assert the(found, FaultCode.OVERCURRENT).evidence == "red zone"


def test_a_chip_that_refuses_to_tell_its_state_is_neither_throttled_nor_cured() -> None:
    found = weighed(replace(WELL, state=None))
    assert found.unread == STATE


@pytest.mark.parametrize(("seconds", "is_slow"), [(0.0, False), (0.5, False), (0.501, True)])
def test_slow_is_what_takes_longer_than_the_limit(*, seconds: float, is_slow: bool) -> None:
    found = weighed(replace(WELL, seconds=seconds))
    assert codes(found) == ({FaultCode.QUERY_SLOW} if is_slow else set())
    if is_slow:
        fault = the(found, FaultCode.QUERY_SLOW)
        assert fault.message == "answers take longer than 0.5 s"
        assert fault.evidence == "the slowest took 0.501 s"


# --- whatever is read ----------------------------------------------------------------------------

celsius = st.floats(-60, 200)
states = st.builds(
    replace,
    st.just(COOL),
    temperature_zone=st.sampled_from(Zone),
    orange_celsius=st.none() | st.integers(1, 200),
    red_celsius=st.none() | st.integers(1, 200),
    throttling_level=st.none() | st.integers(0, 3),
    overcurrent_zone=st.sampled_from([Zone.GREEN, Zone.RED]),
)
chips = st.builds(
    Chip,
    at=st.floats(0, 1e6),
    driver=st.sampled_from([None, "4.23.0", "4.22.0"]),
    properties=st.none()
    | st.builds(
        Properties,
        board_type=st.sampled_from(BoardType),
        firmware_loaded=st.sampled_from([True, False, None]),
    ),
    firmware=st.none() | st.just(FIRMWARE),
    temperatures=st.none() | st.builds(Temperatures, ts0_celsius=celsius, ts1_celsius=celsius),
    state=st.none() | states,
    trouble=st.none() | st.sampled_from(Trouble),
    detail=st.text(max_size=300),
    seconds=st.floats(0, 60),
)


@given(chips, st.sampled_from([None, "4.23.0"]))
def test_a_fault_is_never_also_unread_and_speaks_in_words(
    chip: Chip, driver_version: str | None
) -> None:
    found = weighed(chip, driver_version=driver_version)
    assert found.sensor is Sensor.QUERY
    assert found.unread <= QUERY
    assert not codes(found) & found.unread
    assert len(codes(found)) == len(found.faults)
    for fault in found.faults:
        assert fault.code in QUERY
        assert fault.subject == SUBJECT
        assert fault.message
        assert fault.remedy
        assert len(fault.evidence) <= 160


@given(chips, celsius, st.floats(0.6, 60), st.text(max_size=20))
def test_a_message_stays_the_same_while_its_condition_lasts(
    chip: Chip, warmer: float, slower: float, detail: str
) -> None:
    both = Temperatures(ts0_celsius=warmer, ts1_celsius=warmer)
    later = replace(chip, temperatures=both, seconds=slower, detail=detail)
    before = {fault.code: fault for fault in weighed(chip).faults}
    for fault in weighed(later).faults:
        assert before.get(fault.code, fault) == fault


@given(chips)
def test_what_was_not_read_is_neither_a_fault_nor_a_cure(chip: Chip) -> None:
    found = weighed(replace(chip, temperatures=None, state=None))
    assert found.unread >= HEAT | STATE
    assert not codes(found) & (HEAT | STATE)


@given(chips)
def test_a_trouble_is_never_read_as_health(chip: Chip) -> None:
    if chip.trouble is not None:
        found = weighed(chip)
        assert found.faults or chip.trouble is Trouble.DENIED
