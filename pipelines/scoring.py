"""How a trained model is put to the test: its scores, its speed, and the baseline that drift is measured from."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from trellis.contract import Dataset, ModelPlugin, Predictor, select, take
from trellis.drift import build_reference, reference_outcomes
from trellis.errors import BrokenPluginError, DataError, TrellisError
from trellis.ledger import fit_loss_model
from trellis.metrics import blocks_of, row_loss
from trellis.sums import loss_sums

LATENCY_CALLS = 200


def reference_of(plugin: ModelPlugin, predictor: Predictor, train_rows: Dataset, unseen: Dataset) -> str:
    """Summarise the training rows and the loss on unseen ones: what drift and harm are measured from."""
    spec = plugin.spec
    scores = score(plugin, predictor, unseen)
    losses = row_loss(spec.task, unseen.target, scores)
    days = blocks_of(unseen.time, unseen.row_id)
    watched = [field for field in spec.fields.values() if field.name in spec.inputs]
    reference = build_reference(
        train_rows.columns,
        watched,
        times=train_rows.time,
        loss=loss_sums(losses, days),
        outcomes=reference_outcomes(spec.task, scores, unseen.target, days),
    )
    return reference.dumps()


def loss_model_of(plugin: ModelPlugin, predictor: Predictor, unseen: Dataset) -> str | None:
    """Fit what is expected of predictions without labels, on unseen rows; None where they are too few for it."""
    try:
        model = fit_loss_model(
            plugin.spec,
            unseen.target,
            score(plugin, predictor, unseen),
            unseen.columns,
            blocks_of(unseen.time, unseen.row_id),
        )
    except DataError:
        return None
    return model.dumps()


def score(plugin: ModelPlugin, predictor: Predictor, rows: Dataset) -> np.ndarray[Any, Any]:
    """Return the scores of rows, shape ``(n,)`` or ``(n, classes)``.

    Raises:
        BrokenPluginError: The predictor raises; its cause is named.
    """
    batch = select(rows.columns, plugin.spec.inputs)
    try:
        return np.asarray(predictor.predict(batch)[plugin.spec.score.name])
    except TrellisError:
        raise
    except Exception as error:
        raise BrokenPluginError(
            f"Predicting with {plugin.spec.name!r} raised {type(error).__name__}: {error}.",
            where=type(plugin).__module__,
            remedy=f"Try: trellis models check {plugin.spec.name}",
        ) from error


def latency_p95_ms(plugin: ModelPlugin, predictor: Predictor, rows: Dataset) -> float:
    """Measure one-row calls, after a warm-up; quantised to 0.01 ms, which is finer than it repeats."""
    inputs = select(rows.columns, plugin.spec.inputs)
    singles = [take(inputs, slice(i, i + 1)) for i in range(min(LATENCY_CALLS, len(rows)))]
    for single in singles[:20]:
        predictor.predict(single)
    seconds = []
    for single in singles:
        begun = time.perf_counter()
        predictor.predict(single)
        seconds.append(time.perf_counter() - begun)
    return round(float(np.quantile(seconds, 0.95)) * 1e3, 2)
