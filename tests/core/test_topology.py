"""Preference: always an answer, always the same one, and the closest that can be had."""

from itertools import combinations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.device import Topology
from hailo_agent.core.topology import NOWHERE, closeness, prefer
from tests.strategies import machines

Places = dict[str, Topology]

TWO_NODES: Places = {
    # Behind one switch two and three devices, and on the other NUMA node a single one.
    "a0": Topology(numa_node=0, bridges=("r0", "s0", "p0")),
    "a1": Topology(numa_node=0, bridges=("r0", "s0", "p1")),
    "b0": Topology(numa_node=0, bridges=("r0", "s1", "p0")),
    "b1": Topology(numa_node=0, bridges=("r0", "s1", "p1")),
    "b2": Topology(numa_node=0, bridges=("r0", "s1", "p2")),
    "c0": Topology(numa_node=1, bridges=("r1", "s2", "p0")),
}


@st.composite
def questions(draw: st.DrawFn) -> tuple[Places, list[str], list[str], int]:
    """A question as the kubelet asks: some ids free, of these some a must, and how many."""
    places = draw(machines())
    names = sorted(places)
    available = [name for name in names if draw(st.integers(0, 4))]
    must = [name for name in available if not draw(st.integers(0, 3))]
    return places, available, must, draw(st.integers(len(must), len(available)))


def any_ids() -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(["npu-0", "npu-1", "npu-2", "stranger", ""]), max_size=6)


@given(questions())
def test_the_answer_is_of_the_size_asked_for_and_holds_what_it_must(
    question: tuple[Places, list[str], list[str], int],
) -> None:
    places, available, must, size = question
    answer = prefer(places, available, must, size)
    assert len(answer) == len(set(answer)) == size
    assert set(must) <= set(answer) <= set(available)


@given(questions(), st.integers(0, 1 << 16))
def test_equal_questions_get_equal_answers(
    question: tuple[Places, list[str], list[str], int], seed: int
) -> None:
    places, available, must, size = question
    shuffled = Random(seed).sample(available, len(available))
    backwards = dict(reversed(places.items()))
    assert prefer(backwards, shuffled, must, size) == prefer(places, available, must, size)


@given(machines(), any_ids(), any_ids(), st.integers(-2, 9))
def test_there_is_an_answer_to_everything(
    places: Places, available: list[str], must: list[str], size: int
) -> None:
    answer = prefer(places, available, must, size)
    assert len(answer) == len(set(answer)) == min(max(size, 0), len({*available, *must}))
    assert set(answer) <= {*available, *must}
    assert set(must) <= set(answer) or set(answer) <= set(must)


@given(machines(), st.integers(2, 9))
def test_nothing_is_spread_that_fits_one_numa_node_root_or_bridge(
    places: Places, size: int
) -> None:
    answer = prefer(places, sorted(places), [], size)

    def numa(place: Topology) -> object:
        return place.numa_node

    def root(place: Topology) -> object:
        return place.numa_node, place.pcie_root

    def siblings(place: Topology) -> object:
        return place.numa_node, place.bridges

    for group_of in (numa, root, siblings):
        groups = [group_of(place) for place in places.values()]
        if any(groups.count(group) >= size for group in groups):
            assert len({group_of(places[name]) for name in answer}) == 1


@given(machines(), st.integers(1, 9))
def test_of_groups_that_fit_equally_the_smallest_is_taken(places: Places, size: int) -> None:
    answer = prefer(places, sorted(places), [], size)
    whole = list(places.values())
    fitting = [whole.count(place) for place in whole if whole.count(place) >= size]
    if fitting and size < len(places):
        deepest = max(len(place.bridges) for place in whole)
        flat = all(len(place.bridges) == deepest for place in whole)
        assert not flat or whole.count(places[answer[0]]) == min(fitting)


@pytest.mark.parametrize(
    ("size", "answer"),
    [
        (1, {"a0"}),
        (2, {"a0", "a1"}),
        (3, {"b0", "b1", "b2"}),
        (6, set(TWO_NODES)),
        (7, set(TWO_NODES)),
    ],
)
def test_a_group_is_taken_whole_and_the_bigger_one_is_left(size: int, answer: set[str]) -> None:
    assert set(prefer(TWO_NODES, list(TWO_NODES), [], size)) == answer


def test_four_of_six_lie_on_one_numa_node() -> None:
    assert "c0" not in prefer(TWO_NODES, list(TWO_NODES), [], 4)


@pytest.mark.parametrize(
    ("must", "size", "answer"),
    [
        (["b1"], 2, {"b1", "b0"}),
        (["b1"], 3, {"b1", "b0", "b2"}),
        (["c0"], 2, {"c0", "a0"}),
        (["a0", "c0"], 3, {"a0", "a1", "c0"}),
        (["a0", "b0", "c0"], 2, {"a0", "b0"}),
    ],
)
def test_what_must_be_included_draws_its_neighbours_in(
    must: list[str], size: int, answer: set[str]
) -> None:
    assert set(prefer(TWO_NODES, list(TWO_NODES), must, size)) == answer


def test_what_fits_no_group_starts_with_the_biggest() -> None:
    places = {
        "a": Topology(numa_node=0),
        "b": Topology(numa_node=1),
        "c": Topology(numa_node=2),
        "d": Topology(numa_node=2),
    }
    assert set(prefer(places, list(places), [], 3)) == {"a", "c", "d"}


def test_devices_that_nobody_can_place_are_not_taken_for_neighbours() -> None:
    switch = Topology(numa_node=0, bridges=("r0", "s0"))
    places = {"a": NOWHERE, "b": NOWHERE, "y": switch, "z": switch}
    assert set(prefer(places, list(places), [], 2)) == {"y", "z"}


def test_a_numa_node_of_zero_is_a_place_and_an_unknown_one_is_not() -> None:
    zero, unknown = Topology(numa_node=0), Topology()
    assert closeness(zero, zero) > closeness(zero, unknown)
    assert closeness(unknown, unknown) == closeness(zero, unknown) == (0, 0, 0)


def test_closer_is_bigger() -> None:
    here = Topology(numa_node=0, bridges=("r0", "s0", "p0"))
    order = [
        Topology(numa_node=1, bridges=("r1", "s0", "p0")),
        Topology(numa_node=0, bridges=("r1",)),
        Topology(numa_node=0, bridges=("r0", "s1", "p0")),
        Topology(numa_node=0, bridges=("r0", "s0", "p1")),
        here,
    ]
    found = [closeness(here, other) for other in order]
    assert found == sorted(set(found))


@given(machines())
def test_closeness_is_mutual(places: Places) -> None:
    for one, other in combinations(places.values(), 2):
        assert closeness(one, other) == closeness(other, one) <= closeness(one, one)
