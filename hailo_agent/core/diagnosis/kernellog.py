"""What the kernel log says of one PCI function: how the last attempt to start it went, and why.

The words are those of Hailo's own drivers (linux/pcie/src/pcie.c, common/pcie_common.c, soc.c, from
4.17 to 5.2) and of the kernel around them (drivers/base/dd.c, drivers/base/firmware_loader). A log
is long, and may be cut at its beginning: only what came after the last `Probing on` counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from hailo_agent.core.device import PciAddress
from hailo_agent.core.drivers import OPTIONAL_FIRMWARE


class Outcome(StrEnum):
    """How an attempt to start a function ended."""

    ADDED = "added"
    FAILED = "failed"
    RELEASED = "released"
    """It worked, and then somebody unbound it."""
    UNKNOWN = "unknown"
    """It goes on, or the log says nothing of it."""


class Cause(StrEnum):
    """Why a driver gave up, as far as the log tells."""

    NO_FIRMWARE = "no firmware"
    WRONG_FIRMWARE = "wrong firmware"
    NO_INTERRUPTS = "no interrupts"
    TIMEOUT = "timeout"
    DISCONNECTED = "disconnected"
    CLASS_TAKEN = "class taken"
    REGIONS_TAKEN = "regions taken"
    REFUSED = "refused"
    NO_MEMORY = "no memory"


_CLUES: Final = (
    # The order is that of certainty: what is named outright comes before what a number suggests.
    (Cause.NO_FIRMWARE, re.compile(r"Firmware file not found \((?P<file>[^)]+)\)")),
    (Cause.NO_FIRMWARE, re.compile(r"Failed with error -2 to write file (?P<file>\S+)")),
    (Cause.NO_FIRMWARE, re.compile(r"Direct firmware load for (?P<file>\S+) failed")),
    # request_firmware_direct() failed; what the driver says of memory there is not so.
    (Cause.NO_FIRMWARE, re.compile(r"Failed to allocate memory for file (?P<file>\S+)")),
    (Cause.WRONG_FIRMWARE, re.compile(r"Failed with error -\d+ to write file (?P<file>\S+)")),
    (Cause.NO_FIRMWARE, re.compile(r"Failed to write file (?P<file>\S+)")),
    (Cause.NO_INTERRUPTS, re.compile(r"Failed to enable MSI|Failed [Ee]nabling interrupts")),
    (Cause.CLASS_TAKEN, re.compile(r"duplicate filename '/class/h(?:ailo|1x)")),
    (Cause.CLASS_TAKEN, re.compile(r"Failed to create class for chrdev")),
    (Cause.DISCONNECTED, re.compile(r"device may be disconnected")),
    (Cause.REGIONS_TAKEN, re.compile(r"Error allocating bars")),
    (Cause.TIMEOUT, re.compile(r"Timeout waiting for")),
)

_BY_ERRNO: Final = {
    2: Cause.NO_FIRMWARE,
    12: Cause.NO_MEMORY,
    16: Cause.REGIONS_TAKEN,
    17: Cause.CLASS_TAKEN,
    19: Cause.DISCONNECTED,
    22: Cause.REFUSED,
    27: Cause.WRONG_FIRMWARE,
    28: Cause.NO_INTERRUPTS,
    110: Cause.TIMEOUT,
}

# Up to Linux 6.11 `hailo: probe of 0000:01:00.0 failed with error -2`, from 6.12 on
# `hailo 0000:01:00.0: probe with driver hailo failed with error -2` (really_probe()).
_FAILED = re.compile(r"\bprobe (?:of|with)\b.*failed with error -(?P<errno>[0-9]{1,3})\b")
_ACTIVATION = re.compile(r"Failed activating board -(?P<errno>[0-9]{1,3})\b")
_ADDED = re.compile(r"\bAdded board\b")
_RELEASED = re.compile(r"\bRemove: ")
_RESET = re.compile(r"\bReset preparation for PCI device\b")
_PAGE = re.compile(r"[Ss]etting max_desc_page_size to (?P<bytes>[0-9]{1,9})\b")
_MISMATCH = re.compile(r"\bMismatch Driver version\b", re.IGNORECASE)
_ADDRESS = re.compile(r"\b[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\b")
_OURS = re.compile(r"hailo|h1x", re.IGNORECASE)
_STAMP = re.compile(r"^\[ *[0-9]+\.[0-9]+\] *")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The last time a driver tried to start one function."""

    outcome: Outcome = Outcome.UNKNOWN
    cause: Cause | None = None
    errno: int | None = None
    line: str = ""
    """The line that says most; empty if there is none."""
    files: tuple[str, ...] = ()
    """Firmware files that were missed or refused."""
    was_reset: bool = False
    """Whether the function was reset after it had been started."""
    page_bytes: int | None = None
    """How large the driver takes the pages of its descriptors to be."""
    mismatch: str = ""
    """What the driver said of a chip that runs another release; empty if nothing."""


