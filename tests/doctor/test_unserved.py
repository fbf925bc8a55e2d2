"""Why the kernel sees a card and no driver makes a device of it."""

from dataclasses import replace

import pytest

from hailo_agent.core.device import HAILO_VENDOR, PciId
from hailo_agent.core.diagnosis.facts import HostFacts, Module
from hailo_agent.core.diagnosis.finding import Finding, Verdict
from hailo_agent.core.diagnosis.unserved import why_unserved
from hailo_agent.core.observation import PciFunction
from tests.strategies import BOARDS

EIGHT, _, TEN, FIFTEEN = BOARDS
STRANGER = PciId(HAILO_VENDOR, 0x9999)
UNSET: dict[str, object] = {}


def function_of(board_id: PciId | None, driver: str | None = None) -> PciFunction:
    assert EIGHT.function is not None
    return replace(EIGHT.function, pci_id=board_id, driver=driver, driver_version=None)


def module(version: str | None, name: str = "") -> Module:
    guessed = "hailo1x_pci" if version and version >= "5.1" else "hailo_pci"
    return Module(name=name or guessed, version=version)


def why(
    pci_id: PciId | None,
    *modules: Module,
    log: tuple[str, ...] | None = (),
    installed: frozenset[str] | None = frozenset(),
    driver: str | None = None,
    class_names: tuple[str, ...] = (),
    firmware: dict[str, bool | None] = {},  # noqa: B006 - not changed
) -> Finding:
    host = HostFacts(
        modules=modules,
        kernel_release="6.12.0",
        installed=installed,
        kernel_log=log,
        kernel_log_unseen="Operation not permitted" if log is None else "",
        firmware=firmware,
    )
    finding = why_unserved(function_of(pci_id, driver), "here", host, class_names)
    assert finding.check == "pci.function"
    assert finding.looked_at == "here"
    assert finding.why
    assert finding.next_step
    return finding


def failed(errno: int, *before: str) -> tuple[str, ...]:
    return (
        f"hailo {EIGHT.address}: Probing on: 1e60:2864...",
        *before,
        f"hailo {EIGHT.address}: probe with driver hailo failed with error -{errno}",
    )


# --- another driver, or none ---------------------------------------------------------------------


def test_a_card_that_is_passed_through_is_not_broken_but_not_ours() -> None:
    finding = why(EIGHT.pci_id, module("4.23.0"), driver="vfio-pci")
    assert (finding.verdict, finding.found) == (
        Verdict.DEGRADED,
        "held by the kernel driver vfio-pci",
    )
    assert "/sys/bus/pci/drivers/vfio-pci/unbind" in finding.next_step


def test_a_driver_that_is_installed_wants_to_be_loaded() -> None:
    finding = why(EIGHT.pci_id, installed=frozenset({"hailo_pci", "hailo1x_pci"}))
    assert finding.found == "no driver: hailo_pci is installed, but not loaded"
    assert finding.next_step.startswith("`modprobe hailo_pci`")


@pytest.mark.parametrize("name", ["hailo1x_pci", "hailo_pci"])
def test_a_hailo_10h_may_be_served_by_a_module_of_either_name(name: str) -> None:
    # Up to 5.0 it was hailo_pci in both lines.
    finding = why(TEN.pci_id, installed=frozenset({name}))
    assert finding.found == f"no driver: {name} is installed, but not loaded"


def test_a_driver_that_is_not_built_for_this_kernel_is_not_there() -> None:
    finding = why(EIGHT.pci_id)
    assert "nor installed for kernel 6.12.0" in finding.found
    assert "DKMS has to build it anew" in finding.why
    assert "branch hailo8" in finding.next_step


def test_where_modules_cannot_be_seen_nothing_is_said_of_them() -> None:
    finding = why(TEN.pci_id, installed=None)
    assert finding.found == "no driver: no Hailo kernel module is loaded"
    assert "DKMS" not in finding.why
    assert "branch master" in finding.next_step


