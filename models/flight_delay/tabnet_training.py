"""How the network is trained: Lightning, seeded, stopped early, calibrated on days it has not seen."""

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

from .calibration import Platt
from .encoding import Encoding, halves
from .tabnet import Network, TabnetPredictor, margins

DEFAULTS: Mapping[str, Any] = {
    "epochs": 12,
    "patience": 3,
    "batch_size": 1024,
    "learning_rate": 2e-3,
    "weight_decay": 1e-2,
    "dropout": 0.2,
    "embedding": 8,
    "width": 96,
    "blocks": 2,
}


def train(data: TrainingData, run: TrainingRun, params: Mapping[str, Any]) -> TabnetPredictor:
    """Fit on the training rows; half of the validation days chooses the epoch, the other half calibrates.

    Args:
        data: Rows with their features.
        run: Seed, scratch directory and progress.
        params: As in ``DEFAULTS``; ``patience`` counts epochs without a better log loss.
    """
    encoding = Encoding.fit(data.train.columns, data.train.target)
    stop, calibrate = (data.validation.take(rows) for rows in halves(data.validation.time, len(data.validation)))
    shape = {name: params[name] for name in ("embedding", "width", "blocks")}
    with _quiet(), torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(run.seed)
        network = Network(encoding.sizes(), **shape, dropout=params["dropout"])
        _standardise(network, encoding.numbers(data.train.columns))
        _fit(network, _Rows(encoding, data.train), _Rows(encoding, stop), run, params)
        network.eval()
        margin = margins(network, encoding.categories(calibrate.columns), encoding.numbers(calibrate.columns))
    return TabnetPredictor(network, shape, encoding, Platt.fit(margin, calibrate.target))


def _standardise(network: Network, numbers: np.ndarray) -> None:
    """Put the training rows' mean and deviation into the network, so that it takes raw numbers."""
    known = ~np.isnan(numbers)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, numbers, 0).sum(axis=0, dtype=np.float64) / count
    deviation = np.sqrt((np.where(known, numbers - mean, 0) ** 2).sum(axis=0) / count)
    network.mean.copy_(torch.tensor(mean, dtype=torch.float32))
    network.scale.copy_(torch.tensor(np.where(deviation > 1e-6, deviation, 1.0), dtype=torch.float32))


def _fit(network: Network, rows: _Rows, stop: _Rows, run: TrainingRun, params: Mapping[str, Any]) -> None:
    import pytorch_lightning as lightning

    batches = _Batches(rows, params["batch_size"], run.seed)

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.best, self.best_state, self.waited = float("inf"), copy.deepcopy(network.state_dict()), 0

        def training_step(self, batch: tuple[Tensor, Tensor, Tensor], _index: int) -> Tensor:
            codes, numbers, target = batch
            return nn.functional.binary_cross_entropy_with_logits(self.network(codes, numbers), target)

        def on_train_epoch_end(self) -> None:
            network.eval()
            with torch.inference_mode():
                margin = torch.from_numpy(margins(network, stop.codes.numpy(), stop.numbers.numpy()))
                loss = float(nn.functional.binary_cross_entropy_with_logits(margin.double(), stop.target.double()))
            network.train()
            better = loss < self.best
            self.waited = 0 if better else self.waited + 1
            if better:
                self.best, self.best_state = loss, copy.deepcopy(network.state_dict())
            self.trainer.should_stop = self.waited > params["patience"]
            done = (self.current_epoch + 1) / params["epochs"]
            run.progress(f"epoch {self.current_epoch + 1}, log loss {loss:.4f}", done)

        def configure_optimizers(self) -> dict[str, Any]:
            optimiser = torch.optim.AdamW(
                self.parameters(), lr=params["learning_rate"], weight_decay=params["weight_decay"]
            )
            steps = len(batches) * params["epochs"]
            cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, params["learning_rate"], total_steps=steps)
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
        gradient_clip_val=1.0,
        default_root_dir=run.scratch,
    )
    trainer.fit(classifier, batches)
    network.load_state_dict(classifier.best_state)


class _Rows:
    """A dataset as three tensors."""

    def __init__(self, encoding: Encoding, data: Dataset) -> None:
        self.codes = torch.from_numpy(encoding.categories(data.columns))
        self.numbers = torch.from_numpy(encoding.numbers(data.columns))
        self.target = torch.tensor(data.target, dtype=torch.float32)


class _Batches:
    """Shuffled batches; slicing tensors is three to four times faster than a DataLoader."""

    def __init__(self, rows: _Rows, size: int, seed: int) -> None:
        self.rows, self.size = rows, size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.rows.target) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        rows = self.rows
        for chosen in torch.randperm(len(rows.target), generator=self.generator).split(self.size):
            yield rows.codes[chosen], rows.numbers[chosen], rows.target[chosen]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Train on one thread: layers this small gain nothing from a second, and sums are made in one order everywhere."""
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
