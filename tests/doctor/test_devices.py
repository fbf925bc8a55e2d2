"""What the doctor says of each accelerator: ready, or why not and what to do about it."""

from dataclasses import replace

import pytest

from hailo_agent.core.device import HAILO_VENDOR, PciId
from hailo_agent.core.diagnosis.facts import Module, Port
from hailo_agent.core.diagnosis.finding import Verdict
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.vitals import Link
from tests.doctor.support import told_of
from tests.strategies import (
    BOARDS,
    CLASSIC,
    RENAMED,
    SOC,
    Board,
    How,
    found,
    seen,
)

EIGHT, _, TEN, _ = BOARDS
PLACE = "PCI 0000:01:00.0 (1e60:2864, hailo-8)"
DRIVER_5 = {"modules": (Module(name="hailo1x_pci", version="5.2.0"),)}


def test_a_device_in_good_order_is_ready_under_its_name_and_node() -> None:
    told = told_of(seen(found(EIGHT)))
    finding = told.the("pci.function")
    assert (finding.verdict, finding.looked_at) == (Verdict.OK, PLACE)
    assert finding.found == "ready as pci-0000-01-00-0, /dev/hailo0"
    assert told.verdict is Verdict.OK


def test_an_accelerator_of_the_soc_has_no_pci_function_and_is_spoken_of_all_the_same() -> None:
    finding = told_of(seen(found(SOC))).the("pci.function")
    assert finding.looked_at == "class entry hailo_chardev/hailo_integrated_nnc"
    assert finding.found.startswith("ready as soc-")


def test_a_machine_without_any_is_well_and_is_told_how_to_look_for_one() -> None:
    told = told_of(seen())
    finding = told.the("pci.none")
    assert (finding.verdict, finding.found) == (Verdict.OK, "no Hailo accelerator")
    assert "`lspci -d 1e60:`" in finding.next_step
    assert told.verdict is Verdict.OK


def test_a_machine_that_cannot_be_looked_at_is_broken() -> None:
    told = told_of(unobserved="sysfs does not answer")
    finding = told.the("pci.function")
    assert (finding.verdict, finding.found) == (Verdict.BROKEN, "sysfs does not answer")


def test_a_device_that_cannot_work_is_not_called_ready_as_well() -> None:
    # Nothing in sysfs tells; the kernel log does.
    line = "hailo 0000:01:00.0: Failed activating board -110"
    told = told_of(seen(found(EIGHT)), host={"kernel_log": (line,)})
    assert told.all("pci.function") == []
    finding = told.the("driver.activation")
    assert (finding.verdict, finding.looked_at) == (Verdict.BROKEN, PLACE)


# --- in use, and slow ----------------------------------------------------------------------------


def host(**changes: object) -> dict[str, object]:
    return {"power_states": {EIGHT.address: "D0", TEN.address: "D0"}, **changes}


def test_whose_chip_is_awake_is_in_use() -> None:
    finding = told_of(seen(found(EIGHT)), host=host()).the("pci.function")
    assert finding.verdict is Verdict.OK
    assert finding.found.endswith("a process has it open now")
    assert "`fuser -v /dev/hailo0`" in finding.next_step


def test_a_chip_with_its_own_linux_is_shared_so_nobody_is_sent_after_the_other() -> None:
    finding = told_of(seen(found(TEN)), host=host(**DRIVER_5)).the("pci.function")
    assert finding.found.endswith("a process has it open now")
    assert (finding.why, finding.next_step) == ("", "")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"power_states": {EIGHT.address: "D3hot"}}, id="it sleeps"),
        pytest.param({"power_states": {}}, id="nobody knows"),
        pytest.param(
            host(
                modules=(
                    Module(name="hailo_pci", version="4.23.0", parameters={"no_power_mode": "Y"}),
                )
            ),
            id="it never sleeps",
        ),
        pytest.param(host(modules=()), id="no driver of ours put it to sleep"),
    ],
)
def test_whether_it_is_in_use_is_not_guessed(changes: dict[str, object]) -> None:
    assert "open" not in told_of(seen(found(EIGHT)), host=changes).the("pci.function").found


def slow(speed: float, width: int, max_speed: float = 8.0, max_width: int = 4) -> Board:
    link = Link(speed_gts=speed, width=width, max_speed_gts=max_speed, max_width=max_width)
    return replace(EIGHT, link=link)


def test_a_link_at_its_best_is_not_worth_a_word() -> None:
    assert told_of(seen(found(EIGHT))).all("device.link") == []
    fast = {"ports": {EIGHT.address: Port(max_speed_gts=8.0, max_width=1)}}
    narrow = slow(8.0, 1, max_width=1)  # as on every Raspberry Pi 5, which has one lane
    assert told_of(seen(found(narrow, index=0)), host=fast).all("device.link") == []


