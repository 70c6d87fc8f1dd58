"""The plug-in: declaration, data, training with scikit-learn, answering with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trellis.contract import (
    Batch,
    Dataset,
    DriftPolicy,
    Field,
    GatePolicy,
    Metric,
    ModelPlugin,
    ModelSpec,
    Predictor,
    Target,
    TrainingData,
    TrainingRun,
)
from trellis.errors import RequestError

if TYPE_CHECKING:
    import onnx
    import pandas as pd

_SERUM = (
    ("s1", "Total serum cholesterol, mg/dl.", 50, 500),
    ("s2", "Low-density lipoproteins, mg/dl.", 20, 400),
    ("s3", "High-density lipoproteins, mg/dl.", 5, 200),
    ("s4", "Total cholesterol divided by HDL.", 1, 20),
    ("s5", "Natural logarithm of the serum triglycerides.", 2, 8),
    ("s6", "Blood sugar, mg/dl.", 30, 400),
)
REQUEST = (
    Field("age", "float", "Age in years.", minimum=0, maximum=120, example=59.0),
    Field("sex", "float", "Coded 1 or 2 in the source.", minimum=1, maximum=2, example=2.0),
    Field("bmi", "float", "Body mass index, kg/m².", minimum=10, maximum=80, example=32.1),
    Field("bp", "float", "Mean arterial blood pressure, mm Hg.", minimum=30, maximum=250, example=101.0),
    *(Field(name, "float", text, minimum=low, maximum=high, nullable=True) for name, text, low, high in _SERUM),
)
SPEC = ModelSpec(
    name="diabetes_progression",
    version="1.0",
    task="regression",
    owner="examples@trellis.example",
    description="Expected progression of diabetes one year after ten measurements were taken.",
    request=REQUEST,
    inputs=tuple(field.name for field in REQUEST),
    outputs=(Field("value", "float", "Expected progression score; 25 to 346 in the data."),),
    target=Target("progression", "Progression score, taken one year later.", delay_hours=365 * 24.0),
    metric=Metric("mae", floor=55.0),
    recipes=("ridge",),
    # The loss is an absolute error in points of the score, whose spread in the data is 77.
    gates=GatePolicy(margin=2.0, segment_margin=8.0, min_rows=50, min_segment_rows=30, max_bytes=100_000),
    drift=DriftPolicy(min_rows=50, max_loss_increase=10.0),
)


class OnnxRegression(Predictor):
    """A regression that is an ONNX graph and nothing else.

    Args:
        graph: The serialised graph, inputs ``(n, 1)`` named as the spec's.
    """

    def __init__(self, graph: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._graph = graph
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def predict(self, batch: Batch) -> Batch:
        """Score rows; a missing value that is not declared nullable is refused by name."""
        feed = {}
        for field in SPEC.request:
            column = np.asarray(batch[field.name], dtype=np.float32)
            if not field.nullable and np.isnan(column).any():
                raise RequestError(field.name, "is missing", remedy="Send a number.")
            feed[field.name] = column.reshape(-1, 1)
        if not len(column):  # the runtime's FeatureVectorizer ends the process when there are no rows
            return {"value": np.empty(0, dtype=np.float32)}
        return {"value": self._session.run(["value"], feed)[0]}

    def save(self, directory: Path) -> None:
        """Write ``model.onnx``."""
        self.export_onnx(directory / "model.onnx")

    def export_onnx(self, path: Path) -> None:
        """Write the graph."""
        path.write_bytes(self._graph)


class DiabetesPlugin(ModelPlugin):
    """Plain scikit-learn for training, its own source of data."""

    spec = SPEC

    def train(self, data: TrainingData, run: TrainingRun) -> Predictor:
        """Fit a ridge regression; its closed form draws no random numbers."""
        from sklearn.impute import SimpleImputer
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        columns = [np.asarray(data.train.columns[name], dtype=np.float32) for name in SPEC.inputs]
        model = make_pipeline(
            SimpleImputer(strategy="median"), StandardScaler(), RidgeCV(alphas=np.logspace(-2, 3, 26))
        )
        model.fit(np.column_stack(columns), data.train.target)
        run.progress("fit", 1.0)
        return OnnxRegression(_to_onnx(model))

    def load(self, directory: Path) -> Predictor:
        """Read back ``model.onnx``."""
        return OnnxRegression((directory / "model.onnx").read_bytes())

    def sample(self, rows: int) -> Dataset:
        """Return the first patients of the bundled data."""
        return _dataset(_bundled().head(rows))

    def ingest(self, directory: Path) -> None:
        """Write ``patients.parquet``."""
        directory.mkdir(parents=True, exist_ok=True)
        _bundled().to_parquet(directory / "patients.parquet", index=False)

    def examples(self, snapshot: Path) -> Dataset:
        """Return every patient of the snapshot; they carry no time."""
        import pandas as pd

        return _dataset(pd.read_parquet(snapshot / "patients.parquet"))


def _to_onnx(model: object) -> bytes:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    graph = to_onnx(
        model,
        initial_types=[(name, FloatTensorType([None, 1])) for name in SPEC.inputs],
        target_opset=18,
    )
    graph.graph.name = SPEC.name
    _flatten_output(graph, "value")
    return bytes(graph.SerializeToString(deterministic=True))


def _flatten_output(model: onnx.ModelProto, name: str) -> None:
    """Give the graph one output of the declared shape ``(n,)``; the converter's is ``(n, 1)``."""
    from onnx import TensorProto, helper

    old = model.graph.output[0].name
    model.graph.initializer.append(helper.make_tensor("flat", TensorProto.INT64, [1], [-1]))
    model.graph.node.append(helper.make_node("Reshape", [old, "flat"], [name]))
    model.graph.output.pop()
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]))


def _bundled() -> pd.DataFrame:
    from sklearn.datasets import load_diabetes

    frame = load_diabetes(as_frame=True, scaled=False).frame
    frame = frame.rename(columns={"target": "progression"}).astype("float32")
    frame.insert(0, "patient", [f"patient-{i:03d}" for i in range(len(frame))])
    return frame


def _dataset(frame: pd.DataFrame) -> Dataset:
    return Dataset(
        columns={name: frame[name].to_numpy(np.float32) for name in SPEC.inputs},
        target=frame["progression"].to_numpy(np.float64),
        row_id=frame["patient"].to_numpy(np.str_),
    )


plugin = DiabetesPlugin()
