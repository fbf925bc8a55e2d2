"""The page on metrics promises what the code has, in both directions."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import pytest
from prometheus_client.process_collector import ProcessCollector

from hailo_agent.aio.supervise import State
from hailo_agent.aio.tally import BOUNDS_SECONDS, MAX_LABELS
from hailo_agent.core.health import Health, Severity
from hailo_agent.core.usage import MAX_NETWORKS, Direction
from hailo_agent.web.definitions import DEFINITIONS, Definition, Type
from hailo_agent.web.families import MAX_NAME, MAX_TEXT
from hailo_agent.web.usage_metrics import MAX_NETWORKS_IN_ALL
from tests.house.repository import ROOT

PAGE = (ROOT / "docs" / "reference" / "metrics.md").read_text()
_CELL = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric as the page has it."""

    name: str
    type: str
    unit: str
    labels: tuple[str, ...]
    meaning: str
    example: str


def rows() -> Iterator[Row]:
    for line in re.findall(r"^\| (`\w+` \|.*) \|$", PAGE, re.MULTILINE):
        name, kind, unit, labels, meaning, _, example = map(str.strip, _CELL.split(line))
        yield Row(
            name=name.strip("`"),
            type=kind,
            unit=unit,
            labels=tuple(re.findall(r"`([^`]+)`", labels)),
            meaning=meaning,
            example=example.strip("`"),
        )


def of_the_process() -> Iterator[Definition]:
    for metric in ProcessCollector(registry=None).collect():
        suffix = "_total" if metric.type == "counter" else ""
        yield Definition(metric.name + suffix, Type(metric.type), metric.documentation)


def test_every_metric_is_documented_with_type_unit_and_labels_and_the_other_way_round() -> None:
    documented = [(row.name, row.type, row.unit, row.labels) for row in rows()]
    assert len(documented) == len(set(documented)) > 40
    assert set(documented) == {
        (definition.name, definition.type.value, definition.unit, definition.labels)
        for definition in chain(DEFINITIONS, of_the_process())
    }


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: row.name)
def test_every_metric_has_a_meaning_and_a_query_that_uses_it(row: Row) -> None:
    assert row.meaning
    assert re.search(rf"\b{row.name}", row.example)


def test_no_label_holds_what_a_query_would_compute_with() -> None:
    labels = {label for definition in DEFINITIONS for label in definition.labels}
    assert not labels & {"value", "temperature", "speed", "width", "count", "seconds", "ratio"}


def test_the_states_and_bounds_of_the_page_are_those_of_the_code() -> None:
    for word in (*Health, *Severity, *State, *Direction):
        assert f"`{word.value}`" in PAGE, word
    bounds = ", ".join(f"{bound:g}" for bound in BOUNDS_SECONDS)
    assert bounds in " ".join(PAGE.split())
    for most in (MAX_LABELS, MAX_TEXT, MAX_NAME, MAX_NETWORKS, MAX_NETWORKS_IN_ALL):
        assert str(most) in PAGE
