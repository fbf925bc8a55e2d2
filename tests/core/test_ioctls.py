"""The numbers of each release are the right ones, and none of them does anything but read."""

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core import control
from hailo_agent.core.chip import BoardType, Properties
from hailo_agent.core.control import FrameInvalid, Opcode
from hailo_agent.core.drivers import is_known
from hailo_agent.core.ioctls import (
    FORBIDDEN,
    FORBIDDEN_TYPES,
    KNOWN,
    Ioctls,
    is_forbidden,
    size_of,
    table,
)
from hailo_agent.sim.firmware import BOARDS, ChipFault, ChipFirmware, SimulatedChip

# Driver info, properties, firmware control, notification.
NUMBERS = {
    "4.6.0": (0x400C6705, 0x400E6704, 0xC5F86701, 0x45E46702),
    "4.7.0": (0x400C6705, 0x400E6704, 0xC5F86701, 0x45E46702),
    "4.8.1": (0x400C6705, 0x400E6704, 0xC5F86701, 0x45E46702),
    "4.10.0": (0x400C6705, 0x40166704, 0xC5F86701, 0x45E46702),
    "4.12.0": (0x400C6705, 0x40176704, 0xC5F86701, 0x45E46702),
    "4.13.0": (0x400C6705, 0x40176704, 0xC5F86701, 0x45E46702),
    "4.14.0": (0x400C6705, 0x40176704, 0xC5F86701, 0x45E46702),
    "4.15.0": (0x400C6705, 0x40176704, 0xC5F86701, 0x45E46702),
    "4.16.0": (0x400C6705, 0x40176704, 0xC5F86701, 0x45E46702),
    "4.17.0": (0x400C6705, 0x40176704, 0xC5F86701, 0x45E46702),
    "4.18.0": (0x400C6702, 0x40176701, 0xC5F86E00, 0x45E46E01),
    "4.19.0": (0x400C6702, 0x40176701, 0xC5F86E00, 0x45E46E01),
    "4.20.0": (0x400C6702, 0x40176701, 0xC5F86E00, 0x45E46E01),
    "4.21.0": (0x400C6702, 0x40176701, 0xC5F86E00, 0x45E46E01),
    "4.22.0": (0x400C6702, 0x40176701, 0xC5F86E00, 0x45E46E01),
    "4.23.0": (0x400C6702, 0x40176701, 0xC5F86E00, 0x45E46E01),
    "5.0.0": (0x400C6702, 0x40176701, 0xC5F86E00, 0x45E46E01),
    "5.0.1": (0x400C6702, 0x40136701, 0xC5F86E00, 0x45E46E01),
    "5.1.0": (0x400C6701, 0x40136700, 0xC5F86E00, 0x45E46E01),
    "5.1.1": (0x400C6701, 0x40136700, 0xC5F86E00, 0x45E46E01),
    "5.2.0": (0x400C6701, 0x40136700, 0xC5F86E00, 0x45E46E01),
    "5.3.0": (0x400C6701, 0x40136700, 0xC5F86E00, 0x45E46E01),
}


def known(text: str) -> Ioctls:
    found = table(text)
    assert found is not None
    return found


@pytest.mark.parametrize("text", NUMBERS)
def test_each_release_has_its_own_numbers(text: str) -> None:
    ioctls = known(text)
    assert str(ioctls.version) == text
    assert NUMBERS[text] == (
        ioctls.driver_info,
        ioctls.properties,
        ioctls.control,
        ioctls.notification,
    )


def test_there_are_no_releases_but_these() -> None:
    assert [str(ioctls.version) for ioctls in KNOWN] == list(NUMBERS)
    assert all(is_known(ioctls.version) for ioctls in KNOWN)


@pytest.mark.parametrize(
    "text",
    [
        *("4.24.0", "5.4.0", "5.2.1", "4.8.0", "4.9.0", "4.11.0", "4.23.1", "5.0.2", "6.0.0"),
        *("", None, "4.23", "4.23.0-dirty", "v4.23.0", "four", "4.23.0.1", "999999999.0.0"),
    ],
)
def test_what_nobody_has_read_is_asked_nothing(text: str | None) -> None:
    assert table(text) is None


def test_a_version_is_read_as_sysfs_has_it() -> None:
    assert table("4.23.0\n") is known("4.23.0")


