"""One plug-in, several ways to use it: whole tables in bounded memory, and a directory that scores without Trellis.

Answering requests is the prediction service's room; ``parity`` holds the ways against each other.
"""

from trellis.patterns.batch import BatchModel, BatchSummary, begun_version, predict_batch
from trellis.patterns.export import export_model
from trellis.patterns.parity import Parity, patterns_agree

__all__ = [
    "BatchModel",
    "BatchSummary",
    "Parity",
    "begun_version",
    "export_model",
    "patterns_agree",
    "predict_batch",
]
