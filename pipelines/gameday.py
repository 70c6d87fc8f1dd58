"""A game day: a known change is put into a system's traffic, and what it noticed, when, and what it did is told.

The drill runs on a copy of the home with a service of its own, so that nothing of it reaches the real logs, plan or
channels. Its traffic is the newest of the prediction log, sent again over HTTP with its features, moved forward in
time; labels follow after the declared delay.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from trellis.client import Client, Label
from trellis.contract import ModelSpec
from trellis.drift import CONVERSIONS, declared_unit
from trellis.drift.simulate import Change, Simulated, Simulator
from trellis.errors import ConfigError, DataError, RequestError
from trellis.quality import ahead_of_clock

if TYPE_CHECKING:
    from pipelines.loop import Look
    from trellis.decision import Decision

SCENARIOS = ("calm", "unit", "nulls", "stale", "recode", "time_zone", "covariate", "concept", "label")
_LEFT_OUT = ("evidently", "logs", "game-day", "alerts", "quarantine")
_ALARMS = ("DRIFT", "UPSTREAM_FAULT")
_ROWS = 200


@dataclass(frozen=True)
class Day:
    """One day of the drill.

    Attributes:
        until: Its end, event time.
        sent, refused: Rows answered, and rows the service refused at the door.
        injected: Whether the change was in them.
        outcome: The look's outcome.
        kind: What the look calls it.
        columns: Columns it names.
        since: Since when, by its account.
        alert: The open alert's id; empty without.
        retrain: Outcome of the retraining decision.
        stage: Where the loop stands.
        decision: Id of the look's decision.
    """

    until: str
    sent: int
    refused: int
    injected: bool
    outcome: str
    kind: str
    columns: tuple[str, ...]
    since: str
    alert: str
    retrain: str
    stage: str
    decision: str


@dataclass(frozen=True)
class Report:
    """What a drill found out.

    Attributes:
        model, scenario: What was drilled.
        columns: Columns the change was put into.
        start: Event time of the change.
        days: Every day.
        false_alarms: Alarms before the change.
        noticed_after_days: From the known change point to the end of the first look that noticed it, event time; None
            if it was not noticed.
        noticed_after_looks: How many looks that took, that one included; None if it was not noticed.
        named: Whether that alarm names a column the change was put into; None where the change is in no column.
        done: What followed: alerts, retraining decisions, where the loop stands.
    """

    model: str
    scenario: str
    columns: tuple[str, ...]
    start: str
    days: tuple[Day, ...]
    false_alarms: int
    noticed_after_days: float | None
    noticed_after_looks: int | None
    named: bool | None
    done: tuple[str, ...]


def copy_home(home: Path, target: Path) -> None:
    """Copy a home as it stands; databases through SQLite's own backup, so that one in use is copied whole.

    Raises:
        ConfigError: There is nothing to copy.
    """
    if not (home / "predictions").is_dir():
        raise ConfigError("There is no system to drill.", where=home, remedy="Run make demo, or serve a model first.")
    shutil.rmtree(target, ignore_errors=True)

    def copy(source: str, place: str) -> str:
        with Path(source).open("rb") as file:
            database = file.read(16) == b"SQLite format 3\0"
        if database:
            with sqlite3.connect(f"file:{source}?mode=ro", uri=True) as one, sqlite3.connect(place) as other:
                one.backup(other)
            one.close()
            other.close()
            return place
        return shutil.copy2(source, place)

    left_out = shutil.ignore_patterns("*.db-wal", "*.db-shm")

    def ignore(directory: str, names: list[str]) -> set[str]:
        top = set(_LEFT_OUT) if Path(directory) == home else set()
        return {*left_out(directory, names), *(top & set(names))}

    shutil.copytree(home, target, ignore=ignore, copy_function=copy)


def change_for(scenario: str, spec: ModelSpec, columns: Sequence[str], start: datetime) -> list[Change]:
    """Return a scenario's change, in ``columns`` or in the first of the model's inputs that it fits.

    Raises:
        ConfigError: No column fits.
    """
    if scenario == "calm":
        return []
    fields = [spec.fields[name] for name in (columns or spec.inputs)]
    at = np.datetime64(start.replace(tzinfo=None), "us")
    numbers = tuple(f.name for f in fields if f.kind in ("float", "int"))
    if scenario == "unit":
        for item in fields:
            unit = declared_unit(item.description)
            for conversion in CONVERSIONS:
                if unit == conversion.before:
                    return [Change("unit", (item.name,), start=at, conversion=str(conversion))]
    elif scenario == "nulls":
        named = tuple(f.name for f in fields if f.nullable)[: len(columns) or 1]
        if named:
            return [Change("nulls", named, start=at)]
    elif scenario == "stale" and numbers:
        key = next((name for name in spec.entity_keys if name in spec.inputs), None)
        return [Change("stale", numbers[: len(columns) or 1], start=at, key=key)]
    elif scenario == "time_zone":
        named = tuple(f.name for f in fields if f.name in numbers and f.minimum == 0 and f.maximum in (23, 24))
        if named:
            return [Change("time_zone", named[: len(columns) or 1], start=at, size=5)]
    elif scenario == "recode":
        named = tuple(f.name for f in fields if f.kind == "category" and f.choices is None)[: len(columns) or 1]
        if named:
            return [Change("recode", named, start=at)]
    elif scenario == "covariate" and numbers:
        return [Change("covariate", numbers[: len(columns) or 3], start=at, size=1.5)]
    elif scenario == "concept" and numbers:
        return [Change("concept", numbers[: len(columns) or 3], start=at, size=0.6)]
    elif scenario == "label":
        return [Change("label", start=at, size=1.5)]
    raise ConfigError(
        f"No column of {spec.name!r} fits the scenario {scenario!r}.",
        where=", ".join(columns) or "its inputs",
        remedy="Name others with --column, or choose another scenario.",
    )


def drill(
    model: str,
    scenario: str,
    *,
    quiet: int,
    days: int,
    columns: Sequence[str] = (),
    on: bool = False,
    trains: bool = True,
) -> Iterator[Day | Report]:
    """Play a game day on the home of the settings, which has to be a copy; yields every day, and at last the report.

    Args:
        model: Whose.
        scenario: One of ``SCENARIOS``.
        quiet: Days before the change.
        days: Most days with it.
        columns: Where; chosen by the scenario if empty.
        on: Go on after the change was noticed.
        trains: Whether a retraining that is decided on is carried out; else the decision is all there is. A registry
            that is a server's cannot be copied, and a drill must register nothing in it.

    Raises:
        DataError: The log holds too few days to send again.
        ConfigError: The scenario fits no column.
    """
    from pipelines.demo.stage import Service
    from pipelines.plugins import plugin_named
    from trellis.settings import settings

    spec, home = plugin_named(model).spec, settings().directory()
    rows, target = _recorded(spec, home, quiet + days)
    times = pd.to_datetime(rows["time"], utc=True).dt.tz_localize(None).to_numpy("datetime64[us]")
    first = times.max().astype("datetime64[D]") + np.timedelta64(1, "D")
    begun = first.astype("datetime64[us]").item()
    start = begun + timedelta(days=quiet)
    changes = change_for(scenario, spec, columns, start)
    named = tuple(n for c in changes if c.family in ("upstream", "data") for n in c.columns)
    data = {name: _column(rows, spec, name) for name in spec.inputs if spec.fields[name].kind != "tensor"}
    simulator = Simulator(changes, data, target=target, time=times, seed=1)
    seen: list[Day] = []
    with Service() as service, Client(service.url) as client:
        for number in range(quiet + days):
            day = begun + timedelta(days=number)
            old = np.datetime64(day - timedelta(days=quiet + days), "us")
            here = np.flatnonzero((times >= old) & (times < old + np.timedelta64(1, "D")))
            if not len(here):
                continue
            moved = times[here] + np.timedelta64(quiet + days, "D")
            changed = simulator.apply({n: v[here] for n, v in data.items()}, time=moved, target=target[here])
            sent, refused = _send(client, spec, rows.iloc[here[changed.source]], changed, moved, f"{scenario}-{number}")
            until = day + timedelta(days=1, hours=spec.target.delay_hours)
            found, retrain, stage = _turn(model, f"{until.isoformat()}Z", trains)
            verdict, alert = found.decision.verdict, _alert(found.alert)
            seen.append(
                Day(
                    until.isoformat(), sent, refused, day >= start, verdict.outcome, str(alert.get("kind", "")),
                    tuple(alert.get("columns", ())), str(alert.get("since", "")), str(alert.get("id", "")),
                    retrain.verdict.outcome, stage, found.decision.id,
                )
            )  # fmt: skip
            yield seen[-1]
            if seen[-1].injected and changes and not on and _noticed(seen, named):
                break
    yield report_of(model, scenario, named, start, seen)


def _turn(model: str, until: str, trains: bool) -> tuple[Look, Decision, str]:
    """Look, weigh a retraining and, where it may be carried out, go on with it; return where the loop stands."""
    from pipelines.loop import look, turn_loop, weigh_retraining
    from pipelines.stores import loops

    if trains:
        turn = turn_loop(model, until, report=False)
        assert turn is not None  # that is for paced ones
        return turn.look, turn.retrain, turn.loop.stage
    found = look(model, until, report=False)
    return found, weigh_retraining(model, until, found), loops().current(model).stage


def report_of(model: str, scenario: str, named: tuple[str, ...], start: datetime, days: Sequence[Day]) -> Report:
    """Sum a drill's days up: what was noticed, when, whether it was named, and what was done."""
    after = _noticed(days, named)
    right = any(_newly(d, days, named) for d in after)
    before = [d for d in days if not d.injected and (d.outcome in _ALARMS or d.refused)]
    noticed = (datetime.fromisoformat(after[0].until) - start) / timedelta(days=1) if after else None
    done = [f"alert {d.alert}" for d in days if d.alert]
    done += [f"retraining decision {d.retrain}" for d in days if d.retrain != "WAIT"]
    done += [f"the loop is {days[-1].stage}"] if days else []
    return Report(
        model, scenario, named, start.isoformat(), tuple(days), len(before),
        None if noticed is None else round(noticed, 2), _looks(after, days), right if named and after else None,
        tuple(dict.fromkeys(done)),
    )  # fmt: skip


