"""Statistics against scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from scipy.spatial.distance import jensenshannon

from trellis.drift import statistics as ours
from trellis.drift.summary import reference_layout, summarise_numeric

counts = st.lists(st.integers(0, 500), min_size=2, max_size=12)


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 10, 61, 200])
@pytest.mark.parametrize("x", [0.01, 0.9, 5.0, 30.0, 120.0, 700.0])
def test_chi_square_tail_is_scipys(freedom: int, x: float) -> None:
    assert ours.chi_square_sf(x, freedom) == pytest.approx(stats.chi2.sf(x, freedom), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("x", [0.05, 0.3, 0.8, 1.17, 1.19, 2.0, 4.0])
def test_kolmogorov_tail_is_scipys(x: float) -> None:
    assert ours.kolmogorov_sf(x) == pytest.approx(special.kolmogorov(x), rel=1e-9, abs=1e-12)


def test_normal_tail_is_scipys() -> None:
    assert ours.normal_sf(1.7) == pytest.approx(stats.norm.sf(1.7), rel=1e-12)


@given(st.lists(st.integers(20, 900), min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_chi_square_is_scipys_contingency_test(first: list[int], random) -> None:
    second = [random.randint(20, 900) for _ in first]
    statistic, freedom, p_value = ours.chi_square(np.array(first, float), np.array(second, float))
    expected = stats.chi2_contingency([first, second], correction=False)
    assert statistic == pytest.approx(expected.statistic, rel=1e-9, abs=1e-9)
    assert freedom == expected.dof
    assert p_value == pytest.approx(expected.pvalue, rel=1e-7, abs=1e-300)


def test_chi_square_uses_production_counts_not_shares() -> None:
    before = np.array([5000.0, 5000.0])
    few, many = np.array([55.0, 45.0]), np.array([5500.0, 4500.0])
    assert ours.chi_square(before, few)[2] > 0.2
    assert ours.chi_square(before, many)[2] < 1e-6


@given(counts, counts)
def test_jensen_shannon_is_scipys(first: list[int], second: list[int]) -> None:
    size = min(len(first), len(second))
    a, b = np.array(first[:size], float), np.array(second[:size], float)
    if a.sum() and b.sum():
        assert ours.jensen_shannon(a, b) == pytest.approx(jensenshannon(a, b, base=2), abs=1e-7)


def test_exact_ks_is_scipys_and_the_binned_one_never_claims_more() -> None:
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.1, 0.6):
        x, y = rng.normal(size=900), rng.normal(shift, 1, size=700)
        exact = stats.ks_2samp(x, y, method="asymp")
        statistic, p_value = ours.ks_exact(x, y)
        assert statistic == pytest.approx(exact.statistic)
        assert p_value == pytest.approx(special.kolmogorov(statistic * math.sqrt(900 * 700 / 1600)))
        layout = reference_layout(x, 10)
        bins, cells = (
            [np.array(getattr(summarise_numeric(v, layout), kept), float) for v in (x, y)]
            for kept in ("counts", "fine")
        )
        binned, cautious = ours.ks_on_bins(*bins)
        assert binned <= statistic + 1e-12
        assert cautious >= p_value - 1e-12
        # On the grid's cells it is the exact one but for the rows of one cell.
        finer, _ = ours.ks_on_bins(*cells)
        assert binned - 1e-12 <= finer <= statistic + 1e-12
        assert statistic - finer <= 0.02


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.5, 5.0, -40.0])
@pytest.mark.parametrize("draw", ["normal", "gamma", "whole"])
def test_ks_and_wasserstein_on_a_sketch_are_scipys_on_the_rows(shift: float, draw: str) -> None:
    """The stated tolerance: 0.01 of the KS statistic, 2 % of the distance or 0.002 spreads."""
    rng = np.random.default_rng(4)
    n, m = 40_000, 30_000
    x, y = {
        "normal": lambda: (rng.normal(20, 3, n), rng.normal(20 + shift, 3.3, m)),
        "gamma": lambda: (rng.gamma(2, 3, n), rng.gamma(2.5, 3, m) + shift),
        "whole": lambda: (rng.poisson(9, n).astype(float), rng.poisson(9, m) + np.rint(shift)),
    }[draw]()
    layout = reference_layout(x, 10)
    a, b = summarise_numeric(x, layout), summarise_numeric(y, layout)
    ks, _ = ours.ks_on_bins(np.array(a.fine, float), np.array(b.fine, float))
    assert ks == pytest.approx(stats.ks_2samp(x, y, method="asymp").statistic, abs=0.01)
    assert ours.wasserstein(a, b) == pytest.approx(stats.wasserstein_distance(x, y), rel=0.02, abs=0.002 * x.std())
    old, new = a.cells, b.cells
    kept = (old > 0) | (new > 0)
    p, q = np.maximum(old[kept] / n, 1e-3), np.maximum(new[kept] / m, 1e-3)
    assert ours.kullback_leibler(old, new) == pytest.approx(stats.entropy(q, p), abs=1e-9)


def test_psi_closed_form() -> None:
    value = ours.psi(np.array([50.0, 50.0]), np.array([80.0, 20.0]))
    assert value == pytest.approx(0.3 * math.log(1.6) + -0.3 * math.log(0.4))


@given(counts, st.integers(1, 1000))
def test_psi_is_zero_for_equal_shares_finite_and_symmetric(cells: list[int], factor: int) -> None:
    first = np.array(cells, float)
    assert ours.psi(first, first * factor) == pytest.approx(0, abs=1e-12)
    other = first[::-1].copy()
    assert ours.psi(first, other) == pytest.approx(ours.psi(other, first))
    assert 0 <= ours.psi(first, other) < 20


def test_psi_of_one_shift_is_the_same_at_a_thousand_and_a_million_rows() -> None:
    before = np.full(10, 1e6)
    after = np.array([0, 0, 0, 40, 60, 100, 150, 200, 200, 250.0])
    small, large = ours.psi(before, after), ours.psi(before, after * 1000)
    assert small == pytest.approx(large, rel=1e-12)


def test_psi_bias_is_what_psi_is_on_average_where_nothing_changed() -> None:
    rng = np.random.default_rng(5)
    share = np.full(10, 0.1)
    values = [
        ours.psi(rng.multinomial(4000, share).astype(float), rng.multinomial(900, share).astype(float))
        for _ in range(800)
    ]
    assert np.mean(values) == pytest.approx(ours.psi_bias(10, 4000, 900), rel=0.06)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_adjusted_p_values(p_values: list[float]) -> None:
    expected = stats.false_discovery_control(p_values, method="by")
    np.testing.assert_allclose(ours.benjamini_yekutieli(p_values), expected, atol=1e-12)
    order = np.argsort(p_values, kind="stable")
    naive = np.empty(len(p_values))
    naive[order] = np.maximum.accumulate([min(1, (len(order) - i) * p_values[k]) for i, k in enumerate(order)])
    np.testing.assert_allclose(ours.holm(p_values), naive, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8))
def test_nothing_to_compare_is_no_evidence(size: int) -> None:
    empty, some = np.zeros(size), np.ones(size)
    assert ours.chi_square(empty, some)[2] == 1.0
    assert ours.psi(empty, some) == 0.0
    assert ours.jensen_shannon(empty, some) == 0.0
    assert ours.ks_on_bins(empty, some) == (0.0, 1.0)
