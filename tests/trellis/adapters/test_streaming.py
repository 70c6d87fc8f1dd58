"""Streaming detectors: they fire after a change and stay within reason before it."""

from __future__ import annotations

import numpy as np

from trellis.adapters.streaming import scan_losses

ROWS, CHANGE = 12_000, 8_000


def stream(seed: int, later: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    wrong = rng.random(ROWS) < np.where(np.arange(ROWS) < CHANGE, 0.15, later)
    return np.where(wrong, rng.uniform(0.3, 1, ROWS), rng.uniform(0, 0.2, ROWS)), wrong


def test_a_rise_of_errors_is_dated_by_all_but_the_one_that_needs_more() -> None:
    fired = scan_losses(*stream(0, 0.35))
    assert set(fired) == {"adwin", "kswin", "page_hinkley", "ddm", "eddm"}
    for name in ("adwin", "kswin", "page_hinkley", "ddm"):
        after = [row for row in fired[name] if row >= CHANGE]
        assert after, name
        assert after[0] - CHANGE < 1_500, name


def test_where_nothing_changes_the_three_on_losses_are_calm() -> None:
    runs = [scan_losses(*stream(seed, 0.15)) for seed in range(1, 4)]
    for name in ("adwin", "kswin", "page_hinkley"):
        assert sum(bool(run[name]) for run in runs) <= 1, name


def test_a_seed_repeats_and_few_or_constant_rows_say_nothing() -> None:
    losses, wrong = stream(3, 0.3)
    assert scan_losses(losses, wrong, seed=5) == scan_losses(losses, wrong, seed=5)
    assert not any(scan_losses(losses[:50], wrong[:50]).values())
    assert not any(scan_losses(np.zeros(500), np.zeros(500, dtype=bool)).values())
