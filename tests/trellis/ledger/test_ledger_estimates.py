"""Estimated and corrected losses against closed forms, scikit-learn, naive loops and simulated truths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.isotonic import IsotonicRegression

from trellis.contract import Field, Metric, ModelSpec, Target
from trellis.errors import DataError
from trellis.ledger import LossModel, fit_loss_model
from trellis.ledger.basis import isotonic
from trellis.ledger.estimate import _two_sided, agreement, corrected, estimated, realised, selection
from trellis.ledger.loss_model import shared_of
from trellis.metrics import row_loss

BINARY = ModelSpec(
    name="toy",
    version="1",
    task="binary",
    owner="us",
    description="A toy.",
    request=(Field("x", "float"), Field("kind", "category")),
    inputs=("x", "kind"),
    outputs=(Field("p", "float"),),
    target=Target("y", "Truth.", ("no", "yes")),
    metric=Metric("brier", 1.0),
    segments=("kind",),
)
NUMBER = ModelSpec(
    name="toy",
    version="1",
    task="regression",
    owner="us",
    description="A toy.",
    request=(Field("x", "float", nullable=True), Field("kind", "category")),
    inputs=("x", "kind"),
    outputs=(Field("p", "float"),),
    target=Target("y", "Truth."),
    metric=Metric("mae", 1.0),
)


def world(seed: int, rows: int, days: int, *, shift: float = 0.0, shock: float = 0.0, turn: float = 0.0):
    """Miscalibrated scores of a logistic truth; returns day, columns, score, truth and its probability."""
    rng = np.random.default_rng(seed)
    day = np.sort(rng.integers(0, days, rows))
    x = rng.normal(shift, 1, rows)
    kind = rng.choice(["a", "b"], rows)
    truth = 1 / (1 + np.exp(-((1 - turn) * x - 1 + turn + rng.normal(0, shock, days)[day])))
    score = 1 / (1 + np.exp(-(1.5 * x - 0.5)))
    return day, {"x": x, "kind": kind}, score, (rng.random(rows) < truth).astype(float), truth


@pytest.fixture(scope="module")
def model() -> LossModel:
    day, columns, score, y, _ = world(1, 20_000, 60)
    return fit_loss_model(BINARY, y, score, columns, day)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 5)), min_size=1, max_size=30))
def test_isotonic_is_scikit_learns(pairs) -> None:
    values, weights = (np.array(part) for part in zip(*pairs, strict=True))
    expected = IsotonicRegression().fit_transform(np.arange(len(values)), values, sample_weight=weights)
    np.testing.assert_allclose(isotonic(values, weights), expected, atol=1e-9)


def test_expected_loss_is_the_one_that_the_true_probabilities_give(model) -> None:
    """Also where covariates have shifted: E (s - Y)² = p (1 - s)² + (1 - p) s²."""
    for shift in (0.0, 0.8):
        _, columns, score, _, p = world(2, 20_000, 20, shift=shift)
        truth = p * (1 - score) ** 2 + (1 - p) * score**2
        found = model.expect(score, columns)
        assert found.loss.mean() == pytest.approx(truth.mean(), abs=0.004)
        assert np.corrcoef(found.loss, truth)[0, 1] > 0.94
        assert np.abs(model.probability(score) - p).mean() < 0.03
        # The naive way, the scores taken at their word, is far off.
        assert abs((score * (1 - score)).mean() - truth.mean()) > 0.02


def test_direct_loss_estimation_finds_where_errors_are_large() -> None:
    rng = np.random.default_rng(3)
    x, kind = rng.normal(size=8_000), rng.choice(["a", "b"], 8_000)
    spread = 0.5 + 0.5 * np.abs(x) + (kind == "b")
    model = fit_loss_model(
        NUMBER, x + spread * rng.normal(size=8_000), x, {"x": x, "kind": kind}, np.arange(8_000) // 200
    )
    new = np.array([0.0, 1.5, 1.5, -1.5])
    found = model.expect(new, {"x": new, "kind": np.array(["a", "a", "b", "a"])})
    wanted = (0.5 + 0.5 * np.abs(new) + np.array([0, 0, 1, 0])) * math.sqrt(2 / math.pi)  # E |N(0, s)|
    np.testing.assert_allclose(found.loss, wanted, rtol=0.12)
    assert not found.outside.any()
    odd = model.expect(np.array([9.0, 0.0]), {"x": np.array([np.nan, np.inf]), "kind": np.array(["a", "new"])})
    assert np.isfinite(odd.loss).all()
    assert odd.outside.tolist() == [True, True]
    assert np.isfinite(model.expect(new, {}).loss).all()


def test_a_loss_model_goes_through_json_and_refuses_other_files(model) -> None:
    again = LossModel.loads(model.dumps())
    _, columns, score, _, _ = world(4, 500, 5)
    np.testing.assert_allclose(again.expect(score, columns).loss, model.expect(score, columns).loss, rtol=1e-4)
    assert len(model.dumps()) < 100_000
    with pytest.raises(DataError, match="no loss model"):
        LossModel.loads("{}", where="performance.json")
    with pytest.raises(DataError, match="tell no expected loss"):
        fit_loss_model(BINARY, np.zeros(50), np.full(50, 0.5), {}, np.arange(50))


def test_correlation_within_days_is_what_was_put_in() -> None:
    rng = np.random.default_rng(5)
    day = np.repeat(np.arange(400), 30)
    values = math.sqrt(0.2) * rng.normal(size=400)[day] + math.sqrt(0.8) * rng.normal(size=len(day))
    found = shared_of(values, np.ones(len(day)), day)
    assert found.variance == pytest.approx(0.2, abs=0.03)
    # A day's mean has the variance 0.2 + 0.8 / 30, known from 400 days; of that a part is what days share.
    assert found.freedom == pytest.approx(400 * (0.2 / (0.2 + 0.8 / 30)) ** 2, rel=0.15)
    assert shared_of(rng.normal(size=len(day)), np.ones(len(day)), day).variance < 0.01
    assert shared_of(values[:30], np.ones(30), day[:30]) == (0.0, 1.0)  # one day tells nothing of days


@given(st.floats(-6, 6), st.integers(3, 200))
def test_p_values_are_students(statistic, freedom) -> None:
    assert _two_sided(statistic, freedom) == pytest.approx(2 * stats.t.sf(abs(statistic), freedom), abs=2e-3)


def test_corrected_is_realised_once_all_labels_are_in_and_the_difference_estimator_before(model) -> None:
    day, columns, score, y, _ = world(6, 600, 6)
    loss, rows = row_loss("binary", y, score), np.ones(600, dtype=bool)
    expected = model.expect(score, columns)
    whole = corrected(loss, expected, model, rows, rows, day)
    assert whole.value == pytest.approx(loss.mean())
    assert whole.high - whole.low == pytest.approx(0, abs=1e-9)
    some = np.where(np.random.default_rng(0).random(600) < 0.1, loss, np.nan)
    # Labels by chance that show no curve: nearly the difference estimator of survey sampling, as a loop.
    found = corrected(some, expected, model, rows, rows, day, strata=np.zeros(600))
    known = [i for i in range(600) if not math.isnan(some[i])]
    shift = sum(loss[i] - expected.loss[i] for i in known) / len(known)
    total = sum(loss[i] if i in set(known) else expected.loss[i] + shift for i in range(600))
    assert found.value == pytest.approx(total / 600, abs=0.002)
    assert found.low < loss.mean() < found.high
    # Without a reference labels alone speak; labels that are not due do not count; few say nothing.
    alone = corrected(some, None, None, rows, rows, day, strata=np.zeros(600))
    assert alone.value == pytest.approx(np.nanmean(some))
    assert corrected(some, expected, model, rows, np.zeros(600, dtype=bool), day) is None
    assert corrected(np.where(np.arange(600) < 29, loss, np.nan), expected, model, rows, rows, day) is None


def test_choice_of_labels_by_score_is_evened_out_and_named(model) -> None:
    day, columns, score, y, _ = world(7, 40_000, 8)
    loss, rows = row_loss("binary", y, score), np.ones(40_000, dtype=bool)
    expected = model.expect(score, columns)
    chosen = np.random.default_rng(1).random(40_000) < 0.3 * score
    some = np.where(chosen, loss, np.nan)
    assert abs(np.nanmean(some) - loss.mean()) > 0.03
    found = corrected(some, expected, model, rows, rows, day, strata=score)
    assert found.value == pytest.approx(loss.mean(), abs=0.006)
    apart, p_value = selection(expected, some, rows, rows)
    assert apart > 0.1
    assert p_value < 1e-6
    # Where the concept has turned, expected losses are wrong by score; evening labels out takes much of it away.
    day, columns, score, y, _ = world(8, 40_000, 8, turn=1.0)
    loss, expected = row_loss("binary", y, score), model.expect(score, columns)
    some = np.where(np.random.default_rng(1).random(40_000) < 0.3 * score, loss, np.nan)
    found = corrected(some, expected, model, rows, rows, day, strata=score)
    plain = float((expected.loss + np.nanmean(some - expected.loss)).mean())
    assert abs(plain - loss.mean()) > 0.015
    assert abs(found.value - loss.mean()) < 0.4 * abs(plain - loss.mean())
    assert found.low <= loss.mean() <= found.high
    fair = np.where(np.random.default_rng(2).random(40_000) < 0.1, loss, np.nan)
    assert abs(selection(expected, fair, rows, rows)[0]) < 0.1


@pytest.mark.parametrize("turn", [0.0, 1.0])
def test_scores_that_no_label_speaks_of_are_only_bounded_where_labels_contradict_the_model(model, turn) -> None:
    """Labels for scores from 0.4 up: below, the truth may be anything, unless the model has proven right above."""
    day, columns, score, y, _ = world(12, 3_000, 8, turn=turn)
    loss, rows = row_loss("binary", y, score), np.ones(3_000, dtype=bool)
    expected = model.expect(score, columns)
    assert (expected.least <= loss + 1e-12).all()
    assert (loss <= expected.most + 1e-12).all()
    some = np.where((score > 0.4) & (np.random.default_rng(1).random(3_000) < 0.5), loss, np.nan)
    found = corrected(some, expected, model, rows, rows, day, strata=score)
    assert found.low <= loss.mean() <= found.high
    below = score < 0.4
    if not turn:
        assert found.beyond == 0
        assert found.high - found.low < 0.1
        return
    assert found.beyond == pytest.approx(below.mean(), abs=0.03)
    # As wide as what the rows below can lose, and hardly wider.
    open_ = float((expected.most - expected.least)[below].sum()) / 3_000
    assert open_ < found.high - found.low < open_ + 0.1


def test_intervals_cover_and_the_flag_is_quiet_without_drift_and_loud_with_it() -> None:
    """A short run of ``bench_performance.py``: 100 weeks with days that share shocks and covariates that have moved."""
    held, false, found, half, off = [], [], [], [], []
    for seed in range(100):
        day, columns, score, y, _ = world([seed, 0], 3_000, 30, shock=0.5)
        model = fit_loss_model(BINARY, y, score, columns, day)
        for turn in (0.0, 0.8):
            day, columns, score, y, _ = world([seed, 1], 1_000, 7, shift=0.5, shock=0.5, turn=turn)
            loss, rows = row_loss("binary", y, score), np.ones(1_000, dtype=bool)
            expected = model.expect(score, columns)
            known = np.where(day < 5, loss, np.nan)
            seen = agreement(known, expected, model, rows, day < 5, day)
            if turn:
                found.append(seen.p_value < 0.05)
                continue
            guess = estimated(model, expected, rows, day)
            better = corrected(known, expected, model, rows, day < 5, day, strata=score)
            held.append([guess.low <= loss.mean() <= guess.high, better.low <= loss.mean() <= better.high])
            false.append(seen.p_value < 0.05)
            half.append([(e.high - e.low) / 2 for e in (guess, better)])
            off.append([e.value - loss.mean() for e in (guess, better)])
    # Binomial bounds: at 95 % fewer than 88 of 100 happens once in 500 times.
    assert np.sum(held, axis=0).min() >= 88, np.sum(held, axis=0)
    # Nor are they wide for safety's sake: half of one is the 1.96 standard deviations by which the values are off.
    ratio = np.mean(half, axis=0) / (1.96 * np.std(off, axis=0))
    assert (ratio > 0.8).all(), ratio
    assert (ratio < 1.3).all(), ratio
    assert np.sum(false) <= 13
    assert np.sum(found) >= 95


def test_realised_is_the_mean_with_a_students_interval_of_day_sums() -> None:
    loss, day = np.array([0.1, 0.3, 0.2, 0.6, np.nan]), np.array([0, 0, 1, 2, 2])
    found = realised(loss, np.ones(5, dtype=bool), day)
    assert found.value == pytest.approx(0.3)
    sums = [(0.4 - 2 * 0.3) ** 2, (0.2 - 0.3) ** 2, (0.6 - 0.3) ** 2]
    error = math.sqrt(sum(sums) * 3 / 2) / 4
    assert found.error == pytest.approx(error)
    assert found.high == pytest.approx(0.3 + stats.t.ppf(0.975, 2) * error, rel=1e-3)
    assert realised(np.array([np.nan]), np.ones(1, dtype=bool), np.zeros(1)) is None
