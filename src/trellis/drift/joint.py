"""Several columns at once: what no column shows alone, such as a tie between two of them that has come undone.

Both tests take rows, not summaries, so they are run where rows are read, and what they found goes into the evidence as
a ``Signal``. With ``margins=False`` every column is replaced by its ranks within its own side first: what is left is
the dependence between columns alone, which a season or a unit change leaves as it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.contract import Batch
from trellis.drift.statistics import normal_sf, student_sf
from trellis.drift.summary import numbers, texts
from trellis.errors import DataError

Array = NDArray[np.float64]

_WAVES = 64  # random features of the classifier besides the columns themselves and their products
_LEAST, _LEAST_HISTORY, _MOST = 50, 3, 3_000


@dataclass(frozen=True)
class Signal:
    """A question that was asked of rows, with its answer.

    Attributes:
        name: The test, for example ``domain_classifier``.
        family: What it speaks for: ``joint`` or ``outcome`` (see ``trellis.drift.budget.WEIGHTS``).
        p_value: Chance of so strong a sign where nothing changed.
        effect: How large the difference is, in the test's own unit.
        bound: Smallest effect that matters.
        text: The finding in words, with its numbers.
    """

    name: str
    family: str
    p_value: float
    effect: float
    bound: float
    text: str


def matrix(batch: Batch, like: Batch | None = None) -> Array:
    """Return the columns as numbers, shape ``(n, columns)``: categories as the frequency of their value in ``like``.

    Nulls take the middle. Columns that are constant, empty or not in both are left out.

    Raises:
        DataError: No column is left.
    """
    other = batch if like is None else like
    columns: list[Array] = []
    for name in batch:
        if name not in other or np.asarray(batch[name]).ndim > 1 or np.asarray(batch[name]).dtype.kind == "M":
            continue
        values, base = np.asarray(batch[name]), np.asarray(other[name])
        if base.dtype.kind in "fiub" and values.dtype.kind in "fiub":
            known = numbers(base)[0]
            if not len(known) or known.min() == known.max():
                continue
            flat = values.astype(np.float64)
            columns.append(np.where(np.isfinite(flat), flat, float(np.median(known))))
        elif base.dtype.kind in "OUS":
            shares = texts(base).value_counts(normalize=True)
            if len(shares) < 2:
                continue
            # Ties by name: two values of one frequency stay two values.
            order = {value: share + 1e-9 * i for i, (value, share) in enumerate(sorted(shares.items()))}
            columns.append(texts(values).map(order).fillna(0.0).to_numpy(dtype=np.float64))
    if not columns:
        raise DataError("No column can be compared jointly.", remedy="Give numbers or categories that vary.")
    return np.column_stack(columns)


def domain_classifier(
    reference: Array, current: Array, *, margins: bool = True, seed: int = 0, most: int = 20_000
) -> tuple[float, float]:
    """Ask a classifier which side a row is from; nothing changed if it cannot tell (classifier two-sample test).

    A ridge classifier on the columns, their products and random Fourier features (Rahimi & Recht 2007) is trained on
    half the rows; its scores of the other half are independent of the sides under no change, so their AUC has the
    Mann-Whitney distribution and the p-value needs no permutation (Lopez-Paz & Oquab 2017, ICLR; Mann & Whitney 1947).

    Args:
        reference: Rows before, shape ``(n, columns)``, finite.
        current: Rows now, shape ``(m, columns)``.
        margins: Whether changes of single columns count; False compares the dependence alone.
        seed: Of the split and the random features.
        most: Rows of each side that are used, drawn at random.

    Returns:
        AUC in [0, 1] (0.5 where nothing changed) and one-sided p-value; (0.5, 1) below 50 rows on a side.
    """
    rng = np.random.default_rng(seed)
    sides = [_ready(part, margins, rng, most) for part in (reference, current)]
    if min(len(s) for s in sides) < _LEAST:
        return 0.5, 1.0
    rows = np.vstack(sides)
    side = np.repeat([0.0, 1.0], [len(s) for s in sides])
    train = np.zeros(len(rows), dtype=bool)
    for which in (0.0, 1.0):
        members = np.flatnonzero(side == which)
        train[rng.permutation(members)[: len(members) // 2]] = True
    features = _features(rows, train, rng)
    weight = np.where(side == 1, 1 / (side == 1).sum(), 1 / (side == 0).sum())[train]
    seen = features[train] * weight[:, None]
    gram = seen.T @ features[train] + 1e-3 * np.eye(features.shape[1]) * float(weight.sum())
    scores = features @ np.linalg.solve(gram, seen.T @ (2 * side[train] - 1))
    return _auc(scores[~train & (side == 1)], scores[~train & (side == 0)])


def mmd(
    reference: Array, current: Array, *, margins: bool = True, seed: int = 0, most: int = 20_000
) -> tuple[float, float]:
    """Maximum mean discrepancy with a Gaussian kernel, estimated on blocks.

    The mean of unbiased estimates on blocks of about ``sqrt(n)`` rows is asymptotically normal under no change, so the
    cost is ``n**1.5`` and the p-value needs no permutation (Zaremba, Gretton & Blaschko 2013, "B-test", NIPS; the
    kernel of Gretton et al. 2012, JMLR 13, its width the median distance).

    Returns:
        The squared discrepancy (may be below 0) and a one-sided p-value; (0, 1) below 50 rows on a side.
    """
    rng = np.random.default_rng(seed)
    first, second = (_ready(part, margins, rng, most) for part in (reference, current))
    count = min(len(first), len(second))
    if count < _LEAST:
        return 0.0, 1.0
    first, second = rng.permutation(first)[:count], rng.permutation(second)[:count]
    middle, spread = first.mean(axis=0), first.std(axis=0)
    spread[spread == 0] = 1.0
    first, second = (first - middle) / spread, (second - middle) / spread
    probe = first[:200]
    width = float(np.median(_squared(probe, probe)[np.triu_indices(len(probe), 1)])) or 1.0
    size = max(8, math.isqrt(count))
    values = []
    for start in range(0, count - size + 1, size):
        x, y = first[start : start + size], second[start : start + size]
        kxx, kyy, kxy = (np.exp(-_squared(a, b) / width) for a, b in ((x, x), (y, y), (x, y)))
        off = size * (size - 1)
        within = (kxx.sum() - size) / off + (kyy.sum() - size) / off
        values.append(within - 2 * (kxy.sum() - np.trace(kxy)) / off)
    estimates = np.array(values)
    error = float(estimates.std(ddof=1)) / math.sqrt(len(estimates)) if len(estimates) > 1 else math.inf
    mean = float(estimates.mean())
    return mean, student_sf(mean / error, len(estimates) - 1) if error > 0 and math.isfinite(error) else 1.0


def _ready(rows: Array, margins: bool, rng: np.random.Generator, most: int) -> Array:
    part = rows if len(rows) <= most else rows[np.sort(rng.choice(len(rows), most, replace=False))]
    if margins:
        return part
    # Ties are broken at random: a tie broken by position would tie columns to each other.
    shuffled = rng.permuted(np.tile(np.arange(len(part)), (part.shape[1], 1)), axis=1).T
    order = np.array([np.lexsort((shuffled[:, j], part[:, j])) for j in range(part.shape[1])])
    ranks = np.empty(part.shape)
    for j, places in enumerate(order):
        ranks[places, j] = (np.arange(len(part)) + 0.5) / max(1, len(part))
    return 3.46 * (ranks - 0.5)


def _features(rows: Array, train: NDArray[np.bool_], rng: np.random.Generator) -> Array:
    middle, spread = rows[train].mean(axis=0), rows[train].std(axis=0)
    spread[spread == 0] = 1.0
    flat = np.clip((rows - middle) / spread, -5, 5)
    width = flat.shape[1]
    upper = np.triu_indices(width)
    products = flat[:, upper[0]] * flat[:, upper[1]] if width <= 30 else np.square(flat)
    waves = np.cos(flat @ rng.normal(size=(width, _WAVES)) / math.sqrt(width) + rng.uniform(0, 2 * np.pi, _WAVES))
    return np.column_stack([np.ones(len(flat)), flat, products, waves])


def _auc(above: Array, below: Array) -> tuple[float, float]:
    """Area under the curve with its one-sided p-value, ties counted half, their variance corrected."""
    n, m = len(above), len(below)
    together = np.concatenate([above, below])
    _, inverse, ties = np.unique(together, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2)[inverse]
    auc = (float(ranks[:n].sum()) - n * (n + 1) / 2) / (n * m)
    total = n + m
    lost = float((ties.astype(np.float64) ** 3 - ties).sum()) / (total * (total - 1))
    variance = (total + 1 - lost) / (12 * n * m)
    return auc, normal_sf((auc - 0.5) / math.sqrt(variance)) if variance > 0 else 1.0


def _squared(a: Array, b: Array) -> Array:
    distances = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)[None, :] - 2 * (a @ b.T)
    return np.asarray(np.maximum(distances, 0.0))


def joint_against_history(history: Sequence[Batch], current: Batch, *, seed: int = 0) -> tuple[Signal, ...]:
    """Compare a window's ties between columns with earlier windows', by how much those differ among each other.

    Rows of a day share their weather, so windows of healthy data differ by more than independent rows would. Each
    earlier window is therefore held against the others in the same way, and the judged one has to stand out of them:
    the p-value is the larger of the test's own and of Student's for one more draw (Student 1908).

    Args:
        history: Earlier windows' columns, at least three windows for any answer.
        current: The judged window's.
        seed: Of all chance.
    """
    if len(history) < _LEAST_HISTORY:
        return ()
    usual = []
    for i, window in enumerate(history):
        others = [w for j, w in enumerate(history) if j != i]
        usual.append({s.name: s.effect for s in joint_signals(_stacked(others), window, seed=seed)})
    found = []
    for signal in joint_signals(_stacked(history), current, seed=seed):
        effects = np.array([u[signal.name] for u in usual if signal.name in u])
        if len(effects) < _LEAST_HISTORY:
            continue
        spread = float(effects.std(ddof=1)) * math.sqrt(1 + 1 / len(effects))
        p_value = student_sf((signal.effect - float(effects.mean())) / spread, len(effects) - 1) if spread else 1.0
        text = f"{signal.text} (earlier windows: {effects.mean():.3f} ± {effects.std(ddof=1):.3f} beyond chance)"
        found.append(replace(signal, p_value=max(p_value, signal.p_value), text=text))
    return tuple(found)


def _stacked(windows: Sequence[Batch]) -> dict[str, NDArray[Any]]:
    shared = set.intersection(*(set(w) for w in windows))
    return {name: np.concatenate([np.asarray(w[name]) for w in windows]) for name in windows[0] if name in shared}


def joint_signals(reference: Batch, current: Batch, *, seed: int = 0) -> tuple[Signal, ...]:
    """Compare how columns depend on each other, by both tests; nothing where no two columns are left."""
    names = [n for n in reference if n in current]
    try:
        before = matrix({n: reference[n] for n in names})
        now = matrix({n: current[n] for n in names}, like={n: reference[n] for n in names})
    except DataError:
        return ()
    if before.shape[1] < 2 or before.shape[1] != now.shape[1]:
        return ()
    auc, auc_p = domain_classifier(before, now, margins=False, seed=seed, most=_MOST)
    discrepancy, mmd_p = mmd(before, now, margins=False, seed=seed, most=_MOST)
    return (
        Signal(
            "domain_classifier",
            "joint",
            auc_p,
            auc - 0.5,
            0.05,
            f"a classifier tells the window from earlier ones by how columns depend on each other: AUC {auc:.3f}",
        ),
        Signal(
            "mmd",
            "joint",
            mmd_p,
            discrepancy,
            0.002,
            f"maximum mean discrepancy of the dependence between columns {discrepancy:+.4f}",
        ),
    )
