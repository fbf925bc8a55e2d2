"""What `hailortcli` prints, as its own sources have it, and what that proves."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hailo_agent.core.chip import Architecture, Firmware
from hailo_agent.core.device import PciAddress
from hailo_agent.core.drivers import Version
from hailo_agent.core.hailortcli import (
    MAX_BYTES,
    Identified,
    OutputInvalid,
    Reading,
    evidence,
    parse_identify,
    parse_scan,
    parse_version,
    strangers,
)
from hailo_agent.core.health import FaultCode, Sensor, Severity

SUBJECT = "pci-0000-01-00-0"


def address(text: str) -> PciAddress:
    found = PciAddress.parse(text)
    assert found is not None
    return found


FIRST = address("0000:01:00.0")
SECOND = address("0001:04:00.0")

IDENTIFY_4 = """\
Executing on device: 0000:01:00.0
Identifying board
Control Protocol Version: 2
Firmware Version: 4.23.0 (release,app,extended context switch buffer)
Logger Version: 0
Board Name: Hailo-8
Device Architecture: HAILO8
Serial Number: HLLWM2B231400123
Part Number: HM218B1C2FA
Product Name: HAILO-8 AI ACCELERATOR M.2 M KEY MODULE

"""

IDENTIFY_4_BARE = """\
Executing on device: 0000:01:00.0
Identifying board
Control Protocol Version: 2
Firmware Version: 4.20.0 (release,app,extended context switch buffer)
Logger Version: 0
Board Name: Hailo-8
Device Architecture: HAILO8L
Serial Number: <N/A>
Part Number: <N/A>
Product Name: <N/A>

"""

IDENTIFY_5 = """\
Executing on device: 0000:3c:00.0
Identifying board
Control Protocol Version: 2
Firmware Version: 5.2.0 (release,app)
Logger Version: 0
Device Architecture: HAILO10H

"""

IDENTIFY_EXTENDED = """\
Executing on device: 0000:01:00.0
Identifying board
Control Protocol Version: 2
Firmware Version: 4.23.0 (develop,app)
Logger Version: 0
Board Name: Hailo-8
Device Architecture: HAILO8
Serial Number: \x20
Part Number: HM218B1C2FA
Product Name: A: B
Boot source: PCIE
Neural Network Core Clock Rate: 400MHz
Device supported features: PCIE
LCS: 3
SoC ID: 0123456789ABCDEF

