"""What the kubelet counts, held against what it was told: when that proves anything, and what."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.standing import (
    NAMED,
    SETTLE_SECONDS,
    Counted,
    Standing,
    Told,
    Verdict,
    named,
    weigh,
)

NPU, OTHER = "hailo.ai/npu", "hailo.ai/h8"
LATER = 100.0


def told(*ids: str, at: float = 0.0) -> Told:
    return Told(healthy=frozenset(ids), at=at)


def counted(*ids: str, asked_at: float = LATER, resource: str = NPU) -> Counted:
    return Counted(by_resource={resource: frozenset(ids)}, asked_at=asked_at)


def weighed(*answers: tuple[Told | None, Counted], resource: str = NPU) -> Standing:
    standing = Standing()
    for list_, answer in answers:
        standing = weigh(standing, resource, list_, answer)
    return standing


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (["a", "b"], ["a", "b"], Verdict.COUNTED),
        (["a", "b"], [], Verdict.UNCOUNTED),
        (["a", "b"], ["hailo0"], Verdict.CONTESTED),
        (["a", "b"], ["a", "b", "hailo0"], Verdict.CONTESTED),
        (["a", "b"], ["a"], Verdict.UNPROVEN),
        ([], [], Verdict.COUNTED),
        ([], ["hailo0"], Verdict.CONTESTED),
    ],
    ids=["equal", "none", "another's", "both", "some", "nothing to count", "another's alone"],
)
def test_one_answer_says_what_it_says(
    ours: Sequence[str], theirs: Sequence[str], verdict: Verdict
) -> None:
    standing = weighed((told(*ours), counted(*theirs)))
    assert standing.verdict is verdict
    assert standing.times == (verdict is not Verdict.UNPROVEN)
    assert standing.others == (("hailo0",) if verdict is Verdict.CONTESTED else ())


def test_an_unhealthy_device_that_is_counted_as_healthy_is_anothers() -> None:
    # A tombstone of ours may have the very name that another plugin offers.
    assert weighed((told("a"), counted("a", "hailo0"))).others == ("hailo0",)


def test_answers_that_say_the_same_are_counted_whichever_ids_are_named() -> None:
    ours = told("a")
    standing = weighed((ours, counted("hailo0")), (ours, counted("hailo1")))
    assert (standing.verdict, standing.times) == (Verdict.CONTESTED, 2)
    assert standing.others == ("hailo1",)


@pytest.mark.parametrize("between", [counted("a"), counted("hailo0"), counted("a", asked_at=0.5)])
def test_an_answer_that_says_something_else_begins_anew(between: Counted) -> None:
    ours = told("a", "b")
    standing = weighed((ours, counted()), (ours, between), (ours, counted()))
    assert (standing.verdict, standing.times) == (Verdict.UNCOUNTED, 1)


def test_an_answer_to_another_list_begins_anew() -> None:
    standing = weighed((told("a"), counted()), (told("a", at=50.0), counted()))
    assert (standing.verdict, standing.times) == (Verdict.UNCOUNTED, 1)


@pytest.mark.parametrize(
    ("asked_at", "proves"),
    [
        (9.0, False),
        (10.0, False),
        (10.0 + SETTLE_SECONDS - 0.01, False),
        (10.0 + SETTLE_SECONDS, True),
    ],
)
def test_a_question_proves_nothing_of_a_list_that_it_did_not_leave_time(
    asked_at: float,
    proves: bool,  # noqa: FBT001 - a column of the table
) -> None:
    standing = weighed((told("a", at=10.0), counted(asked_at=asked_at)))
    assert (standing.verdict is Verdict.UNCOUNTED) is proves


def test_nothing_is_proven_while_a_list_is_under_way_or_nobody_listens() -> None:
    assert weighed((told("a"), counted()), (None, counted())) == Standing()


def test_what_is_counted_of_another_resource_says_nothing_of_this_one() -> None:
    ours = told("a")
    assert weighed((ours, counted("x", resource=OTHER))).verdict is Verdict.UNCOUNTED
    assert weighed((ours, counted("a", resource=OTHER)), resource=OTHER).verdict is Verdict.COUNTED


IDS = st.frozensets(st.sampled_from(["a", "b", "hailo0", "hailo1"]))


@given(st.lists(st.tuples(IDS, IDS, st.sampled_from([0.0, 1.0, 5.0, 9.0])), max_size=8))
def test_two_in_a_row_are_believed_only_of_one_list_that_both_had_time_to_hear(
    history: list[tuple[frozenset[str], frozenset[str], float]],
) -> None:
    standing, lists = Standing(), []
    for step, (ours, theirs, since) in enumerate(history):
        list_ = Told(healthy=ours, at=10.0 * step - since)
        lists.append(list_)
        standing = weigh(standing, NPU, list_, counted(*theirs, asked_at=10.0 * step))
    if standing.times >= 2:
        assert lists[-2] == lists[-1]
    if standing.verdict is Verdict.UNCOUNTED:
        assert history[-1][0]
        assert not history[-1][1]
    if standing.verdict is Verdict.CONTESTED:
        assert not history[-1][1] <= history[-1][0]
    if standing.verdict is not Verdict.UNPROVEN:
        assert history[-1][2] >= SETTLE_SECONDS


def test_a_few_ids_are_named_and_the_rest_is_counted() -> None:
    assert named(("a",)) == "a"
    assert named(tuple("abcde"[:NAMED])) == "a, b, c, d, e"
    assert named(tuple("abcdefg")) == "a, b, c, d, e and 2 more"