def test_an_unknown_chip_is_not_sent_to_either_line() -> None:
    finding = why(STRANGER)
    assert "newer than this agent" in finding.next_step
    assert "newer than this agent" in why(None).next_step


# --- the wrong one -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pci_id", "version", "branch"),
    [
        (TEN.pci_id, "4.23.0", "master"),
        (FIFTEEN.pci_id, "4.14.0", "master"),
        (EIGHT.pci_id, "5.0.1", "hailo8"),
        (EIGHT.pci_id, "5.3.0", "hailo8"),
    ],
)
def test_a_driver_that_does_not_know_the_chip_is_of_the_wrong_branch(
    pci_id: PciId, version: str, branch: str
) -> None:
    finding = why(pci_id, module(version))
    assert finding.verdict is Verdict.BROKEN
    assert finding.found.startswith("wrong driver branch: ")
    assert f"(hailort-drivers, branch {branch};" in finding.next_step
    assert f"{version} unless another card needs it" in finding.next_step


def test_a_driver_of_the_right_branch_beside_a_wrong_one_is_not_called_wrong() -> None:
    finding = why(TEN.pci_id, module("4.23.0"), module("5.3.0"))
    assert "wrong driver branch" not in finding.found


def test_a_driver_whose_version_nobody_can_read_is_not_called_wrong() -> None:
    for version in (None, "custom-build", "6.0.0"):
        assert "wrong driver branch" not in why(EIGHT.pci_id, module(version)).found


def test_a_driver_that_takes_a_later_chip_on_and_fails_is_of_the_wrong_branch() -> None:
    finding = why(TEN.pci_id, module("4.22.0"), log=failed(110))
    assert "takes hailo-10h (1e60:45c4) on, but cannot start it" in finding.found


@pytest.mark.parametrize(
    "line", ["Failed to enable MSI -28", "device may be disconnected", "Error allocating bars"]
)
def test_what_would_stop_the_right_driver_as_well_is_not_blamed_on_the_branch(line: str) -> None:
    finding = why(TEN.pci_id, module("4.22.0"), log=failed(28, f"hailo {EIGHT.address}: {line}"))
    assert "wrong driver branch" not in finding.found


# --- two that want one class ---------------------------------------------------------------------


def test_a_collision_is_told_where_the_log_says_so() -> None:
    duplicate = "sysfs: cannot create duplicate filename '/class/hailo_chardev'"
    finding = why(TEN.pci_id, module("4.23.0"), module("5.2.0"), log=failed(17, duplicate))
    assert finding.found.startswith("two drivers want to make one class: hailo_pci 4.23.0 and")
    assert duplicate in finding.found
    assert "5.3 or later" in finding.next_step


def test_a_collision_is_likely_where_the_class_is_there_and_the_log_is_not() -> None:
    both = module("4.23.0"), module("5.2.0")
    finding = why(TEN.pci_id, *both, log=None, class_names=("hailo_chardev",))
    assert finding.found.startswith("two drivers want to make one class")
    assert "two drivers" not in why(TEN.pci_id, *both, log=None).found


# --- given up ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("errno", "found", "step"),
    [
        (28, "no interrupt (MSI) to be had (-28)", "without a switch"),
        (110, "the chip did not answer in time (-110)", "off and on again"),
        (19, "the card does not answer (-19)", "off and on again"),
        (16, "its memory is in use by another driver (-16)", "/proc/iomem"),
        (22, "the driver refuses it (-22)", "of one release"),
        (27, "firmware refused (-27)", "of one release"),
        (12, "not enough memory (-12)", "reboot"),
        (17, "two drivers want to make one class", "reboot"),
        (5, "probe failed (-5)", "kernel log"),
    ],
)
def test_a_probe_that_failed_is_told_by_its_number(errno: int, found: str, step: str) -> None:
    finding = why(EIGHT.pci_id, module("4.23.0"), log=failed(errno))
    assert finding.verdict is Verdict.BROKEN
    assert finding.found.startswith(found)
    assert step in finding.next_step


