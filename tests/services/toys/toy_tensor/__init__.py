"""A toy on tensors: three class probabilities from a 2 x 2 image; saved as JSON and, on wish, as an ONNX graph."""

import json

import numpy as np

from trellis.contract import Dataset, Field, Metric, ModelPlugin, ModelSpec, Predictor, Target

SPEC = ModelSpec(
    name="toy_tensor",
    version="1.0",
    task="multiclass",
    owner="tests",
    description="A toy on images.",
    request=(Field("image", "tensor", "Grey values.", minimum=0, maximum=1, shape=(2, 2), example=[[0, 1], [0.5, 0]]),),
    inputs=("image",),
    outputs=(Field("probabilities", "tensor", "Of each class.", shape=(3,), example=[0.2, 0.3, 0.5]),),
    target=Target("kind", "Which kind.", classes=("a", "b", "c")),
    metric=Metric("accuracy", floor=0.3),
)


class Softmax(Predictor):
    def __init__(self, weights):
        self.weights = np.asarray(weights, np.float32)  # (4, 3)

    def predict(self, batch):
        z = batch["image"].reshape(len(batch["image"]), 4) @ self.weights
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return {"probabilities": e / e.sum(axis=1, keepdims=True)}

    def save(self, directory):
        (directory / "weights.json").write_text(json.dumps(self.weights.tolist()))

    def export_onnx(self, path):
        from onnx import TensorProto, checker, helper, numpy_helper, save

        nodes = [
            helper.make_node("Flatten", ["image"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "w"], ["z"]),
            helper.make_node("Softmax", ["z"], ["probabilities"], axis=1),
        ]
        graph = helper.make_graph(
            nodes,
            "toy",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 2, 2])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])],
            [numpy_helper.from_array(self.weights, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        checker.check_model(model)
        save(model, path)


class Toy(ModelPlugin):
    spec = SPEC

    def train(self, data, run):
        return Softmax(np.random.default_rng(run.seed).normal(size=(4, 3)))

    def load(self, directory):
        return Softmax(json.loads((directory / "weights.json").read_text()))

    def sample(self, rows):
        rng = np.random.default_rng(0)
        return Dataset(
            {"image": rng.random((rows, 2, 2)).astype(np.float32)},
            np.arange(rows) % 3,
            np.array([str(i) for i in range(rows)]),
        )


plugin = Toy()
