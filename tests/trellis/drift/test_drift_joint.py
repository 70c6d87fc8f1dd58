"""Joint tests: at their level where nothing changed, and sharp for ties that no single column shows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from trellis.drift.joint import _auc, domain_classifier, joint_signals, matrix, mmd
from trellis.drift.statistics import student_sf


def pair(rng: np.random.Generator, rows: int, rho: float) -> np.ndarray:
    x = rng.normal(size=(rows, 4))
    x[:, 1] = rho * x[:, 0] + math.sqrt(1 - rho**2) * x[:, 1]
    return x


@pytest.mark.parametrize("freedom", [1, 2, 3, 6, 31, 140])
@pytest.mark.parametrize("t", [-4.0, -0.3, 0.0, 1.7, 6.0])
def test_student_tail_is_scipys(freedom: int, t: float) -> None:
    assert student_sf(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-7, abs=1e-12)


def test_auc_and_its_p_value_are_sklearns_and_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = np.round(rng.normal(0.3, 1, 90), 1), np.round(rng.normal(0, 1, 130), 1)
    auc, p_value = _auc(a, b)
    assert auc == pytest.approx(roc_auc_score(np.repeat([1, 0], [90, 130]), np.concatenate([a, b])))
    expected = stats.mannwhitneyu(a, b, alternative="greater", method="asymptotic", use_continuity=False)
    assert p_value == pytest.approx(expected.pvalue, rel=1e-9)


@pytest.mark.parametrize("test", [domain_classifier, mmd])
@pytest.mark.parametrize("margins", [True, False])
def test_where_nothing_changed_the_level_holds(test, margins) -> None:
    rng = np.random.default_rng(1)
    p_values = [test(pair(rng, 300, 0.6), pair(rng, 300, 0.6), margins=margins, seed=i)[1] for i in range(60)]
    # 0.1 +- 3 standard errors.
    assert np.mean(np.array(p_values) <= 0.1) <= 0.1 + 3 * math.sqrt(0.09 / 60)


@pytest.mark.parametrize("shift", [0.3, 0.7, 1.5])
def test_the_discrepancy_of_two_gaussians_is_the_closed_forms(shift):
    # E exp(-|x - y|^2 / w) over x - y ~ N(d, 2 I) in three dimensions is (1 + 4 / w)^(-3/2) exp(-|d|^2 / (w + 4)); the
    # width is the median of |x - y|^2, twice that of a chi-square of three degrees of freedom.
    rng, width = np.random.default_rng(1), 2 * stats.chi2(3).median()
    found, p = mmd(rng.normal(size=(20_000, 3)), rng.normal((shift, 0, 0), size=(20_000, 3)))
    same = (1 + 4 / width) ** -1.5
    assert found == pytest.approx(2 * same * (1 - np.exp(-(shift**2) / (width + 4))), rel=0.08)
    assert p < 1e-6


@pytest.mark.parametrize("test", [domain_classifier, mmd])
def test_a_tie_that_comes_undone_is_found_though_every_margin_stays(test) -> None:
    rng = np.random.default_rng(2)
    before, now = pair(rng, 3_000, 0.8), pair(rng, 3_000, 0.0)
    for column in range(4):
        assert stats.ks_2samp(before[:, column], now[:, column]).pvalue > 1e-3
    for margins in (True, False):
        assert test(before, now, margins=margins)[1] < 1e-6


@pytest.mark.parametrize("test", [domain_classifier, mmd])
def test_without_margins_a_season_and_a_unit_change_are_no_news(test) -> None:
    rng = np.random.default_rng(3)
    before, now = pair(rng, 2_000, 0.6), pair(rng, 2_000, 0.6)
    now[:, 0] = now[:, 0] * 5 / 9 - 18
    now[:, 1] = np.exp(now[:, 1] + 2)
    assert test(before, now, margins=True)[1] < 1e-9
    assert test(before, now, margins=False)[1] > 0.005


def test_ranks_do_not_make_ties_of_ties() -> None:
    rng = np.random.default_rng(4)
    before = (rng.random((3_000, 3)) < 0.1).astype(float)
    now = (rng.random((3_000, 3)) < 0.4).astype(float)
    assert domain_classifier(before, now, margins=False)[1] > 0.005


def test_odd_columns_are_left_out_and_few_rows_say_nothing() -> None:
    rng = np.random.default_rng(5)
    batch = {
        "x": np.where(np.arange(200) % 7, rng.normal(size=200), np.nan),
        "constant": np.ones(200),
        "empty": np.full(200, np.nan),
        "when": np.full(200, np.datetime64("2024-01-01")),
        "c": rng.choice(np.array(["a", "b", None], dtype=object), 200),
        "infinite": np.where(np.arange(200) % 5, rng.normal(size=200), np.inf),
    }
    assert matrix(batch).shape == (200, 3)
    assert np.isfinite(matrix(batch)).all()
    assert {s.name for s in joint_signals(batch, batch)} == {"domain_classifier", "mmd"}
    few = {name: values[:10] for name, values in batch.items()}
    assert [s.p_value for s in joint_signals(batch, few)] == [1.0, 1.0]
    assert joint_signals({"constant": np.ones(9)}, {"constant": np.ones(9)}) == ()
    assert joint_signals(batch, {"x": np.array(["now", "text"] * 100, dtype=object), "c": batch["c"]}) == ()
