"""Counting: everything is kept, and nothing grows without bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.aio.tally import BOUNDS_SECONDS, MAX_LABELS, Durations, Tally


def test_counts_are_kept_by_name_and_labels() -> None:
    tally = Tally()
    tally.count("lists", "a")
    tally.count("lists", "a", by=2)
    tally.count("lists", "b")
    assert dict(tally.counts("lists")) == {("a",): 3.0, ("b",): 1.0}
    assert dict(tally.counts("nothing")) == {}


def test_labels_without_end_become_one() -> None:
    tally = Tally()
    for number in range(3 * MAX_LABELS):
        tally.count("refusals", str(number), "x")
        tally.time("calls", str(number), "x", seconds=0.1)
    assert len(tally.counts("refusals")) == MAX_LABELS + 1
    assert tally.counts("refusals")["other", "other"] == 2 * MAX_LABELS
    assert sum(tally.counts("refusals").values()) == 3 * MAX_LABELS
    assert tally.durations("calls")["other", "other"].count == 2 * MAX_LABELS


@given(st.lists(st.floats(0, 100)))
def test_each_duration_is_in_the_class_whose_bound_it_does_not_exceed(seconds: list[float]) -> None:
    durations = Durations()
    for one in seconds:
        durations.add(one)
    upper = 0
    for bound, number in zip(BOUNDS_SECONDS, durations.classes, strict=False):
        upper += number
        assert upper == sum(one <= bound for one in seconds)
    assert durations.count == len(seconds)
    assert durations.sum_seconds == pytest.approx(sum(seconds))  # 3.12 sums more exactly