def last_attempt(lines: Sequence[str], address: PciAddress) -> Attempt:
    """Find out how the last attempt to start a function went."""
    window = tuple(_window(lines, str(address)))
    attempt = Attempt()
    for line in window:
        if str(address) in line:
            attempt = _after(attempt, line)
    clues = tuple(_clues(window))
    best = min(clues, default=None)
    if best is not None:
        attempt = replace(attempt, cause=best.cause, line=best.line)
    elif attempt.errno is not None:
        attempt = replace(attempt, cause=_BY_ERRNO.get(attempt.errno))
    files = (clue.file for clue in clues if clue.file and clue.cause is attempt.cause)
    return replace(attempt, files=tuple(dict.fromkeys(files)))


def _after(attempt: Attempt, line: str) -> Attempt:
    """Take one more line into account."""
    if failed := _FAILED.search(line) or _ACTIVATION.search(line):
        return replace(
            attempt, outcome=Outcome.FAILED, errno=int(failed["errno"]), line=_unstamped(line)
        )
    if _ADDED.search(line):
        return replace(attempt, outcome=Outcome.ADDED, errno=None, line="", was_reset=False)
    if page := _PAGE.search(line):
        return replace(attempt, page_bytes=int(page["bytes"]))
    if _MISMATCH.search(line):
        return replace(attempt, mismatch=_unstamped(line))
    return replace(
        attempt,
        outcome=Outcome.RELEASED if _RELEASED.search(line) else attempt.outcome,
        was_reset=attempt.was_reset or _RESET.search(line) is not None,
    )


@dataclass(frozen=True, slots=True, order=True)
class _Clue:
    """A line that names a cause: the surest first, and of those the earliest."""

    rank: int
    position: int
    cause: Cause
    line: str
    file: str


def _clues(lines: Iterable[str]) -> Iterator[_Clue]:
    for position, line in enumerate(lines):
        for rank, (cause, pattern) in enumerate(_CLUES):
            if match := pattern.search(line):
                file = _plain(match.groupdict().get("file") or "")
                if file not in OPTIONAL_FIRMWARE:
                    yield _Clue(rank, position, cause, _unstamped(line), file)
                break


def lines_about(lines: Iterable[str], pattern: str) -> tuple[str, ...]:
    """Pick lines by a regular expression, without their time stamps."""
    return tuple(_unstamped(line) for line in lines if re.search(pattern, line))


def _window(lines: Sequence[str], address: str) -> Iterable[str]:
    """Pick the lines since the last probe began: this function's, and those that name none.

    The driver says some things without an address (`pr_err`); where several functions are probed at
    once such a line is taken for each of them.
    """
    starts = [i for i, line in enumerate(lines) if address in line and "Probing on" in line]
    for line in lines[starts[-1] if starts else 0 :]:
        if address in line or (_OURS.search(line) and not _ADDRESS.search(line)):
            yield line


def _plain(file: str) -> str:
    """Name a firmware file as the tables do: 4.18 and older gave its whole path."""
    return file.strip("'\"").removeprefix("/lib/firmware/")


def _unstamped(line: str) -> str:
    return _STAMP.sub("", line.strip())
