"""What the kernel log tells of an attempt to start a card."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.device import PciAddress
from hailo_agent.core.diagnosis.kernellog import (
    Attempt,
    Cause,
    Outcome,
    last_attempt,
    lines_about,
)

ADDRESS = PciAddress(0, 1, 0, 0)
OTHER = PciAddress(0, 2, 0, 0)
PROBING = f"[    5.0] hailo {ADDRESS}: Probing on: 1e60:2864..."
ADDED = f"[    6.0] hailo {ADDRESS}: Probing: Added board 1e60-2864, /dev/hailo0"
OLD_KERNEL = f"[    6.0] hailo: probe of {ADDRESS} failed with error -{{}}"
NEW_KERNEL = f"[    6.0] hailo {ADDRESS}: probe with driver hailo failed with error -{{}}"


def told(*lines: str) -> Attempt:
    return last_attempt(lines, ADDRESS)


def test_a_log_without_a_word_of_it_tells_nothing() -> None:
    assert told() == Attempt()
    assert told(PROBING.replace(str(ADDRESS), str(OTHER)), "usb 1-1: new device") == Attempt()


def test_a_driver_that_has_begun_and_not_ended_leaves_it_open() -> None:
    assert told(PROBING).outcome is Outcome.UNKNOWN


def test_a_board_that_was_added_works() -> None:
    assert told(PROBING, ADDED).outcome is Outcome.ADDED


def test_a_board_that_was_released_did_work() -> None:
    released = f"[    9.0] hailo {ADDRESS}: Remove: Releasing board"
    assert told(PROBING, ADDED, released).outcome is Outcome.RELEASED


@pytest.mark.parametrize("words", [OLD_KERNEL, NEW_KERNEL])
@pytest.mark.parametrize(
    ("errno", "cause"),
    [
        (2, Cause.NO_FIRMWARE),
        (12, Cause.NO_MEMORY),
        (16, Cause.REGIONS_TAKEN),
        (17, Cause.CLASS_TAKEN),
        (19, Cause.DISCONNECTED),
        (22, Cause.REFUSED),
        (28, Cause.NO_INTERRUPTS),
        (110, Cause.TIMEOUT),
        (5, None),
    ],
)
def test_a_probe_that_fails_suggests_a_cause_by_its_number(
    words: str, errno: int, cause: Cause | None
) -> None:
    attempt = told(PROBING, words.format(errno))
    assert (attempt.outcome, attempt.errno, attempt.cause) == (Outcome.FAILED, errno, cause)
    assert attempt.line == words.format(errno).partition("] ")[2]


@pytest.mark.parametrize(
    ("line", "cause", "files"),
    [
        (
            (
                f"hailo {ADDRESS}: Firmware file not found (/lib/firmware/hailo/hailo8_fw.bin),"
                " please upload the firmware manually"
            ),
            Cause.NO_FIRMWARE,
            ("hailo/hailo8_fw.bin",),
        ),
        (
            "Failed with error -2 to write file hailo/hailo8_fw.bin",
            Cause.NO_FIRMWARE,
            ("hailo/hailo8_fw.bin",),
        ),
        (
            f"hailo {ADDRESS}: Direct firmware load for hailo/hailo8_fw.bin failed with error -2",
            Cause.NO_FIRMWARE,
            ("hailo/hailo8_fw.bin",),
        ),
        (
            "Failed with error -27 to write file hailo/hailo8_fw.bin",
            Cause.WRONG_FIRMWARE,
            ("hailo/hailo8_fw.bin",),
        ),
        (f"hailo {ADDRESS}: Failed to enable MSI -28", Cause.NO_INTERRUPTS, ()),
        (
            "sysfs: cannot create duplicate filename '/class/hailo_chardev'",
            Cause.CLASS_TAKEN,
            (),
        ),
        (f"hailo {ADDRESS}: device may be disconnected", Cause.DISCONNECTED, ()),
        (f"hailo {ADDRESS}: Error allocating bars", Cause.REGIONS_TAKEN, ()),
        (f"hailo {ADDRESS}: Timeout waiting for vDMA boot data completion", Cause.TIMEOUT, ()),
    ],
)
def test_what_the_driver_names_outright_counts_for_more_than_a_number(
    line: str, cause: Cause, files: tuple[str, ...]
) -> None:
    attempt = told(PROBING, f"[    5.5] {line}", NEW_KERNEL.format(22))
    assert (attempt.cause, attempt.files) == (cause, files)
    assert attempt.line == line
    assert attempt.errno == 22


def test_of_many_causes_the_surest_is_told_and_of_its_lines_the_first() -> None:
    timeout = f"hailo {ADDRESS}: Timeout waiting for firmware"
    missed = [f"Failed with error -2 to write file hailo/{name}" for name in ("a.bin", "b.bin")]
    attempt = told(PROBING, timeout, *missed, timeout)
    assert attempt.cause is Cause.NO_FIRMWARE
    assert attempt.line == missed[0]
    assert attempt.files == ("hailo/a.bin", "hailo/b.bin")


@pytest.mark.parametrize("file", ["hailo/hailo8_board_cfg.bin", "hailo/hailo8_fw_cfg.bin"])
def test_a_file_that_nobody_needs_is_not_missed(file: str) -> None:
    attempt = told(PROBING, f"[    5.5] Failed to write file {file}", ADDED)
    assert (attempt.outcome, attempt.cause) == (Outcome.ADDED, None)


def test_only_the_last_attempt_counts() -> None:
    missing = "[    5.5] Failed with error -2 to write file hailo/hailo8_fw.bin"
    attempt = told(PROBING, missing, NEW_KERNEL.format(2), PROBING, ADDED)
    assert (attempt.outcome, attempt.cause, attempt.files) == (Outcome.ADDED, None, ())


def test_a_board_that_was_added_after_all_did_not_fail() -> None:
    attempt = told(NEW_KERNEL.format(2), ADDED)
    assert attempt == Attempt(outcome=Outcome.ADDED)


def test_a_log_that_was_cut_at_its_beginning_is_read_all_the_same() -> None:
    assert told(NEW_KERNEL.format(28)).cause is Cause.NO_INTERRUPTS


def test_what_befell_another_card_is_not_taken_for_ours() -> None:
    others = NEW_KERNEL.format(110).replace(str(ADDRESS), str(OTHER))
    reset = f"[    9.0] hailo {OTHER}: Reset preparation for PCI device"
    assert told(PROBING, ADDED, others, reset) == Attempt(outcome=Outcome.ADDED)


def test_a_reset_is_remembered_until_the_board_is_added_again() -> None:
    reset = f"[    9.0] hailo {ADDRESS}: Reset preparation for PCI device"
    assert told(PROBING, ADDED, reset).was_reset
    assert not told(PROBING, ADDED, reset, PROBING, ADDED).was_reset


def test_page_size_and_release_of_the_chip_are_picked_up() -> None:
    page = f"[    5.1] hailo {ADDRESS}: Probing: Setting max_desc_page_size to 16384,"
    mismatch = (
        f"[    5.2] hailo1x {ADDRESS}: Mismatch Driver version pcie driver 5:3:0 pci_ep driver"
        " 5:1:1"
    )
    attempt = told(PROBING, page, mismatch, ADDED)
    assert attempt.page_bytes == 16384
    assert attempt.mismatch.endswith("pci_ep driver 5:1:1")


def test_lines_are_picked_without_their_stamps() -> None:
    lines = ("[12345.678901] one: avc:  denied", "two", "[    0.5] avc: denied")
    assert lines_about(lines, r"avc: +denied") == ("one: avc:  denied", "avc: denied")


PIECES = st.sampled_from(
    [
        PROBING,
        ADDED,
        NEW_KERNEL.format(2),
        OLD_KERNEL.format(999),
        "Failed to write file ",
        "Failed with error -99999999999 to write file x",
        f"hailo {ADDRESS}: Setting max_desc_page_size to 99999999999999",
        f"hailo {ADDRESS}: Failed activating board -1",
        "",
        "\x00\x1b[2Jhailo",
    ]
)


@given(st.lists(PIECES | st.text(max_size=60), max_size=12))
def test_no_log_is_too_strange(lines: list[str]) -> None:
    attempt = last_attempt(lines, ADDRESS)
    assert (attempt.outcome is Outcome.FAILED) is (attempt.errno is not None)
    assert "hailo/hailo8_board_cfg.bin" not in attempt.files
