"""How the network is trained: Lightning, seeded, early stopping, temperature scaling."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trellis.contract import Dataset, TrainingData, TrainingRun

from .network import INK, DigitsPredictor, Network


@contextmanager
def _one_thread() -> Iterator[None]:
    """Train on one thread: images this small gain nothing from a second, and sums are made in one order everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's hints and its dependencies' deprecations out of the platform's log."""
    names = ("lightning", "lightning.pytorch", "pytorch_lightning", "lightning_fabric", "lightning.fabric")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pytorch_lightning  # noqa: F401  (its import sets the loggers' levels)

            for name in names:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def train(data: TrainingData, run: TrainingRun, params: Mapping[str, Any]) -> DigitsPredictor:
    """Fit on the training rows; choose the epoch and the temperature on the validation rows.

    Args:
        data: Images and digits.
        run: Seed, scratch directory and progress.
        params: ``epochs``, ``patience`` (epochs), ``batch_size``, ``learning_rate``, ``dropout`` and ``shift`` (largest
            random displacement of a training image, in pixels).
    """
    with _quiet(), torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(run.seed)
        network = Network(params["dropout"])
        _fit(network, data, run, params)
    x, y = _tensors(data.validation)
    with torch.inference_mode():
        logits = network.eval()(x)
    return DigitsPredictor(network, _temperature(logits, y))


def _fit(network: Network, data: TrainingData, run: TrainingRun, params: Mapping[str, Any]) -> None:
    import pytorch_lightning as lightning

    steps = -(-len(data.train) // params["batch_size"])

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.best, self.best_state, self.waited = float("inf"), copy.deepcopy(network.state_dict()), 0

        def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1], label_smoothing=0.02)

        def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
            loss = float(nn.functional.cross_entropy(self.network(batch[0]), batch[1]))
            better = loss < self.best
            self.waited = 0 if better else self.waited + 1
            if better:
                self.best, self.best_state = loss, copy.deepcopy(self.network.state_dict())
            self.trainer.should_stop = self.waited > params["patience"]

        def on_train_epoch_end(self) -> None:
            run.progress(f"epoch {self.current_epoch + 1}", (self.current_epoch + 1) / params["epochs"])

        def configure_optimizers(self) -> dict[str, Any]:
            optimiser = torch.optim.AdamW(self.parameters(), lr=params["learning_rate"], weight_decay=1e-3)
            cycle = torch.optim.lr_scheduler.OneCycleLR(
                optimiser, params["learning_rate"], total_steps=steps * params["epochs"]
            )
            return {"optimizer": optimiser, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}

    classifier = Classifier()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=params["epochs"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=run.scratch,
    )
    batches = _Batches(*_tensors(data.train), params["batch_size"], params["shift"], run.seed)
    trainer.fit(classifier, batches, _Batches(*_tensors(data.validation), len(data.validation), 0, run.seed))
    network.load_state_dict(classifier.best_state)


class _Batches:
    """Shuffled batches with small random displacements; slicing tensors is several times faster than a DataLoader."""

    def __init__(self, x: Tensor, y: Tensor, size: int, shift: int, seed: int) -> None:
        self.x, self.y, self.size, self.shift = x, y, size, shift
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.x) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x), generator=self.generator)
        for rows in order.split(self.size):
            down, right = torch.randint(-self.shift, self.shift + 1, (2,), generator=self.generator).tolist()
            yield _moved(self.x[rows], down, right), self.y[rows]


def _moved(x: Tensor, down: int, right: int) -> Tensor:
    """Displace images by whole pixels; paper comes in from the edge."""
    pad = nn.functional.pad(x, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)))
    top, left = max(-down, 0), max(-right, 0)
    return pad[..., top : top + x.shape[-2], left : left + x.shape[-1]]


def _temperature(logits: Tensor, y: Tensor) -> float:
    """Return the temperature with the least log loss on these rows, by golden-section search over its logarithm.

    One parameter and a loss that is convex in 1/T: no optimiser's state, so the same number on every run.
    """

    def loss(log_t: float) -> float:
        return float(nn.functional.cross_entropy(logits.double() / float(np.exp(log_t)), y))

    low, high, ratio = -2.0, 2.0, (5**0.5 - 1) / 2
    for _ in range(40):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return float(np.float32(np.exp((low + high) / 2)))


def _tensors(data: Dataset) -> tuple[Tensor, Tensor]:
    image = np.asarray(data.columns["image"], dtype=np.float32)
    return torch.tensor(image) / INK, torch.tensor(np.asarray(data.target, dtype=np.int64))
