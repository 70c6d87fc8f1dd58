"""Checks of training, saving and loading, and the measurement of what they cost."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.artifact import MANIFEST
from trellis.checks.compare import ATOL, ONNX_ATOL, ONNX_RTOL, RTOL, difference
from trellis.checks.subject import Child, Subject, repeated
from trellis.checks.suite import CheckFailed, CheckSkipped, check, require
from trellis.contract import Batch, ModelSpec, take


@check
def training_repeats(subject: Subject) -> str:
    """Training twice with one seed, the second time in a fresh interpreter, gives the same artifact, byte for byte."""
    first = _digests(subject.saved)
    second = _digests(_trained(subject).directory / "again")
    differing = sorted(name for name in {*first, *second} if first.get(name) != second.get(name))
    require(not differing, f"with seed {subject.seed} twice, these files differ: {', '.join(differing)}")
    return f"{len(first)} files identical with seed {subject.seed}"


def _digests(directory: Path) -> dict[str, str]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != MANIFEST)
    return {p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _trained(subject: Subject) -> Child:
    child = subject.child
    require(child.train_error is None, f"training in a fresh interpreter raises {child.train_error}")
    require(child.trained, f"training in a fresh interpreter: {child.crash}")
    return child


@check
def training_leaves_nothing(subject: Subject) -> str:
    """Training leaves no file outside its scratch directory: not in the working directory, home, temp or elsewhere.

    Files that native code writes are seen in those three places; elsewhere only what goes through Python is.
    """
    child = _trained(subject)
    names = [_short(path, child.directory) for path in child.leftovers]
    require(not names, f"left behind: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}")
    return "nothing left in the working directory, home, temp or elsewhere"


def _short(path: str, directory: Path) -> str:
    known = {"cwd": "the working directory", "home": "home", "tmp": "temp"}
    for place, name in known.items():
        if Path(path).is_relative_to(directory / place):
            return f"{Path(path).relative_to(directory / place)} in {name}"
    return path


@check
def safe_formats_only(subject: Subject) -> str:
    """The artifact holds only formats that cannot carry code, and can be sealed and verified."""
    manifest = subject.manifest
    return f"{len(manifest.files)} files, digest {manifest.digest[:12]}: {', '.join(manifest.files)}"


@check
def fresh_interpreter_agrees(subject: Subject) -> str:
    """An interpreter that never saw the training loads the artifact and gives the same answers."""
    child = _loaded(subject)
    problem, worst = difference(child.answer, subject.baseline)
    require(problem is None, f"after saving and loading, {problem}")
    rows = len(next(iter(subject.baseline.values())))
    return f"{rows} rows, largest difference {worst:.2g} (allowed {ATOL:g} + {RTOL:g} of the value)"


@check
def no_network_on_load(subject: Subject) -> str:
    """Importing, loading and predicting try no network."""
    child = subject.child
    require(not child.network, f"tried {', '.join(child.network[:3])}")
    _loaded(subject)
    return "no attempt" + (", in a network namespace without interfaces" if child.isolated else "")


def _loaded(subject: Subject) -> Child:
    child = subject.child
    require(child.load_error is None, f"a fresh interpreter cannot load it: {child.load_error}")
    return child


@check
def onnx_agrees(subject: Subject) -> str:
    """Where the model exports ONNX, the graph answers as the predictor does: in batch, alone, and on odd rows."""
    path = subject.onnx
    if path is None:
        raise CheckSkipped("the model exports no ONNX graph")
    session = _session(path)
    probe, baseline = subject.probe, subject.baseline
    worst = 0.0
    for rows in (slice(None), slice(0, 1), slice(1, 2)):
        answer = run_onnx(session, subject.spec, take(probe, rows))
        problem, gap = difference(answer, take(baseline, rows), rtol=ONNX_RTOL, atol=ONNX_ATOL)
        require(problem is None, f"the ONNX graph's {problem}")
        worst = max(worst, gap)
    odd = _onnx_on_odd_rows(subject, session)
    return f"largest difference {worst:.2g} (allowed {ONNX_ATOL:g} + {ONNX_RTOL:g} of the value), {odd} odd cases agree"


def _onnx_on_odd_rows(subject: Subject, session: Any) -> int:
    """Hold the graph against the predictor on what a caller may send: missing values, words never seen."""
    agreed = 0
    for odd in subject.odd:
        if not odd.admitted or odd.label not in subject.child.survived:
            continue
        try:
            expected = subject.answer(odd.batch, odd.label)
        except CheckFailed:
            continue  # found by the checks of odd batches
        answer = run_onnx(session, subject.spec, odd.batch)
        problem, _ = difference(answer, expected, rtol=ONNX_RTOL, atol=ONNX_ATOL)
        require(problem is None, f"with {odd.label}, the ONNX graph's {problem}")
        agreed += 1
    return agreed


def _session(path: Path) -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the library is loaded
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


_ONNX_DTYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64, "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}  # fmt: skip


def run_onnx(session: Any, spec: ModelSpec, batch: Batch) -> dict[str, NDArray[Any]]:
    """Ask a graph whose inputs and outputs are named as the spec's.

    It is fed as the service feeds it: numbers cast to the graph's type, timestamps as seconds since 1970, missing
    strings as ``""``, columns as ``(n, 1)`` where the graph wants two dimensions. Outputs are taken as they are.
    """
    feed: dict[str, NDArray[Any]] = {}
    for wanted in session.get_inputs():
        if wanted.name not in spec.inputs:
            raise CheckFailed(f"the ONNX graph wants {wanted.name!r}, which is no input of the model")
        column = batch[wanted.name]
        if column.dtype.kind == "M":
            missing = np.isnat(column)
            column = column.astype("datetime64[us]").astype(np.int64) / 1e6
            column[missing] = np.nan
        if wanted.type == "tensor(string)":
            column = np.array(["" if v is None or v != v else str(v) for v in column.tolist()], dtype=object)
        else:
            column = column.astype(_ONNX_DTYPES[wanted.type])
        feed[wanted.name] = column.reshape(-1, 1) if column.ndim == 1 and len(wanted.shape) == 2 else column
    names = [output.name for output in session.get_outputs()]
    lacking = [f.name for f in spec.outputs if f.name not in names]
    if lacking:
        raise CheckFailed(f"the ONNX graph has the outputs {names}, and lacks {lacking}")
    answer = dict(zip(names, session.run(None, feed), strict=True))
    return {f.name: answer[f.name] for f in spec.outputs}


@check
def cost_measured(subject: Subject) -> str:
    """What training, loading and predicting cost is measured; the artifact is no larger than the spec's gate allows."""
    probe, cost = subject.probe, subject.cost
    one, thousand = take(probe, slice(0, 1)), repeated(probe, 1_000)
    predict = subject.predictor.predict
    _ = subject.trained  # so that the training's time is there
    cost["predict_one_row_p50_us"] = round(_median_seconds(lambda: predict(one), calls=200, limit=1.0) * 1e6, 1)
    cost["predict_1000_rows_ms"] = round(_median_seconds(lambda: predict(thousand), calls=10, limit=1.0) * 1e3, 2)
    if subject.onnx is not None:
        session = _session(subject.onnx)
        run_one = _median_seconds(lambda: run_onnx(session, subject.spec, one), calls=200, limit=0.5)
        cost["onnx_one_row_p50_us"] = round(run_one * 1e6, 1)
    manifest = subject.manifest
    cost["artifact_bytes"] = float(manifest.size)
    child = _loaded(subject)
    cost["fresh_load_seconds"] = round(child.load_seconds, 6)
    cost["fresh_load_peak_memory_mb"] = child.load_peak_memory_mb
    limit = subject.spec.gates.max_bytes
    require(manifest.size <= limit, f"the artifact has {manifest.size:,} bytes, the gate allows {limit:,}")
    return (
        f"train {cost['train_seconds']:.2f} s, one row {cost['predict_one_row_p50_us']:.0f} µs, "
        f"1,000 rows {cost['predict_1000_rows_ms']:.1f} ms, {manifest.size:,} bytes, "
        f"fresh load {child.load_seconds:.1f} s and {child.load_peak_memory_mb:.0f} MB"
    )


def _median_seconds(call: Callable[[], object], *, calls: int, limit: float) -> float:
    """Return the median wall time of up to ``calls`` calls within about ``limit`` seconds, after one to warm up."""
    call()
    times: list[float] = []
    end = time.perf_counter() + limit
    while len(times) < calls and (not times or time.perf_counter() < end):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))
