"""A board drawn from what its own queries return: what a reader sees, where there is no Grafana.

Knows the kinds of panels that `hack.dashboards.grafana` writes, and follows their JSON for
everything: titles, units, colours, legends, places. It asks whoever it is given, and nobody else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any, Final, Protocol

Json = dict[str, Any]
Labels = Mapping[str, str]

COLORS: Final = {
    "green": "#73BF69",
    "yellow": "#FADE2A",
    "orange": "#FF9830",
    "red": "#F2495C",
    "purple": "#B877D9",
    "blue": "#5794F2",
}
PALETTE: Final = (
    *("#73BF69", "#F2CC0C", "#8AB8FF", "#FF780A", "#F2495C", "#B877D9", "#5794F2", "#FFA6B0"),
    *("#37872D", "#E0B400", "#1F60C4", "#FA6400", "#C4162A", "#8F3BB8", "#96D98D", "#C0D8FF"),
)
WIDTH: Final = 1480
_CELL, _GAP, _MARGIN = 30, 8, 16
_COLUMN: Final = (WIDTH - 2 * _MARGIN + _GAP) / 24

Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of an answer: its labels, and its figures over time."""

    labels: Labels
    points: tuple[Point, ...]

    @property
    def last(self) -> float:
        """The newest figure."""
        return self.points[-1][1]


class Ask(Protocol):
    """Runs a query: over the whole time, or now."""

    def __call__(self, expr: str, *, is_now: bool) -> Sequence[Series]: ...


def page(board: Json, ask: Ask, span: tuple[float, float], chosen: Mapping[str, str]) -> str:
    """Draw a board as a page of HTML."""
    panels = [_placed(panel, ask, span) for panel in board["panels"]]
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"])
    choices = "".join(
        f"<span class=choice><b>{escape(variable['label'])}</b>"
        f"<i>{escape(chosen.get(variable['name'], 'All'))}</i></span>"
        for variable in board["templating"]["list"]
    )
    return (
        f"<!doctype html><meta charset=utf-8><style>{_STYLE}</style><body>"
        f"<header><h1>{escape(board['title'])}</h1>{choices}</header>"
        f"<main style='height:{height * (_CELL + _GAP)}px'>{''.join(panels)}</main>"
    )


def _placed(panel: Json, ask: Ask, span: tuple[float, float]) -> str:
    grid = panel["gridPos"]
    left, top = grid["x"] * _COLUMN, grid["y"] * (_CELL + _GAP)
    width, height = grid["w"] * _COLUMN - _GAP, grid["h"] * (_CELL + _GAP) - _GAP
    place = f"left:{left:.1f}px;top:{top}px;width:{width:.1f}px;height:{height}px"
    if panel["type"] == "row":
        return f"<h2 style='{place}'>⌄ {escape(panel['title'])}</h2>"
    try:
        body = _KINDS[panel["type"]](panel, ask, span, (width - 18, height - 36))
    except _NothingToShow:
        body = "<div class=none>No data</div>"
    title = f"<h3 title='{escape(panel['description'], quote=True)}'>{escape(panel['title'])}</h3>"
    return f"<section class={panel['type']} style='{place}'>{title}{body}</section>"


class _NothingToShow(Exception):
    """No query of a panel has returned anything."""


# --- figures, words, colours ---------------------------------------------------------------------


_UNITS: Final = {
    "percentunit": (100.0, "%"),
    "celsius": (1.0, " °C"),
    "bytes": (2.0**-20, " MiB"),
    "cpm": (1.0, " c/m"),
    "opm": (1.0, " ops/m"),
    "reqps": (1.0, " req/s"),
    "fps": (1.0, " fps"),
}
"""How each unit is written: times what, and followed by what."""


def shown(value: float, unit: str, decimals: int | None = None) -> str:
    """Write a figure as its unit wants it."""
    if unit == "s":
        return _duration(value)
    factor, suffix = _UNITS.get(unit, (1.0, ""))
    figure = factor * value
    text = _short(figure) if decimals is None else f"{figure:.{decimals}f}"
    return f"{text}{suffix}"


