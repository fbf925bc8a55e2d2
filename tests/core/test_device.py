"""Addresses, ids, names and models: what is read is understood, and rubbish is not."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.device import (
    ALL,
    FAMILIES,
    MAX_ID_LENGTH,
    DeviceNumber,
    Family,
    Model,
    PciAddress,
    PciId,
    Topology,
    model_of,
    soc_device_id,
)
from hailo_agent.core.observation import Sighting
from hailo_agent.core.vitals import Link
from tests.strategies import (
    BOARDS,
    CLASSIC,
    CLASSIC_SOC,
    RENAMED,
    RENAMED_SOC,
    addresses,
    device_numbers,
    sysfs_paths,
)

LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
"""A DNS label that begins with a letter: what DRA takes, and CDI since 0.3.0."""

RUBBISH = ["", " ", "0", "[integrated]", "1e60:2864", "None", "\0", "é", "x" * 4096]


@given(addresses())
def test_an_address_reads_back_as_it_was_written(address: PciAddress) -> None:
    assert PciAddress.parse(str(address)) == address


@given(addresses())
def test_case_and_a_newline_make_no_other_address(address: PciAddress) -> None:
    assert PciAddress.parse(f"{str(address).upper()}\n") == address


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("0000:01:00.0", (0, 1, 0, 0)),
        ("0001:01:00.0", (1, 1, 0, 0)),
        ("01:00.0", (0, 1, 0, 0)),
        ("10000:e1:1f.7", (0x10000, 0xE1, 0x1F, 7)),
        ("ffffffff:ff:1f.7", (0xFFFFFFFF, 0xFF, 0x1F, 7)),
    ],
)
def test_an_address_is_understood(text: str, fields: tuple[int, int, int, int]) -> None:
    assert PciAddress.parse(text) == PciAddress(*fields)


@pytest.mark.parametrize(
    "text",
    [
        *RUBBISH,
        "0000:01:00.8",  # functions end at 7
        "0000:01:20.0",  # slots end at 1f
        "000:01:00.0",
        "000000001:01:00.0",
        "0000:1:00.0",
        "0000:01:00",
        "0000:01:00.0 0000:02:00.0",
        "0000-01-00-0",
        "0000:0g:00.0",
        "٠٠٠٠:٠١:٠٠.٠",  # noqa: RUF001 - digits, but not ours
        "0000:01:00.0\n0",
    ],
)
def test_what_is_no_address_is_none(text: str) -> None:
    assert PciAddress.parse(text) is None


@given(st.text(max_size=20))
def test_no_text_breaks_the_parsers(text: str) -> None:
    address, number = PciAddress.parse(text), DeviceNumber.parse(text)
    assert address is None or PciAddress.parse(str(address)) == address
    assert number is None or DeviceNumber.parse(str(number)) == number


@given(addresses())
def test_an_id_from_an_address_is_a_dns_label(address: PciAddress) -> None:
    assert LABEL.fullmatch(address.device_id)
    assert len(address.device_id) <= MAX_ID_LENGTH


@given(addresses(), addresses())
def test_two_addresses_never_share_an_id(one: PciAddress, other: PciAddress) -> None:
    assert (one.device_id == other.device_id) == (one == other)


def test_an_id_is_spelled_as_documented() -> None:
    assert PciAddress(0, 1, 0, 0).device_id == "pci-0000-01-00-0"
    assert soc_device_id("/devices/platform/h1x") == "soc-platform-h1x"


@given(sysfs_paths())
def test_an_id_from_a_sysfs_path_is_a_dns_label(path: str) -> None:
    device_id = soc_device_id(path)
    assert LABEL.fullmatch(device_id)
    assert len(device_id) <= MAX_ID_LENGTH


@given(sysfs_paths())
def test_the_end_of_a_long_path_makes_the_id(path: str) -> None:
    # What tells entries apart is their own name, and that stands last.
    assert soc_device_id(f"{path}/hailo-a") != soc_device_id(f"{path}/hailo-b")


@given(sysfs_paths(), addresses())
def test_no_id_is_spelled_like_another_kinds(path: str, address: PciAddress) -> None:
    assert len({soc_device_id(path), address.device_id, ALL}) == 3


@given(device_numbers())
def test_a_device_number_reads_back_as_it_was_written(number: DeviceNumber) -> None:
    assert DeviceNumber.parse(f"{number}\n") == number


@pytest.mark.parametrize(
    "text", [*RUBBISH, "507", "507:", ":0", "507:-1", "507:0:1", "5 07:0", "²:0", "507:99999999999"]
)
def test_what_is_no_device_number_is_none(text: str) -> None:
    # `1e60:2864` is the one that a driver really writes into an attribute of another name.
    assert DeviceNumber.parse(text) is None


@pytest.mark.parametrize(
    ("device", "accelerator_type", "model"),
    [
        (0x2864, None, Model.HAILO_8),
        (0x2864, "0", Model.HAILO_8),
        (0x45C4, "1", Model.HAILO_10H),
        (0x45C4, None, Model.HAILO_10H),  # driver 5.3 has no accelerator_type any more
        (0x45C4, "0", Model.HAILO_15H),
        (0x43A2, "0", Model.HAILO_15L),
        (0x26A2, "1", Model.HAILO_12L),
        (0x26A2, "0", Model.HAILO_12L),
        (0x1234, "0", Model.UNKNOWN),
    ],
)
def test_a_model_is_told_from_its_pci_id(
    device: int, accelerator_type: str | None, model: Model
) -> None:
    assert model_of(PciId(0x1E60, device), accelerator_type) is model


def test_a_model_is_never_guessed() -> None:
    assert model_of(None) is Model.UNKNOWN
    assert model_of(None, "0") is Model.UNKNOWN
    assert model_of(PciId(0x10DE, 0x2864)) is Model.UNKNOWN


def test_a_pci_id_is_written_as_lspci_does() -> None:
    assert str(PciId(0x1E60, 0x2864)) == "1e60:2864"
    assert str(PciId(0x1, 0xA)) == "0001:000a"


@pytest.mark.parametrize(
    ("entry", "family"),
    [
        ("hailo0", CLASSIC),
        ("hailo15", CLASSIC),
        ("h1x-0", RENAMED),
        ("h1x", RENAMED_SOC),
        ("hailo_integrated_nnc", CLASSIC_SOC),
    ],
)
def test_an_entry_has_one_family(entry: str, family: Family) -> None:
    assert [f for f in FAMILIES if f.owns(entry)] == [family]


@pytest.mark.parametrize(
    "entry", ["hailo", "hailo_pci_ep", "hailo0p1", "h1x-", "xhailo0", "h1x-0 "]
)
def test_what_no_driver_makes_has_no_family(entry: str) -> None:
    assert not any(family.owns(entry) for family in FAMILIES)


def test_one_driver_generation_and_its_successor_name_one_device_alike() -> None:
    address = BOARDS[0].address
    old = Sighting(family=CLASSIC, entry="hailo3", sysfs_path="/devices/x", address=address)
    new = Sighting(family=RENAMED, entry="h1x-0", sysfs_path="/devices/y", address=address)
    assert old.device_id == new.device_id == "pci-0000-01-00-0"


def test_only_a_family_without_pci_is_named_after_its_path() -> None:
    path = "/devices/platform/h1x"
    soc = Sighting(family=RENAMED_SOC, entry="h1x", sysfs_path=path)
    pci = Sighting(family=RENAMED, entry="h1x-0", sysfs_path=path)
    hung = Sighting(family=RENAMED_SOC, entry="h1x", sysfs_path="")
    assert (soc.device_id, pci.device_id, hung.device_id) == ("soc-platform-h1x", None, None)


@pytest.mark.parametrize(
    ("speed", "width", "is_degraded"), [(8.0, 4, False), (5.0, 4, True), (8.0, 1, True)]
)
def test_a_link_below_its_best_is_degraded(speed: float, width: int, *, is_degraded: bool) -> None:
    link = Link(speed_gts=speed, width=width, max_speed_gts=8.0, max_width=4)
    assert link.is_degraded is is_degraded


def test_the_pcie_root_is_where_the_way_down_begins() -> None:
    assert Topology(bridges=("pci0000:00", "0000:00:01.0")).pcie_root == "pci0000:00"
    assert Topology().pcie_root is None
