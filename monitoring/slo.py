"""Service level objectives, and the Prometheus rules that follow from them: ``python -m monitoring rules``.

Alerts are on the rate at which the error budget burns, over a long and a short window at once (Beyer et al. 2018, The
Site Reliability Workbook, chapter 5, "Multiwindow, Multi-Burn-Rate Alerts", table 5-8): the long window keeps a blip
from paging, the short one ends the alert soon after the trouble ends. A threshold on a rate does neither.

At few requests a ratio says little: one failure among twenty burns a budget of 0.1 % fifty-fold. An alert therefore
also asks for ``AT_LEAST`` bad requests in its long window (the chapter's section "Low-Traffic Services").
"""

from __future__ import annotations

import json
from dataclasses import dataclass

PERIOD_DAYS = 30
AT_LEAST = 5


@dataclass(frozen=True)
class Objective:
    """What is promised.

    Attributes:
        name: Part of the rules' names.
        alert: Part of the alerts' names.
        about: What happens to the bad requests, for people.
        bad, total: Counters by ``model``, as selectors.
        objective: Share of good requests promised over 30 days.
        action: What to do.
        explained_by: The command that explains it, with Prometheus's own placeholders.
        pages: Whether a fast burn gets somebody up; otherwise it is a ticket.
        by: A label by which the bad ones may be counted several times; the worst of its values counts.
        good: Counter of what is to be taken off ``bad``, for those that are only counted with the good ones.
    """

    name: str
    alert: str
    about: str
    bad: str
    total: str
    objective: float
    action: str
    explained_by: str
    pages: bool = True
    good: str = ""
    by: str = ""

    @property
    def budget(self) -> float:
        """Share of bad requests allowed."""
        return round(1 - self.objective, 12)


@dataclass(frozen=True)
class Burn:
    """One pair of windows: at ``factor`` times the steady burn the share ``factor * long / period`` is gone."""

    long: str
    short: str
    factor: float
    pages: bool


BURNS = (
    Burn("1h", "5m", 14.4, True),
    Burn("6h", "30m", 6, True),
    Burn("1d", "2h", 3, False),
    Burn("3d", "6h", 1, False),
)
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")

OBJECTIVES = (
    Objective(
        "requests_failed",
        "Availability",
        "fail",
        'trellis_requests_total{code=~"5.."}',
        "trellis_requests_total",
        0.999,
        "Look at trellis_variant_errors_total by version and roll the canary back if it is the one.",
        "trellis rollout show {{ $labels.model }}",
    ),
    Objective(
        "requests_slow",
        "Latency",
        "take longer than 100 ms",
        "trellis_request_seconds_count",
        "trellis_request_seconds_count",
        0.95,
        "Compare trellis_score_seconds with trellis_request_seconds to see whether the model or a store is slow.",
        "trellis rollout show {{ $labels.model }}",
        good='trellis_request_seconds_bucket{le="0.1"}',
    ),
    Objective(
        "rows_stale",
        "Freshness",
        "use features past their SLA",
        "trellis_stale_total",
        "trellis_predictions_total",
        0.99,
        "Look whether the view is materialised and its source delivers: the board Features and freshness.",
        "trellis watch {{ $labels.model }}",
        pages=False,
        by="view",
    ),
)


def rules() -> dict[str, object]:
    """Return the rules file's content: for every objective its ratios by window, its alerts, its budget left."""
    return {"groups": [_group(objective) for objective in OBJECTIVES]}


def dumps() -> str:
    """Return the rules file: JSON, which every YAML reader takes, one rule a line."""
    lines = ["# Made by: python -m monitoring rules. Objectives are in monitoring/slo.py.", "groups:"]
    for objective in OBJECTIVES:
        group = _group(objective)
        lines += [f"  - name: {group['name']}", "    rules:"]
        lines += [f"      - {json.dumps(rule)}" for rule in group["rules"]]  # type: ignore[attr-defined]
    return "\n".join(lines) + "\n"


def _group(objective: Objective) -> dict[str, object]:
    made: list[dict[str, object]] = [
        {"record": f"trellis:{objective.name}:ratio_rate{window}", "expr": _ratio(objective, window)}
        for window in WINDOWS
    ]
    made.append(
        {
            "record": f"trellis:{objective.name}:budget_left",
            "expr": f"1 - {_ratio(objective, f'{PERIOD_DAYS}d')} / {objective.budget:g}",
        }
    )
    made += [_alert(objective, burn) for burn in BURNS]
    return {"name": f"trellis-slo-{objective.alert.lower()}", "rules": made}


def _ratio(objective: Objective, window: str) -> str:
    total = f"sum by (model) (rate({objective.total}[{window}]))"
    # Without a bad one there is no series of bad ones: the ratio is then zero, not unknown. Idle models have none.
    return f"(({_bad('rate', objective, window)}) or 0 * {total}) / ({total} > 0)"


def _bad(function: str, objective: Objective, window: str) -> str:
    bad = f"sum by (model) ({function}({objective.bad}[{window}]))"
    if objective.by:
        return f"max by (model) (sum by (model, {objective.by}) ({function}({objective.bad}[{window}])))"
    return f"{bad} - sum by (model) ({function}({objective.good}[{window}]))" if objective.good else bad


def _alert(objective: Objective, burn: Burn) -> dict[str, object]:
    ratio = f"trellis:{objective.name}:ratio_rate"
    limit = f"{burn.factor:g} * {objective.budget:g}"
    enough = f"({_bad('increase', objective, burn.long)}) >= {AT_LEAST}"
    speed = "Fast" if burn.pages else "Slow"
    return {
        "alert": f"Trellis{objective.alert}Burns{speed}",
        "expr": f"{ratio}{burn.long} > {limit} and {ratio}{burn.short} > {limit} and on (model) {enough}",
        "labels": {"severity": "page" if burn.pages and objective.pages else "ticket", "window": burn.long},
        "annotations": {
            "summary": "{{ $labels.model }}: {{ $value | humanizePercentage }} "
            f"{objective.about}, {burn.factor:g} times what "
            f"{100 * objective.objective:g} % over {PERIOD_DAYS} days allows",
            "action": objective.action,
            "explained_by": objective.explained_by,
            "runbook": f"docs/runbooks.md#{objective.alert.lower()}",
        },
    }
