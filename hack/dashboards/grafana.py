"""Grafana's model of a dashboard, as far as our boards need it.

A panel is a question: its title names it, its description asks it. Layout flows: panels stand side
by side until a row of 24 columns is full.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Json = dict[str, Any]

COLUMNS: Final = 24
SCHEMA_VERSION: Final = 39
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}

# A colour means the same on every board.
GOOD, FAIR, POOR, BAD, UNKNOWN, TAKEN, QUIET = (
    *("green", "yellow", "orange", "red", "purple", "blue", "#8e8e8e"),
)
HEALTH_COLORS: Final = {"Healthy": GOOD, "Degraded": POOR, "Unknown": UNKNOWN, "Unhealthy": BAD}
SEVERITY_COLORS: Final = {"info": TAKEN, "degraded": POOR, "unknown": UNKNOWN, "fatal": BAD}
AER_COLORS: Final = {"correctable": TAKEN, "nonfatal": POOR, "fatal": BAD}

Steps = tuple[tuple[float | None, str], ...]
"""Colours by figure: each holds from its figure on, the first one from below."""

PLAIN: Final[Steps] = ((None, TAKEN),)
ANY_IS_POOR: Final[Steps] = ((None, GOOD), (1, POOR))
NONE_IS_BAD: Final[Steps] = ((None, BAD), (1, GOOD))
SHARE: Final[Steps] = ((None, BAD), (0.75, POOR), (1, GOOD))
CELSIUS: Final[Steps] = ((None, GOOD), (85, FAIR), (95, POOR), (104, BAD))


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One PromQL query, and what its result is called."""

    expr: str
    legend: str = ""
    column: str = ""
    """In a table: what the figure's column is called; without, the figure is not shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One question and its answer, `width` of 24 columns wide."""

    kind: str
    title: str
    asks: str
    queries: tuple[Query, ...]
    width: int
    height: int
    unit: str = "none"
    steps: Steps = PLAIN
    defaults: Mapping[str, object] = field(default_factory=dict)
    custom: Mapping[str, object] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    overrides: tuple[Json, ...] = ()
    transformations: tuple[Json, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A heading, and the panels below it."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """What a reader may choose: the values of a label."""

    name: str
    label: str
    query: str
    one_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One dashboard."""

    name: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]


# --- kinds of panels -----------------------------------------------------------------------------


def stat(
    title: str,
    asks: str,
    expr: str,
    *,
    unit: str = "none",
    steps: Steps = PLAIN,
    decimals: int | None = None,
    mappings: Sequence[Json] = (),
    is_trend: bool = True,
) -> Panel:
    """Show one figure, with its course behind it."""
    defaults: Json = {"mappings": list(mappings)}
    if decimals is not None:
        defaults["decimals"] = decimals
    return Panel(
        kind="stat",
        title=title,
        asks=asks,
        queries=(Query(expr=expr),),
        width=4,
        height=4,
        unit=unit,
        steps=steps,
        defaults=defaults,
        options={
            "colorMode": "value",
            "graphMode": "area" if is_trend else "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "reduceOptions": _LAST,
            "textMode": "value",
            "wideLayout": True,
        },
    )


