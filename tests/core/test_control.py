"""What the firmware says is understood; what makes no sense is called so, by one name."""

import hashlib
import math
import struct
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.chip import (
    Architecture,
    ChipState,
    Firmware,
    Temperatures,
    ThrottlingLevel,
    Zone,
)
from hailo_agent.core.control import (
    ARGUMENT_BYTES,
    ControlRefused,
    FrameInvalid,
    Opcode,
    read_core_identity,
    read_identity,
    read_state,
    read_temperatures,
    request,
)
from hailo_agent.core.ioctls import table
from hailo_agent.sim.firmware import ChipFault, ChipFirmware, Outcome, SimulatedChip
from tests.core.frames import GOLDEN, Golden, argument, is_sane, mutated, sealed

Reader = Callable[[bytes], object]

READERS: tuple[Reader, ...] = (
    read_identity,
    read_temperatures,
    read_state,
    read_core_identity,
)

BY_DRIVER = {golden.driver: golden for golden in GOLDEN}
each_generation = pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.driver)


# --- what is asked -------------------------------------------------------------------------------


def test_identify_is_asked_in_these_bytes() -> None:
    asked = request(Opcode.IDENTIFY)
    message = bytes.fromhex("00000002 00000000 00000000 00000000 00000000")
    assert asked == (
        bytes.fromhex("6a3d1c7fe84cfe2f184d69c2376dcc43")  # MD5 of the message
        + bytes.fromhex("14000000")
        + message.ljust(1500, b"\0")
        + bytes.fromhex("e8030000 00000000")  # 1000 ms, the application's processor
    )
    assert len(asked) == ARGUMENT_BYTES == 1528


@pytest.mark.parametrize(
    ("opcode", "number", "cpu"),
    [
        (Opcode.IDENTIFY, 0, 0),
        (Opcode.CORE_IDENTIFY, 42, 1),
        (Opcode.GET_CHIP_TEMPERATURE, 46, 0),
        (Opcode.GET_HEALTH_INFORMATION, 62, 0),
    ],
)
def test_each_question_names_its_opcode_and_its_processor(
    opcode: Opcode, number: int, cpu: int
) -> None:
    digest, length, buffer, timeout, asked_cpu = struct.unpack("<16sI1500sIi", request(opcode))
    assert struct.unpack_from(">5I", buffer) == (2, 0, 0, number, 0)
    assert digest == hashlib.md5(buffer[:length], usedforsecurity=False).digest()
    assert (timeout, asked_cpu) == (1000, cpu)


def test_nothing_can_be_asked_but_what_reads() -> None:
    assert {int(opcode) for opcode in Opcode} == {0, 42, 46, 62}


# --- golden frames -------------------------------------------------------------------------------

IDENTITIES = {
    "4.17.0": Firmware(
        version="4.17.0",
        architecture=Architecture.HAILO_8,
        board_name="Hailo-8",
        serial="HLLWMB0214600123",  # 16 characters leave no room for a NUL
        part_number="HM218B1C2FA",
        product_name="HAILO-8 AI ACC M.2 B+M KEY MODULE",
    ),
    "4.20.0": Firmware(version="4.20.0", architecture=Architecture.HAILO_8L, board_name="Hailo-8"),
    "4.23.0": Firmware(
        version="4.23.0",
        architecture=Architecture.HAILO_8,
        board_name="Hailo-8",
        serial="HLLWMB0214600123",
        part_number="HM218B1C2FA",
        product_name="HAILO-8 AI ACC M.2 B+M KEY MODULE",
    ),
    "5.0.1": Firmware(version="5.0.1", architecture=Architecture.HAILO_15L, board_name="Hailo-15L"),
    "5.2.0": Firmware(
        version="5.2.0",
        architecture=Architecture.HAILO_15H,
        board_name="Hailo-15H",
        serial="HLDDLBB241100071",
    ),
    "5.3.0": Firmware(version="5.3.0", architecture=Architecture.HAILO_15L, board_name="Hailo-15L"),
}

SENSORS = {
    "4.17.0": (31.25, 30.5),
    "4.20.0": (68.125, 67.0),
    "4.23.0": (106.5, 105.75),
    "5.0.1": (-5.5, -6.25),
    "5.2.0": (122.5, 121.75),
    "5.3.0": (52.0, 51.5),
}

