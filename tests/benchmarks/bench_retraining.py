"""What each way of retraining makes of each kind of drift: full, window and ensemble on the drift simulator.

Run: ``python tests/benchmarks/bench_retraining.py [--seeds 5]`` (about two minutes). A year and a half of rows, 200 a
day; retrained every 14 days from day 120 on. Every row from then on is scored by the version that answers on its day,
none of it seen in training: the figures are its mean Brier loss, and guessing the base rate has 0.25. All three train
the same learner (a depth-limited histogram gradient boosting) on the part of their rows that the platform's split calls
training; the ensemble is ``trellis.ensemble`` as the loop uses it, with the policy's defaults but the window.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from trellis.contract import Dataset, Field, Metric, ModelSpec, Predictor, RetrainPolicy, Target
from trellis.drift.simulate import Change, inject
from trellis.ensemble import EnsemblePredictor, Member, weigh
from trellis.metrics import row_loss

NAMES = ("a", "b", "c", "d")
SPEC = ModelSpec(
    name="bench",
    version="1",
    task="binary",
    owner="bench",
    description="Four numbers.",
    request=tuple(Field(n, "float") for n in NAMES),
    inputs=NAMES,
    outputs=(Field("probability", "float", minimum=0, maximum=1),),
    target=Target("y", "Truth.", classes=("no", "yes")),
    metric=Metric("auc", 0.5),
)
DAYS, PER_DAY, BEGIN, EVERY, WINDOW = 540, 200, 120, 14, 30
START = np.datetime64("2024-01-01", "us")
DRIFT = START + np.timedelta64(180, "D")
POLICY = RetrainPolicy()
WORLDS: dict[str, tuple[Change, ...]] = {
    "no drift": (),
    "sudden": (Change("concept", NAMES, start=DRIFT, size=0.8),),
    "gradual": (Change("concept", NAMES, start=DRIFT, shape="gradual", span="180D", size=0.8),),
    "incremental": (Change("concept", NAMES, start=DRIFT, shape="incremental", span="180D", size=0.8),),
    "recurring": (Change("concept", NAMES, start=DRIFT, shape="recurring", span="60D", size=0.8),),
    "covariate": (Change("covariate", NAMES[:2], start=DRIFT, shape="gradual", span="90D", size=1.0),),
}
METHODS = ("full", "window", "ensemble")


class Trees(Predictor):
    """The learner."""

    def __init__(self, rows: Dataset) -> None:
        self.model = HistGradientBoostingClassifier(max_iter=40, max_depth=3, random_state=0)
        self.model.fit(matrix(rows), rows.target)

    def predict(self, batch):
        return {"probability": self.model.predict_proba(np.column_stack([batch[n] for n in NAMES]))[:, 1]}

    def save(self, directory: Path) -> None:
        raise NotImplementedError


def matrix(rows: Dataset) -> np.ndarray:
    """Return the inputs side by side."""
    return np.column_stack([rows.columns[n] for n in NAMES])


def world(changes: tuple[Change, ...], seed: int) -> Dataset:
    """Return rows of P(y) = 0.1 + 0.8 [a + b > c d], with the changes in them."""
    random = np.random.default_rng(seed)
    count = DAYS * PER_DAY
    columns = {n: random.normal(size=count) for n in NAMES}
    high = columns["a"] + columns["b"] > columns["c"] * columns["d"]
    target = (random.random(count) < np.where(high, 0.9, 0.1)).astype(np.int64)
    when = START + np.arange(count) * np.timedelta64(86_400_000_000 // PER_DAY, "us")
    if changes:
        made = inject(columns, changes, time=when, target=target, seed=seed)
        columns, target = dict(made.columns), made.target
    return Dataset(columns, target, np.arange(count).astype(str), when)


def between(rows: Dataset, first: float, last: float) -> Dataset:
    """Return the rows of some days."""
    return rows.take(slice(int(max(0, first) * PER_DAY), int(last * PER_DAY)))


def play(rows: Dataset, method: str) -> tuple[float, int]:
    """Return the mean loss of the served rows, and the most members that answered at once."""
    losses, most = [], 1
    ensemble: EnsemblePredictor | None = None
    for day in range(BEGIN, DAYS, EVERY):
        first = 0 if method == "full" else day - WINDOW
        # The platform's split: the newest 15 % are for the gate, the 15 % before them for choosing.
        length = day - max(0, first)
        train = between(rows, first, day - 0.3 * length)
        choosing = between(rows, day - 0.3 * length, day - 0.15 * length)
        new: Predictor = Trees(train)
        if method == "ensemble":
            older = [member for member, _ in ensemble.members] if ensemble else []
            ensemble = weigh(
                SPEC, [Member(str(day), "", new), *older], choosing, decay_days=POLICY.decay_days, most=POLICY.members
            )
            new, most = ensemble, max(most, len(ensemble.heard))
        served = between(rows, day, min(day + EVERY, DAYS))
        score = new.predict({n: served.columns[n] for n in NAMES})["probability"]
        losses.append(row_loss("binary", served.target, score))
    return float(np.concatenate(losses).mean()), most


def main() -> int:
    """Print a table: worlds down, methods across."""
    parser = argparse.ArgumentParser(description="Mean loss of the served rows by method and kind of drift.")
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    begun = time.process_time()
    print(f"mean Brier loss of the served rows over {seeds} seeds (standard error), best method of each world with *")
    print(f"{'world':12s}" + "".join(f"{m:>20s}" for m in METHODS) + f"{'most members':>14s}")
    for name, changes in WORLDS.items():
        found = {m: [play(world(changes, seed), m) for seed in range(seeds)] for m in METHODS}
        means = {m: float(np.mean([loss for loss, _ in found[m]])) for m in METHODS}
        line = f"{name:12s}"
        for m in METHODS:
            error = np.std([loss for loss, _ in found[m]], ddof=1) / np.sqrt(seeds) if seeds > 1 else float("nan")
            star = "*" if means[m] == min(means.values()) else " "
            line += f"{means[m]:12.4f} ({error:.4f}){star}"[-20:].rjust(20)
        print(line + f"{max(k for _, k in found['ensemble']):14d}", flush=True)
    print(f"{time.process_time() - begun:.0f} s of CPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())