def test_a_link_below_what_card_and_slot_could_do_has_something_wrong_with_it() -> None:
    wide = {"ports": {EIGHT.address: Port(max_speed_gts=16.0, max_width=16)}}
    told = told_of(seen(found(slow(8.0, 2), index=0)), host=wide)
    finding = told.the("device.link")
    assert (told.verdict, finding.found) == (
        Verdict.DEGRADED,
        "8 GT/s x2, card and slot could do 8 GT/s x4",
    )
    assert finding.next_step.startswith("reseat the card")
    assert "Raspberry Pi" not in finding.next_step


def test_a_slot_that_is_slow_itself_is_no_fault_and_worth_a_hint() -> None:
    # As on a Raspberry Pi 5 that was not told to try the third generation.
    old = {"ports": {EIGHT.address: Port(max_speed_gts=5.0, max_width=1)}}
    told = told_of(seen(found(slow(5.0, 1, max_speed=5.0, max_width=1), index=0)), host=old)
    finding = told.the("device.link")
    assert (told.verdict, finding.found) == (
        Verdict.OK,
        "5 GT/s x1, which is all that its slot does",
    )
    assert "`dtparam=pciex1_gen=3`" in finding.next_step


@pytest.mark.parametrize(("speed", "hints"), [(5.0, 1), (8.0, 0)])
def test_a_raspberry_pi_has_to_be_told_to_try_the_third_generation(
    speed: float, hints: int
) -> None:
    finding = told_of(seen(found(slow(speed, 1), index=0))).the("device.link")
    assert finding.next_step.count("`dtparam=pciex1_gen=3`") == hints


# --- what is wrong with an entry or a node -------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "check", "step"),
    [
        (How.NO_NODE, "devnode.missing", "`mknod -m 666 /dev/hailo0 c 507 0`"),
        (How.LINK, "devnode.is-a-symlink", "`rm /dev/hailo0`, then `mknod -m 666 /dev/hailo0"),
        (How.NO_DEVICE, "devnode.not-a-character-device", "`rm /dev/hailo0`, then `mknod"),
        (How.OTHER_NUMBER, "devnode.wrong-number", "`rm /dev/hailo0`, then `mknod -m 666"),
    ],
)
def test_a_spoilt_node_can_be_made_anew_for_the_kernel_tells_its_number(
    how: How, check: str, step: str
) -> None:
    told = told_of(seen(found(EIGHT, how)))
    finding = told.the(check)
    assert (finding.verdict, finding.looked_at) == (Verdict.BROKEN, PLACE)
    assert finding.next_step.startswith(step)
    assert "echo 0000:01:00.0 > unbind" in finding.next_step
    assert "mount the host's /dev" in finding.next_step


@pytest.mark.parametrize(
    ("how", "check"),
    [
        (How.INCOMPLETE, "entry.incomplete"),
        (How.BROKEN, "entry.broken"),
        (How.HUNG, "device.unresponsive"),
        (How.NAMELESS, "identity.unreadable"),
        (How.BLIND, "pci.missing"),
        (How.ORPHAN, "pci.missing"),
    ],
)
def test_an_entry_that_does_not_tell_all_is_named_with_what_it_costs(how: How, check: str) -> None:
    told = told_of(seen(found(EIGHT, how)))
    assert told.verdict is Verdict.BROKEN
    finding = told.the(check)
    assert finding.verdict is Verdict.BROKEN
    assert not finding.next_step.startswith("none")


def test_while_one_entry_does_not_tell_whose_it_is_no_card_is_said_to_lack_one() -> None:
    told = told_of(seen(found(EIGHT, How.HUNG)))
    function = told.the("pci.function")
    assert function.verdict is Verdict.UNSEEN
    assert "hailo_chardev/hailo0" in function.found
    assert told.ills == ["device.unresponsive"]


def test_one_chip_that_two_drivers_list_is_not_counted_twice() -> None:
    again = found(EIGHT, index=5, family=RENAMED)
    told = told_of(seen(found(EIGHT, family=CLASSIC), again))
    assert told.the("device.duplicate").verdict is Verdict.DEGRADED


def test_what_holds_back_a_device_for_good_reason_is_told_once_and_no_other() -> None:
    told = told_of(seen(found(EIGHT, How.NO_NODE), found(BOARDS[1])))
    assert [f.check for f in told.all("devnode.missing")] == ["devnode.missing"]
    assert [f.found for f in told.all("pci.function")] == ["ready as pci-0000-02-00-0, /dev/hailo1"]


def test_a_stranger_of_the_vendor_is_shown_with_its_id() -> None:
    stranger = replace(EIGHT, pci_id=PciId(HAILO_VENDOR, 0x9999))
    told = told_of(seen(found(stranger, How.UNSERVED, index=0)))
    finding = told.the("pci.function")
    assert finding.looked_at == "PCI 0000:01:00.0 (1e60:9999, unknown)"
    assert finding.verdict is Verdict.BROKEN


def test_a_device_of_which_nothing_is_said_is_a_mistake_of_ours() -> None:
    told = told_of(seen(found(EIGHT)), inventory=Inventory())
    finding = told.the("device.unknown")
    assert finding.verdict is Verdict.BROKEN
    assert "report what it says" in finding.next_step