LEVELS = tuple(
    ThrottlingLevel(from_celsius=above, until_celsius=below, clock_hertz=clock)
    for above, below, clock in (
        (104.0, 94.0, 350_000_000),
        (107.0, 97.0, 300_000_000),
        (110.0, 100.0, 250_000_000),
        (113.0, 103.0, 200_000_000),
    )
)


def state(
    zone: Zone = Zone.GREEN,
    *,
    level: int | None = None,
    clock: int = 400_000_000,
    current: Zone = Zone.GREEN,
    thresholds: tuple[int | None, ...] = (104, 94, 120, 110),
    levels: tuple[ThrottlingLevel, ...] = LEVELS,
) -> ChipState:
    return ChipState(
        temperature_zone=zone,
        orange_celsius=thresholds[0],
        orange_until_celsius=thresholds[1],
        red_celsius=thresholds[2],
        red_until_celsius=thresholds[3],
        throttling_level=level,
        throttling_levels=levels,
        overcurrent_zone=current,
        throttles_when_hot=True,
        throttles_on_overcurrent=True,
        protects_from_overcurrent=True,
        temperature_clock_hertz=clock,
        overcurrent_clock_hertz=400_000_000,
    )


STATES = {
    "4.17.0": state(),
    "4.20.0": state(),
    "4.23.0": state(Zone.ORANGE, level=0, clock=350_000_000),
    "5.0.1": state(thresholds=(None,) * 4, levels=()),
    "5.2.0": state(Zone.RED, level=3, clock=200_000_000),
    "5.3.0": state(current=Zone.RED),
}


@each_generation
def test_the_firmware_of_each_generation_says_what_it_is(golden: Golden) -> None:
    assert read_identity(argument(golden.identify)) == IDENTITIES[golden.driver]


@each_generation
def test_the_firmware_of_each_generation_says_how_warm_it_is(golden: Golden) -> None:
    ts0, ts1 = SENSORS[golden.driver]
    read = read_temperatures(argument(golden.temperature))
    assert read == Temperatures(ts0_celsius=ts0, ts1_celsius=ts1)
    assert read.highest_celsius == max(ts0, ts1)


@each_generation
def test_the_firmware_of_each_generation_says_how_it_is(golden: Golden) -> None:
    assert read_state(argument(golden.health)) == STATES[golden.driver]


@each_generation
def test_the_simulated_firmware_answers_as_the_golden_frames_do(golden: Golden) -> None:
    told = IDENTITIES[golden.driver]
    firmware = ChipFirmware(
        version=told.version,
        architecture=told.architecture,
        build_bits=struct.unpack_from("<I", golden.identify, 20 + 28 + 20)[0] & ~0xFFFF,
        board_name=told.board_name,
        serial="<N/A>" if golden.driver == "4.20.0" else told.serial,
        part_number="<N/A>" if golden.driver == "4.20.0" else told.part_number,
        product_name="<N/A>" if golden.driver == "4.20.0" else told.product_name,
    )
    asked = request(Opcode.IDENTIFY)[:1520]
    assert firmware.control(asked, 0) == golden.identify


# --- texts and versions --------------------------------------------------------------------------


def response(opcode: int, *parameters: bytes, statuses: tuple[int, int] = (0, 0)) -> bytes:
    """Build an answer as an argument; with its own struct code, as in the frames."""
    body = b"".join(struct.pack(">I", len(data)) + data for data in parameters)
    head = struct.pack(">7I", 2, 1, 0, opcode, *statuses, len(parameters))
    return argument(sealed(head + body))


def identity(
    *texts: bytes, version: bytes = b"\x04\0\0\0\x17\0\0\0\0\0\0\0", architecture: int = 1
) -> bytes:
    number = struct.pack(">I", architecture)
    two = struct.pack(">I", 2)
    return response(0, two, version, bytes(4), texts[0], number, *texts[1:])


