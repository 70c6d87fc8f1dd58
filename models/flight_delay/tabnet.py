"""The network of the recipe ``tabnet`` and the predictor around it. Needs torch, not Lightning.

A residual network on embedded categories and standardised numbers, as in Gorishniy et al. 2021, *Revisiting Deep
Learning Models for Tabular Data*, section 3.3 (it is not the attentive TabNet of Arik & Pfister).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from trellis.contract import Batch, Predictor
from trellis.errors import ArtifactError

from .calibration import Platt
from .encoding import NUMBERS, Encoding

WEIGHTS = "network.safetensors"
CLIP = 5.0
CHUNK = 16_384


class Network(nn.Module):
    """Codes (n, categories) and raw numbers (n, numbers) to margins (n,).

    Args:
        sizes: Number of codes per category.
        embedding: Width of each category's vector.
        width: Width of the layers.
        blocks: Number of residual blocks of two layers each.
        dropout: Share of activations dropped in training.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, sizes: Sequence[int], embedding: int, width: int, blocks: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, embedding) for size in sizes)
        self.register_buffer("mean", torch.zeros(len(NUMBERS)))
        self.register_buffer("scale", torch.ones(len(NUMBERS)))
        self.first = nn.Linear(embedding * len(sizes) + 2 * len(NUMBERS), width)
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)]) for _ in range(blocks)
        )
        self.last = nn.Linear(width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """Return the margins. A missing number is the mean, and says so in a column of its own."""
        missing = torch.isnan(numbers)
        standard = (torch.where(missing, 0.0, numbers - self.mean) / self.scale).clamp(-CLIP, CLIP)
        vectors = [layer(codes[:, i]) for i, layer in enumerate(self.embeddings)]
        x = torch.relu(self.first(torch.cat([*vectors, standard, missing.float()], dim=1)))
        for inner, outer in self.blocks:
            x = torch.relu(x + outer(self.dropout(torch.relu(inner(x)))))
        return self.last(self.dropout(x)).squeeze(1)


class TabnetPredictor(Predictor):
    """A trained network, the codes of the categories, and the calibration."""

    def __init__(self, network: Network, shape: Mapping[str, int], encoding: Encoding, platt: Platt) -> None:
        self.network = network.eval().requires_grad_(False)
        self.shape, self.encoding, self.platt = dict(shape), encoding, platt

    def predict(self, batch: Batch) -> Batch:
        """Return ``probability``, float32 (n,)."""
        codes, numbers = self.encoding.categories(batch), self.encoding.numbers(batch)
        return {"probability": self.platt.probability(margins(self.network, codes, numbers))}

    def save(self, directory: Path) -> None:
        """Write ``network.safetensors`` and ``flight_delay.json``."""
        save_file(self._weights(), directory / WEIGHTS)
        card = {
            "recipe": "tabnet",
            **self.encoding.to_json(),
            "slope": self.platt.slope,
            "offset": self.platt.offset,
            "shape": self.shape,
        }
        (directory / "flight_delay.json").write_text(json.dumps(card, indent=1) + "\n")

    @classmethod
    def load(cls, directory: Path, card: Mapping[str, Any]) -> TabnetPredictor:
        """Read what ``save`` wrote.

        Raises:
            ArtifactError: A file is not there, is broken, or belongs to another network.
        """
        try:
            encoding = Encoding.from_json(card)
            network = Network(encoding.sizes(), **card["shape"])
            network.load_state_dict({n: torch.from_numpy(a) for n, a in load_file(directory / WEIGHTS).items()})
            return cls(network, card["shape"], encoding, Platt(card["slope"], card["offset"]))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(f"The flight network cannot be loaded: {error}", where=directory / WEIGHTS) from error

    def export_onnx(self, path: Path) -> None:
        """Write the same function as a graph over the spec's inputs, each one value per row."""
        from .graph import export_network

        export_network(path, self._weights(), self.encoding, self.platt, blocks=self.shape["blocks"], clip=CLIP)

    def _weights(self) -> dict[str, np.ndarray]:
        return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in self.network.state_dict().items()}


def margins(network: Network, codes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the network's margins, float32 (n,), a chunk at a time."""
    with torch.inference_mode():
        parts = [
            network(torch.from_numpy(codes[i : i + CHUNK]), torch.from_numpy(numbers[i : i + CHUNK])).numpy()
            for i in range(0, len(codes), CHUNK)
        ]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)
