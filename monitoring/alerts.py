"""Alerts as files: one per episode, opened once, followed while it lasts, closed when it is over."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monitoring.performance import MEANING, newest
from monitoring.skew import skew_text
from trellis.adapters.alert_files import raise_alert
from trellis.adapters.files import write_atomically
from trellis.alerts import SEVERITIES
from trellis.drift import Diagnosis, Window
from trellis.ledger import Point
from trellis.quality import QualityFinding, SkewReport

logger = logging.getLogger(__name__)
# The outcomes that looks follow; the loop's alerts lie in the same directory and are closed by the loop.
DIAGNOSED = frozenset({"DRIFT", "UPSTREAM_FAULT"})
NOTED = frozenset({"DATA_QUALITY", "PERFORMANCE_ASSUMPTION", "SKEW"})
# A few odd rows are a finding and wake nobody: the share from which the rule TrellisDataQuality tells, too.
_TOLD_FROM = 0.01


def follow_up(
    directory: Path, model: str, window: Window, found: Diagnosis, decision: str, between: bool = False
) -> Path | None:
    """Open, continue or close a model's alerts of ``DIAGNOSED`` after a look; a window looked at again changes nothing.

    A fault's episode is its views; a drift's is the model's. A look without enough rows says nothing. During a fault a
    drift episode stays open: the look cannot tell. One between two due looks knows certain faults alone, so it ends the
    episodes that only such looks have told of.

    Args:
        directory: Where alerts are.
        model: Whose.
        window: The window judged.
        found: The diagnosis.
        decision: Id of its decision.
        between: Whether the look was one between two due ones.

    Returns:
        File of the alert that this look belongs to; None where there is no alarm.
    """
    if found.missing_rows:
        return None
    mine = None
    for path, alert in list(_open_alerts(directory, model, DIAGNOSED)):
        if window.end < alert["last_window"]:
            continue  # a look at the past tells nothing about what is going on now
        same = alert["outcome"] == found.outcome and (
            found.outcome == "DRIFT" or bool(set(alert["views"]) & set(found.views))
        )
        if same:
            mine = path
            if window.end > alert["last_window"]:
                views = sorted({*alert["views"], *found.views})
                now = {**_finding(found, decision), "views": views, "since": alert["since"]}
                now["between"] = between and alert.get("between", False)
                now["severity"] = max(alert["severity"], found.severity, key=SEVERITIES.index)
                _write(path, {**alert, **now, "last_window": window.end, "looks": alert["looks"] + 1})
        elif (
            alert.get("between", False) if between else (alert["outcome"], found.outcome) != ("DRIFT", "UPSTREAM_FAULT")
        ):
            _write(path, {**alert, "status": "closed", "closed_at": window.end})
    if found.outcome not in DIAGNOSED:
        return None
    if mine is not None:
        return mine
    key = f"{model}|{found.outcome}|{','.join(found.views)}|{window.end}"
    name = f"{model}-{found.outcome.lower()}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    path = directory / f"{name}.json"
    if path.exists():  # this very look has been taken before, and its episode is over
        return path
    alert = {
        **_finding(found, decision),
        "id": name,
        "status": "open",
        "severity": found.severity,
        "model": model,
        "outcome": found.outcome,
        "opened_at": window.end,
        "last_window": window.end,
        "looks": 1,
        "between": between,
    }
    _write(path, alert)
    return path


def follow_rows(
    directory: Path,
    model: str,
    window: Window,
    quality: Sequence[QualityFinding],
    skew: SkewReport | None,
    points: Sequence[Point],
) -> None:
    """Open, continue or close a model's alerts of ``NOTED`` after a look: what is wrong beside the verdict.

    An episode is the fault's: its kind and column, or the version and its flag; skew is the model's. Where a look does
    not tell (nothing replayed) what is open stays so. Of windows with too few rows it is not to be asked.

    Args:
        directory: Where alerts are.
        model: Whose.
        window: The window judged.
        quality: What was wrong with the window's rows.
        skew: Its features beside their recomputation.
        points: Performance by window and version, oldest first.

    Raises:
        StorageError: The disk refused.
    """
    noted = [_of_quality(item) for item in quality if item.share > _TOLD_FROM]
    noted += [_of_flag(point, flag) for point in newest(points) for flag in point.flags if flag != "no_reference"]
    told = {"DATA_QUALITY", "PERFORMANCE_ASSUMPTION"}
    if skew is not None and skew.rows:
        told.add("SKEW")
        noted += [] if skew.passed else [_Noted("SKEW", "skew", "", skew_text(skew), "mend the cause: trellis skew")]
    wanted = {(item.outcome, item.about): item for item in noted}
    for path, alert in list(_open_alerts(directory, model, told)):
        item = wanted.pop((alert["outcome"], alert["about"]), None)
        if window.end <= alert["last_window"]:
            continue
        if item is None:
            _write(path, {**alert, "status": "closed", "closed_at": window.end})
        else:
            now = {"reason": item.reason, "last_window": window.end, "looks": alert["looks"] + 1}
            _write(path, {**alert, **now})
    for item in wanted.values():
        raise_alert(
            directory, model=model, outcome=item.outcome, key=f"{item.about}|{window.end}", severity="warning",
            reason=item.reason, action=item.action, at=window.end, kind=item.kind,
            columns=[item.column] if item.column else [], about=item.about,
        )  # fmt: skip


@dataclass(frozen=True)
class _Noted:
    """Something wrong beside the verdict."""

    outcome: str
    kind: str
    about: str
    reason: str
    action: str
    column: str = ""


def _of_quality(item: QualityFinding) -> _Noted:
    about = f"{item.kind} {item.column}"
    return _Noted("DATA_QUALITY", item.kind, about, item.text, "find who sends such rows: trellis watch", item.column)


def _of_flag(point: Point, flag: str) -> _Noted:
    reason = f"what is said of version {point.version}'s performance rests on an assumption that fails: {MEANING[flag]}"
    return _Noted("PERFORMANCE_ASSUMPTION", flag, f"{point.version} {flag}", reason, "see: trellis performance")


def _finding(found: Diagnosis, decision: str) -> dict[str, Any]:
    return {
        "kind": found.kind,
        "cause": found.cause,
        "views": list(found.views),
        "columns": [f.column for f in found.faults] or [s.name for s in found.shifts if s.level],
        "since": found.since,
        "action": found.action,
        "reason": found.reason,
        "decision": decision,
    }


def _open_alerts(directory: Path, model: str, outcomes: Collection[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(directory.glob(f"{model}-*.json")):
        try:
            alert = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            logger.warning("alert file %s cannot be read; left alone", path)
            continue
        if alert.get("model") == model and alert.get("status") == "open" and alert.get("outcome") in outcomes:
            yield path, alert


def _write(path: Path, alert: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(alert, indent=2, sort_keys=True) + "\n")
