"""The plug-in contract: all that a model's author needs to know, on the standard library, numpy and pandas."""

from trellis.contract.batch import Batch, Dataset, concat, row_count, select, take
from trellis.contract.plugin import (
    BuildsFeatures,
    Explains,
    ExportsOnnx,
    ModelPlugin,
    Predictor,
    ProvidesData,
    TrainingData,
    TrainingRun,
)
from trellis.contract.spec import (
    DriftPolicy,
    Field,
    FieldKind,
    GatePolicy,
    Metric,
    ModelSpec,
    RetrainPolicy,
    RolloutPolicy,
    Strategy,
    Target,
    Task,
)

__all__ = [
    "Batch",
    "BuildsFeatures",
    "Dataset",
    "DriftPolicy",
    "Explains",
    "ExportsOnnx",
    "Field",
    "FieldKind",
    "GatePolicy",
    "Metric",
    "ModelPlugin",
    "ModelSpec",
    "Predictor",
    "ProvidesData",
    "RetrainPolicy",
    "RolloutPolicy",
    "Strategy",
    "Target",
    "Task",
    "TrainingData",
    "TrainingRun",
    "concat",
    "row_count",
    "select",
    "take",
]
