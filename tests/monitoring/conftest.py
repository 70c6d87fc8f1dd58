"""A small model, its baseline, and a log of what it served, written through the log's own adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitoring.subject import Subject
from trellis.adapters.prediction_log import LabelLog, PredictionLog
from trellis.contract import DriftPolicy, Field, Metric, ModelSpec, RolloutPolicy, Target
from trellis.drift import build_reference
from trellis.ledger import fit_loss_model
from trellis.metrics import blocks_of, row_loss
from trellis.sums import loss_sums

START = datetime(2013, 1, 1, tzinfo=UTC)
SERVED = START + timedelta(days=182)
PER_DAY = 100

SPEC = ModelSpec(
    name="ferry_delay",
    version="1.0",
    task="binary",
    owner="harbour",
    description="Probability that a ferry is late.",
    request=(
        Field("line", "category", "The ferry's line."),
        Field("sched", "timestamp", "Scheduled departure."),
        Field("load", "float", "Share of seats sold.", minimum=0, maximum=1),
    ),
    features=(
        Field("temp", "float", "Air temperature, degrees Fahrenheit.", nullable=True),
        Field("wind", "float", "Wind speed, miles per hour.", nullable=True),
        Field("late_rate", "float", "Share of late ferries of the line.", nullable=True),
    ),
    inputs=("line", "load", "temp", "wind", "late_rate"),
    outputs=(Field("probability", "float", "Probability of being late.", minimum=0, maximum=1),),
    target=Target("late", "Whether it came late.", ("on_time", "late"), delay_hours=2.0),
    metric=Metric("auc", 0.6),
    feature_service="ferry_v1",
    entity_keys=("line",),
    time_field="sched",
    segments=("line",),
    drift=DriftPolicy(min_rows=300),
)
VIEWS = {"line": "request", "load": "request", "temp": "weather", "wind": "weather", "late_rate": "line_delays"}


def rows(first: datetime, days: int, seed: int) -> dict[str, np.ndarray]:
    """Draw days of ferries; hours of a day share its temperature."""
    rng = np.random.default_rng([seed, (first - START).days])
    count = days * PER_DAY
    day = np.repeat(np.arange(days), PER_DAY)
    start = np.datetime64(first.replace(tzinfo=None), "us")
    minutes = day * 1440 + np.tile(np.linspace(0, 1430, PER_DAY).astype(int), days)
    late = rng.random(count)
    probability = rng.beta(2, 6, count)
    return {
        "time": start + minutes * np.timedelta64(60_000_000, "us"),
        "line": rng.choice(["north", "south", "island"], count, p=[0.5, 0.3, 0.2]),
        "load": rng.beta(4, 2, count),
        "temp": 50 + rng.normal(0, 3, days)[day] + rng.normal(0, 8, count),
        "wind": np.round(rng.gamma(4, 2.5, count)) * 1.15078,
        "late_rate": rng.beta(8, 30, count),
        "probability": probability,
        "late": (late < probability).astype(int),
    }


@dataclass
class Served:
    """A home with a log in it, written day after day."""

    home: Path
    subject: Subject
    days: int = 0
    seed: int = 7

    @property
    def now(self) -> datetime:
        """The moment up to which was served."""
        return SERVED + timedelta(days=self.days)

    def drawn(self, since: int, days: int) -> dict[str, np.ndarray]:
        """The rows that ``serve`` writes for ``days`` days after ``since`` days, unchanged."""
        return rows(SERVED + timedelta(days=since), days, self.seed)

    def serve(
        self,
        days: int,
        change: Callable[[dict[str, np.ndarray]], Mapping[str, Any]] = lambda r: r,
        *,
        version: str = "1",
        labels: float = 1.0,
        drop: tuple[str, ...] = (),
        known_after: Callable[[dict[str, np.ndarray]], np.ndarray] = lambda r: np.full(len(r["late"]), 2),
    ) -> datetime:
        """Write the next days' predictions, and the first share of ``labels``; return the moment after them.

        A row's truth is observed ``known_after`` whole hours after its time.
        """
        first = SERVED + timedelta(days=self.days)
        drawn = dict(change(rows(first, days, self.seed)))
        log, truths = (
            PredictionLog(self.home, SPEC.name, flush_seconds=1),
            LabelLog(self.home, SPEC.name, flush_seconds=1),
        )
        records, answers = [], []
        hours = known_after(drawn)
        for i, moment in enumerate(drawn["time"]):
            stamp, name = f"{moment}Z", f"{self.days}-{i}"
            feature = {n: _plain(drawn[n][i]) for n in ("temp", "wind", "late_rate") if n not in drop}
            records.append(
                {
                    "id": name,
                    "model": SPEC.name,
                    "version": version,
                    "variant": "champion",
                    "revision": 1,
                    "time": stamp,
                    "received_at": stamp,
                    "unit": "north",
                    "request": {n: _plain(drawn[n][i]) for n in ("line", "load")} | {"sched": stamp},
                    "features": feature,
                    "feature_times": {"weather": f"{moment - np.timedelta64(30, 'm')}Z", "line_delays": None},
                    "overrides": [],
                    "outputs": {"probability": _plain(drawn["probability"][i])},
                    "latency_ms": 1.0,
                }
            )
            seen = f"{moment + np.timedelta64(int(hours[i]), 'h')}Z"
            answers.append({"id": name, "value": int(drawn["late"][i]), "observed_at": seen, "received_at": seen})
        log.extend(records)
        truths.extend(answers[: int(len(answers) * labels)])
        log.close()
        truths.close()
        self.days += days
        return self.now


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


@pytest.fixture(scope="session")
def subject() -> Subject:
    drawn = rows(START, 182, 1)
    held = rows(SERVED, 28, 2)
    loss = row_loss("binary", held["late"], held["probability"])
    reference = build_reference(
        {n: drawn[n] for n in SPEC.inputs},
        list(SPEC.fields.values()),
        times=drawn["time"],
        loss=loss_sums(loss, blocks_of(held["time"], np.arange(len(loss)).astype(str))),
    )
    model = fit_loss_model(SPEC, held["late"], held["probability"], held, held["time"].astype("datetime64[D]"))
    return Subject(SPEC, "1", reference, VIEWS, loss_models={"1": model})


@pytest.fixture(scope="session")
def serve_in(subject: Subject) -> Callable[[Path], Served]:
    return lambda home: Served(home, subject)


@pytest.fixture
def served(tmp_path: Path, subject: Subject) -> Served:
    return Served(tmp_path, subject)


EVIL = "<img src=x onerror=document.title=1>"


class ConsoleWorld:
    """Two weeks of ferries, a healthy one and one in Celsius, with a canary on trial: every store by the real code."""

    def __init__(self, served: Served) -> None:
        from monitoring.watch import watch
        from trellis.rollout.plan import first_plan

        self.model = SPEC.name
        self.open(served.home)
        self.first = watch(served.subject, served.home, served.serve(7), report=False)
        self.now = served.serve(7, lambda r: {**r, "temp": (r["temp"] - 32) / 1.8})
        self.second = watch(served.subject, served.home, self.now, report=False)
        self.decisions.record(self.first.decision)
        self.decisions.record(self.second.decision)
        plan = first_plan(self.model, variant("1"), salt="s")
        self.plan = self.plans.save(plan, expected_revision=0, who="platform", why="the first version")
        self._try_version_two()

    def open(self, home: Path) -> None:
        """Open the stores of a home."""
        from trellis.adapters.database import engine
        from trellis.adapters.decision_store import DecisionStore
        from trellis.adapters.plan_store import PlanStore
        from trellis.adapters.rollout_store import RolloutStore

        self.home, self.url = home, f"sqlite:///{home}/trellis.db"
        self.plans, self.rollouts = PlanStore(self.url), RolloutStore(self.url)
        self.decisions = DecisionStore(engine(self.url))

    def _try_version_two(self) -> None:
        from trellis.decision import decision_of
        from trellis.rollout.asked import plan_for
        from trellis.rollout.guards import Exposure
        from trellis.rollout.state import begin
        from trellis.rollout.stream import LossStream
        from trellis.rollout.verdict import CanaryInputs, decide

        policy, at = RolloutPolicy(steps=(0.1, 0.5), max_days=30.0), self.now.isoformat()
        begun = replace(begin(self.plan, [variant("2")], policy), started_at=at, entered_at=at)
        wanted = plan_for(begun, self.plan, policy)
        self.plan = self.rollouts.commit(None, begun, wanted, expected_revision=1, who="operator", why="try it")
        inputs = CanaryInputs(LossStream(), (Exposure(0.1, 12, 90),), 0.1, 0.5)
        verdict = decide(inputs, policy)
        self.canary = decision_of(
            "canary", model=self.model, subject="v2 vs v1", at=at, inputs=inputs, policy=policy, verdict=verdict
        )
        self.decisions.record(self.canary)

    def evil(self) -> Any:
        """Add a model in which everything that has a name is named with HTML; return its decision."""
        from trellis.adapters.look_store import LookStore
        from trellis.decision import decision_of, dumps
        from trellis.rollout.plan import first_plan

        look = LookStore(self.home).latest(self.model)[-1]
        bad = replace(
            look,
            **dict.fromkeys(("model", "version", "owner", "description", "reason", "outcome", "kind", "action"), EVIL),
            performance=tuple(replace(f, version=EVIL, value=EVIL if f.segment else "") for f in look.performance),
            drift=tuple(replace(d, name=EVIL, view=EVIL, fault=EVIL) for d in look.drift),
            findings={EVIL: 1},
        )
        path = LookStore(self.home).path(bad)
        path.parent.mkdir(parents=True)
        path.write_text(dumps(bad))
        plan = first_plan(EVIL, variant(EVIL), salt=EVIL, unit=EVIL)
        self.plans.save(plan, expected_revision=0, who=EVIL, why=EVIL)
        checks = tuple(replace(c, name=EVIL, text=EVIL) for c in self.canary.verdict.checks)
        verdict = replace(self.canary.verdict, reason=EVIL, outcome=EVIL, checks=checks, needs={EVIL: 1.0})
        about: dict[str, Any] = {"model": EVIL, "subject": EVIL, "at": EVIL, "who": EVIL}
        decision = decision_of("canary", **about, inputs={EVIL: 1}, policy={EVIL: EVIL}, verdict=verdict)
        self.decisions.record(decision)
        alert = dict.fromkeys(("id", "model", "severity", "opened_at", "reason", "action", "decision"), EVIL)
        (self.home / "alerts" / f"{EVIL}-1.json").write_text(json.dumps({**alert, "status": "open"}))
        return decision

    def reading(self) -> Any:
        from services.console.reading import Reading

        return Reading(self.home, self.url)


def variant(version: str) -> Any:
    from trellis.rollout.plan import Variant

    return Variant(version, "champion", 1.0, f"/artifacts/{version}", "0" * 64)


@pytest.fixture(scope="session")
def filled_console(tmp_path_factory: pytest.TempPathFactory, subject: Subject) -> ConsoleWorld:
    made = ConsoleWorld(Served(tmp_path_factory.mktemp("console"), subject))
    made.plans.close()  # so that the database is one file
    return made


@pytest.fixture
def console_world(tmp_path: Path, filled_console: ConsoleWorld) -> ConsoleWorld:
    """Give every test its own copy."""
    mine = copy(filled_console)
    mine.open(Path(shutil.copytree(filled_console.home, tmp_path / "home")))
    return mine


@pytest.fixture(scope="session")
def evil() -> str:
    return EVIL
