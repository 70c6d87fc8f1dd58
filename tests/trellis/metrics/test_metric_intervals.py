"""Intervals: coverage by simulation, exact replicates, scipy's quantiles."""

import numpy as np
import pytest
from scipy import stats

from trellis.errors import ConfigError, DataError
from trellis.metrics import block_weights, blocks_of, compute, intervals, t_quantile


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 29, 999])
def test_t_quantile_agrees_with_scipy(df):
    for level in (0.51, 0.6, 0.9, 0.95, 0.99, 0.9999):
        assert t_quantile(level, df) == pytest.approx(stats.t.ppf(level, df), rel=2e-4 if df < 5 else 1e-5)


def rows(rng, days, per_day, shock):
    """Flights whose lateness shares a daily shock: the days are independent, the rows are not."""
    day = np.repeat(np.arange(days), per_day)
    logit = -1 + shock * rng.normal(size=days)[day] + rng.normal(size=day.size)
    y = (rng.uniform(size=day.size) < 1 / (1 + np.exp(-logit))).astype(float)
    p = 1 / (1 + np.exp(-(-1 + 0.6 * (logit + 1))))
    return day, y, p


def test_replicates_are_those_of_resampled_rows():
    rng = np.random.default_rng(0)
    day, y, p = rows(rng, 12, 40, 0.5)
    weights = block_weights(12, 200, 5)
    naive = []
    for w in weights:
        index = np.concatenate([np.repeat(np.flatnonzero(day == d), int(w[d])) for d in range(12)])
        naive.append(compute("binary", y[index], p[index]))
    ours = intervals("binary", y, p, day, seed=5, confidence=0.9, replicates=200)
    tail = stats.norm.cdf(-np.sqrt(12 / 11) * stats.t.ppf(0.95, 11))
    for name, (lo, point, hi) in ours.items():
        values = [v[name] for v in naive]
        assert point == compute("binary", y, p)[name]
        assert (lo, hi) == pytest.approx(np.quantile(values, [tail, 1 - tail]), abs=2e-5)


def test_binned_scores_stay_within_the_stated_bound():
    rng = np.random.default_rng(1)
    day, y, p = rows(rng, 30, 300, 0.3)  # 9,000 distinct scores in 2,048 bins
    ours = intervals("binary", y, p, day, seed=2, replicates=60)
    naive = []
    for w in block_weights(30, 60, 2):
        index = np.concatenate([np.repeat(np.flatnonzero(day == d), int(w[d])) for d in range(30)])
        naive.append(compute("binary", y[index], p[index])["auc"])
    tail = stats.norm.cdf(-np.sqrt(30 / 29) * stats.t.ppf(0.975, 29))
    assert (ours["auc"].lo, ours["auc"].hi) == pytest.approx(np.quantile(naive, [tail, 1 - tail]), abs=1 / 2_048)


def test_blocks_cover_where_rows_do_not():
    """The true Brier loss lies inside about 90 % of the 90 % day intervals; row intervals miss it far more often."""
    rng = np.random.default_rng(7)
    truth = np.mean([compute("binary", *rows(rng, 4_000, 20, 1.0)[1:])["brier"] for _ in range(3)])
    runs, inside = 150, {"day": 0, "row": 0}
    for run in range(runs):
        day, y, p = rows(rng, 25, 40, 1.0)
        for name, blocks in (("day", day), ("row", np.arange(day.size))):
            lo, _, hi = intervals("regression", y * 0, (p - y) ** 2, blocks, seed=run, confidence=0.9, replicates=200)[
                "mae"
            ]
            inside[name] += lo <= truth <= hi
    assert 0.84 <= inside["day"] / runs <= 0.97
    assert inside["row"] / runs < 0.75


def test_auc_coverage_at_a_known_truth():
    """Two normals one apart have AUC Φ(1/√2)."""
    rng, truth, runs, inside = np.random.default_rng(2), stats.norm.cdf(1 / np.sqrt(2)), 120, 0
    for run in range(runs):
        y = (rng.uniform(size=300) < 0.4).astype(float)
        p = stats.norm.cdf(y + rng.normal(size=300))
        lo, _, hi = intervals("binary", y, p, np.arange(300), seed=run, confidence=0.9, replicates=120)["auc"]
        inside += lo <= truth <= hi
    assert 0.82 <= inside / runs <= 0.97


def test_the_seed_decides_and_the_order_of_points_holds():
    rng = np.random.default_rng(4)
    day, y, p = rows(rng, 10, 30, 0.5)
    first = intervals("binary", y, p, day, seed=1)
    assert first == intervals("binary", y, p, day, seed=1)
    assert first != intervals("binary", y, p, day, seed=2)
    assert all(lo <= point <= hi for lo, point, hi in first.values())


def test_rare_positives_leave_no_nan():
    y, p = np.zeros(40), np.linspace(0, 1, 40)
    y[3] = 1
    ours = intervals("binary", y, p, np.arange(40), seed=0, replicates=100)
    assert np.isfinite([v for interval in ours.values() for v in interval]).all()
    assert "auc" not in intervals("binary", np.zeros(40), p, np.arange(40), seed=0)


def test_multiclass_and_row_blocks():
    rng = np.random.default_rng(5)
    y, p = rng.integers(0, 3, 200), rng.dirichlet(np.ones(3), 200)
    ours = intervals("multiclass", y, p, blocks_of(None, np.arange(200)), seed=0)
    assert set(ours) == {"accuracy", "log_loss", "brier"}


def test_bad_input_to_intervals_is_named():
    y, p = np.array([0.0, 1.0]), np.array([0.2, 0.6])
    with pytest.raises(DataError, match="one block"):
        intervals("binary", y, p, np.zeros(2, dtype=int), seed=0)
    with pytest.raises(DataError, match="3 blocks for 2 rows"):
        intervals("binary", y, p, np.arange(3), seed=0)
    with pytest.raises(ConfigError, match="level 1"):
        intervals("binary", y, p, np.arange(2), seed=0, confidence=1)
    with pytest.raises(ConfigError, match="quantile"):
        t_quantile(0.4, 3)
