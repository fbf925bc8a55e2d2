"""A million spoiled frames: each is read, refused or invalid, and never anything else."""

import re
import sys
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Final

import pytest

from hailo_agent.core.control import (
    ControlRefused,
    FrameInvalid,
    read_core_identity,
    read_identity,
    read_state,
    read_temperatures,
)
from tests.core.frames import GOLDEN, is_sane, mutated

FRAMES = 1_000_000
SEED = 20_261_122

READERS: Final[tuple[Callable[[bytes], object], ...]] = (
    read_identity,
    read_temperatures,
    read_state,
)
_FIGURE = re.compile(r"(?<![A-Za-z0-9])-?(?:\d[\d.]*(?:e[+-]?\d+)?|inf|nan)(?![A-Za-z])")


def outcome(random: Random) -> object:
    """Spoil one golden frame, and tell what comes of reading it."""
    kind = random.randrange(3)
    frame = mutated(random, random.choice(GOLDEN).mailboxes[kind])
    # Now and then it answers what nobody asked: the answer to another, late.
    read = (
        READERS[kind] if random.random() < 0.95 else random.choice((*READERS, read_core_identity))
    )
    try:
        return read(frame)
    except (FrameInvalid, ControlRefused) as named:
        return named


def kind_of(told: object) -> str:
    """Name the kind of an outcome, by which it is counted."""
    assert is_sane(told)
    match told:
        case FrameInvalid():
            return "invalid: " + _FIGURE.sub("N", told.reason)
        case ControlRefused():
            return "refused"
    return f"read: {type(told).__name__}"


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_million_spoiled_frames_raise_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    random = Random(SEED)
    counts = Counter(kind_of(outcome(random)) for _ in range(FRAMES))
    python = sys.version.split()[0]
    report = [f"\n{FRAMES:,} frames spoiled with seed {SEED}, Python {python}:"]
    report += [f"{count:>9,}  {what}" for what, count in counts.most_common()]
    with capsys.disabled():
        sys.stdout.write("\n".join((*report, "")))
    assert counts.total() == FRAMES
    assert {what.partition(":")[0] for what in counts} == {"read", "refused", "invalid"}
    # A campaign that only knocks at the outer door proves little.
    past = [
        count for what, count in counts.items() if "MD5" not in what and "answer is" not in what
    ]
    assert sum(past) > FRAMES / 2
