"""The loss a prediction is expected to have before its label is known, fitted on labelled reference rows.

Classification: confidence-based performance estimation (CBPE: Kivimäki, Białek, Kuberski & Nurminen 2025, "Performance
estimation in binary classification using calibrated confidence"; as built in NannyML). A calibrated probability says
how often a prediction is right, so its expected loss follows from the score alone. Scores are calibrated by isotonic
regression between bins (Zadrozny & Elkan 2002), classes one against the rest, and what remains by segment is added.

Regression: direct loss estimation (DLE, as in NannyML): the absolute error is regressed on the prediction and the
inputs, an additive model of piecewise linear curves with a ridge penalty.

Both are linear in their coefficients. Their uncertainty is that of refitting on resampled days of the reference.

Assumptions: the distribution of the truth given the score (CBPE), or of the error given the inputs (DLE), is the
reference's: covariates may shift within what the reference has seen, the concept may not. Days are independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from trellis.contract import Batch, Field, ModelSpec, Task
from trellis.decision import dumps
from trellis.errors import DataError
from trellis.ledger.basis import Floats, Ints, Term, between, isotonic, knots_of, terms_of
from trellis.metrics import row_loss

FEWEST_ROWS = 200
_DRAWS = 40
_BLOCKS = 60
_STRATA = 10
_RIDGE = 5.0
_CELLS = 6_000_000
SCORE = "(score)"


@dataclass(frozen=True)
class LossModel:
    """Expected losses, fitted; plain numbers that go through JSON.

    Attributes:
        method: ``cbpe`` or ``dle``.
        rows: Labelled reference rows.
        days: Days (blocks) that they come from.
        mean: Their mean loss.
        lowest, highest: Range of their scores, one per class.
        knots: Scores at which each class's calibration curve is known.
        terms: Columns that count besides.
        coefficients: The curves' values, then the terms'.
        draws: Coefficients refitted on resampled days, shape ``(draws, coefficients)``.
        mean_draws: Mean loss of the same resamples.
        strata: Rising inner edges of the expected loss between which residual variances were measured.
        variances: Mean squared residual per stratum.
        shared: Variance of what a day shares, in units of the squared pull.
        shared_freedom: How well that is known, in degrees of freedom; 0 in models of before it was told.
    """

    method: str
    rows: int
    days: int
    mean: float
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    knots: tuple[tuple[float, ...], ...]
    terms: tuple[Term, ...]
    coefficients: tuple[float, ...]
    draws: tuple[tuple[float, ...], ...]
    mean_draws: tuple[float, ...]
    strata: tuple[float, ...]
    variances: tuple[float, ...]
    shared: float
    shared_freedom: float = 0.0

    def expect(self, score: Floats, columns: Batch) -> Expected:
        """Return what is expected of predictions.

        Args:
            score: Scores as for ``trellis.metrics.row_loss``, finite.
            columns: The model's columns by name, ``(n,)`` each; one that lacks counts as null.
        """
        offset, index, weight = _basis(self.method, score, columns, self.knots, self.terms)
        own = offset + (np.asarray(self.coefficients)[index] * weight).sum(axis=1)
        own = np.maximum(own, 0.0)
        variance = np.asarray(self.variances)[np.searchsorted(np.asarray(self.strata), own)]
        table = _table(score)
        outside: NDArray[np.bool_] = np.any((table < self.lowest) | (table > self.highest), axis=1)
        for term in self.terms:
            outside |= term.unseen(columns.get(term.column), len(score))
        spread = np.sqrt(variance)
        pull = spread
        if self.method == "cbpe" and score.ndim == 1:
            spread, pull = _bernoulli(self.probability(score), score)
        return Expected(own, spread, pull, offset, index, weight, outside, *_bounds(self.method, score))

    def drawn(self, expected: Expected, rows: NDArray[np.bool_]) -> Floats:
        """Return the mean expected loss of some rows under every draw of the coefficients."""
        size, count = len(self.coefficients), int(rows.sum())
        mean = np.bincount(expected.index[rows].ravel(), expected.weight[rows].ravel(), size) / count
        drawn: Floats = np.asarray(self.draws) @ mean + expected.offset[rows].mean()
        return drawn

    def probability(self, score: Floats) -> Floats:
        """Return the calibrated probability of the positive class of binary scores."""
        return np.asarray(np.interp(score, self.knots[0], self.coefficients[: len(self.knots[0])]), dtype=np.float64)

    def dumps(self) -> str:
        """Serialise to JSON; numbers keep six digits."""
        return dumps({f.name: _rounded(getattr(self, f.name)) for f in fields(self)})

    @staticmethod
    def loads(text: str | bytes, where: object = None) -> LossModel:
        """Read what ``dumps`` wrote.

        Raises:
            DataError: It is something else.
        """
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise DataError(
                f"This is no loss model: {error.errors()[0]['msg']}.", where=where, remedy="Train the version again."
            ) from error


@dataclass(frozen=True)
class Expected:
    """What is expected of predictions, row by row.

    Attributes:
        loss: Expected loss.
        spread: Standard deviation of the loss around it.
        pull: How much what a day shares moves it, with the sign.
        offset, index, weight: The rows of the basis.
        outside: Rows unlike any in the reference: a score beyond its range, or an unseen category.
        least, most: The least and the most that the row can lose, whatever the truth; infinite for regression.
    """

    loss: Floats
    spread: Floats
    pull: Floats
    offset: Floats
    index: Ints
    weight: Floats
    outside: NDArray[np.bool_]
    least: Floats
    most: Floats


def fit_loss_model(
    spec: ModelSpec, target: NDArray[Any], score: NDArray[Any], columns: Batch, days: NDArray[Any], *, seed: int = 0
) -> LossModel:
    """Fit on labelled rows that the model was not trained on.

    Args:
        spec: The model's declaration.
        target: Truth, shape ``(n,)``.
        score: Scores as for ``row_loss``.
        columns: The model's columns, ``(n,)`` each.
        days: Day, or another block taken as independent, of every row.
        seed: Seed of the resampling.

    Raises:
        DataError: Fewer than 200 rows, or than two days.
    """
    y, p = np.asarray(target, dtype=np.float64), np.asarray(score, dtype=np.float64)
    day = np.unique(np.asarray(days), return_inverse=True)[1].astype(np.int64)
    if len(y) < FEWEST_ROWS or day.max() < 1:
        raise DataError(
            f"{len(y)} reference rows of {int(day.max()) + 1 if len(y) else 0} days tell no expected loss.",
            remedy=f"Give at least {FEWEST_ROWS} rows of two days.",
        )
    method = "dle" if spec.task == "regression" else "cbpe"
    chosen = [spec.fields[n] for n in (spec.inputs if method == "dle" else spec.segments)]
    if method == "dle":
        columns, chosen = {**columns, SCORE: p}, [Field("score", "float"), *chosen]
    terms = _terms(chosen, columns)
    curves = _knots(spec.task, p)
    size = sum(len(k) for k in curves) + sum(t.size for t in terms)
    if len(y) * size > _CELLS:  # evenly spaced rows: no luck involved
        kept = np.unique(np.linspace(0, len(y) - 1, _CELLS // size).astype(np.int64))
        y, p, day = y[kept], p[kept], np.unique(day[kept], return_inverse=True)[1].astype(np.int64)
        columns = {name: np.asarray(values)[kept] for name, values in columns.items() if len(values) == len(target)}
    loss = row_loss(spec.task, y, p)
    count = int(day.max()) + 1
    blocks = day * min(count, _BLOCKS) // count
    weights = _weights(int(blocks.max()) + 1, seed)
    knots = tuple(tuple(float(x) for x in k) for k in curves)
    offset, index, weight = _basis(method, p, columns, knots, terms)
    fitted = _fit(y, loss - offset, p, index, weight, blocks, weights, curves, len(terms), size)
    own = np.maximum(offset + (fitted[0][index] * weight).sum(axis=1), 0.0)
    residual = loss - own
    strata = np.unique(np.quantile(own, np.linspace(0, 1, _STRATA + 1)[1:-1]))
    place = np.searchsorted(strata, own)
    freedom = len(y) / max(1.0, len(y) - (size if method == "dle" else 1))
    filled = np.maximum(1, np.bincount(place, None, len(strata) + 1))
    variances = np.bincount(place, residual**2, len(strata) + 1) / filled * freedom + 1e-12
    pull = np.sqrt(variances[place])
    if spec.task == "binary":
        pull = _bernoulli(np.interp(p, knots[0], fitted[0][: len(knots[0])]), p)[1]
    sums = np.bincount(blocks, loss, weights.shape[1]), np.bincount(blocks, None, weights.shape[1])
    table = _table(p)
    return LossModel(
        method,
        len(y),
        count,
        float(loss.mean()),
        tuple(table.min(axis=0).tolist()),
        tuple(table.max(axis=0).tolist()),
        knots,
        terms,
        tuple(fitted[0].tolist()),
        tuple(tuple(row) for row in fitted[1:].tolist()),
        tuple((weights[1:] @ sums[0] / (weights[1:] @ sums[1])).tolist()),
        tuple(strata.tolist()),
        tuple(variances.tolist()),
        *shared_of(residual, pull, day),
    )


class Shared(NamedTuple):
    """The variance of what the rows of a day share, and how many degrees of freedom it is known with."""

    variance: float
    freedom: float


def shared_of(residual: Floats, pull: Floats, days: Ints) -> Shared:
    """Return the variance of ``u`` in ``residual = pull * u(day) + noise``, by the products of rows of one day.

    At least 0, and at most what leaves noise of its own. With a pull of 1 it is the covariance within days. The level
    of the residuals was fitted on the same days, which takes one of them. The degrees of freedom are Satterthwaite's
    (1946), from how much days differ in what they say of the variance.
    """
    moved, square = pull * residual, pull**2
    wanted = np.bincount(days, moved) ** 2 - np.bincount(days, moved**2)
    scale = np.bincount(days, square) ** 2 - np.bincount(days, square**2)
    count = int((scale > 0).sum())
    if count < 2:
        return Shared(0.0, 1.0)
    found = float(wanted.sum() / scale.sum())
    doubt = float(((wanted - found * scale) ** 2).sum()) / float(scale.sum()) ** 2 * count / (count - 1)
    most = 0.95 * float((residual**2).mean()) / max(1e-12, float(square.mean()))
    variance = float(np.clip(found * count / (count - 1), 0.0, most))
    freedom = float(np.clip(2 * found**2 / doubt, 1.0, count - 1)) if variance > 0 and doubt > 0 else float(count - 1)
    return Shared(variance, freedom)


def _terms(chosen: Sequence[Field], columns: Batch) -> tuple[Term, ...]:
    named = {("score" if name == SCORE else name): np.asarray(values) for name, values in columns.items()}
    return tuple(
        Term(SCORE if t.column == "score" else t.column, t.knots, t.values, t.open) for t in terms_of(chosen, named)
    )


def _knots(task: Task, score: Floats) -> list[Floats]:
    if task == "regression":
        return []
    return [knots_of(column) for column in _table(score).T]


def _basis(
    method: str, score: Floats, columns: Batch, knots: Sequence[Sequence[float]], terms: Sequence[Term]
) -> tuple[Floats, Ints, Floats]:
    """Return offset ``(n,)``, and indices and weights of the coefficients ``(n, j)`` of every row's expected loss."""
    n = len(score)
    offset, indices, weights = np.zeros(n), [np.empty((n, 0), dtype=np.int64)], [np.empty((n, 0))]
    start = 0
    if method == "cbpe":
        table = _table(score)
        # Binary: s² + c (1 - 2s). Multiclass, half the Brier sum: (Σp² + 1) / 2 - Σ c p.
        binary = table.shape[1] == 1
        offset = table[:, 0] ** 2 if binary else ((table**2).sum(axis=1) + 1) / 2
        for k, points in enumerate(knots):
            index, share = between(np.asarray(points), table[:, k])
            factor = 1 - 2 * table[:, k] if binary else -table[:, k]
            indices.append(index + start)
            weights.append(share * factor[:, None])
            start += len(points)
    # What remains by segment is a step of the probability too; a loss it is only beside three classes or none.
    factor = 1 - 2 * score if method == "cbpe" and score.ndim == 1 else np.ones(n)
    for term in terms:
        index, share = term.place(score if term.column == SCORE else columns.get(term.column), n)
        indices.append(index + start)
        weights.append(share * factor[:, None])
        start += term.size
    return offset, np.concatenate(indices, axis=1), np.concatenate(weights, axis=1)