def _short(value: float) -> str:
    if value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    for size, unit in ((604_800, "weeks"), (86_400, "days"), (3_600, "hours"), (60, "mins")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} s"


def _color(name: str) -> str:
    return COLORS.get(name, name)


def _by_threshold(value: float, thresholds: Json) -> str:
    steps = [s["color"] for s in thresholds["steps"] if s["value"] is None or value >= s["value"]]
    return _color(steps[-1])


def _word(value: float, mappings: Iterable[Json]) -> tuple[str, str] | None:
    for mapping in mappings:
        for figure, result in mapping["options"].items():
            if re.fullmatch(r"-?\d+", figure) and float(figure) == value:
                return result["text"], _color(result["color"])
    return None


def _legend(target: Json, labels: Labels) -> str:
    if target["legendFormat"] == "__auto":
        return ", ".join(value for name, value in labels.items() if name != "__name__")
    return re.sub(r"{{(\w+)}}", lambda m: labels.get(m[1], ""), target["legendFormat"])


def _lines(panel: Json, ask: Ask, *, is_now: bool) -> list[tuple[str, Series]]:
    lines = [
        (_legend(target, series.labels), series)
        for target in panel["targets"]
        for series in ask(target["expr"], is_now=is_now)
    ]
    if not lines:
        raise _NothingToShow
    return lines if is_now else sorted(lines, key=lambda line: line[0])


def _overridden(panel: Json, name: str) -> Json:
    """Tell the properties that a series or column of this name has of its own."""
    found: Json = {}
    for override in panel["fieldConfig"]["overrides"]:
        matcher = override["matcher"]
        by_name = matcher["id"] == "byName" and matcher["options"] == name
        by_pattern = matcher["id"] == "byRegexp" and re.search(matcher["options"].strip("/"), name)
        if by_name or by_pattern:
            found |= {each["id"]: each["value"] for each in override["properties"]}
    return found


# --- one figure ----------------------------------------------------------------------------------

Size = tuple[float, float]
Span = tuple[float, float]


def _stat(panel: Json, ask: Ask, span: Span, size: Size) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    (line,) = [series for _, series in _lines(panel, ask, is_now=False)][:1]
    color = _by_threshold(line.last, defaults["thresholds"])
    text = shown(line.last, defaults["unit"], defaults.get("decimals"))
    if (word := _word(line.last, defaults["mappings"])) is not None:
        text, color = word
    trend = ""
    if panel["options"]["graphMode"] == "area":
        trend = _trend(line, span, size, color)
    return f"{trend}<div class=figure style='color:{color}'>{escape(text)}</div>"


def _trend(line: Series, span: Span, size: Size, color: str) -> str:
    width, height = size[0] + 18, 34.0
    least, most = _range([line.points], None, None)
    path = _path(line.points, span, (least, most), (0, 0, width, height - 2), is_stepped=False)
    end = f" L {width:.1f} {height} L 0 {height} Z"
    return (
        f"<svg class=trend width={width:.0f} height={height:.0f}>"
        f"<path d='{path}{end}' fill='{color}' fill-opacity=.14 />"
        f"<path d='{path}' fill=none stroke='{color}' stroke-opacity=.7 /></svg>"
    )


# --- over time -----------------------------------------------------------------------------------


