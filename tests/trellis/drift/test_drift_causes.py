"""Causes told apart end to end: the simulator injects, the verdict names, with columns, segments and severity."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from pydantic import TypeAdapter

from trellis.contract import DriftPolicy, Field
from trellis.decision import dumps
from trellis.drift import (
    Diagnosis,
    DriftInputs,
    HarmEstimate,
    Reference,
    SegmentLoss,
    build_reference,
    decide,
    diagnose,
    joint_signals,
    outcomes_like,
    reference_outcomes,
    summarise_window,
)
from trellis.drift.causes import severity_of
from trellis.drift.simulate import Change, inject
from trellis.drift.zones import find_zone_shift
from trellis.metrics import row_loss
from trellis.sums import loss_sums

FIELDS = [Field(n, "float") for n in ("x", "z", "temp", "hour", "late")] + [Field("line", "category")]
VIEWS = {"x": "orders", "z": "orders", "late": "orders", "temp": "weather", "hour": "request", "line": "codes"}
UNITS = {"temp": "degF"}
POLICY = DriftPolicy(min_rows=500)
WEEKS, PER_WEEK = 32, 2_000
STEP = np.timedelta64(604_800_000_000 // PER_WEEK, "us")
TIME = np.datetime64("2024-01-01", "us") + np.arange(WEEKS * PER_WEEK) * STEP
TRAINED = 26 * PER_WEEK
BREAK = TIME[30 * PER_WEEK]  # two weeks from the end


def score(columns: dict[str, np.ndarray]) -> np.ndarray:
    x, z = (np.nan_to_num(columns[n].astype(float)) for n in ("x", "z"))
    return 1 / (1 + np.exp(1 - 1.3 * x - 0.6 * z))


@cache
def world(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    n = len(TIME)
    x = rng.normal(size=n)
    columns = {
        "x": x,
        "z": 0.6 * x + 0.8 * rng.normal(size=n),
        "temp": np.round(rng.normal(60, 12, n)),
        "hour": np.clip(np.rint(rng.normal(13, 3.5, n)), 0, 23),
        "late": rng.gamma(2, 3, n),
        "line": rng.choice(np.array(["north", "south", "island"], dtype=object), n, p=[0.5, 0.3, 0.2]),
    }
    return columns, (rng.random(n) < score(columns)).astype(float)


@cache
def baseline(seed: int) -> Reference:
    columns, target = world(seed)
    train = slice(0, TRAINED - 6 * PER_WEEK)
    held = slice(TRAINED - 6 * PER_WEEK, TRAINED)
    day = TIME.astype("datetime64[D]")
    kept = {k: v[held] for k, v in columns.items()}
    return build_reference(
        {k: v[train] for k, v in columns.items()},
        FIELDS,
        times=TIME[train],
        loss=loss_sums(row_loss("binary", target[held], score(kept)), day[held]),
        outcomes=reference_outcomes("binary", score(kept), target[held], day[held]),
    )


def looked(*changes: Change, seed: int = 0, weeks: int = 6, **more) -> DriftInputs:
    """The last ``weeks`` weeks of the changed world, with everything that a look knows of them."""
    columns, target = world(seed)
    found = inject(columns, changes, time=TIME, target=target, seed=seed)
    reference, windows, outcomes, losses = baseline(seed), [], [], []
    parts = [slice(w * PER_WEEK, (w + 1) * PER_WEEK) for w in range(WEEKS - weeks, WEEKS)]
    rows = [{k: v[part] for k, v in found.columns.items()} for part in parts]
    for part, batch in zip(parts, rows, strict=True):
        ages = {"orders": float(np.median(found.ages_hours.get("late", np.zeros(len(TIME)))[part])) + 1}
        start, end = (f"{TIME[part.start].astype('datetime64[s]')}Z", f"{TIME[part.stop - 1].astype('datetime64[s]')}Z")
        windows.append(summarise_window(batch, FIELDS, reference, start=start, end=end, ages_hours=ages))
        outcomes.append(outcomes_like(score(batch), found.target[part], reference.outcomes))
        loss = row_loss("binary", found.target[part], score(batch))
        losses.append(loss_sums(loss, TIME[part].astype("datetime64[D]")))
    before = {k: np.concatenate([r[k] for r in rows[:-2]]) for k in columns}
    signals = joint_signals(before, rows[-1])
    return DriftInputs(
        "m", "1", reference, tuple(windows), VIEWS, tuple(losses), UNITS, {},
        outcomes=tuple(outcomes), signals=signals, **more,
    )  # fmt: skip


def look(*changes: Change, **more) -> Diagnosis:
    return diagnose(looked(*changes, **more), POLICY)


def test_a_calm_world_is_stable() -> None:
    found = look()
    assert (found.outcome, found.cause, found.severity, found.drivers) == ("STABLE", "none", "none", ()), found.reason


@pytest.mark.parametrize(
    ("change", "cause", "driver"),
    [
        (Change("covariate", ("x",), start=BREAK, size=0.9), "data drift", "x"),
        (Change("label", start=BREAK, size=1.2), "label drift", "x"),
        (Change("concept", ("x",), start=BREAK, size=0.6), "concept drift", None),
        (Change("unit", ("temp",), start=BREAK, conversion="degF to degC"), "upstream fault", "temp"),
        (Change("nulls", ("z",), start=BREAK, size=0.4), "upstream fault", "z"),
        (Change("recode", ("line",), start=BREAK, size=0.7), "upstream fault", "line"),
        (Change("time_zone", ("hour",), start=BREAK, size=-6), "upstream fault", "hour"),
        (Change("stale", ("late",), start=BREAK), "upstream fault", "late"),
    ],
)
def test_each_cause_is_named_with_what_drives_it_and_since_when(change: Change, cause: str, driver: str | None) -> None:
    found = look(change)
    assert found.cause == cause, found.reason
    assert found.since is not None
    assert found.since >= str(BREAK - np.timedelta64(1, "D"))
    if driver:
        assert driver in found.drivers
    assert (found.action == "fix upstream") == (cause == "upstream fault")


def test_a_tie_that_comes_undone_is_a_joint_drift_though_no_column_moves() -> None:
    columns, _ = world(0)
    inputs = looked()
    rng = np.random.default_rng(1)
    before = {k: v[: 4 * PER_WEEK] for k, v in columns.items()}
    now = {k: v[4 * PER_WEEK : 5 * PER_WEEK] for k, v in columns.items()}
    now["z"] = rng.permutation(now["z"])
    found = diagnose(
        DriftInputs("m", "1", inputs.reference, inputs.windows, VIEWS, signals=joint_signals(before, now)), POLICY
    )
    assert (found.outcome, found.kind) == ("DRIFT", "joint"), found.reason


def test_a_fault_and_a_concept_change_at_once_refuse_to_retrain() -> None:
    found = look(
        Change("concept", ("x",), start=BREAK, size=0.6),
        Change("unit", ("temp",), start=BREAK, conversion="degF to degC"),
    )
    assert (found.cause, found.action) == ("upstream fault", "fix upstream")
    assert found.links is not None
    assert found.links.label_given_score[1] < 1e-6  # and the rest is still in the arithmetic


@pytest.mark.parametrize(
    ("cause", "harm", "severity"),
    [
        ("none", None, "none"),
        ("data drift", None, "warning"),
        ("data drift", HarmEstimate(0.001, -0.004, 0.006, "estimated"), "info"),
        ("data drift", HarmEstimate(0.05, 0.03, 0.07), "critical"),
        ("concept drift", HarmEstimate(0.03, 0.0, 0.06), "warning"),
        ("upstream fault", None, "critical"),
        ("upstream fault", HarmEstimate(0.0, -0.01, 0.01), "warning"),
        ("label drift", HarmEstimate(math.nan, math.nan, math.nan), "warning"),
    ],
)
def test_harm_decides_severity(cause: str, harm: HarmEstimate | None, severity: str) -> None:
    assert severity_of(cause, harm, POLICY) == severity


def test_the_ledgers_estimate_overrules_silence_about_labels() -> None:
    change = Change("covariate", ("x",), start=BREAK, size=0.9)
    assert look(change, estimate=HarmEstimate(0.0, -0.005, 0.005, "estimated")).severity == "info"
    assert look(change, estimate=HarmEstimate(0.1, 0.08, 0.12, "corrected")).severity == "critical"


def test_segments_that_drive_it_are_named_and_calm_ones_are_not() -> None:
    rng = np.random.default_rng(0)

    def part(value: str, mean: float) -> SegmentLoss:
        days = np.repeat(np.arange(28), 40)
        before, now = rng.normal(0.2, 0.1, 1_120), rng.normal(mean, 0.1, 1_120)
        return SegmentLoss("line", value, loss_sums(before, days), loss_sums(now, days))

    segments = (part("north", 0.2), part("south", 0.35), part("island", 0.28))
    found = look(Change("concept", ("x",), start=BREAK, size=0.6), segments=segments)
    assert found.segments == ("line=south", "line=island")


def test_the_whole_look_goes_through_json_and_is_decided_again() -> None:
    concept = Change("concept", ("x",), start=BREAK, size=0.6)
    inputs = looked(concept, looks=3, streams={"adwin": ("2024-08-01T00:00:00Z",)})
    again = TypeAdapter(DriftInputs).validate_json(dumps(inputs))
    assert again == inputs
    assert decide(again, POLICY) == decide(inputs, POLICY)
    names = {check.name for check in decide(inputs, POLICY).checks}
    assert {"cause", "stream.adwin", "joint.mmd", "outcome.label_given_score", "outcome.estimated_labels"} <= names


@pytest.mark.parametrize("column", ["x", "hour"])
@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda v: np.full(len(v), np.nan), "nulls"),
        (lambda v: np.full(len(v), 3.0), "constant"),
        (lambda v: np.full(len(v), np.inf), "invalid"),
        (lambda v: v.astype(str).astype(object) + "x", "invalid"),
        (lambda v: None, "missing"),
    ],
)
def test_spoilt_columns_are_findings_with_their_name(column: str, spoil, kind: str) -> None:
    inputs = looked()
    columns, _ = world(0)
    batch = {k: v[-PER_WEEK:] for k, v in columns.items()}
    spoilt = spoil(batch.pop(column))
    if spoilt is not None:
        batch[column] = spoilt
    last = inputs.windows[-1]
    window = summarise_window(batch, FIELDS, inputs.reference, start=last.start, end=last.end)
    found = diagnose(DriftInputs("m", "1", inputs.reference, (*inputs.windows[:-1], window), VIEWS), POLICY)
    assert [(f.column, f.kind) for f in found.faults] == [(column, kind)], found.reason


def test_a_few_infinite_values_are_said_though_they_are_no_fault() -> None:
    inputs = looked()
    columns, _ = world(0)
    batch = {k: v[-PER_WEEK:].copy() for k, v in columns.items()}
    batch["x"][:3] = np.inf
    last = inputs.windows[-1]
    window = summarise_window(batch, FIELDS, inputs.reference, start=last.start, end=last.end)
    verdict = decide(DriftInputs("m", "1", inputs.reference, (*inputs.windows[:-1], window), VIEWS), POLICY)
    assert verdict.outcome == "STABLE"
    assert any(c.name == "invalid.x" and "3 values" in c.text for c in verdict.checks)


def test_an_empty_window_waits_and_training_without_a_value_is_no_crash() -> None:
    reference = baseline(0)
    empty = summarise_window({}, FIELDS, reference, start="2024-08-01T00:00:00Z", end="2024-08-08T00:00:00Z")
    assert diagnose(DriftInputs("m", "1", reference, (empty,), VIEWS), POLICY).outcome == "INSUFFICIENT"
    fields = [Field("x", "float"), Field("c", "category")]
    nothing = build_reference({"x": np.full(900, np.nan), "c": np.full(900, None, dtype=object)}, fields)
    batch = {"x": np.arange(900.0), "c": np.full(900, "new", dtype=object)}
    window = summarise_window(batch, fields, nothing, start="a", end="b")
    found = diagnose(DriftInputs("m", "1", nothing, (window,), {}), POLICY)
    assert {s.name for s in found.shifts if s.level} == {"x", "c"}


def test_a_turn_of_the_clock_is_found_with_its_hours() -> None:
    rng = np.random.default_rng(0)
    hours = np.clip(np.rint(rng.normal(13, 3.5, 4_000)), 0, 23)
    grid = np.linspace(0, 1, 41)
    healthy = np.quantile(hours, grid, method="inverted_cdf")
    for turn in (-8, -1, 5):
        now = np.quantile((hours + turn) % 24, grid, method="inverted_cdf")
        match = find_zone_shift(healthy, now, 3.5, tolerance=0.2)
        assert match is not None
        assert match.hours == turn
    assert find_zone_shift(healthy, np.quantile(hours * 0.5, grid), 3.5, tolerance=0.2) is None
    assert find_zone_shift(healthy + 100, healthy + 105, 3.5, tolerance=0.2) is None