def _bernoulli(probability: Floats, score: Floats) -> tuple[Floats, Floats]:
    """Return spread and pull of the Brier loss of a binary truth: ``|1 - 2s| √(p(1-p))`` and ``(1 - 2s) p (1-p)``.

    The second is the derivative by the log-odds: a day that makes everything likelier raises the loss of low scores and
    lowers that of high ones.
    """
    own = np.clip(probability * (1 - probability), 1e-6, None)
    return np.abs(1 - 2 * score) * np.sqrt(own), (1 - 2 * score) * own


def _bounds(method: str, score: Floats) -> tuple[Floats, Floats]:
    """Return the least and the most that rows can lose (``trellis.metrics.row_loss``)."""
    if method == "dle":
        return np.zeros(len(score)), np.full(len(score), np.inf)
    if score.ndim == 1:
        ends = np.sort(np.column_stack([score**2, (1 - score) ** 2]), axis=1)
        return ends[:, 0], ends[:, 1]
    middle = ((score**2).sum(axis=1) + 1) / 2
    return middle - score.max(axis=1), middle - score.min(axis=1)


def _table(score: Floats) -> Floats:
    return score[:, None] if score.ndim == 1 else score


def _weights(blocks: int, seed: int) -> Floats:
    drawn = np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), size=_DRAWS)
    return np.vstack([np.ones(blocks), drawn])


