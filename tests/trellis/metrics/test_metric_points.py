"""Metrics against scikit-learn, closed forms and invariants."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from trellis.errors import ContractError, DataError
from trellis.metrics import GREATER_IS_BETTER, METRICS, block_sums, blocks_of, compute, row_loss

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("digits", [1, 2, 9])  # few digits make ties
def test_binary_agrees_with_scikit_learn(digits):
    y = RNG.integers(0, 2, 4_000)
    p = np.round(np.clip(0.3 * y + RNG.uniform(0, 0.7, 4_000), 0, 1), digits)
    ours = compute("binary", y, p)
    assert ours["auc"] == pytest.approx(sk.roc_auc_score(y, p), abs=1e-12)
    assert ours["average_precision"] == pytest.approx(sk.average_precision_score(y, p), abs=1e-12)
    assert ours["brier"] == pytest.approx(sk.brier_score_loss(y, p), abs=1e-12)
    assert ours["log_loss"] == pytest.approx(sk.log_loss(y, p), abs=1e-12)
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(y, p >= 0.5), abs=1e-12)
    assert ours["base_rate"] == pytest.approx(y.mean())


def test_calibration_error_agrees_with_a_naive_loop():
    y, p = RNG.integers(0, 2, 999), RNG.uniform(0, 1, 999)
    edges = np.linspace(0, 1, 16)
    naive = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (p >= low) & (p < high)
        if inside.any():
            naive += inside.mean() * abs(p[inside].mean() - y[inside].mean())
    assert compute("binary", y, p)["calibration_error"] == pytest.approx(naive, abs=1e-12)


def test_multiclass_agrees_with_scikit_learn():
    y, p = RNG.integers(0, 5, 800), RNG.dirichlet(np.ones(5), 800)
    ours = compute("multiclass", y, p)
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(y, p.argmax(1)))
    assert ours["log_loss"] == pytest.approx(sk.log_loss(y, p, labels=range(5)), abs=1e-12)
    assert ours["brier"] == pytest.approx(((p - np.eye(5)[y]) ** 2).sum(1).mean() / 2, abs=1e-12)


def test_regression_agrees_with_scikit_learn_far_from_zero():
    y = 1e6 + RNG.normal(0, 3, 500)
    p = y + RNG.normal(0, 1, 500)
    ours = compute("regression", y, p)
    assert ours["mae"] == pytest.approx(sk.mean_absolute_error(y, p))
    assert ours["rmse"] == pytest.approx(sk.root_mean_squared_error(y, p))
    assert ours["r2"] == pytest.approx(sk.r2_score(y, p), abs=1e-9)


def test_a_two_class_multiclass_loss_is_the_binary_loss():
    y, p = RNG.integers(0, 2, 50), RNG.uniform(0, 1, 50)
    np.testing.assert_allclose(
        row_loss("multiclass", y, np.column_stack([1 - p, p])), row_loss("binary", y, p), atol=1e-15
    )


scores = st.lists(st.integers(0, 100), min_size=2, max_size=40).map(lambda values: np.array(values) / 100)


@given(scores, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_binary_invariants(p, random):
    y = np.array([random.random() < 0.5 for _ in p], dtype=float)
    ours, loss = compute("binary", y, p), row_loss("binary", y, p)
    assert ((loss >= 0) & (loss <= 1)).all()
    assert all(np.isfinite(v) for v in ours.values())
    assert ours["brier"] == pytest.approx(loss.mean())
    order = np.array(random.sample(range(len(p)), len(p)))
    assert compute("binary", y[order], p[order]) == pytest.approx(ours)
    if 0 < y.sum() < len(y):
        assert compute("binary", 1 - y, 1 - p)["auc"] == pytest.approx(ours["auc"])
        # Only the order of scores matters for AUC.
        assert compute("binary", y, p**2 / 2)["auc"] == pytest.approx(ours["auc"])


def test_what_the_data_do_not_define_is_left_out():
    one_class = compute("binary", np.zeros(9), np.full(9, 0.2))
    assert set(METRICS["binary"]) - set(one_class) == {"auc", "average_precision"}
    assert set(compute("regression", np.ones(5), np.zeros(5))) == {"mae", "rmse"}
    assert compute("binary", np.array([0, 1]), np.array([0.5, 0.5]))["auc"] == 0.5


def test_every_metric_has_a_direction():
    assert set(GREATER_IS_BETTER) == {name for names in METRICS.values() for name in names}


@pytest.mark.parametrize(
    ("task", "y", "p", "error", "text"),
    [
        ("binary", [], [], DataError, "nothing can be measured"),
        ("binary", [0, np.nan], [0.1, 0.2], DataError, "truth has 1 values that are not finite"),
        ("binary", [0, 1], [0.1, np.inf], ContractError, "score has 1 values that are not finite"),
        ("binary", [0, 2], [0.1, 0.2], DataError, "other than 0 and 1"),
        ("binary", [0, 1], [0.1, 1.2], ContractError, r"outside \[0, 1\]"),
        ("binary", [0, 1], [[0.1], [0.2]], ContractError, r"shape \(2, 1\)"),
        ("binary", [0, 1], [0.1], ContractError, "for 2 rows"),
        ("multiclass", [0, 2], [[0.1, 0.9], [0.5, 0.5]], DataError, "outside 0 to 1"),
        ("multiclass", [0, 1], [[0.1, 0.4], [0.5, 0.5]], ContractError, "do not sum to 1"),
        ("ranking", [0, 1], [0.1, 0.4], ContractError, "not a task"),
    ],
)
def test_bad_input_is_named(task, y, p, error, text):
    with pytest.raises(error, match=text):
        row_loss(task, np.array(y, dtype=float), np.array(p, dtype=float))


def test_days_are_blocks_and_rows_without_time_their_own():
    time = np.array(["2013-07-01T23:59", "2013-07-03T00:00", "2013-07-01T00:00"], dtype="datetime64[us]")
    assert blocks_of(time, np.array(["a", "b", "c"])).tolist() == [0, 1, 0]
    assert blocks_of(None, np.array(["b", "a", "b"])).tolist() == [1, 0, 1]
    many = blocks_of(None, np.array([f"row-{i}" for i in range(20_000)]))
    assert set(many.tolist()) == set(range(1_000))
    assert np.bincount(many).max() < 60  # 20 on average
    with pytest.raises(DataError, match="1 rows have no time"):
        blocks_of(np.array(["2013-07-01", "NaT"], dtype="datetime64[us]"), np.array(["a", "b"]))
    with pytest.raises(DataError, match="make no blocks"):
        blocks_of(None, np.array([]))


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("xyz"), st.floats(0, 1)), min_size=1, max_size=50))
@settings(max_examples=50, deadline=None)
def test_block_sums_add_up(rows):
    blocks, names, losses = (np.array(column) for column in zip(*rows, strict=True))
    sums = block_sums({"a": losses}, blocks, {"who": names})
    whole = sums[""][""]
    assert sum(whole.rows) == len(rows)
    for b in range(blocks.max() + 1):
        assert whole.sums["a"][b] == pytest.approx(losses[blocks == b].sum())
        assert sum(part.rows[b] for part in sums["who"].values()) == whole.rows[b]
        assert sum(part.sums["a"][b] for part in sums["who"].values()) == pytest.approx(whole.sums["a"][b])


def test_block_sums_refuses_what_does_not_line_up():
    with pytest.raises(DataError, match="'a' has 2 rows, the blocks 3"):
        block_sums({"a": np.zeros(2)}, np.zeros(3, dtype=int))
    with pytest.raises(DataError, match="not finite"):
        block_sums({"a": np.array([np.nan])}, np.zeros(1, dtype=int))
    with pytest.raises(DataError, match="whole numbers"):
        block_sums({"a": np.zeros(1)}, np.array([-1]))