def test_firmware_is_named_by_the_log_first_and_else_by_what_is_not_there() -> None:
    missed = "Failed with error -2 to write file hailo/hailo8_fw.bin"
    named = why(EIGHT.pci_id, module("4.23.0"), log=failed(2, missed))
    assert named.found == "firmware missing: /lib/firmware/hailo/hailo8_fw.bin"
    files: dict[str, bool | None] = {"hailo/hailo10h/scu_fw.bin": False}
    absent = why(TEN.pci_id, module("5.3.0"), log=failed(2), firmware=files)
    assert absent.found == "firmware missing: /lib/firmware/hailo/hailo10h/scu_fw.bin"
    assert absent.next_step == (
        "install the firmware of release 5.3.0 there, then"
        " `echo 0000:01:00.0 > /sys/bus/pci/drivers/hailo1x/bind`"
    )


def test_firmware_is_asked_for_of_the_driver_that_serves_the_chip() -> None:
    both = module("4.23.0"), module("5.3.0")
    assert "of release 4.23.0 there" in why(EIGHT.pci_id, *both, log=failed(2)).next_step
    assert "of release 5.3.0 there" in why(TEN.pci_id, *both, log=failed(2)).next_step
    # Two that both might: no guess.
    twice = module("4.23.0"), module(None, "hailo1x_pci")
    assert "then reload the driver" in why(EIGHT.pci_id, *twice, log=failed(2)).next_step


def test_a_driver_that_has_bound_the_card_is_made_to_let_go_first() -> None:
    finding = why(EIGHT.pci_id, module("4.23.0"), log=failed(2), driver="hailo")
    assert "echo 0000:01:00.0 > unbind && echo 0000:01:00.0 > bind" in finding.next_step


def test_firmware_that_is_not_there_is_the_likeliest_reason_where_nothing_was_logged() -> None:
    files: dict[str, bool | None] = {"hailo/hailo8_fw.bin": False}
    finding = why(EIGHT.pci_id, module("4.23.0"), log=None, firmware=files)
    assert finding.found == "firmware missing: /lib/firmware/hailo/hailo8_fw.bin"


@pytest.mark.parametrize("seen", [True, None])
def test_firmware_that_is_there_or_cannot_be_seen_is_not_missing(*, seen: bool | None) -> None:
    finding = why(EIGHT.pci_id, module("4.23.0"), firmware={"hailo/hailo8_fw.bin": seen})
    assert "firmware" not in finding.found


# --- not done yet --------------------------------------------------------------------------------


def test_a_driver_that_is_at_work_is_given_a_minute() -> None:
    finding = why(TEN.pci_id, module("5.3.0"), driver="hailo1x")
    assert finding.found == "kernel driver hailo1x is bound, but has not made a device yet"
    assert finding.next_step.startswith("wait a minute")


def test_a_device_that_somebody_unbound_wants_to_be_bound_again() -> None:
    log = (
        f"hailo {EIGHT.address}: Probing: Added board 1e60-2864, /dev/hailo0",
        f"hailo {EIGHT.address}: Remove: Releasing board",
    )
    finding = why(EIGHT.pci_id, module("4.23.0"), log=log)
    assert finding.found == "its driver served it, and was unbound"
    assert "> /sys/bus/pci/drivers/hailo/bind" in finding.next_step


def test_a_card_that_was_never_tried_is_looked_for_in_the_log_or_as_root() -> None:
    seen = why(EIGHT.pci_id, module("4.23.0"))
    assert seen.found == "hailo_pci 4.23.0 is loaded, but has not bound it"
    assert f"`dmesg | grep {EIGHT.address}`" in seen.next_step
    assert "driver_override" in seen.next_step
    blind = why(EIGHT.pci_id, module("4.23.0"), log=None)
    assert "run the doctor as root" in blind.next_step
    assert "Operation not permitted" in blind.next_step
