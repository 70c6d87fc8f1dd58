"""Does it pay to score concurrent requests together (micro-batching), and for which models?

For each model: processor time of the predictor per row, alone and for n rows at once; and of callers in a closed loop,
each scoring by itself or all through a coalescer. Processor time, not wall time: it is what one worker's
requests per second come down to, and a busy machine does not bend it.

Run it with ``python tests/benchmarks/bench_batching.py``; needs no service and no network.
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

CALLERS = 16, 4  # and as many as the service has threads
Batch = Mapping[str, Any]


class Coalescer:
    """Scores what waits together, at most 16 rows at a time, on the thread of whoever came first.

    The best case of micro-batching: batches grow with the load, nobody waits for company, and the one who scores goes
    on for as long as others come, whatever that does to its own answer.
    """

    def __init__(self, predict: Callable[[Batch], Batch]) -> None:
        self._predict = predict
        self._lock = threading.Lock()
        self._waiting: list[tuple[Batch, Future[Batch]]] = []
        self._led = False

    def __call__(self, row: Batch) -> Batch:
        """Score one row."""
        mine: Future[Batch] = Future()
        with self._lock:
            self._waiting.append((row, mine))
            leads, self._led = not self._led, True
        while leads:
            with self._lock:
                taken, self._waiting = self._waiting[:16], self._waiting[16:]
                if not taken:
                    self._led = False
                    break
            together = {name: np.concatenate([row[name] for row, _ in taken]) for name in taken[0][0]}
            answer = self._predict(together)
            for i, (_, future) in enumerate(taken):
                future.set_result({name: values[i : i + 1] for name, values in answer.items()})
        return mine.result()


def cpu(call: Callable[[], object], calls: int, runs: int = 5) -> float:
    """Return microseconds of processor time per call: the median of some runs, after a warm-up."""
    for _ in range(max(3, calls // 10)):
        call()
    found = []
    for _ in range(runs):
        started = time.process_time()
        for _ in range(calls):
            call()
        found.append((time.process_time() - started) / calls * 1e6)
    return statistics.median(found)


def closed_loop(score: Callable[[Batch], Batch], row: Batch, calls: int, callers: int) -> float:
    """Return microseconds of processor time per call with all callers at it."""

    def caller() -> None:
        for _ in range(calls):
            score(row)

    found = []
    for _ in range(3):
        threads = [threading.Thread(target=caller) for _ in range(callers)]
        started = time.process_time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found.append((time.process_time() - started) / (calls * callers) * 1e6)
    return statistics.median(found)


def wide_network(path: Path, width: int = 2048) -> None:
    """Write a dense network of 8.4 million weights: one row reads all of them, sixteen read them once."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.02, (width, width)).astype(np.float32) for _ in range(2)]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, width])],
        [numpy_helper.from_array(w, name) for w, name in zip(weights, "ab", strict=True)],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def predictors(directory: Path) -> dict[str, tuple[Callable[[Batch], Batch], Batch, int]]:
    """Return what is measured: predictor, one row, and calls per run."""
    import torch

    from tests.benchmarks.bench_serving import trained
    from trellis.adapters.onnx_predictor import OnnxPredictor
    from trellis.catalog import Catalogue
    from trellis.contract import TrainingData, TrainingRun, select

    torch.set_num_threads(1)
    found: dict[str, tuple[Callable[[Batch], Batch], Batch, int]] = {}
    flights, trees = trained(directory)
    digits = Catalogue([ROOT / "models"], entry_points=False).plugin("digits")
    sample = digits.sample(200)
    run = TrainingRun(0, "cnn", directory, {"epochs": 1})
    network = digits.train(TrainingData(sample, sample), run)
    for name, plugin, predictor in (("flight_delay", flights, trees), ("digits", digits, network)):
        graph = directory / f"{name}.onnx"
        predictor.export_onnx(graph)
        row = select(plugin.sample(1).columns, plugin.spec.inputs)
        found[f"{name}, ONNX"] = (OnnxPredictor(graph).predict, row, 2_000)
        found[f"{name}, Python"] = (predictor.predict, row, 100)
    wide_network(directory / "wide.onnx")
    row = {"x": np.random.default_rng(1).normal(size=(1, 2048)).astype(np.float32)}
    found["dense, 8.4 M weights, ONNX"] = (OnnxPredictor(directory / "wide.onnx").predict, row, 50)
    return found


def main() -> None:
    """Measure and print."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    logging.disable(logging.INFO)
    sizes = (1, 4, 16)
    print(
        "microseconds of processor time per row; a whole answer beside the predictor takes what bench_serving.py says"
    )
    heads = [f"{n} at once" for n in sizes] + [f"{n} {how}" for n in CALLERS for how in ("alone", "together")]
    print(f"{'':28}" + "".join(f"{head:>13}" for head in heads))
    with tempfile.TemporaryDirectory() as name:
        for what, (predict, row, calls) in predictors(Path(name)).items():
            cells = []
            for n in sizes:
                rows = {column: np.concatenate([values] * n) for column, values in row.items()}
                cells.append(cpu(lambda p=predict, r=rows: p(r), max(10, calls // n)) / n)
            for callers in CALLERS:
                many = max(10, calls // callers)
                cells.append(closed_loop(predict, row, many, callers))
                cells.append(closed_loop(Coalescer(predict), row, many, callers))
            print(f"{what:28}" + "".join(f"{cell:13.1f}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
