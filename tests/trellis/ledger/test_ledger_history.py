"""What past windows teach, and how labelled rows stand for others: against scipy, closed forms and known worlds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from trellis.ledger import Past, between_windows
from trellis.ledger.estimate import Estimate, widened
from trellis.ledger.history import HALF_LIFE
from trellis.ledger.represent import covered, represent


def test_variance_between_windows_solves_its_equation_and_is_nothing_within_the_deviation() -> None:
    rng = np.random.default_rng(1)
    past = [Past(float(i), float(off), 0.01) for i, off in enumerate(0.04 * rng.normal(size=12))]
    found = between_windows(past, 12.0)
    weight = np.array([0.5 ** ((12 - p.end) / HALF_LIFE) for p in past])
    off = np.array([p.off for p in past])

    def equation(tau2: float) -> float:  # one further window that was off by its own deviation
        expected = weight.sum() + 1
        return float((weight * off**2 / (1e-4 + tau2)).sum() + 1e-4 / (1e-4 + tau2)) - expected

    assert found.variance == pytest.approx(optimize.brentq(equation, 0, 1), rel=1e-6)
    assert found.windows == pytest.approx(weight.sum() ** 2 / (weight**2).sum() + 1)
    assert between_windows([Past(0.0, 0.009, 0.01), Past(1.0, -0.008, 0.01)], 2.0).variance == 0
    assert between_windows([], 3.0) is None


def test_recent_windows_teach_more_than_old_ones() -> None:
    calm, wild = [0.0] * 10, [0.05] * 3
    late = between_windows([Past(float(i), off, 0.01) for i, off in enumerate(calm + wild)], 13.0)
    early = between_windows([Past(float(i), off, 0.01) for i, off in enumerate(wild + calm)], 13.0)
    assert late.variance > 2 * early.variance > 0


def test_a_widened_interval_is_students_for_the_sum_of_both_variances() -> None:
    from trellis.ledger import Between

    first = Estimate(0.2, 0.18, 0.22, 500, 0.006, deviation=0.01, freedom=30.0)
    found = widened(first, Between(0.0004, 6.0))
    total = 0.0001 + 0.0004
    freedom = total**2 / (0.0001**2 / 30 + 0.0004**2 / 6)
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, freedom) * math.sqrt(total), rel=1e-3)
    assert found.value - found.low == pytest.approx(found.high - found.value)
    assert (found.value, found.rows, found.deviation) == (0.2, 500, pytest.approx(math.sqrt(total)))
    assert found.error == pytest.approx(math.sqrt(0.006**2 + 0.0004))


def test_past_windows_make_the_interval_hold_where_every_window_is_its_own() -> None:
    """Deviation known, windows apart by 2.5 times as much: from the fifth on 95 % are held; as it was, under 60 %."""
    rng = np.random.default_rng(2)
    plain, held = [], []
    for _ in range(150):
        off = math.hypot(0.01, 0.025) * rng.normal(size=14)
        for i in range(4, 14):
            own = Estimate(0.2, 0.0, 0.0, 1, 0.0, deviation=0.01, freedom=1e9)
            found = widened(own, between_windows([Past(float(j), off[j], 0.01) for j in range(i)], float(i)))
            held.append(found.low <= 0.2 + off[i] <= found.high)
            plain.append(abs(off[i]) <= 1.96 * 0.01)
    assert np.mean(plain) < 0.6
    assert np.mean(held) == pytest.approx(0.95, abs=0.04)


def test_labels_without_a_curve_count_alike_and_with_one_stand_for_the_others() -> None:
    rng = np.random.default_rng(3)
    score = rng.normal(size=4_000)
    lab = rng.random(4_000) < 0.2 / (1 + np.exp(-1.5 * score))
    noise = rng.normal(size=4_000)
    flat = represent(noise[lab], [score], lab, ~lab)
    assert flat.weight.mean() == pytest.approx(1)
    assert flat.weight.std() < 0.2
    curve = 2.0 * score + 0.5 * score**2
    found = represent((curve + noise)[lab], [score], lab, ~lab)
    assert found.weight.mean() == pytest.approx(1)
    moved = float((found.weight * (curve + noise)[lab]).mean())
    uneven = abs(float((curve + noise)[lab].mean()) - curve[~lab].mean())
    assert abs(moved - curve[~lab].mean()) < 0.25 * uneven
    assert found.used > flat.used
    # What no label is near is doubted: most where the gap is widest.
    near, far = (represent((curve + noise)[cut], [score], cut, ~cut).doubt for cut in (score > -1.5, score > 0.5))
    assert far > 1.5 * near


def test_the_doubt_holds_what_the_weights_leave() -> None:
    held = []
    for seed in range(60):
        rng = np.random.default_rng([9, seed])
        score, noise = rng.normal(size=1_500), rng.normal(size=1_500)
        lab = rng.random(1_500) < 0.2 / (1 + np.exp(-1.5 * score))
        found = represent((score + noise)[lab], [score], lab, ~lab)
        off = float((found.weight * (score + noise)[lab]).mean()) - float(score[~lab].mean())
        held.append(abs(off) <= 1.96 * math.sqrt(found.doubt + float((found.weight**2).sum()) / lab.sum() ** 2))
    assert np.sum(held) >= 52  # of 60 at 95 %, fewer happens once in a hundred times


def test_nobody_to_speak_for_or_nothing_surprising_is_no_crash() -> None:
    lab = np.ones(40, dtype=bool)
    alone = represent(np.arange(40.0), [np.arange(40.0)], lab, ~lab)
    assert (alone.weight.tolist(), alone.doubt) == ([1.0] * 40, 0.0)
    lab[:20] = False
    still = represent(np.zeros(20), [np.arange(40.0)], lab, ~lab)
    assert (still.weight.tolist(), still.doubt) == ([1.0] * 20, 0.0)
    constant = represent(np.random.default_rng(0).normal(size=20), [np.ones(40)], lab, ~lab)
    np.testing.assert_allclose(constant.weight, 1.0)


def test_scores_left_out_by_choice_are_named_and_by_chance_are_not() -> None:
    rng = np.random.default_rng(4)
    score, rows = rng.random(2_000), np.ones(2_000, dtype=bool)
    assert covered(score, (score > 0.4) & (rng.random(2_000) < 0.2), rows).low == pytest.approx(0.4, abs=0.03)
    both = covered(score, (np.abs(score - 0.5) < 0.3) & (rng.random(2_000) < 0.3), rows)
    assert (both.low, both.high) == (pytest.approx(0.2, abs=0.03), pytest.approx(0.8, abs=0.03))
    assert both.beyond == pytest.approx(0.4, abs=0.05)
    by_chance = sum(covered(score, rng.random(2_000) < 0.04, rows) is not None for _ in range(100))
    assert by_chance <= 2
    assert covered(score, np.arange(2_000) < 9, rows) is None