def _timeseries(panel: Json, ask: Ask, span: Span, size: Size) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    custom, unit = defaults["custom"], defaults["unit"]
    lines = _lines(panel, ask, is_now=False)
    styles = [_style(panel, name, index) for index, (name, _) in enumerate(lines)]
    is_stacked = custom["stacking"]["mode"] == "normal"
    is_stepped = custom["lineInterpolation"] == "stepAfter"
    drawn = [series.points for _, series in lines]
    bottoms: list[tuple[Point, ...]] = []
    if is_stacked:
        drawn, bottoms = _stacked(drawn)
    rows = math.ceil(sum(7 * len(name) + 76 for name, _ in lines) / size[0])
    legend_height = 20.0 * min(3, rows)
    width, height = size[0], size[1] - legend_height
    scale = _range(drawn, defaults.get("min"), defaults.get("max"))
    box = (66.0, 6.0, width - 72, height - 28)
    parts = [*_grid(scale, unit, box), *_clock(span, box)]
    for index, (points, (color, is_dashed)) in enumerate(zip(drawn, styles, strict=True)):
        if custom["drawStyle"] == "bars":
            parts.extend(_bars(points, bottoms[index], span, scale, box, color=color))
            continue
        path = _path(points, span, scale, box, is_stepped=is_stepped)
        if is_stacked:
            floor = _path(
                tuple(reversed(bottoms[index])),
                span,
                scale,
                box,
                is_stepped=is_stepped,
                is_back=True,
            )
            parts.append(
                f"<path d='{path} {floor.replace('M', 'L', 1)} Z' fill='{color}'"
                f" fill-opacity={custom['fillOpacity'] / 100} />"
            )
        dash = " stroke-dasharray='8 6'" if is_dashed else ""
        parts.append(
            f"<path d='{path}' fill=none stroke='{color}'"
            f" stroke-width={1 if is_dashed else custom['lineWidth']}{dash} />"
        )
    keys = "".join(
        f"<span><u style='background:{color}'></u>{escape(name or 'value')}"
        f"<em>{escape(shown(series.last, unit))}</em></span>"
        for (name, series), (color, _) in zip(lines, styles, strict=True)
    )
    return (
        f"<svg width={width:.0f} height={height:.0f}>{''.join(parts)}</svg>"
        f"<div class=keys style='height:{legend_height}px'>{keys}</div>"
    )


def _bars(
    tops: Sequence[Point],
    bottoms: Sequence[Point],
    span: Span,
    scale: tuple[float, float],
    box: tuple[float, float, float, float],
    *,
    color: str,
) -> Iterator[str]:
    left, top, width, height = box
    share = height / (scale[1] - scale[0])
    for (at, high), (_, low) in zip(tops, bottoms, strict=True):
        if high > low:
            x = left + width * (at - span[0]) / (span[1] - span[0])
            y = top + height - share * (high - scale[0])
            yield (
                f"<rect x={x - 1.5:.1f} y={y:.1f} width=3 height={share * (high - low):.1f}"
                f" fill='{color}' fill-opacity=.85 />"
            )


def _style(panel: Json, name: str, index: int) -> tuple[str, bool]:
    own = _overridden(panel, name)
    color = own.get("color", {}).get("fixedColor") or PALETTE[index % len(PALETTE)]
    return _color(color), "custom.lineStyle" in own


def _stacked(
    lines: Sequence[tuple[Point, ...]],
) -> tuple[list[tuple[Point, ...]], list[tuple[Point, ...]]]:
    times = sorted({at for points in lines for at, _ in points})
    below = dict.fromkeys(times, 0.0)
    tops, bottoms = [], []
    for points in lines:
        figures = dict(points)
        bottoms.append(tuple(below.items()))
        below = {at: below[at] + figures.get(at, 0.0) for at in times}
        tops.append(tuple(below.items()))
    return tops, bottoms


def _range(
    lines: Iterable[Sequence[Point]], least: float | None, most: float | None
) -> tuple[float, float]:
    figures = [value for points in lines for _, value in points] or [0.0]
    low = min(figures) if least is None else least
    high = max(figures) if most is None else most
    if high <= low:
        high = low + 1
    room = 0.06 * (high - low)
    return (low - room if least is None else low, high + room if most is None else high)


def _path(
    points: Sequence[Point],
    span: Span,
    scale: tuple[float, float],
    box: tuple[float, float, float, float],
    *,
    is_stepped: bool,
    is_back: bool = False,
) -> str:
    left, top, width, height = box
    low, high = scale
    step = min((b[0] - a[0] for a, b in pairwise(points)), default=0, key=abs)
    parts: list[str] = []
    before: Point | None = None
    y_before = 0.0
    for at, value in points:
        x = left + width * (at - span[0]) / (span[1] - span[0])
        y = top + height * (1 - (value - low) / (high - low))
        if before is None or abs(at - before[0]) > 1.5 * abs(step):
            parts.append(f"M {x:.1f} {y:.1f}")
        elif is_stepped and is_back:
            x_before = left + width * (before[0] - span[0]) / (span[1] - span[0])
            parts.append(f"L {x_before:.1f} {y:.1f} L {x:.1f} {y:.1f}")
        elif is_stepped:
            parts.append(f"L {x:.1f} {y_before:.1f} L {x:.1f} {y:.1f}")
        else:
            parts.append(f"L {x:.1f} {y:.1f}")
        before, y_before = (at, value), y
    return " ".join(parts)