@pytest.mark.parametrize("ioctls", KNOWN, ids=lambda ioctls: str(ioctls.version))
def test_no_table_contains_anything_dangerous(ioctls: Ioctls) -> None:
    assert not ioctls.numbers & FORBIDDEN
    assert not {number >> 8 & 0xFF for number in ioctls.numbers} & FORBIDDEN_TYPES
    assert not any(is_forbidden(number) for number in ioctls.numbers)


@pytest.mark.parametrize(
    "number",
    [
        *(0x40017609, 0x4001760A, 0x4001760C, 0x4001760E, 0x4001760F),  # claims
        *(0x6707, 0x6E04),  # resets
        *(0x6703, 0x6E02),  # ends notifications
        *(0x7302, 0xC0127300, 0xC0147300),  # a SoC's power and sessions
        *(0xC01C6706, 0xC2146706, 0xC2146E03),  # takes the log away
        *(0xD0186700, 0x40186E05),  # memory, action lists
        *(0x4001760B, 0x40047301, 0xC0147000),  # of a forbidden type, listed or not
    ],
)
def test_what_is_dangerous_is_known_to_be(number: int) -> None:
    assert is_forbidden(number)


@pytest.mark.parametrize("ioctls", KNOWN, ids=lambda ioctls: str(ioctls.version))
def test_a_number_says_how_long_its_struct_is(ioctls: Ioctls) -> None:
    assert size_of(ioctls.driver_info) == struct.calcsize("<III")
    assert size_of(ioctls.properties) == struct.calcsize(ioctls.properties_format)
    assert size_of(ioctls.control) == control.ARGUMENT_BYTES == 1528
    assert size_of(ioctls.notification) == struct.calcsize("<Q1500s")
    fields = struct.unpack(ioctls.properties_format, bytes(size_of(ioctls.properties)))
    assert len(fields) == len(ioctls.properties_fields)


# --- board types ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number", "board_type"),
    [
        ("4.12.0", 0, BoardType.HAILO_8),
        ("4.12.0", 1, BoardType.HAILO_15),
        ("4.12.0", 2, BoardType.UNKNOWN),
        ("4.17.0", 2, BoardType.HAILO_15L),
        ("4.17.0", 3, BoardType.UNKNOWN),
        ("4.20.0", 3, BoardType.HAILO_10H),
        ("4.20.0", 4, BoardType.HAILO_10H_LEGACY),
        ("4.20.0", 5, BoardType.UNKNOWN),
        ("4.23.0", 0, BoardType.HAILO_8),
        ("4.23.0", 5, BoardType.HAILO_12L),
        ("5.0.0", 0, BoardType.HAILO_8),
        ("5.0.0", 5, BoardType.HAILO_15H_ACCELERATOR),
        ("5.0.0", 6, BoardType.HAILO_12L),
        ("5.0.0", 7, BoardType.HAILO_12L_LEGACY),
        ("5.0.1", 0, BoardType.HAILO_15),
        ("5.0.1", 2, BoardType.HAILO_10H),
        ("5.3.0", 1, BoardType.HAILO_15L),
        ("5.3.0", 3, BoardType.HAILO_15H_ACCELERATOR),
        ("5.3.0", 4, BoardType.HAILO_12L),
        ("5.3.0", 5, BoardType.UNKNOWN),
        ("5.3.0", -1, BoardType.UNKNOWN),
    ],
)
def test_the_same_number_is_another_board_in_another_release(
    text: str, number: int, board_type: BoardType
) -> None:
    ioctls = known(text)
    values = [0] * len(ioctls.properties_fields)
    values[ioctls.properties_fields.index("board_type")] = number
    told = ioctls.read_properties(struct.pack(ioctls.properties_format, *values))
    assert told.board_type is board_type


@pytest.mark.parametrize(
    "board_type",
    [
        BoardType.HAILO_10H,
        BoardType.HAILO_10H_LEGACY,
        BoardType.HAILO_12L,
        BoardType.HAILO_12L_LEGACY,
        BoardType.UNKNOWN,
    ],
)
def test_a_chip_with_a_linux_of_its_own_is_sent_no_control(board_type: BoardType) -> None:
    properties = Properties(board_type=board_type, firmware_loaded=True)
    assert all(ioctls.opcodes_for(properties) == () for ioctls in KNOWN)


def test_what_runs_no_firmware_is_sent_no_control() -> None:
    lost = Properties(board_type=BoardType.HAILO_8, firmware_loaded=False)
    assert known("4.23.0").opcodes_for(lost) == ()