@pytest.mark.parametrize(
    "blank",
    [
        *(b"", b"\0" * 16, b"<N/A>", b"<N/A>\0\0\0", b"   ", b"\xff" * 16, b"AB\x07CD", b"A\nB"),
        *(b"\xc3\x9cber", b"\0visible after the end"[:16]),
    ],
)
def test_a_text_that_tells_nothing_is_empty(blank: bytes) -> None:
    firmware = read_identity(identity(b"Hailo-8", blank, blank, blank))
    assert (firmware.serial, firmware.part_number, firmware.product_name) == ("", "", "")


def test_old_firmware_need_not_know_the_texts_at_the_end() -> None:
    assert read_identity(identity(b"Hailo-8")) == Firmware(
        version="4.23.0", architecture=Architecture.HAILO_8, board_name="Hailo-8"
    )


def test_newer_firmware_may_say_more_than_we_know() -> None:
    extra = identity(b"Hailo-8", b"serial", b"part", b"product", b"something else entirely")
    assert read_identity(extra).product_name == "product"


def test_a_text_longer_than_its_field_is_invalid() -> None:
    with pytest.raises(FrameInvalid, match="serial of 17 bytes, which has 16 at most"):
        read_identity(identity(b"Hailo-8", b"x" * 17))


@pytest.mark.parametrize(("number", "architecture"), [*enumerate(list(Architecture)[:6])])
def test_each_architecture_has_its_number(number: int, architecture: Architecture) -> None:
    assert read_identity(identity(b"x", architecture=number)).architecture is architecture


@pytest.mark.parametrize("number", [6, 7, 255, 0xFFFFFFFF])
def test_an_architecture_of_tomorrow_is_unknown(number: int) -> None:
    assert read_identity(identity(b"x", architecture=number)).architecture is Architecture.UNKNOWN


@pytest.mark.parametrize("bits", [0, 1 << 28, 1 << 29, 1 << 30, 1 << 31, 0xF << 28])
def test_what_the_revision_says_of_the_build_is_no_part_of_the_version(bits: int) -> None:
    version = struct.pack("<III", 4, 23, bits & ~(1 << 27))
    assert read_identity(identity(b"x", version=version)).version == "4.23.0"


def test_an_answer_of_the_other_processor_is_invalid() -> None:
    core = struct.pack("<III", 4, 23, 1 << 27)
    with pytest.raises(FrameInvalid, match="other processor"):
        read_identity(identity(b"x", version=core))
    with pytest.raises(FrameInvalid, match="other processor"):
        read_core_identity(response(42, struct.pack("<III", 4, 23, 0)))
    assert read_core_identity(response(42, core)) == "4.23.0"


def test_a_version_beyond_belief_is_invalid() -> None:
    with pytest.raises(FrameInvalid, match="is no version"):
        read_identity(identity(b"x", version=b"\x01\x02\x03\x04" * 3))


# --- temperatures and health ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "celsius", [math.nan, math.inf, -math.inf, -60.5, 200.5, 1e30, -273.15, 3.4e38]
)
def test_a_temperature_that_cannot_be_is_invalid(celsius: float) -> None:
    for pair in ((celsius, 40.0), (40.0, celsius)):
        with pytest.raises(FrameInvalid, match=r"sensor ts[01] reads"):
            read_temperatures(response(46, struct.pack("<ffH", *pair, 1)))


def health(**changed: bytes) -> bytes:
    fields = {
        "protects": b"\1",
        "current_zone": b"\0",
        "red_current": bytes(4),
        "current_throttling": b"\1",
        "throttling": b"\1",
        "zone": b"\0",
        "level": b"\xff",
        "levels": bytes(48),
        "orange": bytes(4),
        "orange_until": bytes(4),
        "red": bytes(4),
        "red_until": bytes(4),
        "current_clock": bytes(4),
        "clock": bytes(4),
    }
    assert changed.keys() <= fields.keys()
    return response(62, *{**fields, **changed}.values())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"zone": b"\3"}, "3 is no temperature zone"),
        ({"current_zone": b"\2"}, "2 is no overcurrent zone"),
        ({"level": b"\4"}, "4 is no throttling level"),
        ({"level": b"\xfe"}, "-2 is no throttling level"),
        ({"levels": bytes(36)}, "throttling levels of 36 bytes instead of 48"),
        ({"red_current": b""}, "red overcurrent threshold of 0 bytes instead of 4"),
    ],
)
def test_a_state_outside_the_protocol_is_invalid(changed: dict[str, bytes], reason: str) -> None:
    with pytest.raises(FrameInvalid, match=reason):
        read_state(health(**changed))