def _fit(
    y: Floats,
    wanted: Floats,
    score: Floats,
    index: Ints,
    weight: Floats,
    blocks: Ints,
    weights: Floats,
    curves: Sequence[Floats],
    parts: int,
    size: int,
) -> Floats:
    """Fit the curves, then the terms on what they leave, for every row of block weights: ``(draws + 1, size)``."""
    count = weights.shape[1]
    fitted = np.zeros((len(weights), size))
    start = 0
    table = _table(score)
    for k, knots in enumerate(curves):
        truth = y if len(curves) == 1 else (y == k).astype(np.float64)
        beside, share = between(knots, table[:, k])
        place = (blocks[:, None] * len(knots) + beside).ravel()
        mass = np.bincount(place, share.ravel(), count * len(knots)).reshape(count, -1)
        hits = np.bincount(place, (share * truth[:, None]).ravel(), count * len(knots)).reshape(count, -1)
        masses, sums = weights @ mass, weights @ hits
        rate = sums[0] / np.maximum(masses[0], 1e-12)
        means = np.where(masses > 1e-9, sums / np.maximum(masses, 1e-12), rate)
        for row, (values, w) in enumerate(zip(means, masses, strict=True)):
            fitted[row, start : start + len(knots)] = isotonic(values, np.maximum(w, 1e-9))
        start += len(knots)
    if start == size:
        return fitted
    dense = np.zeros((len(y), size))
    np.add.at(dense, (np.arange(len(y))[:, None], index), weight)
    gram, cross = np.zeros((count, size, size)), np.zeros((count, size))
    for b in range(count):
        rows = dense[blocks == b]
        gram[b] = rows.T @ rows
        cross[b] = rows.T @ wanted[blocks == b]
    wanted_of = np.bincount(blocks, wanted, count)
    rows_of = weights @ np.bincount(blocks, None, count)
    for row, w in enumerate(weights):
        together = np.tensordot(w, gram, 1)
        left = (w @ cross)[start:] - together[start:, :start] @ fitted[row, :start]
        own = together[start:, start:]
        # Without a curve the terms carry the level, in equal parts; what few rows tell is shrunk towards it.
        level = 0.0 if curves else float(w @ wanted_of) / rows_of[row] / parts
        penalised = own + _RIDGE * np.eye(size - start)
        fitted[row, start:] = level + np.linalg.solve(penalised, left - own @ np.full(size - start, level))
    return fitted


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else 0.0
    if isinstance(value, tuple):
        return [_rounded(v) for v in value]
    if isinstance(value, Term):
        return {"column": value.column, "knots": _rounded(value.knots), "values": value.values, "open": value.open}
    return value


_ADAPTER = TypeAdapter(LossModel)
