"""The loaded kernel drivers: versions, firmware, and what they say of devices that look well."""

from dataclasses import replace

import pytest

from hailo_agent.core.diagnosis.facts import Module
from hailo_agent.core.diagnosis.finding import Verdict
from hailo_agent.core.observation import Observation
from tests.doctor.support import Told, told_of
from tests.strategies import BOARDS, How, found, seen

EIGHT, _, TEN, _ = BOARDS
AT = EIGHT.address
NOT_FOUND = (
    f"hailo {AT}: Firmware file not found (/lib/firmware/hailo/hailo8_fw.bin), please upload the"
    " firmware manually"
)
ADDED = f"hailo {AT}: Probing: Added board 1e60-2864, /dev/hailo0"


def modules(*versions: str | None) -> tuple[Module, ...]:
    names = ("hailo_pci", "hailo1x_pci")
    return tuple(Module(name=n, version=v) for n, v in zip(names, versions, strict=False))


def with_driver(version: str) -> Observation:
    """Find a device, its driver of this version."""
    look = seen(found(EIGHT))
    (sighting,) = look.sightings
    assert sighting.function is not None
    function = replace(sighting.function, driver_version=version)
    served = replace(sighting, function=function)
    return replace(look, sightings=(served,), functions=(function,))


def old(version: str, *log: str, firmware: bool | None = True, blind: bool = False) -> Told:
    """Examine a device whose driver is so old that its node tells nothing of its firmware."""
    return told_of(
        with_driver(version),
        host={
            "modules": modules(version),
            "kernel_log": None if blind else log,
            "firmware": {"hailo/hailo8_fw.bin": firmware},
        },
    )


# --- versions ------------------------------------------------------------------------------------


def test_the_version_names_the_library_that_images_must_hold() -> None:
    finding = told_of(seen(found(EIGHT))).the("driver.version")
    assert finding.looked_at == "/sys/module/hailo_pci/version"
    assert finding.found == "4.23.0; containers need libhailort 4.23.0 exactly"


def test_a_driver_of_renamed_nodes_says_so() -> None:
    finding = told_of(host={"modules": modules(None, "5.3.0")[1:]}).the("driver.version")
    assert finding.found.endswith("nodes are /dev/h1x-N, not /dev/hailoN")


@pytest.mark.parametrize("version", ["5.9.0", "4.24.0", "6.0.0", "3.1.0"])
def test_a_version_that_the_tables_do_not_know_is_not_judged(version: str) -> None:
    told = told_of(host={"modules": modules(version)}, observation=seen())
    finding = told.the("driver.version")
    assert finding.verdict is Verdict.UNSEEN
    assert finding.found == f"{version}, which this agent's tables do not know"
    assert f"libhailort {version}" in finding.next_step
    assert told.verdict is Verdict.OK


@pytest.mark.parametrize("version", [None, "my own"])
def test_a_version_that_is_none_is_not_judged(version: str | None) -> None:
    finding = told_of(host={"modules": modules(version)}, observation=seen()).the("driver.version")
    assert finding.verdict is Verdict.UNSEEN
    assert "`modinfo -F version hailo_pci`" in finding.next_step


def test_a_library_of_another_release_is_named_and_one_of_the_same_is_not() -> None:
    libraries = {
        "/usr/lib/libhailort.so.4.23.0": "4.23.0",
        "/usr/local/lib/libhailort.so.4.20.0": "4.20.0",
        "/usr/lib/libhailort.so.strange": "strange",
    }
    told = told_of(seen(found(EIGHT)), host={"libraries": libraries})
    finding = told.the("driver.library")
    assert finding.looked_at == "/usr/local/lib/libhailort.so.4.20.0"
    assert finding.next_step == (
        "`modinfo -F version hailo_pci`: if it says 4.20.0, that driver is installed and not loaded"
        " yet: reboot; if not, install driver and firmware 4.20.0, or library 4.23.0"
    )
    assert told.verdict is Verdict.DEGRADED


def test_with_two_drivers_a_library_that_suits_either_is_well() -> None:
    libraries = {"/usr/lib/libhailort.so.5.3.0": "5.3.0"}
    both = {"modules": modules("4.23.0", "5.3.0"), "libraries": libraries}
    assert told_of(seen(found(EIGHT)), host=both).all("driver.library") == []


# --- two drivers ---------------------------------------------------------------------------------


def test_two_drivers_of_one_class_are_warned_of_before_a_card_suffers() -> None:
    told = told_of(seen(found(EIGHT)), host={"modules": modules("4.23.0", "5.2.0")})
    finding = told.the("driver.collision")
    assert finding.verdict is Verdict.DEGRADED
    assert finding.found == "4.23.0 and 5.2.0 both make /sys/class/hailo_chardev"


def test_a_collision_that_was_logged_is_broken_and_quoted() -> None:
    line = "sysfs: cannot create duplicate filename '/class/hailo_chardev'"
    both = {"modules": modules("4.23.0", "5.2.0"), "kernel_log": (line,)}
    finding = told_of(seen(found(EIGHT)), host=both).the("driver.collision")
    assert (finding.verdict, finding.found) == (Verdict.BROKEN, line)


def test_a_card_that_suffers_from_it_tells_it_instead() -> None:
    both = {"modules": modules("4.23.0", "5.2.0")}
    look = seen(found(EIGHT), found(TEN, How.UNSERVED))
    assert told_of(look, host=both).all("driver.collision") == []