@pytest.mark.parametrize(
    "word", [bytes(4), b"\xff" * 4, b"\x80\0\0\0", b"\0\0\0\xc9", b"\x68\0\0\0"]
)
def test_a_threshold_that_cannot_be_one_is_none(word: bytes) -> None:
    assert read_state(health(orange=word, red=b"\0\0\0\x69")).orange_celsius is None
    assert read_state(health(orange=word, red=b"\0\0\0\x69")).red_celsius == 105


def test_throttling_levels_end_with_the_first_that_cannot_be_one() -> None:
    good, nan = struct.pack("<ffI", 100.0, 90.0, 7), struct.pack("<ffI", math.nan, 90.0, 7)
    levels = read_state(health(levels=good + nan + good + good)).throttling_levels
    assert levels == (ThrottlingLevel(from_celsius=100.0, until_celsius=90.0, clock_hertz=7),)


def test_the_flags_of_a_chip_whose_protection_is_off_say_so() -> None:
    off = read_state(health(protects=b"\0", throttling=b"\0", current_throttling=b"\0"))
    assert not off.protects_from_overcurrent
    assert not off.throttles_when_hot
    assert not off.throttles_on_overcurrent


# --- the envelope --------------------------------------------------------------------------------


def resealed(golden: bytes, at: int, word: bytes) -> bytes:
    message = bytearray(golden[20:])
    message[at : at + len(word)] = word
    return argument(sealed(bytes(message)))


COOL = BY_DRIVER["4.17.0"]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "the answer is 0 bytes instead of 1528"),
        (argument(COOL.identify) + b"\0", "the answer is 1529 bytes instead of 1528"),
        (bytes(1528), "message of 0 bytes is shorter than its header"),
        (argument(bytes(16) + b"\xdd\5\0\0"), "claims 1501 bytes, of 1500 at most"),
        (argument(bytes(16) + b"\xff\xff\xff\xff"), "claims 4294967295 bytes"),
        (argument(bytes(16) + COOL.identify[16:]), "does not have the MD5"),
        (argument(COOL.identify[:-1] + b"!"), "does not have the MD5"),
        (argument(sealed(COOL.identify[20:43])), "message of 23 bytes is shorter"),
        (argument(sealed(COOL.identify[20:44])), "ends before the number of parameters"),
        (argument(sealed(COOL.identify[20:48])), "ends before parameter 1 of 8"),
        (argument(sealed(COOL.identify[20:-1])), "ends within parameter 8 of 8"),
        (argument(sealed(COOL.identify[20:] + b"\0")), "1 bytes follow its last parameter"),
        (resealed(COOL.identify, 0, b"\0\0\0\3"), "speaks protocol 3 instead of 2"),
        (resealed(COOL.identify, 0, b"\2\0\0\0"), "speaks protocol 33554432 instead of 2"),
        (resealed(COOL.identify, 4, b"\0\0\0\0"), "not marked as an answer"),
        (resealed(COOL.identify, 12, b"\0\0\0\x2e"), "answers opcode 46 instead of 0"),
        (resealed(COOL.identify, 24, b"\0\0\0\4"), "bytes follow its last parameter"),
        (resealed(COOL.identify, 24, b"\xff\xff\xff\xff"), "ends before parameter 9 of 4294967295"),
        (resealed(COOL.identify, 28, b"\xff\xff\xff\xff"), "ends within parameter 1 of 8"),
        (response(0), "has 0 parameters, and needs 5"),
        (response(0, *[bytes(4)] * 5), "firmware version of 4 bytes instead of 12"),
        (argument(COOL.temperature), "answers opcode 46 instead of 0"),
    ],
)
def test_what_is_wrong_with_a_frame_is_said_in_words(frame: bytes, reason: str) -> None:
    with pytest.raises(FrameInvalid, match=reason) as caught:
        read_identity(frame)
    assert str(caught.value) == caught.value.reason


