"""The recipe ``xgboost``: boosted trees on float32 features, stopped early, calibrated on days they have not seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xgboost

from trellis.contract import Batch, Predictor, TrainingData, TrainingRun, concat, select
from trellis.errors import ArtifactError

from .calibration import Platt
from .encoding import CATEGORIES, NUMBERS, UNKNOWN, Encoding, halves
from .spec import SPEC

MODEL = "xgboost.ubj"
# One thread: at this size a second one saves a third of the time on an idle machine and costs a multiple on a busy one
# (its spinning was measured at 3x the CPU time), and sums are made in one order everywhere.
THREADS = 1

DEFAULTS: Mapping[str, Any] = {
    "rounds": 800,
    "patience": 40,
    "learning_rate": 0.04,
    "max_depth": 6,
    "min_child_weight": 40.0,
    "subsample": 0.8,
    "colsample_bytree": 0.5,
    "reg_lambda": 5.0,
    "max_bin": 128,
    "refit": True,
    "learn_rounds": 40,
}
_OURS = ("rounds", "patience", "refit", "learn_rounds")
_FIXED: Mapping[str, Any] = {
    "objective": "binary:logistic",
    "eval_metric": "logloss",
    "tree_method": "hist",
    "nthread": THREADS,
    "verbosity": 0,
}


class XgbPredictor(Predictor):
    """Trees, the codes of the categories, and the calibration.

    Args:
        booster: Trained on the columns ``CATEGORIES`` then ``NUMBERS``, all float32, NaN where unknown or missing.
        encoding: Codes of the categories.
        platt: From the trees' margin to a probability.
    """

    def __init__(self, booster: xgboost.Booster, encoding: Encoding, platt: Platt) -> None:
        self.booster, self.encoding, self.platt = booster, encoding, platt

    def predict(self, batch: Batch) -> Batch:
        """Return ``probability``, float32 (n,)."""
        matrix = features(self.encoding, batch)
        if not len(matrix):
            return {"probability": np.empty(0, np.float32)}
        margin = self.booster.inplace_predict(matrix, predict_type="margin", validate_features=False)
        return {"probability": self.platt.probability(margin)}

    def explain(self, batch: Batch) -> Batch:
        """Return each input's contribution to the calibrated log-odds, and ``baseline``; they sum to the logit.

        TreeSHAP, path-dependent (Lundberg et al. 2020, *From local explanations to global understanding with
        explainable AI for trees*), scaled by the calibration's slope.
        """
        # A DMatrix refuses infinity; every threshold is far below the bound, so no branch changes.
        matrix = xgboost.DMatrix(np.clip(features(self.encoding, batch), -1e30, 1e30), nthread=THREADS)
        parts = self.booster.predict(matrix, pred_contribs=True) * np.float32(self.platt.slope)
        columns = dict(zip((*CATEGORIES, *NUMBERS), parts.T, strict=False))
        return {
            **{name: columns[name] for name in SPEC.inputs},
            "baseline": parts[:, -1] + np.float32(self.platt.offset),
        }

    def save(self, directory: Path) -> None:
        """Write ``xgboost.ubj`` and ``flight_delay.json``."""
        self.booster.save_model(directory / MODEL)
        card = {"recipe": "xgboost", **self.encoding.to_json(), "slope": self.platt.slope, "offset": self.platt.offset}
        (directory / "flight_delay.json").write_text(json.dumps(card, indent=1) + "\n")

    @classmethod
    def load(cls, directory: Path, card: Mapping[str, Any]) -> XgbPredictor:
        """Read what ``save`` wrote.

        Raises:
            ArtifactError: A file is not there, or is broken.
        """
        try:
            booster = xgboost.Booster({"nthread": THREADS}, model_file=directory / MODEL)
            return cls(booster, Encoding.from_json(card), Platt(card["slope"], card["offset"]))
        except (OSError, ValueError, KeyError, TypeError, xgboost.core.XGBoostError) as error:
            raise ArtifactError(
                f"The flight model's trees cannot be loaded: {error}", where=directory / MODEL
            ) from error

    def export_onnx(self, path: Path) -> None:
        """Write the same function as a graph over the spec's inputs, each one value per row."""
        from .graph import export_trees

        export_trees(path, self.booster, self.encoding, self.platt)