def _grid(
    scale: tuple[float, float], unit: str, box: tuple[float, float, float, float]
) -> Iterator[str]:
    left, top, width, height = box
    low, high = scale
    for value in _ticks(low, high, unit):
        y = top + height * (1 - (value - low) / (high - low))
        text = escape(shown(value, unit))
        yield f"<line x1={left} x2={left + width:.1f} y1={y:.1f} y2={y:.1f} class=line />"
        yield f"<text x={left - 6} y={y + 4:.1f} text-anchor=end>{text}</text>"


def _ticks(low: float, high: float, unit: str) -> Iterator[float]:
    if unit == "bytes":
        yield from (2**20 * mebibytes for mebibytes in _ticks(low / 2**20, high / 2**20, ""))
        return
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough)
    if unit == "none":
        step = max(1.0, step)
    value = math.ceil(low / step - 1e-9) * step
    while value <= high + 1e-9:
        yield 0.0 if abs(value) < 1e-12 else round(value, 12)
        value += step


def _clock(span: Span, box: tuple[float, float, float, float]) -> Iterator[str]:
    left, top, width, height = box
    hours = (span[1] - span[0]) / 3600
    step = 3600 * max(1, round(hours / 6)) if hours > 1 else max(1.0, (span[1] - span[0]) / 4)
    at = math.ceil(span[0] / step) * step
    while at <= span[1]:
        x = left + width * (at - span[0]) / (span[1] - span[0])
        text = f"{int(at // 3600 % 24):02}:{int(at // 60 % 60):02}"
        yield f"<line x1={x:.1f} x2={x:.1f} y1={top} y2={top + height:.1f} class=line />"
        yield f"<text x={x:.1f} y={top + height + 17:.1f} text-anchor=middle>{text}</text>"
        at += step


def _timeline(panel: Json, ask: Ask, span: Span, size: Size) -> str:
    lines = _lines(panel, ask, is_now=False)
    mappings = panel["fieldConfig"]["defaults"]["mappings"]
    width, height = size[0], size[1] - 22
    left = min(0.42 * width, 7.0 * max(len(name) for name, _ in lines) + 10)
    box = (left, 2.0, width - left - 6, height - 24)
    row = box[3] / len(lines)
    thick = min(26.0, 0.78 * row)
    letters = int(left / 6.6)
    parts = list(_clock(span, box))
    for index, (name, series) in enumerate(lines):
        y = box[1] + row * index + (row - thick) / 2
        label = name if len(name) <= letters else f"…{name[1 - letters :]}"
        parts.append(
            f"<text x={left - 8:.1f} y={y + thick / 2 + 4:.1f} text-anchor=end>"
            f"{escape(label)}</text>"
        )
        for start, end, value in _spells(series.points, span):
            x = box[0] + box[2] * (start - span[0]) / (span[1] - span[0])
            wide = box[2] * (end - start) / (span[1] - span[0])
            _, color = _word(value, mappings) or ("", "#888")
            parts.append(
                f"<rect x={x:.1f} y={y:.1f} width={max(wide, 1):.1f} height={thick:.1f}"
                f" fill='{color}' fill-opacity=.78 />"
            )
    seen = {value for _, series in lines for _, value in series.points}
    words = [word for value in sorted(seen) if (word := _word(value, mappings)) is not None]
    keys = "".join(
        f"<span><u style='background:{color}'></u>{escape(text)}</span>" for text, color in words
    )
    return (
        f"<svg width={width:.0f} height={height:.0f}>{''.join(parts)}</svg>"
        f"<div class=keys style='height:22px'>{keys}</div>"
    )


