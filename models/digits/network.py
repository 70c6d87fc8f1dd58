"""The network, the predictor around it, and the same function as an ONNX graph. Needs torch, not Lightning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from trellis.contract import Batch, Predictor
from trellis.errors import ArtifactError, ContractError

INK = 16.0
CHUNK = 1024


class Network(nn.Module):
    """Two convolutions, one pooling, two dense layers: (n, 1, 8, 8) ink in 0–1 to (n, 10) logits."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.dense1 = nn.Linear(32 * 4 * 4, 64)
        self.dense2 = nn.Linear(64, 10)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = torch.relu(self.conv1(x))
        x = torch.max_pool2d(torch.relu(self.conv2(x)), 2)
        x = torch.relu(self.dense1(self.dropout(x.flatten(1))))
        return self.dense2(self.dropout(x))


class DigitsPredictor(Predictor):
    """A trained network and the temperature that calibrates it.

    Args:
        network: The network, in evaluation mode.
        temperature: Divisor of the logits before the softmax (Guo et al. 2017, section 4.2); above 0.
    """

    def __init__(self, network: Network, temperature: float) -> None:
        self.network = network.eval().requires_grad_(False)
        self.temperature = float(temperature)

    def predict(self, batch: Batch) -> Batch:
        """Return ``probabilities`` (n, 10) float32, each row summing to 1, and ``label`` (n,) int64.

        Raises:
            ContractError: ``image`` is missing, not of shape (n, 1, 8, 8), or has cells that are not finite.
        """
        image = np.asarray(batch["image"], dtype=np.float32) if "image" in batch else None
        if image is None or image.shape[1:] != (1, 8, 8):
            found = "nothing" if image is None else image.shape
            raise ContractError(f"The digits model needs 'image' of shape (n, 1, 8, 8), it got {found}.")
        if not np.isfinite(image).all():
            raise ContractError("An image has cells that are no numbers.", remedy="Send 0 for a cell without ink.")
        parts = [self._probabilities(image[start : start + CHUNK]) for start in range(0, len(image), CHUNK)]
        probabilities = np.concatenate(parts) if parts else np.empty((0, 10), np.float32)
        return {"probabilities": probabilities, "label": probabilities.argmax(axis=1).astype(np.int64)}

    def _probabilities(self, image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits = self.network(torch.tensor(image) / INK)  # a copy, so a read-only batch is welcome
            return torch.softmax(logits / self.temperature, dim=1).numpy()

    def save(self, directory: Path) -> None:
        """Write ``weights.safetensors`` and ``digits.json``."""
        save_file(self._weights(), directory / "weights.safetensors")
        (directory / "digits.json").write_text(json.dumps({"temperature": self.temperature}) + "\n")

    @classmethod
    def load(cls, directory: Path) -> DigitsPredictor:
        """Read what ``save`` wrote.

        Raises:
            ArtifactError: A file is not there, is broken, or belongs to another network.
        """
        network = Network()
        try:
            weights = {name: torch.from_numpy(a) for name, a in load_file(directory / "weights.safetensors").items()}
            network.load_state_dict(weights)
            return cls(network, json.loads((directory / "digits.json").read_text())["temperature"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(
                f"The digits model cannot be loaded: {error}",
                where=directory / "weights.safetensors",
                remedy="Train it again.",
            ) from error

    def export_onnx(self, path: Path) -> None:
        """Write the graph node by node.

        By hand because it is ten nodes, and because both of torch's exporters warn and the current one writes the
        source paths of the machine into the file, so that one model would have as many digests as machines.
        """
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        weights: dict[str, np.ndarray] = {
            **self._weights(),
            "ink": np.float32(INK),
            "temperature": np.float32(self.temperature),
        }

        def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
            return helper.make_node(kind, inputs, [output], name=output, **attributes)

        nodes = [
            node("Div", ["image", "ink"], "scaled"),
            node("Conv", ["scaled", "conv1.weight", "conv1.bias"], "conv1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            node("Relu", ["conv1"], "relu1"),
            node("Conv", ["relu1", "conv2.weight", "conv2.bias"], "conv2", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            node("Relu", ["conv2"], "relu2"),
            node("MaxPool", ["relu2"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
            node("Flatten", ["pool"], "flat", axis=1),
            node("Gemm", ["flat", "dense1.weight", "dense1.bias"], "dense1", transB=1),
            node("Relu", ["dense1"], "relu3"),
            node("Gemm", ["relu3", "dense2.weight", "dense2.bias"], "logits", transB=1),
            node("Div", ["logits", "temperature"], "cooled"),
            node("Softmax", ["cooled"], "probabilities", axis=1),
            node("ArgMax", ["probabilities"], "label", axis=1, keepdims=0),
        ]
        graph = helper.make_graph(
            nodes,
            "digits",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])],
            [
                helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 10]),
                helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
            ],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="trellis"
        )
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString(deterministic=True))

    def _weights(self) -> dict[str, np.ndarray]:
        return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in self.network.state_dict().items()}