def test_drivers_of_two_classes_get_along() -> None:
    both = {"modules": modules("4.23.0", "5.3.0")}
    assert told_of(seen(found(EIGHT)), host=both).all("driver.collision") == []


# --- pages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page_bytes", "parameter", "log", "is_large"),
    [
        (4096, None, (), False),
        (4096, "0", (), False),
        (16384, "4096", (), False),
        (16384, "0", (), True),
        (65536, "0", (), True),
        (16384, "16384", (), True),
        (16384, None, (), False),
        (16384, "none", (), False),
        (4096, None, ("Setting max_desc_page_size to 16384, (page_size=16384)",), True),
        (16384, "0", ("Force setting max_desc_page_size to 4096 (recommended)",), False),
    ],
)
def test_large_pages_are_hinted_at_where_the_driver_goes_by_them(
    page_bytes: int, parameter: str | None, log: tuple[str, ...], *, is_large: bool
) -> None:
    parameters = {} if parameter is None else {"force_desc_page_size": parameter}
    host = {
        "modules": (Module(name="hailo_pci", version="4.23.0", parameters=parameters),),
        "page_bytes": page_bytes,
        "kernel_log": tuple(f"hailo {AT}: Probing: {line}" for line in log),
    }
    findings = told_of(seen(found(EIGHT)), host=host).all("kernel.page-size")
    assert len(findings) == is_large
    for finding in findings:
        assert finding.verdict is Verdict.DEGRADED
        assert "force_desc_page_size=4096" in finding.next_step


# --- a node behind which nothing runs ------------------------------------------------------------


@pytest.mark.parametrize("version", ["4.17.0", "4.18.0"])
def test_firmware_that_an_old_driver_did_not_find_leaves_a_node_of_no_use(version: str) -> None:
    finding = old(version, NOT_FOUND, ADDED, firmware=True).the("driver.firmware")
    assert finding.verdict is Verdict.BROKEN
    assert finding.looked_at == "PCI 0000:01:00.0 (1e60:2864, hailo-8)"
    assert finding.found == (
        "there is a node, /dev/hailo0, but no firmware: the driver did not find"
        " /lib/firmware/hailo/hailo8_fw.bin when it looked"
    )
    assert f"install the firmware of release {version} there" in finding.next_step
    assert "echo 0000:01:00.0 > unbind" in finding.next_step


def test_firmware_that_is_gone_since_an_old_driver_looked_is_a_worry_for_the_next_start() -> None:
    finding = old("4.18.0", ADDED, firmware=False).the("driver.firmware")
    assert finding.verdict is Verdict.DEGRADED
    assert "it may have been there when the driver looked" in finding.found


def test_without_the_log_whether_an_old_driver_loaded_it_does_not_show() -> None:
    finding = old("4.18.0", blind=True).the("driver.firmware")
    assert finding.verdict is Verdict.UNSEEN
    assert "does not show in sysfs" in finding.found


@pytest.mark.parametrize("firmware", [True, None])
def test_an_old_driver_that_complained_of_nothing_is_believed(*, firmware: bool | None) -> None:
    assert old("4.18.0", ADDED, firmware=firmware).all("driver.firmware") == []


def test_a_driver_that_would_not_have_made_the_node_without_it_is_not_asked() -> None:
    assert old("4.23.0", firmware=False).all("driver.firmware") == []
    assert old("unheard of", firmware=False).all("driver.firmware") == []


def test_a_start_that_failed_after_the_node_was_made_is_broken() -> None:
    failed = f"hailo {AT}: Failed activating board -110"
    finding = old("4.23.0", ADDED, failed).the("driver.activation")
    assert finding.verdict is Verdict.BROKEN
    assert finding.found.endswith(f"the chip was not started again: {failed}")
    assert "switch the machine off and on again" in finding.next_step


@pytest.mark.parametrize(
    ("version", "is_lost"), [("4.23.0", True), ("5.0.0", True), ("5.3.0", False)]
)
def test_a_reset_takes_the_firmware_of_older_drivers_away(version: str, *, is_lost: bool) -> None:
    reset = f"hailo {AT}: Reset preparation for PCI device"
    findings = old(version, ADDED, reset).all("driver.reset")
    assert [f.verdict for f in findings] == [Verdict.BROKEN] * is_lost


def test_a_chip_that_runs_another_release_refuses_everything() -> None:
    line = f"hailo1x {AT}: Mismatch Driver version pcie driver 5:3:0 pci_ep driver 5:1:1"
    finding = old("5.3.0", line, ADDED).the("driver.endpoint")
    assert finding.verdict is Verdict.BROKEN
    assert finding.found.startswith("there is a node, /dev/hailo0, but the chip still runs")
    assert finding.found.endswith(line)


def test_a_log_that_cannot_be_read_is_said_and_does_not_make_the_node_ill() -> None:
    blind = {"kernel_log": None, "kernel_log_unseen": "Operation not permitted"}
    told = told_of(seen(found(EIGHT)), host=blind)
    finding = told.the("kernel.log")
    assert finding.verdict is Verdict.UNSEEN
    assert finding.found == "not readable: Operation not permitted"
    assert "`--kernel-log FILE`" in finding.next_step
    assert told.verdict is Verdict.OK


def test_without_card_and_driver_the_log_is_not_missed() -> None:
    assert (
        told_of(observation=seen(), host={"modules": (), "kernel_log": None}).all("kernel.log")
        == []
    )