def _spells(points: Sequence[Point], span: Span) -> Iterator[tuple[float, float, float]]:
    """Put together what stays the same; a figure holds until the next one is due."""
    step = min((b[0] - a[0] for a, b in pairwise(points)), default=1.0)
    start, value = points[0]
    at = start
    for now, figure in points[1:]:
        if figure != value or now - at > 1.5 * step:
            yield start, min(at + step, span[1]), value
            start, value = now, figure
        at = now
    yield start, min(at + step, span[1]), value


# --- now -----------------------------------------------------------------------------------------


def _bargauge(panel: Json, ask: Ask, span: Span, size: Size) -> str:
    del span
    defaults = panel["fieldConfig"]["defaults"]
    lines = _lines(panel, ask, is_now=True)
    most = defaults.get("max") or max(series.last for _, series in lines) or 1.0
    high = min(34.0, size[1] / len(lines))
    rows = []
    for name, series in lines:
        color = _by_threshold(series.last, defaults["thresholds"])
        share = 100 * min(1.0, series.last / most)
        rows.append(
            f"<div class=bar style='height:{high - 6:.1f}px'><label>{escape(name)}</label>"
            f"<s><b style='width:{share:.1f}%;background:{color}'></b></s>"
            f"<var style='color:{color}'>{escape(shown(series.last, defaults['unit']))}</var></div>"
        )
    return "".join(rows)


def _piechart(panel: Json, ask: Ask, span: Span, size: Size) -> str:
    del span
    lines = _lines(panel, ask, is_now=True)
    whole = sum(series.last for _, series in lines)
    across = min(size[1], size[0] / 2)
    middle, outer, inner = across / 2, across / 2 - 6, across / 2 - 30
    circle = 2 * math.pi * (outer + inner) / 2
    parts, before = [], 0.0
    for index, (_, series) in enumerate(lines):
        share = series.last / whole
        parts.append(
            f"<circle cx={middle} cy={middle} r={(outer + inner) / 2} fill=none"
            f" stroke='{PALETTE[index]}' stroke-width={outer - inner}"
            f" stroke-dasharray='{share * circle:.1f} {circle:.1f}'"
            f" stroke-dashoffset='{-before * circle:.1f}'"
            f" transform='rotate(-90 {middle} {middle})'/>"
        )
        before += share
    keys = "".join(
        f"<tr><td><u style='background:{PALETTE[index]}'></u>{escape(name)}"
        f"<td>{escape(shown(series.last, 'none'))}"
        for index, (name, series) in enumerate(lines)
    )
    return (
        f"<div class=ring style='height:{size[1]:.0f}px'>"
        f"<svg width={across:.0f} height={across:.0f}>{''.join(parts)}</svg>"
        f"<table>{keys}</table></div>"
    )


def _table(panel: Json, ask: Ask, span: Span, size: Size) -> str:
    del span
    by_id = {each["id"]: each["options"] for each in panel["transformations"]}
    columns: Mapping[str, str] = by_id["organize"]["renameByName"]
    rows: dict[frozenset[tuple[str, str]], dict[str, float]] = {}
    for target in panel["targets"]:
        value = "Value" if len(panel["targets"]) == 1 else f"Value #{target['refId']}"
        for series in ask(target["expr"], is_now=True):
            key = frozenset(i for i in series.labels.items() if i[0] != "__name__")
            rows.setdefault(key, {})[value] = series.last
    if not rows:
        raise _NothingToShow
    cells = [(dict(key), figures) for key, figures in rows.items()]
    for order in panel["options"]["sortBy"]:
        name = next(name for name, title in columns.items() if title == order["displayName"])
        cells.sort(
            key=lambda row: (row[1].get(name, 0.0), row[0].get(name, "")), reverse=order["desc"]
        )
    head = "".join(f"<th>{escape(title)}" for title in columns.values())
    body = "".join(
        f"<tr>{''.join(_cell(panel, row, name, title) for name, title in columns.items())}"
        for row in cells
    )
    return f"<div class=rows style='height:{size[1]:.0f}px'><table><tr>{head}{body}</table></div>"