"""

LOUD = "\x1b[33m[HailoRT] [warning]\x1b[m Unsupported firmware operation. Host: 4.23.0\r\n"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("HailoRT-CLI version 4.23.0\n", Version(4, 23, 0)),
        ("HailoRT-CLI version 5.2.0", Version(5, 2, 0)),
        (f"{LOUD}\x1b[1mHailoRT-CLI version 4.20.0\x1b[0m\n", Version(4, 20, 0)),
        ("HailoRT v4.23.0", None),
        ("HailoRT-CLI version 4.23", None),
        ("HailoRT-CLI version 99999.0.0", None),
        ("", None),
    ],
)
def test_the_version_is_read(text: str, version: Version | None) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("Hailo Devices:\n[-] Device: 0000:01:00.0\n", (FIRST,)),
        ("Hailo PCIe Devices:\n[-] Device BDF: 0000:01:00.0\n", (FIRST,)),
        ("Hailo Devices:\n[-] Device: 0001:04:00.0\n[-] Device: 0000:01:00.0\n", (FIRST, SECOND)),
        ("Hailo Devices:\n[-] Device: 0000:01:00.0\n[-] Device: 0000:01:00.0\n", (FIRST,)),
        ("Hailo Devices:\n[-] Device: [integrated]\n", ()),
        ("Hailo Devices:\n[-] Device: 192.168.0.7\n[-] Device: 0000:01:00.0\n", (FIRST,)),
        ("Hailo devices not found\n", ()),
        (f"{LOUD}Hailo Devices:\r\n{LOUD}[-] Device: 0000:01:00.0\r\n{LOUD}", (FIRST,)),
        ("\x1b]0;title\x07\x1b[2J\x1b[1;32m[-] Device: \x1b[0m0000:01:00.0\x1b[K", (FIRST,)),
    ],
)
def test_a_scan_is_read(text: str, addresses: tuple[PciAddress, ...]) -> None:
    assert parse_scan(text) == addresses


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ("\x1b[0m\n\n", "it is empty"),
        ("Segmentation fault", "Segmentation fault"),
        ("Hailo Devices:\n", "'Hailo Devices:'"),
        ("x" * 5000, "x" * 80 + "'"),
        ("[-] Device: 0000:01:00.0\n" * 257, "it lists 257 devices"),
    ],
)
def test_a_scan_that_is_none_is_refused_with_a_reason(text: str, why: str) -> None:
    with pytest.raises(OutputInvalid, match=why) as refusal:
        parse_scan(text)
    assert len(str(refusal.value)) < 200


def test_identify_of_4x_is_read() -> None:
    assert parse_identify(IDENTIFY_4) == (
        Identified(
            address=FIRST,
            firmware=Version(4, 23, 0),
            build="release,app,extended context switch buffer",
            architecture="HAILO8",
            board_name="Hailo-8",
            serial="HLLWM2B231400123",
            part_number="HM218B1C2FA",
            product_name="HAILO-8 AI ACCELERATOR M.2 M KEY MODULE",
        ),
    )


def test_a_board_without_a_serial_number_has_none() -> None:
    (found,) = parse_identify(IDENTIFY_4_BARE)
    assert (found.serial, found.part_number, found.product_name) == ("", "", "")
    assert (found.architecture, found.firmware) == ("HAILO8L", Version(4, 20, 0))


def test_what_5x_leaves_out_is_empty() -> None:
    assert parse_identify(IDENTIFY_5) == (
        Identified(
            address=address("0000:3c:00.0"),
            firmware=Version(5, 2, 0),
            build="release,app",
            architecture="HAILO10H",
        ),
    )


def test_the_extended_lines_are_passed_over() -> None:
    (found,) = parse_identify(IDENTIFY_EXTENDED)
    assert (found.build, found.serial, found.product_name) == ("develop,app", "", "A: B")


def test_several_devices_are_told_apart_also_between_warnings() -> None:
    lines = (IDENTIFY_4 + IDENTIFY_5).splitlines(keepends=True)
    found = parse_identify(LOUD + LOUD.join(lines))
    assert [(one.address, one.serial) for one in found] == [
        (FIRST, "HLLWM2B231400123"),
        (address("0000:3c:00.0"), ""),
    ]


def test_a_device_that_failed_among_others_is_left_out() -> None:
    found = parse_identify(f"Executing on device: {SECOND}\n{IDENTIFY_4}")
    assert [one.address for one in found] == [FIRST]


def test_without_a_device_line_the_address_is_unknown() -> None:
    (found,) = parse_identify(IDENTIFY_4.partition("\n")[2])
    assert found.address is None


@pytest.mark.parametrize(
    "text",
    ["", "Identifying board", "Firmware Version: soon", "Executing on device: 0000:01:00.0", LOUD],
)
def test_an_identity_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(OutputInvalid, match="of no device what firmware"):
        parse_identify(text)


def test_more_devices_than_there_can_be_are_refused() -> None:
    with pytest.raises(OutputInvalid, match="it tells of 257 devices"):
        parse_identify("Executing on device: x\nFirmware Version: 4.23.0\n" * 257)


def test_what_comes_after_64_kib_is_not_read() -> None:
    with pytest.raises(OutputInvalid):
        parse_scan("\n" * MAX_BYTES + "[-] Device: 0000:01:00.0")


def test_a_text_of_any_length_is_kept_short_and_printable() -> None:
    (found,) = parse_identify(IDENTIFY_4_BARE + "Serial Number: x\n" * 3 + "Junk: " + "y" * 999)
    assert found.serial == "", "the first line counts"
    (found,) = parse_identify("Firmware Version: 4.23.0\nBoard Name: " + "\x07\u202e" + "n" * 999)
    assert found.board_name == "n" * 80


WORDS = (
    "Executing on device:",
    "Firmware Version:",
    "4.23.0",
    "(release,app)",
    "[-] Device:",
    "0000:01:00.0",
    "Hailo devices not found",
    "HailoRT-CLI version",
    "Device Architecture:",
    "\x1b[",
    "\x1b]",
    "\n",
    "\r",
    " ",
    ":",
)


@given(st.text(max_size=400) | st.lists(st.sampled_from(WORDS), max_size=40).map("".join))
@example("Firmware Version: 4.23.0 (")
@example("\x1b")
def test_no_output_can_do_harm(text: str) -> None:
    version = parse_version(text)
    assert version is None or isinstance(version, Version)
    for parse in (parse_scan, parse_identify):
        try:
            parse(text)
        except OutputInvalid as refusal:
            assert str(refusal).isprintable()  # noqa: PT017 - either outcome is good
            assert len(str(refusal)) < 500  # noqa: PT017


# --- what is proved ------------------------------------------------------------------------------

CLI = Version(4, 23, 0)
FIRMWARE = Firmware(
    version="4.23.0",
    architecture=Architecture.HAILO_8,
    serial="HLLWM2B231400123",
    part_number="HM218B1C2FA",
)


def reading(*devices: PciAddress, identified: str = "", version: Version | None = CLI) -> Reading:
    return Reading(
        at=7.0,
        version=version,
        devices=devices,
        identified=parse_identify(identified) if identified else (),
    )


def weigh(
    told: Reading,
    *,
    at: PciAddress | None = FIRST,
    driver: str | None = "4.23.0",
    firmware: Firmware | None = FIRMWARE,
) -> tuple[list[str], bool]:
    """Give the messages, and whether anything could be said at all."""
    found = evidence(SUBJECT, told, address=at, driver_version=driver, firmware=firmware)
    assert found.sensor is Sensor.HAILORTCLI
    assert found.at == 7.0
    for fault in found.faults:
        assert fault.code is FaultCode.CLI_DISAGREES
        assert fault.subject == SUBJECT
        assert fault.severity is Severity.INFO
        assert fault.remedy
        assert fault.evidence
    return [fault.message for fault in found.faults], FaultCode.CLI_DISAGREES not in found.unread


def test_who_agrees_says_nothing() -> None:
    assert weigh(reading(FIRST, SECOND, identified=IDENTIFY_4)) == ([], True)


def test_a_device_that_is_not_listed_is_told_of() -> None:
    messages, is_said = weigh(reading(SECOND))
    assert is_said
    assert messages == ["hailortcli does not list it, so applications may not find it either"]
    assert weigh(reading())[0] == messages, "the words do not depend on what else is listed"


@pytest.mark.parametrize(
    ("firmware", "differs"),
    [
        (Firmware(version="4.20.0"), "firmware version"),
        (Firmware(version="4.23.0", architecture=Architecture.HAILO_8L), "architecture"),
        (Firmware(version="4.23.0", serial="HLLWM2B231400999"), "serial number"),
        (Firmware(version="4.23.0", part_number="HM218B1C2LA"), "part number"),
        (Firmware(version="4.22.0", serial="other"), "firmware version and serial number"),
    ],
)
def test_a_contradiction_is_named(firmware: Firmware, differs: str) -> None:
    messages, _ = weigh(reading(FIRST, identified=IDENTIFY_4), firmware=firmware)
    assert messages == [f"hailortcli and the firmware disagree on its {differs}"]


@pytest.mark.parametrize(
    ("text", "firmware"),
    [
        (IDENTIFY_4, Firmware(version="4.23.0")),
        (IDENTIFY_4, Firmware(version="4.23.0", architecture=Architecture.UNKNOWN)),
        (IDENTIFY_4.replace("HAILO8\n", "Unknown\n"), FIRMWARE),
        (
            IDENTIFY_4,
            Firmware(version="4.23.0", architecture=Architecture.HAILO_8_A0),
        ),
        (IDENTIFY_4.replace("HLLWM2B231400123", "<N/A>"), FIRMWARE),
        (IDENTIFY_4.replace("0000:01:00.0", "0001:04:00.0").replace("4.23.0", "4.1.0"), FIRMWARE),
    ],
)
def test_what_either_leaves_empty_contradicts_nothing(text: str, firmware: Firmware) -> None:
    assert weigh(reading(FIRST, identified=text), firmware=firmware) == ([], True)


@pytest.mark.parametrize(
    ("cli", "firmware"),
    [
        ("HAILO8L", Architecture.HAILO_8L),
        ("HAILO15H", Architecture.HAILO_15H),
        ("HAILO15L", Architecture.HAILO_15L),
        ("PLUTO", Architecture.HAILO_15L),
        ("MARS", Architecture.HAILO_12L),
    ],
)
def test_the_architectures_are_matched_by_meaning(cli: str, firmware: Architecture) -> None:
    text = IDENTIFY_4.replace("HAILO8\n", f"{cli}\n")
    said = Firmware(version="4.23.0", architecture=firmware)
    assert weigh(reading(FIRST, identified=text), firmware=said) == ([], True)


def test_who_was_not_asked_says_neither_yes_nor_no() -> None:
    assert weigh(Reading(at=7.0, reason="no hailortcli in PATH")) == ([], False)
    assert weigh(reading(SECOND), at=None) == ([], False), "a part of the SoC has no address"
    assert weigh(reading(SECOND), driver="5.2.0") == ([], False), "another driver's device"
    assert weigh(reading(SECOND), driver=None) == ([], False)
    assert weigh(reading(SECOND, version=None), driver=None) == ([], False)


def test_what_the_command_alone_sees_is_told_of_by_address() -> None:
    (fault,) = strangers(reading(FIRST, SECOND), {FIRST})
    assert fault.subject == "0001:04:00.0"
    assert fault.severity is Severity.INFO
    assert strangers(reading(FIRST), {FIRST, SECOND}) == ()
    assert strangers(Reading(at=7.0), set()) == ()
