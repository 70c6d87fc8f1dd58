"""The story, chapter by chapter. Every number is measured as it is told; nothing is staged but the faults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pipelines.data import (
    Tables,
    TrainingSet,
    Validated,
    build_features,
    feature_store,
    ingest,
    model_code,
    prepare_data,
    suites_digest,
    validate,
)
from pipelines.demo.faults import time_zone_bug, weather_in_celsius
from pipelines.demo.stage import Narrator, Service
from pipelines.demo.traffic import Traffic
from pipelines.loop import Turn, turn_loop
from pipelines.plugins import plugin_named
from pipelines.progress import SILENT
from pipelines.rollout import advance_rollout
from pipelines.steps import reporting
from pipelines.stores import decisions, plans
from pipelines.training import Outcome, Recipe, train_model
from trellis.contract import Dataset, ProvidesData
from trellis.decision import Decision

MODEL = "flight_delay"
LAUNCH = datetime(2013, 7, 1, 4, tzinfo=UTC)  # midnight in New York
_MOST_TRIAL_DAYS = 30


class Story:
    """Plays the main job.

    Args:
        narrator: Who tells it.
        service: The running service is entered by ``play``.
    """

    def __init__(self, narrator: Narrator) -> None:
        self._tell = narrator
        self._spec = plugin_named(MODEL).spec
        self._now = LAUNCH

    def play(self) -> None:
        """Play all chapters."""
        tables, data, first = self._first_model()
        with Service() as service:
            rows = flights_from(tables, LAUNCH)
            self._traffic = Traffic(self._spec, rows, feature_store(), service.url)
            self._service = service
            try:
                self._serve(first)
                self._better_challenger(data)
                self._broken_challenger(data)
                self._upstream_fault(tables)
                self._season(tables)
            finally:
                self._traffic.close()
        tally = self._traffic.tally
        self._tell.say(
            f"\n  {tally.predictions:,} predictions answered over HTTP and {tally.labels:,} labels taken in, "
            f"{LAUNCH:%d %B} to {self._now:%d %B %Y}."
        )

    def _first_model(self) -> tuple[Tables, TrainingSet, Outcome]:
        self._tell.chapter(
            "From raw data to a served model",
            "336,776 real flights out of New York in 2013. A first, small neural network (PyTorch Lightning, one pass "
            "over the rows) learns from January to June whether a flight will arrive more than 15 minutes late, from "
            "nothing but what was known at its scheduled departure.",
        )
        tables = ingest(MODEL)
        validated = validate(MODEL, tables, suites_digest(MODEL))
        self._quarantine(validated)
        data = prepare_data(MODEL, until=_text(LAUNCH), tables=tables)
        self._tell.say(f"{data.rows:,} labelled flights until {LAUNCH:%d %B}, with features as known at the time.")
        small = {"epochs": 1, "width": 32, "blocks": 1}
        first = train_model(MODEL, Recipe("tabnet", params=small), training_set=data)
        self._outcome(first)
        return tables, data, first

    def _serve(self, first: Outcome) -> None:
        self._tell.chapter(
            "Serving July onward",
            "The service answers over HTTP. Every hour the feature job refreshes the online store; a label arrives "
            "when the flight has landed.",
        )
        self._serve_days(2, f"version {first.version} answers everything")
        answer = httpx.get(f"{self._service.url}/v1/models/{MODEL}").json()
        shares = ", ".join(f"v{v['version']} {v['weight']:.0%}" for v in answer["variants"])
        self._tell.say(f"{MODEL} at revision {answer['revision']}: {shares}. API page: {self._service.url}/docs")

    def _better_challenger(self, data: TrainingSet) -> None:
        self._tell.chapter(
            "A better challenger",
            "Gradient-boosted trees on the same rows. The gate compares both on the same unseen flights; then the "
            "canary has to show it on live ones.",
        )
        self._outcome(train_model(MODEL, Recipe("xgboost"), training_set=data, at=_text(self._now)))
        self._trial()

    def _broken_challenger(self, data: TrainingSet) -> None:
        self._tell.chapter(
            "A broken challenger",
            "The feature job of another branch writes local time and calls it UTC, so in training every delay is "
            "known four hours before it was. Offline the model looks brilliant: the test rows carry the same bug.",
        )
        broken = time_zone_bug(self._spec, data)
        self._outcome(train_model(MODEL, Recipe("xgboost"), training_set=broken, at=_text(self._now)))
        self._trial()

    def _upstream_fault(self, tables: Tables) -> None:
        fault = self._now
        self._tell.chapter(
            "An upstream fault",
            f"On {fault:%d %B} the weather feed begins to report Celsius instead of Fahrenheit. Every value is still "
            "in its allowed range, so validation lets it through.",
        )
        self._features_from(weather_in_celsius(tables, fault))
        self._serve_days(7, "a week with the wrong unit")
        self._turn(tables)
        self._tell.say("The feed is mended and the feature tables are built again; nothing was trained on the fault.")
        self._features_from(tables)
        feature_store().materialize(self._now, since=fault)

    def _season(self, tables: Tables) -> None:
        self._tell.chapter(
            "The season",
            "The feed is healthy again, but it is high summer, and the champion learned from winter and spring.",
        )
        self._serve_days(7, "a healthy week in summer")
        turn = self._turn(tables)
        if turn.outcome is not None and turn.outcome.revision:
            self._outcome(turn.outcome)
            self._trial()
            self._serve_days(3, "three days to verify it")
            state = self._turn(tables, report=False).loop
            for verified in decisions().list(MODEL, "verify")[-1:]:
                self._tell.decision(verified)
            if state.cycle is not None:
                self._tell.say(f"{state.cycle.id}: {state.cycle.outcome or state.stage}. (trellis loop show)")

    def _trial(self) -> None:
        """Serve day by day and weigh the canary after each, until the trial ends."""
        plan = plans().current(MODEL)
        if plan is None or plan.canary is None:
            return
        self._service.wait_for_revision(MODEL, plan.revision)
        last: Decision | None = None
        with self._bar(f"canary v{plan.canary.version}", None) as step:
            for now in self._traffic.days(self._now, _MOST_TRIAL_DAYS):
                self._now = now
                with reporting(SILENT):  # the bar tells; a line per step and day would bury it
                    last = advance_rollout(MODEL, _text(now)) or last
                current = plans().current(MODEL)
                assert current is not None
                self._service.wait_for_revision(MODEL, current.revision)
                share = current.canary.weight if current.canary else 0
                step(f"{now:%d %b}, share {share:.0%}: {last.verdict.outcome if last else ''}")
                if current.canary is None:
                    break
        if last is not None:
            self._tell.decision(last)
        current = plans().current(MODEL)
        assert current is not None
        self._tell.say(f"Version {current.champion.version} answers everything from {self._now:%d %B} on.")

    def _turn(self, tables: Tables, report: bool = True) -> Turn:
        turn = turn_loop(MODEL, _text(self._now), tables=tables, report=report)
        assert turn is not None  # that is for paced ones
        self._tell.decision(turn.look.decision)
        if turn.look.alert:
            alert = json.loads(Path(turn.look.alert).read_text())
            self._tell.say(
                f"  [bold]Alert[/] {alert['severity']}: {alert['kind']} in {', '.join(alert['views'])}; "
                f"{alert['action']}. [dim]{Path(turn.look.alert).name}[/]"
            )
        self._tell.decision(turn.retrain)
        return turn

    def _features_from(self, tables: Tables) -> None:
        validated = validate(MODEL, tables, suites_digest(MODEL))
        build_features(MODEL, validated, model_code(MODEL))

    def _serve_days(self, days: int, what: str) -> None:
        with self._bar(what, days) as step:
            for now in self._traffic.days(self._now, days):
                self._now = now
                step(f"{now:%d %b}")

    def _quarantine(self, validated: Validated) -> None:
        for report in validated.reports:
            for reason, count in report.reasons.items():
                self._tell.say(f"Quarantined {count} row of {report.table}: {reason}")

    def _outcome(self, outcome: Outcome) -> None:
        shown = ("auc", "average_precision", "brier")
        numbers = ", ".join(
            f"{name} {value:.3f} ({low:.3f}–{high:.3f})"
            for name in shown
            if name in outcome.metrics
            for low, value, high in [outcome.metrics[name]]
        )
        self._tell.say(f"Version {outcome.version} on unseen flights: {numbers}")
        self._tell.decision(outcome.decision)

    @contextmanager
    def _bar(self, what: str, total: int | None) -> Iterator[_Step]:
        columns = (TextColumn("  {task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[at]}"))
        with Progress(*columns, TimeElapsedColumn(), console=self._tell.console) as progress:
            task = progress.add_task(what, total=total, at="")
            yield _Step(progress, task)
            if total is None:  # how long a trial takes is not known before it ends
                progress.update(task, total=1, completed=1)


class _Step:
    """Moves a bar by one."""

    def __init__(self, progress: Progress, task: int) -> None:
        self._progress, self._task = progress, task

    def __call__(self, at: str) -> None:
        self._progress.update(self._task, advance=1, at=at)


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def flights_from(tables: Tables, moment: datetime) -> Dataset:
    """Return every flight from a moment on, with its truth and when it was known; features come from serving."""
    plugin = plugin_named(MODEL)
    assert isinstance(plugin, ProvidesData)
    rows = plugin.examples(Path(validate(MODEL, tables, suites_digest(MODEL)).tables.path))
    assert rows.time is not None
    return rows.take(rows.time >= np.datetime64(moment.replace(tzinfo=None)))