def test_a_refusal_carries_both_statuses() -> None:
    with pytest.raises(ControlRefused) as caught:
        read_state(response(62, statuses=(0x4003000E, 0x40030011)))
    assert caught.value.opcode is Opcode.GET_HEALTH_INFORMATION
    assert (caught.value.major, caught.value.minor) == (0x4003000E, 0x40030011)
    assert str(caught.value) == (
        "health information was refused with status 0x4003000e, 0x40030011"
    )


def test_a_refusal_may_end_after_its_statuses_and_forget_the_question() -> None:
    message = struct.pack(">6I", 2, 1, 0, 999, 7, 0)
    with pytest.raises(ControlRefused):
        read_identity(argument(sealed(message)))


def test_a_minor_status_alone_is_no_refusal() -> None:
    told = response(46, struct.pack("<ffH", 40.0, 41.0, 1), statuses=(0, 5))
    assert read_temperatures(told).highest_celsius == 41.0


def test_what_stood_behind_the_answer_before_does_not_matter() -> None:
    leftover = argument(COOL.temperature.ljust(1520, b"\xaa"))
    assert read_temperatures(leftover) == read_temperatures(argument(COOL.temperature))


# --- any bytes at all ----------------------------------------------------------------------------


def outcome(read: Reader, data: bytes) -> object:
    """Tell what was read, or the one of two exceptions that may rise."""
    try:
        return read(data)
    except (FrameInvalid, ControlRefused) as named:
        return named


@given(st.sampled_from(READERS), st.binary(max_size=1600))
def test_no_bytes_at_all_raise_anything_else(read: Reader, data: bytes) -> None:
    assert is_sane(outcome(read, data))


@given(st.sampled_from(READERS), st.binary(max_size=1500))
def test_no_message_under_a_right_md5_raises_anything_else(read: Reader, message: bytes) -> None:
    assert is_sane(outcome(read, argument(sealed(message))))


@given(st.sampled_from(READERS), st.lists(st.binary(max_size=60), max_size=20))
def test_no_parameters_raise_anything_else(read: Reader, parameters: list[bytes]) -> None:
    for opcode in Opcode:
        assert is_sane(outcome(read, response(opcode, *parameters)))


@given(
    st.sampled_from(READERS),
    st.sampled_from([mailbox for golden in GOLDEN for mailbox in golden.mailboxes]),
    st.randoms(use_true_random=False),
)
def test_no_spoiled_frame_raises_anything_else(
    read: Reader, mailbox: bytes, random: Random
) -> None:
    assert is_sane(outcome(read, mutated(random, mailbox)))


@given(
    st.sampled_from([mailbox for golden in GOLDEN for mailbox in golden.mailboxes]),
    st.integers(0, 189 * 8 - 1),
)
def test_no_flipped_bit_goes_unnoticed(mailbox: bytes, bit: int) -> None:
    message = bytearray(mailbox[20:])
    message[bit // 8 % len(message)] ^= 1 << bit % 8
    for read in READERS:
        told = outcome(read, argument(mailbox[:20] + bytes(message)))
        assert isinstance(told, FrameInvalid)


# --- against the simulated chip ------------------------------------------------------------------


def ask(chip: SimulatedChip, driver: str, opcode: Opcode) -> Outcome:
    ioctls = table(driver)
    assert ioctls is not None
    return chip.ioctl(ioctls.control, request(opcode))


printable = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=16)
warmth = st.floats(-60, 200, width=32)