def _cell(panel: Json, row: tuple[Labels, Mapping[str, float]], name: str, title: str) -> str:
    labels, figures = row
    own = _overridden(panel, title)
    if not name.startswith("Value"):
        text = labels.get(name, "")
        options = [o for m in own.get("mappings", ()) for t, o in m["options"].items() if t == text]
        if options:
            return f"<td style='color:{_color(options[0]['color'])}'>{escape(text)}"
        return f"<td{' class=link' if 'links' in own else ''}>{escape(text)}"
    if name not in figures:
        return "<td>"
    value = figures[name]
    if (word := _word(value, own.get("mappings", ()))) is not None:
        return f"<td style='color:{word[1]}'>{escape(word[0])}"
    text = escape(shown(value, own.get("unit", "none")))
    if "thresholds" in own:
        return f"<td style='color:{_by_threshold(value, own['thresholds'])}'>{text}"
    return f"<td>{text}"


_KINDS: Final[Mapping[str, Callable[[Json, Ask, Span, Size], str]]] = {
    "stat": _stat,
    "timeseries": _timeseries,
    "state-timeline": _timeline,
    "bargauge": _bargauge,
    "piechart": _piechart,
    "table": _table,
}

_STYLE: Final = f"""
* {{ box-sizing: border-box; margin: 0; }}
body {{ background: #111217; color: #ccccdc; font: 13px/1.5 Inter, 'DejaVu Sans', sans-serif;
  width: {WIDTH}px; padding: {_MARGIN}px; }}
header {{ display: flex; gap: 14px; align-items: center; margin-bottom: 12px; }}
h1 {{ font-size: 18px; font-weight: 500; margin-right: 10px; }}
.choice {{ font-size: 12px; border: 1px solid #2c2d34; border-radius: 2px; display: inline-flex; }}
.choice b {{ background: #181b1f; padding: 4px 8px; font-weight: 500; }}
.choice i {{ font-style: normal; padding: 4px 10px; color: #9fa7b3; }}
main {{ position: relative; }}
main > * {{ position: absolute; }}
h2 {{ font-size: 15px; font-weight: 500; }}
section {{ background: #181b1f; border: 1px solid #25262d; border-radius: 3px; padding: 4px 8px;
  overflow: hidden; }}
h3 {{ font-size: 13px; font-weight: 500; height: 26px; white-space: nowrap; overflow: hidden; }}
svg {{ display: block; }}
svg text {{ fill: #9fa7b3; font-size: 11px; }}
.line {{ stroke: #26282f; }}
.figure {{ font-size: 42px; font-weight: 600; text-align: center; line-height: 64px;
  position: relative; white-space: nowrap; }}
.trend {{ position: absolute; bottom: 0; left: 0; }}
.keys {{ display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 12px; overflow: hidden;
  align-content: flex-start; }}
.keys span {{ white-space: nowrap; line-height: 20px; }}
.keys em {{ font-style: normal; color: #8e94a3; margin-left: 6px; }}
u {{ display: inline-block; width: 12px; height: 4px; border-radius: 2px; margin: 0 6px 3px 0;
  text-decoration: none; }}
.bar {{ display: flex; align-items: center; gap: 10px; margin-bottom: 6px; }}
.bar label {{ flex: 0 0 190px; overflow: hidden; white-space: nowrap; text-align: right; }}
.bar s {{ flex: 1; height: 100%; background: #22252b; text-decoration: none; }}
.bar b {{ display: block; height: 100%; }}
.bar var {{ flex: 0 0 72px; font-style: normal; text-align: right; }}
.ring svg {{ flex: none; }}
.none {{ text-align: center; color: #8e94a3; padding-top: 40px; }}
.ring {{ display: flex; gap: 14px; align-items: center; }}
.rows {{ overflow: hidden; }}
table {{ border-collapse: collapse; width: 100%; }}
th {{ text-align: left; color: #6e9fff; font-weight: 500; padding: 4px 8px; }}
td {{ padding: 5px 8px; border-top: 1px solid #25262d; white-space: nowrap; }}
.ring td {{ border: 0; padding: 2px 8px; }}
.link {{ color: #6e9fff; }}
"""
