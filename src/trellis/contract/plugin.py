"""What an author of a model writes: three verbs for the plug-in, two for its predictor, and optional abilities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from trellis.contract.batch import Batch, Dataset
from trellis.contract.spec import ModelSpec


def _silent(_text: str, _done: float) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class TrainingData:
    """The two datasets a plug-in may see; the rows it is judged on stay with the platform.

    Attributes:
        train: Rows to fit on, in time order where rows have a time.
        validation: Later rows, for early stopping, calibration and choosing.
    """

    train: Dataset
    validation: Dataset


@dataclass(frozen=True)
class TrainingRun:
    """How to train: everything that may change the outcome, and a place for scratch files.

    Attributes:
        seed: Seeds every source of randomness; the same seed gives the same artifact, byte for byte.
        recipe: One of the spec's recipes.
        scratch: An empty directory that goes away after the training.
        params: Overrides of the recipe's hyper-parameters.
        progress: Called with what is being done and how far it is, in 0–1.
    """

    seed: int
    recipe: str
    scratch: Path
    params: Mapping[str, Any] = field(default_factory=dict)
    progress: Callable[[str, float], None] = _silent


class Predictor(ABC):
    """A trained model."""

    @abstractmethod
    def predict(self, batch: Batch) -> Batch:
        """Score rows.

        Args:
            batch: The spec's ``inputs``, each of ``n`` rows; never changed by the call.

        Returns:
            The spec's ``outputs``, each of ``n`` rows in the order of the input.
        """

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write everything ``load`` needs into an empty directory, in formats that cannot carry code."""


class ModelPlugin(ABC):
    """A model: its declaration, and how it is trained and loaded. A room or package exports an instance ``plugin``."""

    spec: ModelSpec

    @abstractmethod
    def train(self, data: TrainingData, run: TrainingRun) -> Predictor:
        """Fit a predictor; with one seed always the same one."""

    @abstractmethod
    def load(self, directory: Path) -> Predictor:
        """Read back what ``Predictor.save`` wrote; no network, no code from the files."""

    @abstractmethod
    def sample(self, rows: int) -> Dataset:
        """Return up to ``rows`` real labelled rows, in time order, without a network.

        They feed the conformance kit, the examples of the API page and warm-up calls, so they must be quick to get and
        look like what is served. The same call gives the same rows.
        """


@runtime_checkable
class ProvidesData(Protocol):
    """Ability of a plug-in: it knows where its raw data come from."""

    def ingest(self, directory: Path) -> None:
        """Write the raw tables into ``directory``, one ``NAME.parquet`` each."""

    def examples(self, snapshot: Path) -> Dataset:
        """Turn a snapshot's raw tables into labelled rows, before features are joined."""


@runtime_checkable
class BuildsFeatures(Protocol):
    """Ability of a plug-in: it derives the feature tables that its feature service reads."""

    def build_features(self, snapshot: Path, directory: Path) -> None:
        """Write one ``NAME.parquet`` per feature view, with ``event_timestamp`` when its values were known."""


@runtime_checkable
class LearnsOnline(Protocol):
    """Ability of a plug-in: its predictors learn further rows, for the retraining methods incremental and online."""

    def learn(self, start: Predictor, data: TrainingData, run: TrainingRun) -> Predictor:
        """Return ``start`` after it has learned ``data.train``; ``start`` itself may change."""


@runtime_checkable
class ExportsOnnx(Protocol):
    """Ability of a predictor: the same function as an ONNX graph."""

    def export_onnx(self, path: Path) -> None:
        """Write a graph whose inputs and outputs are named as the spec's, first axis free."""


@runtime_checkable
class Explains(Protocol):
    """Ability of a predictor: it says how much each input moved the answer."""

    def explain(self, batch: Batch) -> Batch:
        """Return one additive contribution per input and row, plus a column ``baseline``."""
