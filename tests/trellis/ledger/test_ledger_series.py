"""The series: a window goes from estimated over corrected to realised, and its first estimate is held against it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from trellis.contract import DriftPolicy, Field, Metric, ModelSpec, Target
from trellis.decision import dumps
from trellis.ledger import expected_harm, fit_loss_model, labelled, series

BASE = np.datetime64("2024-03-01", "us")
DAY, HOUR = np.timedelta64(86_400_000_000, "us"), np.timedelta64(3_600_000_000, "us")
SPEC = ModelSpec(
    name="toy",
    version="1",
    task="binary",
    owner="us",
    description="A toy.",
    request=(Field("x", "float"), Field("kind", "category")),
    inputs=("x", "kind"),
    outputs=(Field("p", "float"),),
    target=Target("y", "Truth.", ("no", "yes"), delay_hours=72.0),
    metric=Metric("auc", 0.5),
    segments=("kind",),
    drift=DriftPolicy(max_loss_increase=0.02),
)


def draw(seed: int, rows: int, days: int, turn: float = 0.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    score = 1 / (1 + np.exp(-x))
    y = (rng.random(rows) < 1 / (1 + np.exp(-(1 - turn) * x))).astype(float)
    return np.sort(rng.integers(0, days, rows)), {"x": x, "kind": rng.choice(["a", "b"], rows)}, score, y


@pytest.fixture(scope="module")
def model():
    day, columns, score, y = draw(0, 6_000, 40)
    return fit_loss_model(SPEC, y, score, columns, day)


def log(turn: float = 0.0, delay: float = 72.0, rows: int = 4_000):
    """Two weeks of predictions, and labels that come after ``delay`` hours."""
    day, columns, score, y = draw(1, rows, 14, turn)
    time = BASE + day * DAY + np.arange(rows) * np.timedelta64(1, "s")
    made = pd.DataFrame(
        {
            "id": [f"p{i}" for i in range(rows)],
            "time": pd.to_datetime(time).tz_localize("UTC"),
            "received_at": pd.to_datetime(time).tz_localize("UTC"),
            "version": np.where(np.arange(rows) % 10 == 0, "2", "1"),
            "outputs.p": score,
        }
    )
    seen = pd.to_datetime(time + np.timedelta64(int(delay * 3600), "s")).tz_localize("UTC")
    return made, pd.DataFrame({"id": made["id"], "value": y, "observed_at": seen, "received_at": seen}), columns


def look(model, made, labels, columns, day: float):
    as_of = BASE + np.timedelta64(int(day * 24), "h")
    edges = np.array([BASE, BASE + 7 * DAY, BASE + 14 * DAY])
    found = labelled(SPEC, made, labels, as_of)
    return series(SPEC, found, columns, edges, as_of, {"1": model}, segments={"kind": columns["kind"]})


def test_a_window_is_estimated_then_corrected_then_realised_and_scored(model) -> None:
    made, labels, columns = log()
    stages = []
    for day in (2.9, 6, 11):
        found = look(model, made, labels, columns, day)
        first = next(p for p in found.points if p.version == "1")
        stages.append(first.stage)
        assert (first.held is None) == (first.stage != "realised")
        assert first.flags == ()
        assert first.best.low < first.realised.value < first.best.high if day > 6 else True
    assert stages == ["estimated", "corrected", "realised"]
    # The estimate of the window's end counted only labels that were due by then.
    assert first.held is True
    assert first.first.value != first.estimated.value
    track = next(t for t in found.tracks if t.version == "1")
    assert (track.scored, track.held, track.trusted) == (1, 1, True)
    assert track.error < 0.01
    assert first.expected_metrics["auc"] == pytest.approx(first.metrics["auc"], abs=0.03)
    assert first.expected_metrics["accuracy"] == pytest.approx(first.metrics["accuracy"], abs=0.03)
    kinds = [p for p in found.segments if p.start == first.start and p.version == "1"]
    assert [(p.segment, p.value) for p in kinds] == [("kind", "a"), ("kind", "b")]
    assert sum(p.predictions for p in kinds) == first.predictions
    assert all(p.estimated is not None for p in kinds)


def test_taken_again_for_a_past_moment_it_is_the_same_to_the_last_digit(model) -> None:
    made, labels, columns = log()
    before = look(model, made, labels[labels["observed_at"] <= pd.Timestamp("2024-03-07", tz="UTC")], columns, 6)
    assert dumps(look(model, made, labels, columns, 6)) == dumps(before)


@pytest.mark.parametrize("delay", [24.0, 72.0])
def test_what_was_said_first_is_what_a_look_at_the_windows_end_says(model, delay) -> None:
    """Also where truths come before the declared delay: those do not count yet."""
    made, labels, columns = log(delay=delay)
    then = next(p for p in look(model, made, labels, columns, 7).points if p.version == "1")
    now = next(p for p in look(model, made, labels, columns, 30).points if p.version == "1")
    assert now.first == then.best
    assert now.stage == "realised"


def test_a_version_without_a_loss_model_says_so_and_is_still_measured(model) -> None:
    found = look(model, *log(), 20)
    second = [p for p in found.points if p.version == "2"]
    assert all(p.flags == ("no_reference",) and p.stage == "realised" and p.estimated is None for p in second)
    early = look(model, *log(), 2)
    assert next(p for p in early.points if p.version == "2").stage == "none"


def test_concept_drift_is_flagged_and_its_harm_is_known_by_stage(model) -> None:
    made, labels, columns = log(turn=1.5)
    silent = next(p for p in look(model, made, labels, columns, 2).points if p.version == "1")
    assert silent.flags == ()
    guess = expected_harm(silent, model)
    assert (guess.stage, guess.labels, guess.reliable) == ("estimated", 0, True)
    assert guess.low < 0 < guess.high
    known = next(p for p in look(model, made, labels, columns, 6).points if p.version == "1")
    assert "concept_drift" in known.flags
    cost = expected_harm(known, model)
    assert cost.stage == "corrected"
    assert cost.low > 0.02
    assert cost.p_value < 1e-6
    assert cost.reliable
    # What the estimate said cannot be relied on once labels contradict it.
    assert not expected_harm(replace(known, stage="estimated"), model).reliable
    late = next(p for p in look(model, made, labels, columns, 11).points if p.version == "1")
    assert expected_harm(late, model).change == pytest.approx(late.loss - model.mean)


def test_untrusted_estimates_and_rows_beyond_the_reference_are_said(model) -> None:
    made, labels, columns = log(turn=1.5, delay=240)
    track = next(t for t in look(model, made, labels, columns, 30).tracks if t.version == "1")
    assert (track.scored, track.held) == (2, 0)
    assert not track.trusted
    strange = {**columns, "kind": np.where(np.arange(4_000) % 9 == 0, "new", columns["kind"])}
    assert all("extrapolates" in p.flags for p in look(model, made, labels, strange, 2).points if p.version == "1")


def test_revised_duplicated_and_shuffled_labels_change_nothing_twice(model) -> None:
    made, labels, columns = log()
    clean = look(model, made, labels, columns, 20)
    wrong = labels.assign(value=1 - labels["value"], observed_at=labels["observed_at"] - pd.Timedelta(hours=1))
    noise = pd.concat([labels, wrong.sample(500, random_state=0), labels.sample(900, random_state=1)])
    messy = look(model, made, noise.sample(frac=1, random_state=2), columns, 20)
    assert [p.realised for p in messy.points] == [p.realised for p in clean.points]
    assert [p.labels for p in messy.points] == [p.labels for p in clean.points]


def test_predictions_without_scores_and_empty_logs_are_no_crash(model) -> None:
    made, labels, columns = log(rows=400)
    made.loc[::2, "outputs.p"] = np.nan
    found = look(model, made, labels, columns, 20)
    assert [p.predictions for p in found.points if p.version == "1"] == [
        int((made["version"].eq("1") & made["time"].lt(pd.Timestamp("2024-03-08", tz="UTC"))).sum()),
        int((made["version"].eq("1") & made["time"].ge(pd.Timestamp("2024-03-08", tz="UTC"))).sum()),
    ]
    assert look(model, made.head(0), labels.head(0), {n: v[:0] for n, v in columns.items()}, 20).points == ()


def test_realised_windows_teach_later_estimates_and_a_past_look_knows_only_what_it_could(model) -> None:
    """Eight weeks whose concept is each its own; labels come after three days."""
    rng = np.random.default_rng(5)
    rows = 8_000
    day = np.sort(rng.integers(0, 56, rows))
    x = rng.normal(size=rows)
    own = np.array([0.5, -0.5, 0.4, -0.6, 0.5, -0.4, 0.6, -0.5])[day // 7]
    y = (rng.random(rows) < 1 / (1 + np.exp(-(x + own * np.sign(x))))).astype(float)
    time = BASE + day * DAY + np.arange(rows) * np.timedelta64(1, "s")
    stamps = pd.to_datetime(time).tz_localize("UTC")
    made = pd.DataFrame(
        {"id": [f"p{i}" for i in range(rows)], "time": stamps, "received_at": stamps, "version": "1"}
    ).assign(**{"outputs.p": 1 / (1 + np.exp(-x))})
    seen = stamps + pd.Timedelta(hours=72)
    labels = pd.DataFrame({"id": made["id"], "value": y, "observed_at": seen, "received_at": seen})
    columns = {"x": x, "kind": rng.choice(["a", "b"], rows)}

    def at(weeks: float, windows: int, shown: int | None = None):
        as_of = BASE + np.timedelta64(int(weeks * 7 * 24), "h")
        edges = np.array([BASE + 7 * i * DAY for i in range(windows + 1)])
        found = labelled(SPEC, made, labels, as_of)
        return series(SPEC, found, columns, edges, as_of, {"1": model}, shown=shown)

    late = at(20, 8).points
    assert [p.learned is None for p in late] == [True] + [False] * 7  # the first is realised three days later
    widths = [p.estimated.high - p.estimated.low for p in late]
    assert min(widths[4:]) > 2 * widths[0]
    gap = [abs(p.realised.value - p.estimated.value) for p in late]
    assert all(g > (widths[0] / 2) for g in gap[:2])  # as it was, the interval did not hold
    assert all(g < w / 2 for g, w in zip(gap[4:], widths[4:], strict=True))
    # A look at the end of week six says what is said of that week ever after, whatever came since.
    then = at(6, 6).points[-1]
    assert then.stage == "corrected"
    assert (then.estimated, then.learned, then.first) == (late[5].estimated, late[5].learned, late[5].first)
    # Windows that are not told still teach.
    assert at(20, 8, shown=2).points == late[-2:]


def test_scores_left_out_by_the_choice_of_labels_are_told(model) -> None:
    made, labels, columns = log()
    chosen = labels[made["outputs.p"] > 0.4]
    point = next(p for p in look(model, made, chosen, columns, 9).points if p.version == "1")
    assert "labels_cover_part" in point.flags
    assert point.covered.low == pytest.approx(0.4, abs=0.03)
    assert point.covered.beyond == pytest.approx(0.33, abs=0.08)
    assert not expected_harm(point, model).reliable


def test_a_regression_goes_from_direct_loss_estimation_to_the_truth() -> None:
    """The error grows with the input's size; the window's inputs are larger than the reference's."""
    spec = replace(SPEC, task="regression", target=Target("y", "Truth.", delay_hours=72.0), metric=Metric("mae", 9.0))
    rng = np.random.default_rng(7)

    def rows(count: int, days: int, size: float):
        x = rng.normal(0, size, count)
        day = np.sort(rng.integers(0, days, count))
        return day, {"x": x, "kind": rng.choice(["a", "b"], count)}, x + (0.3 + np.abs(x)) * rng.normal(size=count)

    day, columns, y = rows(5_000, 40, 1.0)
    model = fit_loss_model(spec, y, columns["x"], columns, day)
    assert model.method == "dle"
    day, columns, y = rows(2_000, 7, 1.3)
    stamps = pd.to_datetime(BASE + day * DAY + np.arange(2_000) * np.timedelta64(1, "s")).tz_localize("UTC")
    made = pd.DataFrame({"id": [f"p{i}" for i in range(2_000)], "time": stamps, "received_at": stamps, "version": "1"})
    made["outputs.p"] = columns["x"]
    seen = stamps + pd.Timedelta(hours=72)
    labels = pd.DataFrame({"id": made["id"], "value": y, "observed_at": seen, "received_at": seen})
    truth = np.abs(y - columns["x"]).mean()
    assert truth > model.mean + 0.15
    for when, stage in ((2.9, "estimated"), (6, "corrected"), (11, "realised")):
        as_of = BASE + np.timedelta64(int(when * 24), "h")
        found = labelled(spec, made, labels, as_of)
        known = series(spec, found, columns, np.array([BASE, BASE + 7 * DAY]), as_of, {"1": model}).points[0]
        assert known.stage == stage
        assert known.best.low < truth < known.best.high
        assert "concept_drift" not in known.flags
    assert known.held
    assert known.realised.value == pytest.approx(truth)
