"""Every panel asks one question, and a real Prometheus has the answer."""

import html
import json
import math
import re
import time
from collections.abc import Iterator
from itertools import combinations
from typing import Any, Final

import pytest

from hack.dashboards.boards import BOARDS, FOLDER, written
from hack.dashboards.grafana import Board
from hailo_agent.web.definitions import DEFINITIONS
from tests.house.repository import ROOT
from tests.observability.drawing import Series, page
from tests.observability.scraping import JOB, Prometheus, PromqlError
from tests.observability.states import STATES

pytestmark = [pytest.mark.xdist_group("observability"), pytest.mark.timeout(150)]

Json = dict[str, Any]

_BOARDS: Final[dict[str, Json]] = {
    board.name: json.loads((FOLDER / f"{board.name}.json").read_text()) for board in BOARDS
}
_ALL: Final = [
    (name, panel)
    for name, board in _BOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
]
_PANELS: Final = [pytest.param(name, panel, id=f"{name}: {panel['title']}") for name, panel in _ALL]
_NOT_SHOWN: Final = {
    "hailo_device_present",  # usable and health say more; for an alert
    "hailo_device_health_changed_timestamp_seconds",  # the timelines show it
    "hailo_device_usage_timestamp_seconds",  # a usage that is not new is not told
    "hailo_agent_look_timestamp_seconds",  # for an alert
}
"""What is told and drawn nowhere, and why."""

_EMPTY_IF_WELL: Final = {
    *("Faults of devices", "Alerts", "Most frequent faults", "Faults of nodes", "Faults"),
    *("Faults of the node", "Faults of what I hold"),
}
"""Panels that must have nothing to show when all is well."""

_UNITS: Final = {
    *("none", "short", "percentunit", "celsius", "s", "bytes", "cpm", "opm", "reqps", "fps"),
}


def asked(panel: Json, state: str = "mixed", instance: str = ".+") -> Iterator[str]:
    """Put into a panel's queries what a reader would have chosen."""
    for target in panel["targets"]:
        yield chosen(target["expr"], state, instance)


def chosen(text: str, state: str, instance: str = ".+") -> str:
    text = text.replace("$__rate_interval", "10s").replace("$job", f"{JOB}{state}")
    text = text.replace("$instance", instance)
    return re.sub(r"\$(device|namespace|pod)\b", ".+", text)


# --- what the files say --------------------------------------------------------------------------


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_a_board_s_file_is_what_its_generator_writes(board: Board) -> None:
    assert (FOLDER / f"{board.name}.json").read_text() == written(board), (
        "run `.venv/bin/python -m hack.dashboards`"
    )


def test_there_is_no_board_that_nobody_generates() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(_BOARDS)


@pytest.mark.parametrize("name", _BOARDS)
def test_a_board_takes_its_data_from_where_the_reader_says(name: str) -> None:
    board = _BOARDS[name]
    assert board["schemaVersion"] >= 39
    assert board["id"] is None
    first, *others = board["templating"]["list"]
    assert (first["name"], first["type"]) == ("datasource", "datasource")
    sources = [found for found in _found(board, "datasource") if isinstance(found, dict)]
    assert {source["uid"] for source in sources} == {"${datasource}"}
    text = json.dumps(board)
    known = {variable["name"] for variable in others} | {"__rate_interval", "__all"}
    assert set(re.findall(r"\$(\w+)", text)) <= known
    assert all(f"${name}" in text for name in known)


def _found(tree: object, key: str) -> Iterator[Any]:
    if isinstance(tree, dict):
        yield from (value for name, value in tree.items() if name == key)
        tree = list(tree.values())
    if isinstance(tree, list):
        for below in tree:
            yield from _found(below, key)


