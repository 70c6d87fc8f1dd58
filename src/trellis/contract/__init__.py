"""The plug-in contract: all that a model's author needs to know, on the standard library, numpy and pandas."""

from trellis.contract.batch import Batch, Dataset, concat, row_count, select, take
from trellis.contract.plugin import (
    BuildsFeatures,
    Explains,
    ExportsOnnx,
    LearnsOnline,
    ModelPlugin,
    Predictor,
    ProvidesData,
    TrainingData,
    TrainingRun,
)
from trellis.contract.policies import (
    DriftPolicy,
    GatePolicy,
    QualityPolicy,
    RetrainMethod,
    RetrainPolicy,
    RolloutPolicy,
    Strategy,
)
from trellis.contract.spec import (
    Field,
    FieldKind,
    Metric,
    ModelSpec,
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
    "LearnsOnline",
    "Metric",
    "ModelPlugin",
    "ModelSpec",
    "Predictor",
    "ProvidesData",
    "QualityPolicy",
    "RetrainMethod",
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