def course(
    title: str,
    asks: str,
    *queries: Query,
    unit: str = "none",
    width: int = 12,
    height: int = 8,
    colors: Mapping[str, str] | None = None,
    is_stacked: bool = False,
    is_stepped: bool = False,
    is_counted: bool = False,
    dashed: str = "",
    least: float | None = 0,
    most: float | None = None,
) -> Panel:
    """Draw figures over time; what `dashed` matches is a limit and not a reading.

    What is counted stands as bars: events are rare, and a line through zero hides them.
    """
    is_stacked = is_stacked or is_counted
    overrides = [_color(name, color) for name, color in (colors or {}).items()]
    if dashed:
        overrides.append(
            {
                "matcher": {"id": "byRegexp", "options": f"/{dashed}/"},
                "properties": [
                    {"id": "custom.lineStyle", "value": {"dash": [8, 6], "fill": "dash"}},
                    {"id": "custom.fillOpacity", "value": 0},
                    {"id": "custom.lineWidth", "value": 1},
                    {"id": "color", "value": {"fixedColor": BAD, "mode": "fixed"}},
                ],
            }
        )
    defaults: Json = {"color": {"mode": "palette-classic"}}
    defaults |= {name: at for name, at in (("min", least), ("max", most)) if at is not None}
    return Panel(
        kind="timeseries",
        title=title,
        asks=asks,
        queries=queries,
        width=width,
        height=height,
        unit=unit,
        defaults=defaults,
        custom={
            "axisPlacement": "auto",
            "drawStyle": "bars" if is_counted else "line",
            "fillOpacity": 60 if is_stacked else 8,
            "gradientMode": "none",
            "lineInterpolation": "stepAfter" if is_stepped or is_stacked else "linear",
            "lineWidth": 1 if is_stacked else 2,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"group": "A", "mode": "normal" if is_stacked else "none"},
        },
        options={
            "legend": {
                "calcs": ["lastNotNull"],
                "displayMode": "list",
                "placement": "bottom",
                "showLegend": True,
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        overrides=tuple(overrides),
    )


def bars(
    title: str,
    asks: str,
    query: Query,
    *,
    unit: str = "none",
    steps: Steps = PLAIN,
    width: int = 12,
    height: int = 8,
    most: float | None = None,
) -> Panel:
    """Rank: one bar for each, as it is now."""
    defaults: Json = {"color": {"mode": "thresholds"}, "min": 0}
    if most is not None:
        defaults["max"] = most
    return Panel(
        kind="bargauge",
        title=title,
        asks=asks,
        queries=(query,),
        width=width,
        height=height,
        unit=unit,
        steps=steps,
        defaults=defaults,
        options={
            "displayMode": "basic",
            "minVizHeight": 16,
            "minVizWidth": 8,
            "namePlacement": "left",
            "orientation": "horizontal",
            "reduceOptions": _LAST,
            "showUnfilled": True,
            "sizing": "auto",
            "valueMode": "color",
        },
    )


def ring(title: str, asks: str, query: Query, *, width: int, height: int) -> Panel:
    """Show parts of a whole."""
    return Panel(
        kind="piechart",
        title=title,
        asks=asks,
        queries=(query,),
        width=width,
        height=height,
        unit="short",
        defaults={"color": {"mode": "palette-classic"}},
        options={
            "displayLabels": [],
            "legend": {
                "displayMode": "table",
                "placement": "right",
                "showLegend": True,
                "values": ["value"],
            },
            "pieType": "donut",
            "reduceOptions": _LAST,
            "tooltip": {"mode": "single", "sort": "none"},
        },
    )


def states(
    title: str,
    asks: str,
    query: Query,
    words: Mapping[int, tuple[str, str]],
    *,
    width: int = 12,
    height: int = 8,
) -> Panel:
    """Draw which state each was in, and when; `words` are text and colour by figure."""
    return Panel(
        kind="state-timeline",
        title=title,
        asks=asks,
        queries=(query,),
        width=width,
        height=height,
        defaults={
            "color": {"mode": "thresholds"},
            "mappings": [worded(words)],
        },
        custom={"fillOpacity": 75, "lineWidth": 0, "spanNulls": False},
        options={
            "alignValue": "left",
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "mergeValues": True,
            "rowHeight": 0.8,
            "showValue": "never",
            "tooltip": {"mode": "single", "sort": "none"},
        },
    )


def table(
    title: str,
    asks: str,
    *queries: Query,
    columns: Mapping[str, str],
    width: int = 24,
    height: int = 8,
    overrides: Iterable[Json] = (),
    lead: str = "",
    sort_by: str = "",
    is_descending: bool = False,
) -> Panel:
    """List what there is: `columns` are labels and what they are called, in their order.

    All queries must have the same labels in their results, or rows fall apart. Figures stand
    behind, but for the one that is to `lead`.
    """
    refs = dict(zip(_REFS, queries, strict=False))
    one = len(refs) == 1
    values = {"Value" if one else f"Value #{ref}": query.column for ref, query in refs.items()}
    named = {value: name for value, name in values.items() if name}
    leading = {value: name for value, name in named.items() if name == lead}
    shown = {**leading, **columns, **{v: name for v, name in named.items() if v not in leading}}
    hidden = ["Time", *(value for value, name in values.items() if not name)]
    return Panel(
        kind="table",
        title=title,
        asks=asks,
        queries=queries,
        width=width,
        height=height,
        custom={
            "align": "auto",
            "cellOptions": {"type": "auto"},
            "filterable": True,
            "inspect": False,
        },
        options={
            "cellHeight": "sm",
            "footer": {"countRows": False, "fields": "", "reducer": ["sum"], "show": False},
            "showHeader": True,
            "sortBy": [{"desc": is_descending, "displayName": sort_by}] if sort_by else [],
        },
        overrides=tuple(overrides),
        transformations=(
            *(() if one else ({"id": "merge", "options": {}},)),
            {
                "id": "filterFieldsByName",
                "options": {"include": {"names": [name for name in shown if name not in hidden]}},
            },
            {
                "id": "organize",
                "options": {
                    "excludeByName": {},
                    "indexByName": {name: index for index, name in enumerate(shown)},
                    "renameByName": shown,
                },
            },
        ),
    )


# --- of what columns and figures look like -------------------------------------------------------


def worded(words: Mapping[int, tuple[str, str]]) -> Json:
    """Say figures in words and colours."""
    return {
        "type": "value",
        "options": {
            str(figure): {"color": color, "index": index, "text": text}
            for index, (figure, (text, color)) in enumerate(words.items())
        },
    }


def column(
    name: str,
    *,
    unit: str = "",
    steps: Steps = (),
    words: Mapping[int, tuple[str, str]] | None = None,
    texts: Mapping[str, str] | None = None,
    link: tuple[str, str] | None = None,
    width: int | None = None,
) -> Json:
    """Describe one column of a table: unit, colours, where it leads to."""
    properties: list[Json] = []
    if unit:
        properties.append({"id": "unit", "value": unit})
    if steps:
        properties.append({"id": "thresholds", "value": thresholds(steps)})
    if words:
        properties.append({"id": "mappings", "value": [worded(words)]})
    if texts:
        options = {text: {"color": color, "index": i} for i, (text, color) in _numbered(texts)}
        properties.append({"id": "mappings", "value": [{"type": "value", "options": options}]})
    if steps or words or texts:
        properties.append({"id": "custom.cellOptions", "value": {"type": "color-text"}})
    if link:
        title, url = link
        properties.append({"id": "links", "value": [{"title": title, "url": url}]})
    if width:
        properties.append({"id": "custom.width", "value": width})
    return {"matcher": {"id": "byName", "options": name}, "properties": properties}


def thresholds(steps: Steps) -> Json:
    """Write colours by figure."""
    return {
        "mode": "absolute",
        "steps": [{"color": color, "value": value} for value, color in steps],
    }


def _numbered(texts: Mapping[str, str]) -> Iterable[tuple[int, tuple[str, str]]]:
    return enumerate(texts.items())


def _color(name: str, color: str) -> Json:
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": "color", "value": {"fixedColor": color, "mode": "fixed"}}],
    }