def features(encoding: Encoding, batch: Batch) -> np.ndarray:
    """Return the trees' matrix, float32 (n, inputs); an unknown category is a missing value."""
    codes = encoding.categories(batch)
    return np.concatenate(
        [np.where(codes == UNKNOWN, np.nan, codes).astype(np.float32), encoding.numbers(batch)], axis=1
    )


def train(data: TrainingData, run: TrainingRun, params: Mapping[str, Any]) -> XgbPredictor:
    """Fit trees on the training rows until half of the validation days stops them; the other half calibrates.

    Between the two, trees as many as were found are fitted again with the stopping days among their rows: they are the
    newest, and what is late changes with the season. No tree ever sees a calibrating day.

    Args:
        data: Rows with their features.
        run: Seed and progress.
        params: ``rounds`` (most trees), ``patience`` (rounds without a better log loss), ``refit`` (whether to fit
            again), and XGBoost's own names.
    """
    stop, calibrate = (data.validation.take(rows) for rows in halves(data.validation.time, len(data.validation)))
    own = {name: value for name, value in params.items() if name not in _OURS}
    encoding, columns, target = (
        Encoding.fit(data.train.columns, data.train.target),
        data.train.columns,
        data.train.target,
    )
    stop_on = _matrix(encoding, stop.columns, stop.target)
    booster = xgboost.train(
        {**_FIXED, "seed": run.seed, **own},
        _matrix(encoding, columns, target),
        num_boost_round=params["rounds"],
        evals=[(stop_on, "stop")],
        verbose_eval=False,
        callbacks=[
            xgboost.callback.EarlyStopping(rounds=params["patience"], save_best=True),
            _Progress(run, params["rounds"]),
        ],
    )
    if params["refit"]:
        run.progress("fitting again with the newest days", 0.9)
        columns = concat([select(part.columns, SPEC.inputs) for part in (data.train, stop)])
        target = np.concatenate([data.train.target, stop.target])
        encoding = Encoding.fit(columns, target)
        trees = booster.num_boosted_rounds()
        booster = xgboost.train({**_FIXED, "seed": run.seed, **own}, _matrix(encoding, columns, target), trees)
    booster.set_attr(best_score=None, best_iteration=None)
    margin = booster.predict(_matrix(encoding, calibrate.columns, calibrate.target), output_margin=True)
    run.progress("calibrated", 1.0)
    return XgbPredictor(booster, encoding, Platt.fit(margin, calibrate.target))


def learn(start: XgbPredictor, data: TrainingData, run: TrainingRun, params: Mapping[str, Any]) -> XgbPredictor:
    """Add ``learn_rounds`` trees fitted on further rows, and calibrate anew on the later half of the validation days.

    The categories' codes stay those of ``start``, on which its trees stand; one it has never seen is a missing value.
    """
    own = {name: value for name, value in params.items() if name not in _OURS}
    booster = xgboost.train(
        {**_FIXED, "seed": run.seed, **own},
        _matrix(start.encoding, data.train.columns, data.train.target),
        num_boost_round=params["learn_rounds"],
        xgb_model=start.booster,
    )
    calibrate = data.validation.take(halves(data.validation.time, len(data.validation))[1])
    margin = booster.predict(_matrix(start.encoding, calibrate.columns, calibrate.target), output_margin=True)
    return XgbPredictor(booster, start.encoding, Platt.fit(margin, calibrate.target))


class _Progress(xgboost.callback.TrainingCallback):
    """Reports every tenth round."""

    def __init__(self, run: TrainingRun, rounds: int) -> None:
        self.run, self.rounds = run, rounds

    def after_iteration(self, model: xgboost.Booster, epoch: int, evals_log: Any) -> bool:  # noqa: ARG002
        """Tell the platform; never stop."""
        if epoch % 10 == 0:
            loss = evals_log["stop"]["logloss"][-1]
            self.run.progress(f"round {epoch}, log loss {float(loss):.4f}", 0.9 * epoch / self.rounds)
        return False


def _matrix(encoding: Encoding, columns: Batch, target: np.ndarray) -> xgboost.DMatrix:
    return xgboost.DMatrix(features(encoding, columns), label=target.astype(np.float32), nthread=THREADS)