@given(
    golden=st.sampled_from(GOLDEN),
    numbers=st.tuples(*[st.integers(0, 9999)] * 3),
    architecture=st.sampled_from(list(Architecture)[:6]),
    texts=st.tuples(printable, printable, printable),
    celsius=st.tuples(warmth, warmth),
)
def test_what_the_simulated_chip_is_made_to_say_is_what_is_read(
    golden: Golden,
    numbers: tuple[int, int, int],
    architecture: Architecture,
    texts: tuple[str, str, str],
    celsius: tuple[float, float],
) -> None:
    version = ".".join(map(str, numbers))
    firmware = ChipFirmware(
        version=version,
        architecture=architecture,
        serial=texts[0],
        part_number=texts[1],
        product_name=texts[2],
        celsius=celsius,
    )
    board = "hailo-8" if golden.driver < "5" else "hailo-15l"
    chip = SimulatedChip(golden.driver, firmware, board=board)
    said = [text if text != "<N/A>" else "" for text in texts]
    assert read_identity(ask(chip, golden.driver, Opcode.IDENTIFY).data) == Firmware(
        version=version,
        architecture=architecture,
        board_name="Hailo-8",
        serial=said[0],
        part_number=said[1],
        product_name=said[2],
    )
    assert read_core_identity(ask(chip, golden.driver, Opcode.CORE_IDENTIFY).data) == version
    warm = read_temperatures(ask(chip, golden.driver, Opcode.GET_CHIP_TEMPERATURE).data)
    assert (warm.ts0_celsius, warm.ts1_celsius) == celsius
    told = read_state(ask(chip, golden.driver, Opcode.GET_HEALTH_INFORMATION).data)
    zones = {0: Zone.GREEN, 1: Zone.ORANGE, 2: Zone.RED}
    assert told.temperature_zone is zones[firmware.zone]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (ChipFault.WRONG_MD5, "MD5"),
        (ChipFault.SHORT, "ends within parameter"),
        (ChipFault.WRONG_OPCODE, "answers opcode 10794 instead of 0"),
    ],
)
def test_a_chip_that_answers_garbage_is_told_so(fault: ChipFault, reason: str) -> None:
    chip = SimulatedChip("4.23.0", ChipFirmware())
    chip.firmware.plant(fault)
    with pytest.raises(FrameInvalid, match=reason):
        read_identity(ask(chip, "4.23.0", Opcode.IDENTIFY).data)
    chip.firmware.heal()
    assert read_identity(ask(chip, "4.23.0", Opcode.IDENTIFY).data).version == "4.23.0"


def test_noise_is_garbage_time_and_again() -> None:
    chip = SimulatedChip("4.23.0", ChipFirmware(faults={ChipFault.NOISE}))
    for _ in range(200):
        told = outcome(read_identity, ask(chip, "4.23.0", Opcode.IDENTIFY).data)
        assert isinstance(told, FrameInvalid)


def test_a_chip_may_refuse_one_question_and_answer_the_next() -> None:
    chip = SimulatedChip("4.23.0", ChipFirmware(unsupported=frozenset({62})))
    with pytest.raises(ControlRefused):
        read_state(ask(chip, "4.23.0", Opcode.GET_HEALTH_INFORMATION).data)
    assert read_identity(ask(chip, "4.23.0", Opcode.IDENTIFY).data).board_name == "Hailo-8"


def test_a_chip_that_refuses_everything_refuses_everything() -> None:
    chip = SimulatedChip("4.23.0", ChipFirmware(faults={ChipFault.REFUSING}))
    for opcode, read in (
        (Opcode.IDENTIFY, read_identity),
        (Opcode.GET_CHIP_TEMPERATURE, read_temperatures),
        (Opcode.GET_HEALTH_INFORMATION, read_state),
    ):
        assert isinstance(outcome(read, ask(chip, "4.23.0", opcode).data), ControlRefused)