@pytest.mark.parametrize("name", _BOARDS)
def test_panels_stand_side_by_side_without_gap_or_overlap(name: str) -> None:
    panels = _BOARDS[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    covered = [set(_cells(panel["gridPos"])) for panel in panels]
    for one, other in combinations(covered, 2):
        assert not one & other
    whole = set[tuple[int, int]]().union(*covered)
    height = 1 + max(y for _, y in whole)
    assert whole == {(x, y) for x in range(24) for y in range(height)}


def _cells(grid: dict[str, int]) -> Iterator[tuple[int, int]]:
    for x in range(grid["x"], grid["x"] + grid["w"]):
        for y in range(grid["y"], grid["y"] + grid["h"]):
            yield x, y


@pytest.mark.parametrize("name", _BOARDS)
def test_no_two_panels_of_a_board_are_called_the_same(name: str) -> None:
    titles = [panel["title"] for panel in _BOARDS[name]["panels"]]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize(("name", "panel"), _PANELS)
def test_a_panel_asks_a_question_and_says_in_which_unit_and_colours(name: str, panel: Json) -> None:
    assert re.search(r"^[A-Z][^?]+\?(?: |$)", panel["description"])
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"] in _UNITS
    assert defaults["thresholds"]["steps"][0]["value"] is None
    assert [target["refId"] for target in panel["targets"]] == [
        chr(ord("A") + n) for n in range(len(panel["targets"]))
    ]


def test_every_metric_is_on_some_board_or_left_out_for_a_reason() -> None:
    text = "".join(json.dumps(board) for board in _BOARDS.values())
    missing = {d.name for d in DEFINITIONS if not re.search(rf"{d.name}\b|{d.name}_", text)}
    assert missing == _NOT_SHOWN


# --- what a real Prometheus answers --------------------------------------------------------------


@pytest.mark.parametrize(("name", "panel"), _PANELS)
def test_each_query_of_a_panel_returns_data(prometheus: Prometheus, name: str, panel: Json) -> None:
    for query in asked(panel):
        found = prometheus.query(query)
        assert found, query
        assert all(math.isfinite(figure) for _, figure in found), query


@pytest.mark.parametrize(("name", "panel"), _PANELS)
def test_no_query_of_a_panel_fails_whatever_the_state(
    prometheus: Prometheus, name: str, panel: Json
) -> None:
    for query in asked(panel, ".+"):
        try:
            prometheus.query(query)
        except PromqlError as error:
            pytest.fail(f"{query}: {error}")


@pytest.mark.parametrize(("name", "panel"), _PANELS)
def test_legends_and_columns_are_labels_that_the_answer_has(
    prometheus: Prometheus, name: str, panel: Json
) -> None:
    columns = _columns(panel)
    for target, query in zip(panel["targets"], asked(panel), strict=True):
        labels = {label for found, _ in prometheus.query(query) for label in found}
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels
        assert columns <= labels


def _columns(panel: Json) -> set[str]:
    """Tell which labels a table shows."""
    for transformation in panel.get("transformations", ()):
        if transformation["id"] == "organize":
            renamed = transformation["options"]["renameByName"]
            return {name for name in renamed if not name.startswith("Value")}
    return set()


@pytest.mark.parametrize(
    "panel",
    [
        pytest.param(panel, id=f"{name}: {panel['title']}")
        for name, panel in _ALL
        if panel["type"] == "table" and len(panel["targets"]) > 1
    ],
)
def test_rows_of_a_table_come_together(prometheus: Prometheus, panel: Json) -> None:
    first, *others = (
        {frozenset(labels.items()) for labels, _ in prometheus.query(query)}
        for query in asked(panel)
    )
    for rows in others:
        assert rows <= first


@pytest.mark.parametrize("title", sorted(_EMPTY_IF_WELL))
def test_a_list_of_what_is_wrong_is_empty_when_all_is_well(
    prometheus: Prometheus, title: str
) -> None:
    (panel,) = (panel for _, panel in _ALL if panel["title"] == title)
    assert not [found for query in asked(panel, "healthy") for found in prometheus.query(query)]


@pytest.mark.parametrize("name", _BOARDS)
def test_a_reader_has_something_to_choose_from(prometheus: Prometheus, name: str) -> None:
    for variable in _BOARDS[name]["templating"]["list"][1:]:
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
        assert match, variable["definition"]
        selector = chosen(match[1], "mixed").replace("$", "")
        values = prometheus.get(f"label/{match[2]}/values", **{"match[]": selector})
        assert values, variable["name"]


@pytest.mark.parametrize("name", _BOARDS)
def test_a_board_can_be_drawn_for_the_documentation(prometheus: Prometheus, name: str) -> None:
    end = time.time()

    def ask(expr: str, *, is_now: bool) -> list[Series]:
        found = prometheus.query(chosen(expr, "mixed"))
        start = end if is_now else end - 5
        return [Series(labels=of, points=((start, at), (end, at))) for of, at in found]

    drawn = page(_BOARDS[name], ask, (end - 10, end), {})
    assert all(html.escape(panel["title"]) in drawn for panel in _BOARDS[name]["panels"])
    assert "No data" not in drawn
    assert f"images/dashboard-{name}.png" in (ROOT / "docs/how-to/dashboards.md").read_text()
    assert (ROOT / f"docs/images/dashboard-{name}.png").read_bytes().startswith(b"\x89PNG")


def figure(prometheus: Prometheus, board: str, title: str, state: str) -> float:
    (panel,) = (p for p in _BOARDS[board]["panels"] if p["title"] == title)
    (query,) = asked(panel, state)
    ((_, value),) = prometheus.query(query)
    return value


@pytest.mark.parametrize(
    ("board", "title", "state", "expected"),
    [
        ("fleet", "Nodes", "healthy", 2),
        ("fleet", "Devices", "healthy", 4),
        ("fleet", "Usable", "healthy", 1.0),
        ("fleet", "Held", "healthy", 0.5),
        ("fleet", "Free", "healthy", 2),
        ("fleet", "Not healthy", "healthy", 0),
        ("fleet", "Devices", "mixed", 10),
        ("fleet", "Usable", "mixed", 0.8),
        ("fleet", "Held", "mixed", 0.5),
        ("fleet", "Free", "mixed", 4),
        ("fleet", "Not healthy", "mixed", 6),
        ("fleet", "Free", "exhausted", 0),
        ("fleet", "Free", "cordoned-lately", 1),
        ("node", "Agent", "healthy", 1),
        ("node", "Agent", "not-ready", 0),
        ("node", "Hottest", "hot", 107.4),
        ("tenant", "My devices", "mixed", 5),
        ("tenant", "My pods", "mixed", 4),
        ("tenant", "My share", "mixed", 0.5),
        ("tenant", "Not healthy", "mixed", 3),
        ("tenant", "Idle", "idle", 1),
        ("tenant", "Idle", "healthy", 0),
        ("tenant", "My devices", "narrow", 0),
        ("tenant", "Not healthy", "narrow", 0),
    ],
)
def test_a_figure_is_what_is_so(
    prometheus: Prometheus, board: str, title: str, state: str, expected: float
) -> None:
    assert state in STATES
    assert figure(prometheus, board, title, state) == pytest.approx(expected)
