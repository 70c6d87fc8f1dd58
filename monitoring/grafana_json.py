"""Grafana's JSON model of dashboards, from panels that say only what is particular to them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trellis.adapters.files import write_atomically

DATASOURCE = {"type": "prometheus", "uid": "trellis-prometheus"}
_COLUMNS = 24
_HEIGHT = {"timeseries": 8, "stat": 5, "table": 8, "bargauge": 8}


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title, about: For people; the sentence says what a bad value looks like.
        queries: PromQL with its legend.
        unit: Grafana's name of the unit.
        kind: Grafana's panel type.
        width: Of 24 columns.
        bounds: Values at which colour turns to amber and red, rising; empty for none.
        worse: Whether larger values are worse.
        spread: Whether the first two queries are an interval's ends, drawn dashed.
    """

    title: str
    about: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 12
    bounds: tuple[float, ...] = ()
    worse: bool = True
    spread: bool = False


@dataclass(frozen=True)
class Board:
    """One dashboard; ``per_model`` gives it a choice of the model."""

    uid: str
    title: str
    about: str
    panels: Sequence[Panel]
    per_model: bool = True
    span: str = "now-24h"


def render(board: Board) -> dict[str, Any]:
    """Return a dashboard in Grafana's JSON model."""
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.about,
        "tags": ["trellis"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "utc",
        "refresh": "1m",
        "time": {"from": board.span, "to": "now"},
        "links": [{"type": "dashboards", "title": "Trellis", "tags": ["trellis"], "asDropdown": True,
                   "includeVars": True, "keepTime": True}],
        "annotations": {"list": []},
        "templating": {"list": _variables(board)},
        "panels": list(_placed(board.panels)),
    }  # fmt: skip


def write_all(boards: Sequence[Board], directory: Path) -> list[Path]:
    """Write dashboards; return the files.

    Raises:
        StorageError: The disk refused.
    """
    paths = []
    for board in boards:
        path = directory / f"{board.uid.removeprefix('trellis-')}.json"
        write_atomically(path, dumps(board))
        paths.append(path)
    return paths


def dumps(board: Board) -> str:
    """Return a dashboard's file."""
    return json.dumps(render(board), indent=1) + "\n"


def _variables(board: Board) -> list[dict[str, Any]]:
    found = []
    if board.per_model:
        found.append(_variable("model", "Model", "label_values(trellis_plan_share, model)", many=True))
    if any("$metric" in query for panel in board.panels for query, _ in panel.queries):
        found.append(_variable("metric", "Metric", "label_values(trellis_model_metric, metric)", many=False))
    return found


def _variable(name: str, label: str, query: str, *, many: bool) -> dict[str, Any]:
    chosen = {"text": ["All"], "value": ["$__all"]} if many else {}
    return {
        "name": name, "label": label, "type": "query", "datasource": DATASOURCE, "refresh": 2, "sort": 1,
        "query": {"query": query, "refId": f"variable-{name}"},
        "multi": many, "includeAll": many, "current": chosen,
    }  # fmt: skip


def _placed(panels: Sequence[Panel]) -> Iterator[dict[str, Any]]:
    """Lay panels out in rows of 24 columns, left to right."""
    x = y = tallest = 0
    for number, panel in enumerate(panels, 1):
        height = _HEIGHT[panel.kind]
        if x + panel.width > _COLUMNS:
            x, y, tallest = 0, y + tallest, 0
        yield {"id": number, "gridPos": {"x": x, "y": y, "w": panel.width, "h": height}, **_panel(panel)}
        x, tallest = x + panel.width, max(tallest, height)


def _panel(panel: Panel) -> dict[str, Any]:
    at_once = panel.kind != "timeseries"
    targets = [
        {
            "refId": chr(ord("A") + i), "datasource": DATASOURCE, "expr": query, "legendFormat": legend,
            "instant": at_once, "range": not at_once, "format": "table" if panel.kind == "table" else "time_series",
        }
        for i, (query, legend) in enumerate(panel.queries)
    ]  # fmt: skip
    defaults: dict[str, Any] = {"unit": panel.unit, "noValue": "none"}
    if panel.bounds:
        defaults["color"] = {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"}
        defaults["thresholds"] = {"mode": "absolute", "steps": _steps(panel)}
    if panel.kind == "timeseries":
        style = {"mode": "dashed" if panel.bounds else "off"}
        defaults["custom"] = {"lineWidth": 1, "showPoints": "auto", "spanNulls": True, "thresholdsStyle": style}
    dashed = [{"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [6, 4]}}]
    bounds = ("A", "B") if panel.spread else ()
    overrides = [{"matcher": {"id": "byFrameRefID", "options": ref}, "properties": dashed} for ref in bounds]
    return {
        "type": panel.kind, "title": panel.title, "description": panel.about, "datasource": DATASOURCE,
        "targets": targets, "fieldConfig": {"defaults": defaults, "overrides": overrides}, "options": _options(panel),
    }  # fmt: skip


def _steps(panel: Panel) -> list[dict[str, Any]]:
    colours = ["green", "orange", "red"] if len(panel.bounds) > 1 else ["green", "red"]
    if not panel.worse:
        colours.reverse()
    return [{"color": c, "value": v} for c, v in zip(colours, (None, *panel.bounds), strict=True)]


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "timeseries":
        return {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                "tooltip": {"mode": "multi", "sort": "desc"}}  # fmt: skip
    if panel.kind == "table":
        return {"showHeader": True}
    reduced = {"values": False, "calcs": ["lastNotNull"], "fields": ""}
    return {"reduceOptions": reduced, "orientation": "horizontal" if panel.kind == "bargauge" else "auto"}
