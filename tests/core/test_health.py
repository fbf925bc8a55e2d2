"""Patience: one fault is forgiven at once, repeated ones cost a wait, and nothing else matters."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.health import (
    Fault,
    FaultCode,
    Health,
    History,
    Patience,
    Verdict,
    judge,
)
from tests.strategies import PATIENCE, PAUSES

WRONG = Fault(code=FaultCode.DEVNODE_MISSING, subject="x", message="is missing", remedy="look")

Look = tuple[float, bool]
"""When, and whether the device was well."""


def weigh(
    at: float, before: Verdict | None, *, well: bool, patience: Patience = PATIENCE
) -> Verdict:
    return judge(
        "x",
        () if well else (WRONG,),
        at=at,
        before=None if before is None else before.health,
        history=before.history if before else History(),
        patience=patience,
    )


def verdicts(looks: list[Look], patience: Patience = PATIENCE) -> list[Verdict]:
    found: list[Verdict] = []
    for at, well in looks:
        found.append(weigh(at, found[-1] if found else None, well=well, patience=patience))
    return found


def told(looks: list[Look], patience: Patience = PATIENCE) -> str:
    """Spell the verdicts: `H` for healthy, `u` for unhealthy."""
    return "".join(
        "H" if verdict.health is Health.HEALTHY else "u" for verdict in verdicts(looks, patience)
    )


@st.composite
def rows(draw: st.DrawFn) -> list[Look]:
    at = draw(st.floats(-10, 1e6))
    looks = []
    for _ in range(draw(st.integers(1, 12))):
        looks.append((at, draw(st.booleans())))
        at += draw(st.sampled_from(PAUSES) | st.floats(0, 100))
    return looks


def patiences() -> st.SearchStrategy[Patience]:
    return st.builds(
        Patience,
        recovery_seconds=st.sampled_from([0.0, 5.0, 100.0]),
        flap_window_seconds=st.sampled_from([0.1, 5.0, 60.0]),
    )


@given(rows(), patiences())
def test_a_device_is_healthy_exactly_if_it_has_no_fault(
    looks: list[Look], patience: Patience
) -> None:
    for (_, well), verdict in zip(looks, verdicts(looks, patience), strict=True):
        assert (verdict.health is Health.HEALTHY) == (not verdict.faults)
        assert well or verdict.faults == (WRONG,)


@given(rows(), patiences())
def test_a_look_that_says_the_same_again_changes_nothing(
    looks: list[Look], patience: Patience
) -> None:
    found = verdicts(looks, patience)
    for (at, well), verdict in zip(looks, found, strict=True):
        assert weigh(at, verdict, well=well, patience=patience) == verdict


@given(rows(), patiences())
def test_a_review_is_due_exactly_while_a_device_recovers(
    looks: list[Look], patience: Patience
) -> None:
    for (at, _), verdict in zip(looks, verdicts(looks, patience), strict=True):
        recovers = [fault.code for fault in verdict.faults] == [FaultCode.RECOVERING]
        assert (verdict.review_at is not None) == recovers
        assert verdict.review_at is None or verdict.review_at > at


@given(rows(), patiences())
def test_the_review_finds_a_device_healthy_that_stayed_well(
    looks: list[Look], patience: Patience
) -> None:
    last = verdicts(looks, patience)[-1]
    if last.review_at is not None:
        reviewed = weigh(last.review_at, last, well=True, patience=patience)
        assert reviewed.health is Health.HEALTHY
        assert reviewed.history.since == last.review_at


@given(rows(), patiences())
def test_no_verdict_remembers_more_than_two_faults(looks: list[Look], patience: Patience) -> None:
    for verdict in verdicts(looks, patience):
        assert len(verdict.history.faulted_at) <= 2
        assert list(verdict.history.faulted_at) == sorted(verdict.history.faulted_at)


@given(rows(), patiences())
def test_health_is_dated_with_the_look_that_changed_it(
    looks: list[Look], patience: Patience
) -> None:
    found = verdicts(looks, patience)
    assert found[0].history.since == looks[0][0]
    for (before, after), (at, _) in zip(pairwise(found), looks[1:], strict=True):
        changed = before.health is not after.health
        assert after.history.since == (at if changed else before.history.since)


@given(st.lists(st.floats(0.01, 4.9), min_size=4, max_size=12))
def test_flapping_within_the_window_reads_as_one_transition_after_the_first(
    pauses: list[float],
) -> None:
    looks, at = [(0.0, True)], 0.0
    for n, pause in enumerate(pauses):
        at += pause  # at most 12 * 4.9 s, which is within the window
        looks.append((at, bool(n % 2)))
    assert told(looks) == "HuH" + "u" * (len(looks) - 3)


@given(rows(), patiences())
def test_who_faulted_twice_within_the_window_is_well_for_a_while_before_it_is_trusted(
    looks: list[Look], patience: Patience
) -> None:
    found = verdicts(looks, patience)
    faulted_at: list[float] = []
    well_since = looks[0][0]
    for ((_, was_well), before), ((at, well), after) in pairwise(zip(looks, found, strict=True)):
        if was_well and not well:
            faulted_at.append(at)
        if well and not was_well:
            well_since = at
        recovered = before.health is Health.UNHEALTHY and after.health is Health.HEALTHY
        if recovered and len(faulted_at) > 1:
            repeatedly = faulted_at[-1] - faulted_at[-2] < patience.flap_window_seconds
            waited = at >= well_since + patience.recovery_seconds
            assert waited or not repeatedly


def test_only_the_last_two_faults_are_remembered_however_fast_they_come() -> None:
    eager = Patience(recovery_seconds=0.0, flap_window_seconds=60.0)
    last = verdicts([(float(n), n % 2 == 0) for n in range(20)], eager)[-1]
    assert last.history.faulted_at == (17.0, 19.0)


def test_flapping_that_outlasts_the_window_is_still_flapping() -> None:
    # Ill and well by turns, each for two seconds, for ten minutes: never well for five seconds.
    looks = [(2.0 * n, n % 2 == 0) for n in range(300)]
    assert told(looks) == "HuH" + "u" * 297


def test_the_first_fault_counts_at_once_and_is_forgiven_at_once() -> None:
    assert told([(0.0, True), (1.0, False), (1.1, True), (1.2, True)]) == "HuHH"


def test_the_second_fault_within_the_window_costs_a_wait() -> None:
    looks = [(0, True), (1, False), (2, True), (30, False), (31, True), (35.9, True), (36, True)]
    assert told([(float(at), well) for at, well in looks]) == "HuHuuuH"
    recovering = verdicts(looks[:5])[-1]
    assert recovering.review_at == 36.0
    assert recovering.history.well_since == 31.0


def test_a_fault_long_after_the_first_is_a_first_one_again() -> None:
    assert told([(0.0, True), (1.0, False), (2.0, True), (61.0, False), (62.0, True)]) == "HuHuH"


def test_a_fault_while_recovering_starts_the_wait_anew() -> None:
    looks = [(0, True), (1, False), (2, True), (3, False), (4, True), (6, False), (7, True)]
    late = verdicts([(float(at), well) for at, well in looks])[-1]
    assert late.health is Health.UNHEALTHY
    assert late.review_at == 12.0


@pytest.mark.parametrize("peeked_at", [None, 59.9, 60.1, 62.0, 64.4])
def test_looking_in_between_does_not_shorten_the_wait(peeked_at: float | None) -> None:
    # The two faults lie within the window; that the older one leaves it meanwhile changes nothing.
    looks = [(0.0, True), (0.5, False), (1.0, True), (59.0, False), (59.5, True)]
    promised = verdicts(looks)[-1].review_at
    assert promised == 64.5
    if peeked_at is not None:
        assert told([*looks, (peeked_at, True)]) == "HuHuuu"
    assert told([*looks, (promised, True)]) == "HuHuuH"


@pytest.mark.parametrize("looks_while_ill", [(), (60.0, 61.0, 200.0)])
def test_a_long_second_fault_does_not_shorten_the_wait(looks_while_ill: tuple[float, ...]) -> None:
    # The faults began within the window; how long the second one lasts does not make it a first.
    looks = [(0.0, True), (0.5, False), (1.0, True), (59.0, False)]
    looks += [(at, False) for at in looks_while_ill]
    assert told([*looks, (300.0, True), (304.9, True), (305.0, True)])[-3:] == "uuH"


def test_a_device_that_begins_ill_is_trusted_as_soon_as_it_is_well() -> None:
    assert told([(0.0, False), (1.0, True)]) == "uH"


def test_without_a_wait_every_recovery_counts_at_once() -> None:
    eager = Patience(recovery_seconds=0.0, flap_window_seconds=60.0)
    assert told([(float(n), n % 2 == 0) for n in range(8)], eager) == "HuHuHuHu"


def test_who_waits_is_told_how_long_and_why() -> None:
    looks = [(0.0, True), (1.0, False), (2.0, True), (3.0, False), (4.0, True)]
    (fault,) = verdicts(looks)[-1].faults
    assert fault.code is FaultCode.RECOVERING
    assert fault.subject == "x"
    assert fault.since == 4.0
    assert "60 s" in fault.message
    assert "5 s" in fault.remedy
