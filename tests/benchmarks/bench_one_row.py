"""One flight, features in hand, to its probability: the ONNX graph against the Python ways, in one run.

Trains both recipes on real rows with the plug-in's own parameters on the sample, so the trees are fewer than on half a
year; ``--rounds`` sets how many there are (300 is what half a year stops at). Prints p50 and p99 in milliseconds and
ratios to the graph; nothing is asserted.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trellis.adapters.onnx_predictor import OnnxPredictor
from trellis.catalog import Catalogue
from trellis.contract import Batch, TrainingData, TrainingRun, take

CALLS, TURNS = 200, 5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    plugin = Catalogue([Path(__file__).parents[2] / "models"], entry_points=False).plugin("flight_delay")
    sample = plugin.sample(1_500)
    data = TrainingData(sample.take(slice(0, 1_200)), sample.take(slice(1_200, None)))
    inputs = {name: sample.columns[name] for name in plugin.spec.inputs}
    rows = [take(inputs, slice(i, i + 1)) for i in range(300)]
    print(f"one row of {len(inputs)} inputs, {CALLS * TURNS} calls each, in {TURNS} turns; ms")
    print(f"{'recipe':10} {'way':52} {'p50':>8} {'p99':>8} {'p50 / graph':>12}")
    for recipe, params in (
        ("xgboost", {"rounds": rounds, "patience": rounds, "min_child_weight": 5.0}),
        ("tabnet", {}),
    ):
        with tempfile.TemporaryDirectory() as scratch:
            predictor = plugin.train(data, TrainingRun(7, recipe, Path(scratch), params=params))
            graph = Path(scratch) / "model.onnx"
            predictor.export_onnx(graph)  # type: ignore[attr-defined]
            ways = {"ONNX graph through OnnxPredictor": OnnxPredictor(graph).predict}
        ways[f"Python: the plug-in's predictor ({'xgboost' if recipe == 'xgboost' else 'torch'})"] = predictor.predict
        if recipe == "xgboost":
            ways["Python, stock: DataFrame, DMatrix, Booster.predict"] = _stock(predictor)
        taken = _measure(ways, rows)
        fastest = np.median(next(iter(taken.values())))
        for way, times in taken.items():
            p50, p99 = np.quantile(times, [0.5, 0.99])
            print(f"{recipe:10} {way:52} {p50:8.3f} {p99:8.3f} {p50 / fastest:12.1f}")


def _stock(predictor: object) -> Callable[[Batch], object]:
    """Return the way that XGBoost's own documentation shows: a frame with category columns, into a DMatrix."""
    import pandas as pd
    import xgboost

    encoding = importlib.import_module("_trellis_models.flight_delay.encoding")
    categories = {name: pd.CategoricalDtype(list(codes)) for name, codes in predictor.encoding.codes.items()}  # type: ignore[attr-defined]

    def predict(batch: Batch) -> object:
        frame = pd.DataFrame(dict(batch)).astype(categories)
        for name in categories:
            frame[name] = (frame[name].cat.codes + 1).replace(0, np.nan).astype(np.float32)
        matrix = xgboost.DMatrix(frame[[*encoding.CATEGORIES, *encoding.NUMBERS]].to_numpy(np.float32), nthread=1)
        return predictor.platt.probability(predictor.booster.predict(matrix, output_margin=True))  # type: ignore[attr-defined]

    return predict


def _measure(ways: dict[str, Callable[[Batch], object]], rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return milliseconds per call, in turns of some calls each, so that a busy moment hits all ways."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    gc.collect()
    gc.freeze()
    for _ in range(TURNS):
        for way, predict in ways.items():
            for call in range(-20, CALLS):
                row = rows[call % len(rows)]
                start = time.perf_counter()
                predict(row)
                if call >= 0:
                    taken[way].append((time.perf_counter() - start) * 1e3)
    return {way: np.array(times) for way, times in taken.items()}


if __name__ == "__main__":
    main()