def _looks(after: Sequence[Day], days: Sequence[Day]) -> int | None:
    """Return how many looks with the change in their rows it took to notice it."""
    return [d.until for d in days if d.injected].index(after[0].until) + 1 if after else None


def _noticed(days: Sequence[Day], named: Sequence[str]) -> list[Day]:
    """Return the days on which the change was noticed: an alarm that is news, or rows refused at the door.

    A system may have drifted before the drill began: what was called the same, and named, on the quiet days is no news.
    """
    known = {(d.outcome, d.kind) for d in days if not d.injected}
    return [
        d
        for d in days
        if d.injected
        and (d.refused or (d.outcome in _ALARMS and ((d.outcome, d.kind) not in known or _newly(d, days, named))))
    ]


def _newly(day: Day, days: Sequence[Day], named: Sequence[str]) -> bool:
    """Return whether a day names a changed column that no quiet day named in an alarm of the same outcome."""
    before = {c.partition(".")[0] for d in days if not d.injected and d.outcome == day.outcome for c in d.columns}
    return bool({c.partition(".")[0] for c in day.columns} & set(named) - before)


def _recorded(spec: ModelSpec, home: Path, days: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the newest labelled predictions of so many days, in order, and their labels."""
    from pipelines.arms import labelled
    from trellis.adapters.prediction_log import read_labels, read_predictions

    rows = read_predictions(home, spec.name)
    if not len(rows):
        raise DataError(f"Nothing was served for {spec.name!r} yet.", where=home, remedy="Serve it, or run make demo.")
    found = labelled(spec, rows, read_labels(home, spec.name), np.datetime64("2200-01-01", "us"))
    right = ~ahead_of_clock(found.rows)
    keep = found.told & right & (found.times >= found.times[right].max() - np.timedelta64(days, "D"))
    order = np.flatnonzero(keep)[np.argsort(found.times[keep], kind="stable")]
    if len(order) < days:
        raise DataError(f"{len(order)} labelled predictions of {days} days are too few for a drill.", where=home)
    return found.rows.iloc[order].reset_index(drop=True), found.known.value[order]


def _column(rows: pd.DataFrame, spec: ModelSpec, name: str) -> np.ndarray:
    source = next((c for c in (f"features.{name}", f"request.{name}") if c in rows), None)
    kind = spec.fields[name].kind
    if source is None:
        return np.full(len(rows), np.nan if kind in ("float", "int", "bool") else "", dtype=None)
    values = rows[source]
    if kind in ("float", "int", "bool"):
        return pd.to_numeric(values, errors="coerce").to_numpy(float)
    return values.fillna("").astype(str).to_numpy()


def _send(
    client: Client, spec: ModelSpec, rows: pd.DataFrame, changed: Simulated, moved: np.ndarray, key: str
) -> tuple[int, int]:
    """Ask for every row's prediction, and tell its label; return how many were answered and how many refused."""
    assert changed.target is not None
    asked = [_row(spec, rows.iloc[i], changed, i, moved[i]) for i in range(len(rows))]
    waiting = [list(range(first, min(first + _ROWS, len(asked)))) for first in range(0, len(asked), _ROWS)]
    delay = timedelta(hours=spec.target.delay_hours)
    sent = refused = 0
    while waiting:
        group = waiting.pop()
        try:
            request = f"game-day-{key}-{group[0]}-{len(group)}"
            answer = client.predict(spec.name, [asked[i] for i in group], id=request).predictions
        except RequestError:
            # One row that is refused refuses its request: find it by halves.
            half = len(group) // 2
            waiting += [group[:half], group[half:]] if half else []
            refused += not half
            continue
        sent += len(group)
        times = [moved[i].item().replace(tzinfo=UTC) + delay for i in group]
        values = [changed.target[i].item() for i in group]
        whole = spec.task != "regression"
        labels = [Label(p.id, int(v) if whole else v, t) for p, v, t in zip(answer, values, times, strict=True)]
        client.label(spec.name, labels)
    return sent, refused


def _row(spec: ModelSpec, row: pd.Series, changed: Simulated, i: int, moved: np.datetime64) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, item in spec.fields.items():
        if name == spec.time_field:
            told[name] = f"{moved}Z"
        elif name in changed.columns:
            value = changed.columns[name][i]
            value = value.item() if hasattr(value, "item") else value
            missing = value == "" or value is None or value != value
            if not missing:
                told[name] = int(value) if item.kind == "int" else value
            elif item.nullable:
                told[name] = None
        elif f"request.{name}" in row:
            told[name] = row[f"request.{name}"]
    return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in told.items()}


def _alert(path: str | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    return found
