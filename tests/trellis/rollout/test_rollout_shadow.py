"""The paired comparison of a shadow: what it counts, and bounds that hold at every look."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trellis.errors import DataError
from trellis.rollout.shadow import OTHERS, compare

SCORES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40)


def test_a_hand_counted_example():
    [whole] = compare("binary", np.array([0.1, 0.6, 0.4, 0.9]), np.array([0.2, 0.4, 0.6, 0.9]))
    assert (whole.disagreement.mean, whole.disagreement.rows) == (0.5, 4)
    assert whole.difference.mean == pytest.approx((0.1 - 0.2 + 0.2 + 0.0) / 4)
    classes = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]
    [whole] = compare("multiclass", np.array(classes), np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1]]))
    assert whole.disagreement.mean == 0.5
    assert whole.difference.mean == pytest.approx((0.1 + 0.4) / 2)
    [whole] = compare("regression", np.array([1.0, 2.0]), np.array([1.05, 2.5]), tolerance=0.1)
    assert whole.disagreement.mean == 0.5
    assert whole.difference.mean == pytest.approx(0.275)


@given(SCORES)
def test_changing_sides_turns_the_sign_and_nothing_else(pairs):
    a, b = np.array(pairs).T
    [one], [two] = compare("binary", a, b), compare("binary", b, a)
    assert one.disagreement == two.disagreement
    assert one.difference.mean == pytest.approx(-two.difference.mean)
    assert one.difference.upper == pytest.approx(-two.difference.lower)
    [same] = compare("binary", a, a)
    assert (same.disagreement.mean, same.difference.mean) == (0.0, 0.0)


@given(SCORES, st.integers(1, 5))
def test_segments_share_out_the_rows(pairs, kinds):
    a, b = np.array(pairs).T
    names = np.array([f"s{i % kinds}" for i in range(len(a))])
    whole, *parts = compare("binary", a, b, names, min_rows=4)
    assert sum(p.difference.rows for p in parts) == whole.difference.rows == len(a)
    moved = sum(p.difference.mean * p.difference.rows for p in parts) / len(a)
    assert moved == pytest.approx(whole.difference.mean, abs=1e-12)
    assert [p.segment for p in parts] == sorted(p.segment for p in parts)
    assert all(p.segment == OTHERS or p.difference.rows >= 4 for p in parts)


def test_bounds_hold_at_every_look():
    """400 pairs of versions, looked at after every 50 rows up to 3,000: the truth leaves the bounds in at most 5 %."""
    rng = np.random.default_rng(7)
    truth, rate, missed, missed_rate = 0.01, 0.03, 0, 0
    for _ in range(400):
        a = np.full(3_000, 0.4)
        flipped = rng.random(3_000) < rate
        b = np.where(
            flipped, 0.6, 0.4 + (truth - rate * 0.2) / (1 - rate) + rng.normal(0, 0.05, 3_000).clip(-0.09, 0.09)
        )
        b = np.where(flipped, b, b.clip(0, 0.499))
        looks = [compare("binary", a[:n], b[:n])[0] for n in range(50, 3_001, 50)]
        missed += any(not look.difference.lower <= truth <= look.difference.upper for look in looks)
        missed_rate += any(not look.disagreement.lower <= rate <= look.disagreement.upper for look in looks)
    # 5 % of 400 is 20; three standard errors above it is 33.
    assert missed <= 33
    assert missed_rate <= 33


def test_bounds_tighten_and_a_difference_is_found():
    rng = np.random.default_rng(3)
    a = rng.random(4_000)
    b = (a + rng.normal(0.02, 0.05, 4_000)).clip(0, 1)
    few, many = compare("binary", a[:200], b[:200])[0], compare("binary", a, b)[0]
    assert many.difference.upper - many.difference.lower < few.difference.upper - few.difference.lower
    assert many.difference.lower > 0
    # A split of as many rows sees nothing: the scores themselves spread ten times wider than their difference.
    assert np.std(a) > 5 * np.std(b - a)


def test_what_cannot_be_compared_is_refused_and_little_is_said_of_little():
    with pytest.raises(DataError, match="no pairs"):
        compare("binary", np.zeros(3), np.zeros(2))
    with pytest.raises(DataError, match="no pairs"):
        compare("multiclass", np.zeros(3), np.zeros(3))
    with pytest.raises(DataError, match="not finite"):
        compare("binary", np.zeros(2), np.array([0.1, math.nan]))
    with pytest.raises(DataError, match="segments"):
        compare("binary", np.zeros(2), np.zeros(2), np.array(["a"]))
    [none] = compare("binary", np.zeros(0), np.zeros(0), np.zeros(0, str))
    assert none.difference.rows == 0
    assert none.difference.upper == math.inf
    assert (none.disagreement.lower, none.disagreement.upper) == (0.0, 1.0)