@pytest.mark.parametrize("loaded", [True, None])
def test_firmware_is_asked_who_it_is_before_anything_else(*, loaded: bool | None) -> None:
    properties = Properties(board_type=BoardType.HAILO_8, firmware_loaded=loaded)
    assert known("4.17.0").opcodes_for(properties)[0] is Opcode.IDENTIFY
    assert known("4.23.0").opcodes_for(properties)[0] is Opcode.IDENTIFY


def test_firmware_whose_protocol_nobody_has_read_is_asked_nothing() -> None:
    properties = Properties(board_type=BoardType.HAILO_8, firmware_loaded=True)
    for text in ("4.6.0", "4.10.0", "4.16.0"):
        assert known(text).opcodes_for(properties) == ()


# --- against the simulated driver ----------------------------------------------------------------


def boards_of(ioctls: Ioctls) -> tuple[str, ...]:
    version = (ioctls.version.major, ioctls.version.minor, ioctls.version.revision)
    return [names for since, names in BOARDS if since <= version][-1]


@pytest.mark.parametrize("ioctls", KNOWN, ids=lambda ioctls: str(ioctls.version))
def test_the_simulated_driver_of_each_release_understands_its_numbers(ioctls: Ioctls) -> None:
    chip = SimulatedChip(str(ioctls.version), ChipFirmware(), board=boards_of(ioctls)[0])
    info = chip.ioctl(ioctls.driver_info, bytes(size_of(ioctls.driver_info)))
    assert ioctls.read_driver_info(info.data) == str(ioctls.version)
    told = chip.ioctl(ioctls.properties, bytes(size_of(ioctls.properties)))
    assert len(told.data) == size_of(ioctls.properties)
    chip.notify(b"hot!")
    message = chip.ioctl(ioctls.notification, bytes(size_of(ioctls.notification)))
    assert ioctls.read_notification(message.data) == b"hot!"


@pytest.mark.parametrize(
    ("ioctls", "board"),
    [
        pytest.param(ioctls, board, id=f"{ioctls.version}-{board}")
        for ioctls in KNOWN
        if ioctls.board_types
        for board in boards_of(ioctls)
    ],
)
def test_both_tellings_agree_on_every_board(ioctls: Ioctls, board: str) -> None:
    chip = SimulatedChip(str(ioctls.version), ChipFirmware(), board=board)
    told = ioctls.read_properties(chip.ioctl(ioctls.properties, bytes(64)).data)
    assert told.board_type == board
    assert told.firmware_loaded is (None if ioctls.version.minor == 10 else True)
    chip.firmware.plant(ChipFault.NOT_LOADED)
    told = ioctls.read_properties(chip.ioctl(ioctls.properties, bytes(64)).data)
    assert told.firmware_loaded is (None if ioctls.version.minor == 10 else False)


def test_a_number_of_another_release_means_nothing() -> None:
    chip = SimulatedChip("5.3.0", ChipFirmware(), board="hailo-15l")
    foreign = {n for ioctls in KNOWN for n in ioctls.numbers} - known("5.3.0").numbers
    assert {chip.ioctl(number, bytes(2048)).error for number in foreign} == {25}  # ENOTTY


# --- what cannot be read -------------------------------------------------------------------------


def outcome(read: Callable[[bytes], object], data: bytes) -> object:
    """Tell what was read, or the one exception that may rise."""
    try:
        return read(data)
    except FrameInvalid as invalid:
        return invalid


@given(st.sampled_from(KNOWN), st.binary(max_size=64))
def test_whatever_a_driver_says_is_read_or_named_invalid(ioctls: Ioctls, data: bytes) -> None:
    for read in (ioctls.read_driver_info, ioctls.read_properties, ioctls.read_notification):
        assert isinstance(outcome(read, data), str | bytes | Properties | FrameInvalid)


@given(st.sampled_from(KNOWN), st.data())
def test_properties_of_the_right_size_are_always_read(ioctls: Ioctls, data: st.DataObject) -> None:
    size = size_of(ioctls.properties)
    told = ioctls.read_properties(data.draw(st.binary(min_size=size, max_size=size)))
    assert told.board_type in {*ioctls.board_types, BoardType.UNKNOWN}


def test_a_driver_that_tells_nonsense_of_its_version_is_not_believed() -> None:
    with pytest.raises(FrameInvalid, match="tells no version"):
        known("4.23.0").read_driver_info(b"\xff" * 12)


def test_a_notification_that_claims_more_than_it_holds_is_invalid() -> None:
    with pytest.raises(FrameInvalid, match="claims 1501 bytes of 1500"):
        known("4.23.0").read_notification(struct.pack("<Q1500s", 1501, b""))