@pytest.mark.parametrize(
    ("driver", "board", "fault", "error", "seconds"),
    [
        ("4.23.0", "hailo-8", ChipFault.SILENT, 110, 1.0),  # ETIMEDOUT
        ("4.23.0", "hailo-8", ChipFault.HUNG, 0, math.inf),
        ("4.23.0", "hailo-8", ChipFault.SLOW, 0, 0.8),
        ("4.23.0", "hailo-8", ChipFault.NOT_LOADED, 19, 0.0),  # ENODEV
        ("4.17.0", "hailo-8", ChipFault.NOT_LOADED, 110, 1.0),
        ("4.23.0", "hailo-8", ChipFault.LOST, 19, 0.0),
        ("5.3.0", "hailo-15l", ChipFault.LOST, 6, 0.0),  # ENXIO
        ("4.23.0", "hailo-8", ChipFault.TOO_LONG, 22, 0.0),  # EINVAL
    ],
)
def test_the_simulated_driver_fails_as_a_driver_does(
    driver: str, board: str, fault: ChipFault, error: int, seconds: float
) -> None:
    chip = SimulatedChip(driver, ChipFirmware(faults={fault}), board=board)
    came = ask(chip, driver, Opcode.IDENTIFY)
    assert (came.error, came.seconds) == (error, seconds)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (ChipFault.HOT, state(Zone.ORANGE)),
        (ChipFault.SCORCHING, state(Zone.RED, level=3, clock=200_000_000)),
        (ChipFault.THROTTLING, state(Zone.ORANGE, level=0, clock=350_000_000)),
        (ChipFault.OVERCURRENT, state(current=Zone.RED)),
    ],
)
def test_a_chip_can_be_made_to_suffer_and_be_healed(fault: ChipFault, expected: ChipState) -> None:
    chip = SimulatedChip("4.23.0", ChipFirmware())
    chip.firmware.plant(fault.value)
    assert read_state(ask(chip, "4.23.0", Opcode.GET_HEALTH_INFORMATION).data) == expected
    warm = read_temperatures(ask(chip, "4.23.0", Opcode.GET_CHIP_TEMPERATURE).data)
    assert (warm.highest_celsius >= 104) is (expected.temperature_zone is not Zone.GREEN)
    chip.firmware.heal(fault.value)
    assert read_state(ask(chip, "4.23.0", Opcode.GET_HEALTH_INFORMATION).data) == state()


@pytest.mark.parametrize("message", [b"", b"\0\0\0\2", struct.pack(">5I", 3, 0, 0, 0, 0)])
def test_the_simulated_firmware_refuses_what_is_no_request(message: bytes) -> None:
    asked = argument(sealed(message))
    told = SimulatedChip("4.23.0", ChipFirmware()).ioctl(0xC5F86E00, asked)
    assert isinstance(outcome(read_identity, told.data), ControlRefused)


def test_the_simulated_driver_wants_a_whole_argument() -> None:
    chip = SimulatedChip("4.23.0", ChipFirmware())
    assert chip.ioctl(0xC5F86E00, bytes(20)).error == 14  # EFAULT


def test_a_lost_chip_cannot_be_opened() -> None:
    chip = SimulatedChip("4.23.0", ChipFirmware())
    assert chip.open().error == 0
    chip.firmware.plant("lost")
    assert chip.open().error == 6  # ENXIO


def test_the_simulated_driver_has_no_firmware_control_for_a_chip_with_its_own_linux() -> None:
    chip = SimulatedChip("5.3.0", ChipFirmware(), board="hailo-10h")
    assert ask(chip, "5.3.0", Opcode.IDENTIFY).error == 22  # EINVAL


def test_the_simulated_driver_remembers_everything_it_was_asked() -> None:
    chip = SimulatedChip("4.23.0", ChipFirmware())
    chip.ioctl(0x400C6702, bytes(12))
    chip.ioctl(0x4001760C, bytes(1))
    chip.ioctl(0x400C6702, bytes(12))
    assert chip.asked == [0x400C6702, 0x4001760C, 0x400C6702]
    assert chip.counts[0x400C6702] == 2
    assert chip.ioctl(0x4001760C, bytes(1)).error == 25  # ENOTTY


def test_a_notification_is_awaited_and_only_the_last_is_kept() -> None:
    chip = SimulatedChip("4.23.0", ChipFirmware())
    assert chip.ioctl(0x45E46E01, bytes(1508)).seconds == math.inf
    chip.notify(b"first")
    chip.notify(b"last")
    ioctls = table("4.23.0")
    assert ioctls is not None
    assert ioctls.read_notification(chip.ioctl(0x45E46E01, bytes(1508)).data) == b"last"
    assert chip.ioctl(0x45E46E01, bytes(1508)).seconds == math.inf


def test_a_request_that_does_not_add_up_is_never_answered() -> None:
    chip = SimulatedChip("4.23.0", ChipFirmware())
    asked = bytearray(request(Opcode.IDENTIFY))
    asked[0] ^= 1
    assert chip.ioctl(0xC5F86E00, bytes(asked)).error == 110  # ETIMEDOUT
