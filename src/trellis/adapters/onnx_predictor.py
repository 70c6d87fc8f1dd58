"""ONNX Runtime as a ``Predictor``: a graph whose inputs and outputs are named as the spec's, tuned for one row."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.contract import Batch, Predictor
from trellis.errors import ArtifactError, ContractError

_NUMERIC = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class OnnxPredictor(Predictor):
    """Scores batches with one ONNX Runtime session on one thread.

    One thread, because at one row the hand-over between threads costs more than the work; processes give the breadth.
    Every column is fed as the graph declares it: missing strings as the empty string, numbers cast to the graph's type,
    timestamps as seconds since 1970, and one-dimensional columns as ``(n, 1)`` where the graph wants two dimensions.

    Args:
        path: The graph.

    Raises:
        ArtifactError: The file is no graph that ONNX Runtime can run, or an input has a type that no column has.
    """

    def __init__(self, path: Path) -> None:
        # Read when the library is loaded: without it every process makes a device id in the user's home and reports.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises its own classes and plain RuntimeErrors
            raise ArtifactError(
                f"ONNX Runtime cannot load the graph: {str(error).splitlines()[0]}.",
                where=path,
                remedy="Export the model again and register the new version.",
            ) from error
        self._path = path
        self._feeds = [(node.name, _as_it_is(node), _feed(node, path)) for node in self._session.get_inputs()]
        self._outputs = [node.name for node in self._session.get_outputs()]
        # The session's own ``run`` first looks for each input by name, as ``predict`` does; with some forty inputs that
        # takes a third of a one-row call. What it calls then has no public name, so a release may be without it.
        self._run: Callable[..., Any] = getattr(self._session, "_sess", self._session).run

    def predict(self, batch: Batch) -> Batch:
        """Score rows; outputs are named as the graph names them. No rows in, no rows out.

        Raises:
            ContractError: The batch lacks an input of the graph, or a column cannot be fed as the graph declares it.
        """
        if next((len(column) for column in batch.values()), None) == 0:
            # Some operators abort the whole process when a tensor has no rows: score a blank one and cut it off.
            return {name: values[:0] for name, values in self.predict({n: _blank(c) for n, c in batch.items()}).items()}
        feed = {}
        for name, dtype, prepare in self._feeds:
            try:
                column = batch[name]
                feed[name] = column if column.dtype is dtype else prepare(column)
            except KeyError:
                raise ContractError(
                    f"The graph's input {name!r} is not in the batch.",
                    where=self._path,
                    remedy="Export the spec's inputs.",
                ) from None
            except (TypeError, ValueError) as error:
                raise ContractError(
                    f"The column {name!r} does not fit the graph: {error}.", where=self._path
                ) from error
        return dict(zip(self._outputs, self._run(self._outputs, feed, None), strict=True))

    def save(self, directory: Path) -> None:
        """Write the graph as ``model.onnx``."""
        shutil.copyfile(self._path, directory / "model.onnx")


def _blank(column: NDArray[Any]) -> NDArray[Any]:
    """Return one row of zeros or empty strings in the form of a column."""
    fill: Any = "" if column.dtype.kind in "OU" else 0
    return np.full((1, *column.shape[1:]), fill, column.dtype)


def _as_it_is(node: Any) -> np.dtype[Any] | None:
    """Return the dtype of columns that can be fed unchanged; None where each has to be looked at."""
    return np.dtype(_NUMERIC[node.type]) if len(node.shape) == 1 and node.type in _NUMERIC else None


def _feed(node: Any, path: Path) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return what turns a column into the tensor that a graph's input declares."""
    wide = len(node.shape) == 2
    if node.type == "tensor(string)":
        return lambda column: _widened(_strings(column)) if wide else _strings(column)
    if node.type not in _NUMERIC:
        raise ArtifactError(
            f"The graph's input {node.name!r} has the type {node.type}, which no column has.", where=path
        )
    dtype = np.dtype(_NUMERIC[node.type])

    def prepare(column: NDArray[Any]) -> NDArray[Any]:
        if column.dtype is not dtype:
            column = (_seconds(column) if column.dtype.kind == "M" else column).astype(dtype)
        return _widened(column) if wide else column

    return prepare


def _widened(column: NDArray[Any]) -> NDArray[Any]:
    return column[:, None] if column.ndim == 1 else column


def _seconds(column: NDArray[Any]) -> NDArray[Any]:
    missing = np.isnat(column)
    column = column.astype("datetime64[us]").astype(np.int64) / 1e6
    column[missing] = np.nan
    return column


def _strings(column: NDArray[Any]) -> NDArray[Any]:
    if column.dtype.kind == "U":
        return column
    # NaN is what pandas puts where a string is missing.
    return np.array(["" if v is None or v != v else str(v) for v in column.ravel()], object).reshape(column.shape)