_LAST: Final = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_REFS: Final = "ABCDEFGHIJKL"

# --- JSON ----------------------------------------------------------------------------------------

_NOW_KINDS: Final = frozenset({"table", "bargauge", "piechart"})
"""Kinds that show what is now; the others ask for the whole time."""


def dashboard(board: Board) -> Json:
    """Write a board as Grafana reads it."""
    return {
        "annotations": {"list": []},
        "description": board.description,
        "editable": True,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "id": None,
        "links": [
            {
                "asDropdown": False,
                "icon": "external link",
                "includeVars": True,
                "keepTime": True,
                "tags": ["hailo-agent"],
                "targetBlank": False,
                "title": "",
                "tooltip": "",
                "type": "dashboards",
                "url": "",
            }
        ],
        "panels": list(_laid_out(board.rows)),
        "refresh": "30s",
        "schemaVersion": SCHEMA_VERSION,
        "tags": ["hailo-agent"],
        "templating": {"list": [_DATASOURCE_VARIABLE, *map(_variable, board.variables)]},
        "time": {"from": "now-6h", "to": "now"},
        "timepicker": {},
        "timezone": "",
        "title": board.title,
        "uid": f"hailo-agent-{board.name}",
        "version": 1,
        "weekStart": "",
    }


def _laid_out(rows: Iterable[Row]) -> Iterable[Json]:
    number = y = 0
    for row in rows:
        number += 1
        yield {
            "collapsed": False,
            "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
            "id": number,
            "panels": [],
            "title": row.title,
            "type": "row",
        }
        y += 1
        x = height = 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, height = 0, y + height, 0
            number += 1
            grid = {"h": panel.height, "w": panel.width, "x": x, "y": y}
            yield _panel(panel, number, grid)
            x, height = x + panel.width, max(height, panel.height)
        y += height


def _panel(panel: Panel, number: int, grid: Json) -> Json:
    shown: Json = {
        "datasource": DATASOURCE,
        "description": panel.asks,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "thresholds": thresholds(panel.steps),
                **panel.defaults,
                "custom": dict(panel.custom),
            },
            "overrides": list(panel.overrides),
        },
        "gridPos": grid,
        "id": number,
        "options": dict(panel.options),
        "targets": [
            _target(panel, ref, query) for ref, query in zip(_REFS, panel.queries, strict=False)
        ],
        "title": panel.title,
        "type": panel.kind,
    }
    if panel.transformations:
        shown["transformations"] = list(panel.transformations)
    return shown


def _target(panel: Panel, ref: str, query: Query) -> Json:
    is_now = panel.kind in _NOW_KINDS
    return {
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "format": "table" if panel.kind == "table" else "time_series",
        "instant": is_now,
        "legendFormat": query.legend or "__auto",
        "range": not is_now,
        "refId": ref,
    }


_DATASOURCE_VARIABLE: Final = {
    "current": {},
    "hide": 0,
    "includeAll": False,
    "label": "Data source",
    "multi": False,
    "name": "datasource",
    "options": [],
    "query": "prometheus",
    "refresh": 1,
    "regex": "",
    "skipUrlSync": False,
    "type": "datasource",
}


def _variable(variable: Variable) -> Json:
    shown: Json = {
        "current": {},
        "datasource": DATASOURCE,
        "definition": variable.query,
        "hide": 0,
        "includeAll": not variable.one_only,
        "label": variable.label,
        "multi": not variable.one_only,
        "name": variable.name,
        "options": [],
        "query": {"query": variable.query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
        "type": "query",
    }
    if not variable.one_only:
        shown |= {"allValue": ".+", "current": {"text": ["All"], "value": ["$__all"]}}
    return shown
