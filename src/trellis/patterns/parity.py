"""One model, several ways to score with it: do they give the same answers?"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trellis.adapters.datasets import save_dataset
from trellis.adapters.loading import load_predictor
from trellis.checks.compare import ATOL, ONNX_ATOL, ONNX_RTOL, RTOL, difference
from trellis.contract import Batch, Dataset, ModelPlugin, concat, row_count, select, take
from trellis.ensemble import load_artifact
from trellis.errors import ContractError
from trellis.patterns.batch import BatchModel, predict_batch
from trellis.patterns.export import export_model

_WITHOUT_TRELLIS = (
    "import sys, os, runpy; sys.modules['trellis'] = None; "
    "sys.argv = sys.argv[1:]; sys.path.insert(0, os.path.dirname(sys.argv[0])); "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@dataclass(frozen=True)
class Parity:
    """How far the ways are apart.

    Attributes:
        rows: How many rows were compared.
        worst: Way to its largest absolute difference from scoring one row at a time, over all outputs.
        problems: Way to what differs beyond the tolerance; empty where all agree.
    """

    rows: int
    worst: Mapping[str, float]
    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def agree(self) -> bool:
        """Whether every way gives the same answers."""
        return not self.problems


def patterns_agree(
    plugin: ModelPlugin,
    artifact: Path,
    rows: Dataset,
    *,
    digest: str | None = None,
    rtol: float = RTOL,
    atol: float = ATOL,
) -> Parity:
    """Score the same rows, features in hand, one by one as online, as a batch, and embedded.

    Where the artifact has an ONNX graph, that is what is served: then the plug-in's own predictor is compared as well,
    and the embedded way, which runs in a Python of its own that cannot see Trellis. The tolerances are the conformance
    kit's: two ways may add in another order, a graph may round otherwise than the plug-in, and no more.

    Args:
        plugin: The model.
        artifact: A sealed version of it.
        rows: Rows with the request fields and features.
        digest: The digest the artifact must have.
        rtol: The outputs may differ by ``atol + rtol * |value|``.
        atol: The absolute part of that.

    Raises:
        TrellisError: A way does not work at all.
    """
    spec = plugin.spec
    predictor, engine = load_predictor(plugin, artifact, digest)
    columns = select(rows.columns, list(spec.fields))
    count = row_count(columns)
    inputs = select(columns, spec.inputs)
    one_by_one = concat([_outputs(plugin, predictor.predict(take(inputs, slice(i, i + 1)))) for i in range(count)])
    ways: dict[str, Batch] = {}
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        save_dataset(Dataset(columns, rows.target, rows.row_id), place / "rows.parquet")
        predict_batch(
            BatchModel(spec, predictor, "parity", digest or ""), place / "rows.parquet", place / "scores.parquet"
        )
        ways["batch"] = read_scores(plugin, place / "scores.parquet")
        if engine == "onnx":
            export_model(spec, artifact, place / "export", version="parity", digest=digest)
            lines = [json.dumps(json_row(plugin, columns, i)) for i in range(count)]
            ways["embedded"] = run_export(plugin, place / "export", lines)
    found = {way: difference(answer, one_by_one, rtol=rtol, atol=atol) for way, answer in ways.items()}
    if engine == "onnx":
        own = _outputs(plugin, load_artifact(plugin, artifact).predict(inputs))
        found["plug-in"] = difference(own, one_by_one, rtol=max(rtol, ONNX_RTOL), atol=max(atol, ONNX_ATOL))
    problems = {way: problem for way, (problem, _) in found.items() if problem}
    return Parity(count, {way: worst for way, (_, worst) in found.items()}, problems)


def read_scores(plugin: ModelPlugin, path: Path) -> dict[str, NDArray[Any]]:
    """Return the outputs in a batch's output file, which has no refused row."""
    table = pq.read_table(path)
    return _outputs(
        plugin,
        {
            f.name: np.asarray(column.combine_chunks().flatten() if f.shape else column)
            for f in plugin.spec.outputs
            for column in [table.column(f.name)]
        },
    )


def run_export(plugin: ModelPlugin, directory: Path, lines: list[str]) -> dict[str, NDArray[Any]]:
    """Score JSON lines with an exported directory, in an isolated interpreter.

    Raises:
        ContractError: It refused a row, or did not run.
    """
    command = [sys.executable, "-I", "-c", _WITHOUT_TRELLIS, str(directory / "score.py")]
    done = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)
    if done.returncode:
        why = next((line for line in done.stdout.splitlines() if '"error"' in line), done.stderr[-500:])
        raise ContractError(f"The exported model did not score: {why.strip()}", where=directory)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return _outputs(plugin, {f.name: np.array([a[f.name] for a in answers]) for f in plugin.spec.outputs})


def json_row(plugin: ModelPlugin, columns: Batch, row: int) -> dict[str, Any]:
    """Return a row as it is written in a request: missing values as null, times as RFC 3339 in UTC."""
    return {name: _json(columns[name][row]) for name in plugin.spec.fields}


def _json(value: Any) -> Any:
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else f"{np.datetime_as_string(value, unit='us')}Z"
    plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    return None if plain != plain or plain == "" else plain


def _outputs(plugin: ModelPlugin, answer: Batch) -> dict[str, NDArray[Any]]:
    return {f.name: np.asarray(answer[f.name]).reshape(-1, *f.shape) for f in plugin.spec.outputs}
