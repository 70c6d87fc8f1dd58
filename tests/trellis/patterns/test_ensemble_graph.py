"""The reference models' own graph, of XGBoost, merged into an ensemble's."""

import numpy as np
import pytest

from trellis.adapters.onnx_ensemble import merge_graphs
from trellis.adapters.onnx_predictor import OnnxPredictor
from trellis.contract import select


@pytest.mark.slow
def test_the_mean_of_two_real_graphs(flights, tmp_path):
    model = flights
    single = model.artifact / "model.onnx"
    outputs = [f.name for f in model.spec.outputs]
    merge_graphs([(single, 0.25), (single, 0.75)], outputs, tmp_path / "model.onnx")
    batch = select(model.unseen.columns, model.spec.inputs)
    one, two = OnnxPredictor(single).predict(batch), OnnxPredictor(tmp_path / "model.onnx").predict(batch)
    for output in outputs:
        np.testing.assert_allclose(two[output], one[output], rtol=1e-5, atol=1e-6)
