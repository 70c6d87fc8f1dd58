"""Where rollouts, decisions, flows and features stand, as metrics read at the scrape from their stores and files.

Nothing of this is on the path of an answer: the exporter is a process of its own. Cardinality is bounded by models and
the versions of a plan, by kinds and outcomes of decisions, by flows times models and by feature views.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from trellis.adapters.database import engine
from trellis.adapters.decision_store import DecisionStore
from trellis.adapters.plan_store import PlanStore
from trellis.adapters.rollout_store import RolloutStore
from trellis.errors import StorageError
from trellis.rollout.document import Stage

logger = logging.getLogger(__name__)


class StoreState:
    """A collector of plans, rollouts and decisions.

    Args:
        url: SQLAlchemy URL of the store.
    """

    def __init__(self, url: str) -> None:
        self._plans, self._rollouts = PlanStore(url), RolloutStore(url)
        self._decisions = DecisionStore(engine(url))

    def collect(self) -> Iterator[Metric]:
        """Yield what the store holds; only ``trellis_store_up`` where it does not answer."""
        up = GaugeMetricFamily("trellis_store_up", "Whether the store of plans and decisions answers the exporter.")
        try:
            found = [*self._traffic(), *self._decided()]
        except StorageError as error:
            logger.warning("%s", error)
            found = []
        up.add_metric([], bool(found))
        yield up
        yield from found

    def _traffic(self) -> Iterator[Metric]:
        share = GaugeMetricFamily(
            "trellis_plan_share", "Share of traffic by the plan.", labels=["model", "version", "role"]
        )
        shadow = GaugeMetricFamily(
            "trellis_plan_shadow_rate", "Share of requests a shadow scores.", labels=["model", "version"]
        )
        changed = GaugeMetricFamily(
            "trellis_plan_changed_timestamp_seconds", "When the plan was changed last.", labels=["model"]
        )
        stage = GaugeMetricFamily(
            "trellis_rollout_stage",
            "1 for the stage of the newest rollout, 0 for the others.",
            labels=["model", "strategy", "stage"],
        )
        opened = GaugeMetricFamily("trellis_rollout_open", "Whether a rollout is under way.", labels=["model"])
        paused = GaugeMetricFamily("trellis_rollout_paused", "Whether it is paused.", labels=["model"])
        moves = CounterMetricFamily(
            "trellis_rollout_transitions", "Transitions of the newest rollout.", labels=["model"]
        )
        for model in self._plans.models():
            plan, rollout = self._plans.current(model), self._rollouts.current(model)
            if plan is None:
                continue
            for variant in plan.variants:
                share.add_metric([model, variant.version, variant.role], variant.weight)
            for watched in plan.shadows:
                shadow.add_metric([model, watched.version], watched.sample_rate)
            for change in self._plans.history(model, last=1):
                changed.add_metric([model], datetime.fromisoformat(change.at).timestamp())
            opened.add_metric([model], rollout is not None and not rollout.final)
            if rollout is not None:
                for name in get_args(Stage):
                    stage.add_metric([model, rollout.strategy, name], rollout.stage == name)
                paused.add_metric([model], rollout.paused and not rollout.final)
                moves.add_metric([model], rollout.number)
        yield from (share, shadow, changed, stage, opened, paused, moves)

    def _decided(self) -> Iterator[Metric]:
        taken = CounterMetricFamily("trellis_decisions", "Decisions taken.", labels=["model", "kind", "outcome"])
        for (model, kind, outcome), count in self._decisions.counts().items():
            taken.add_metric([model, kind, outcome], count)
        yield taken


class FlowRuns:
    """A collector of pipeline runs, from the journal that flows append to; read on from where the last scrape ended.

    Args:
        path: The journal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin()

    def _begin(self) -> None:
        self._offset = 0
        self._ended: dict[tuple[str, str, str], int] = {}
        # By flow and model: one model's good turn says nothing of another's that fails.
        self._broke: dict[tuple[str, str], bool] = {}
        self._last: dict[tuple[str, str], tuple[float, float]] = {}
        self._steps: dict[tuple[str, str], float] = {}

    def collect(self) -> Iterator[Metric]:
        """Yield counts and durations of all runs so far."""
        self._read()
        ended = CounterMetricFamily("trellis_flow_runs", "Runs of flows.", labels=["flow", "model", "outcome"])
        for key, count in sorted(self._ended.items()):
            ended.add_metric(key, count)
        mine = ["flow", "model"]
        when = GaugeMetricFamily(
            "trellis_flow_last_success_timestamp_seconds", "When a model's flow last ended well.", labels=mine
        )
        took = GaugeMetricFamily("trellis_flow_last_success_seconds", "How long that run took.", labels=mine)
        for whose, (moment, seconds) in self._last.items():
            when.add_metric(whose, moment)
            took.add_metric(whose, seconds)
        worked = CounterMetricFamily("trellis_flow_step_seconds", "Time steps have worked.", labels=["flow", "step"])
        for (flow, step), seconds in self._steps.items():
            worked.add_metric([flow, step], seconds)
        failed = GaugeMetricFamily(
            "trellis_flow_last_run_failed", "Whether a flow's last run for a model ended with an error.", labels=mine
        )
        for whose, broke in self._broke.items():
            failed.add_metric(whose, broke)
        yield from (ended, failed, when, took, worked)

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                if self._path.stat().st_size < self._offset:  # another file in its place
                    self._begin()
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]  # a line that is being written waits for the next scrape
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                self._count(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                logger.warning("a line of %s cannot be read and is left out", self._path.name)

    def _count(self, run: dict[str, Any]) -> None:
        flow, model, error = str(run["flow"]), str(run.get("model", "")), bool(run.get("error"))
        key = (flow, model, "failed" if error else "completed")
        self._ended[key] = self._ended.get(key, 0) + 1
        if model:  # lines of an earlier release name none: they stand until one does, or a failure would for ever
            self._broke.pop((flow, ""), None)
            self._last.pop((flow, ""), None)
        self._broke[flow, model] = error
        # Both outcomes from the first run on, so that the second's failure is a rise.
        self._ended.setdefault((flow, model, "completed"), 0)
        self._ended.setdefault((flow, model, "failed"), 0)
        for step, seconds in run["steps"].items():
            self._steps[flow, step] = self._steps.get((flow, step), 0.0) + float(seconds)
        if not error and "ended_at" in run:
            moment = datetime.fromisoformat(str(run["ended_at"])).timestamp()
            self._last[flow, model] = (moment, float(run["wall_seconds"]))


class FeatureMarks:
    """A collector of how far every feature view was brought into the online store.

    Args:
        path: The marks that materialisation leaves.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def collect(self) -> Iterator[Metric]:
        """Yield the end of every view's last materialisation, event time."""
        until = GaugeMetricFamily(
            "trellis_feature_materialized_timestamp_seconds",
            "Event time up to which a view is in the online store.",
            labels=["view"],
        )
        try:
            marks = json.loads(self._path.read_text(encoding="utf-8"))
            for view, mark in marks.items():
                until.add_metric([view], datetime.fromisoformat(mark["until"]).timestamp())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # nothing was materialised yet, or a mark is being written
        yield until
