"""One-row latency inside the service: the flight model through ONNX Runtime against its Python path, in one run.

Prints milliseconds and, because machines differ, ratios. "Features in hand" means that the caller sends them, so the
online store is not part of the figure; everything else is: columns, split, score, checks, the record for the log.

Run it with ``python tests/benchmarks/bench_serving.py``; needs no service and no network.
"""

from __future__ import annotations

import gc
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

CALLS = 3_000


def measure(call: Callable[[], object], calls: int = CALLS) -> tuple[float, float]:
    """Return p50 and p99 of a call in milliseconds, after a warm-up."""
    for _ in range(200):
        call()
    spent = []
    for _ in range(calls):
        started = time.perf_counter()
        call()
        spent.append(time.perf_counter() - started)
    cuts = statistics.quantiles(spent, n=100)
    return cuts[49] * 1e3, cuts[98] * 1e3


def trained(directory: Path):
    """Train the flight model on its sample, repeated with a little noise so that the trees grow to a usual size."""
    from trellis.catalog import Catalogue
    from trellis.contract import Dataset, TrainingData, TrainingRun, concat

    plugin = Catalogue([ROOT / "models"], entry_points=False).plugin("flight_delay")
    sample = plugin.sample(1_500)
    rng = np.random.default_rng(0)
    copies = []
    for _ in range(20):
        columns = {
            n: c + rng.normal(0, 0.05, len(c)).astype(c.dtype) * np.nanstd(c) if c.dtype.kind == "f" else c
            for n, c in sample.columns.items()
        }
        copies.append(columns)
    columns, target = concat(copies), np.tile(sample.target, 20)
    ids = np.array([str(i) for i in range(len(target))])
    data = Dataset(columns, target, ids, np.tile(sample.time, 20), np.tile(sample.known, 20))
    run = TrainingRun(0, "xgboost", directory, {"rounds": 300, "patience": 300})
    return plugin, plugin.train(TrainingData(data, data), run)


def main() -> None:
    """Measure and print."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    logging.disable(logging.INFO)
    from prometheus_client import CollectorRegistry
    from pydantic_core import to_json

    from services.prediction.answer import Answerer
    from services.prediction.metrics import Metrics
    from services.prediction.runtime import Active, ModelRuntime
    from services.prediction.schema import model_schema, parse
    from services.prediction.versions import LoadedVersion
    from trellis.adapters.onnx_predictor import OnnxPredictor
    from trellis.adapters.prediction_log import PredictionLog
    from trellis.contract import select
    from trellis.rollout.plan import Variant, first_plan

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        plugin, python = trained(directory)
        python.export_onnx(directory / "model.onnx")
        onnx = OnnxPredictor(directory / "model.onnx")
        spec = plugin.spec
        row = select(plugin.sample(1).columns, spec.inputs)
        log = PredictionLog(directory, spec.name, flush_seconds=0.05)
        model = ModelRuntime.of(spec.name, plugin)
        schema = model_schema(spec, max_rows=1_000)
        sent = dict(model.example) | {
            f.name: float(np.nan_to_num(plugin.sample(1).columns[f.name][0])) for f in spec.features
        }
        body = to_json({"rows": [sent]})
        rows = parse(schema.request, body).rows
        plan = first_plan(spec.name, Variant("1", "champion", 1.0, name, ""), salt="s")
        answerer = Answerer(None, lambda _model: log, lambda _model: log, Metrics(CollectorRegistry()))

        def whole() -> bytes:
            return to_json(answerer.answer(model, parse(schema.request, body).rows, "bench"))

        gc.collect()
        gc.freeze()
        results = {}
        for engine, predictor in (("onnx", onnx), ("python", python)):
            model.active = Active(plan, {"1": LoadedVersion("1", "", predictor, engine)})
            results[engine] = [
                measure(lambda p=predictor: p.predict(row)),
                measure(lambda: answerer.answer(model, rows, "bench")),
                measure(whole),
            ]
        log.close()
    steps = ("predictor alone", "features in hand -> answer", "JSON body -> JSON answer")
    print(f"{spec.name}, one row, {CALLS} calls each, milliseconds")
    print(f"{'':28}{'ONNX p50':>10}{'p99':>8}{'Python p50':>12}{'p99':>8}{'ratio p50':>11}{'p99':>7}")
    for step, (o50, o99), (p50, p99) in zip(steps, results["onnx"], results["python"], strict=True):
        print(f"{step:28}{o50:10.3f}{o99:8.3f}{p50:12.3f}{p99:8.3f}{p50 / o50:10.1f}x{p99 / o99:6.1f}x")


if __name__ == "__main__":
    main()
