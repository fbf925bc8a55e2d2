"""What is known of kernel drivers: which chips each version serves, and what nobody has read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.device import HAILO_VENDOR, PciAddress, PciId
from hailo_agent.core.drivers import (
    LINES,
    OPTIONAL_FIRMWARE,
    PROBE_NEEDS_FIRMWARE,
    RESET_LOADS_FIRMWARE,
    Version,
    binds,
    class_of,
    collide,
    firmware_of,
    is_known,
    line_of,
    rebind,
)

EIGHT, TEN, FIFTEEN, TWELVE = (PciId(HAILO_VENDOR, d) for d in (0x2864, 0x45C4, 0x43A2, 0x26A2))
CHIPS = (EIGHT, TEN, FIFTEEN, TWELVE)
STRANGER = PciId(HAILO_VENDOR, 0x1234)
SOMEBODY_ELSES = PciId(0x10DE, 0x2864)


def version(text: str) -> Version:
    parsed = Version.parse(text)
    assert parsed is not None
    return parsed


@given(st.builds(Version, *[st.integers(0, 9999)] * 3))
def test_a_version_reads_back_as_it_was_written(written: Version) -> None:
    assert Version.parse(f"{written}\n") == written


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "4.23",
        "4.23.0-rc1",
        "v4.23.0",
        "4.23.0.1",
        "x.y.z",
        "4.23.0\n4.23.0",
        "\N{ARABIC-INDIC DIGIT FOUR}.2.0",
    ],
)
def test_what_is_no_version_is_none(text: str | None) -> None:
    assert Version.parse(text) is None


def test_versions_are_ordered_by_number_not_by_text() -> None:
    assert version("4.6.0") < version("4.15.0") < version("4.23.0") < version("5.0.0")


@pytest.mark.parametrize(
    ("text", "served"),
    [
        ("4.6.0", {EIGHT, TEN}),
        ("4.14.0", {EIGHT, TEN}),
        ("4.15.0", {EIGHT, TEN, FIFTEEN}),
        ("4.20.1", {EIGHT, TEN, FIFTEEN}),
        ("4.21.0", {EIGHT, TEN, FIFTEEN, TWELVE}),
        ("4.22.0", {EIGHT, TEN, FIFTEEN, TWELVE}),
        ("4.23.0", {EIGHT}),
        ("5.0.0", {EIGHT, TEN, FIFTEEN, TWELVE}),
        ("5.0.1", {TEN, FIFTEEN, TWELVE}),
        ("5.2.0", {TEN, FIFTEEN, TWELVE}),
        ("5.3.0", {TEN, FIFTEEN, TWELVE}),
    ],
)
def test_each_driver_binds_its_chips(text: str, served: set[PciId]) -> None:
    known = version(text)
    assert {chip for chip in (*CHIPS, STRANGER) if binds(known, chip)} == served
    assert is_known(known)


@pytest.mark.parametrize("text", ["3.9.0", "4.5.0", "6.0.0"])
def test_of_a_driver_that_nobody_has_read_nothing_is_said(text: str) -> None:
    assert binds(version(text), EIGHT) is None
    assert not is_known(version(text))


def test_a_driver_newer_than_the_tables_is_taken_for_the_last_of_its_line_and_said_unknown() -> (
    None
):
    assert binds(version("5.9.0"), TEN) is True
    assert binds(version("5.9.0"), EIGHT) is False
    assert not is_known(version("5.9.0"))
    assert is_known(version("4.23.7"))  # the last digit has never changed what the tables say


def test_the_chips_of_others_are_nobodys_business() -> None:
    assert binds(version("4.23.0"), SOMEBODY_ELSES) is None
    assert line_of(SOMEBODY_ELSES) is None
    assert line_of(STRANGER) is None
    assert line_of(None) is None
    assert firmware_of(STRANGER) == ()
    assert firmware_of(None) == ()


def test_the_two_chips_that_are_asked_about_most_belong_to_two_lines() -> None:
    assert line_of(EIGHT) is LINES[0]
    assert line_of(TEN) is LINES[1]
    assert [(line.branch, line.module) for line in LINES] == [
        ("hailo8", "hailo_pci"),
        ("master", "hailo1x_pci"),
    ]


@pytest.mark.parametrize("chip", CHIPS)
def test_every_chip_is_served_by_the_newest_driver_of_its_line_and_needs_firmware(
    chip: PciId,
) -> None:
    line = line_of(chip)
    assert line is not None
    assert binds(Version(line.major, 9999, 0), chip)
    assert firmware_of(chip)
    assert all(name.startswith("hailo/") for name in firmware_of(chip))
    assert not OPTIONAL_FIRMWARE & set(firmware_of(chip))


@pytest.mark.parametrize(
    ("versions", "is_so"),
    [
        ((), False),
        (("4.23.0",), False),
        (("4.23.0", "5.2.0"), True),
        (("4.23.0", "5.3.0"), False),
        (("4.20.0", "5.0.0"), True),
        (("5.3.0", "5.3.0"), True),
    ],
)
def test_two_drivers_collide_when_both_make_one_class(
    versions: tuple[str, ...], *, is_so: bool
) -> None:
    assert collide(map(version, versions)) is is_so


def test_the_class_was_renamed_once() -> None:
    names = ["4.17.0", "4.23.0", "5.1.0", "5.2.0"]
    assert {class_of(version(name)) for name in names} == {"hailo_chardev"}
    assert class_of(version("5.3.0")) == "hailo1x"


def test_from_when_on_a_driver_needs_firmware_to_make_a_node_and_loads_it_after_a_reset() -> None:
    assert version("4.18.0") < PROBE_NEEDS_FIRMWARE <= version("4.19.0")
    assert version("5.0.0") < RESET_LOADS_FIRMWARE <= version("5.0.1")


def test_a_device_is_started_anew_without_disturbing_the_others() -> None:
    address = PciAddress.parse("0000:01:00.0")
    assert rebind(address, "hailo1x") == (
        "`cd /sys/bus/pci/drivers/hailo1x && echo 0000:01:00.0 > unbind && echo 0000:01:00.0 >"
        " bind`"
    )
    for unclear in ((None, "hailo"), (address, None), (address, "vfio-pci")):
        assert rebind(*unclear) == "reload the driver"
