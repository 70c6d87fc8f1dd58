"""Applying changes to a whole dataset, or to a stream chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.contract import Batch, row_count
from trellis.drift.simulate.change import Array, Change, Point, positions
from trellis.drift.simulate.population import Spread, classes_of, exchanged, label_score, moved, redrawn
from trellis.drift.simulate.upstream import Codebook, Feed, converted, emptied, zoned
from trellis.errors import DataError


@dataclass(frozen=True)
class Simulated:
    """Changed data, with the truth about the changes.

    Attributes:
        columns: The changed columns, each of ``n`` rows in the order given.
        target: The changed labels, shape ``(n,)``; None where none were given.
        doses: How much of each change each row got, in [0, 1], shape ``(n, changes)``.
        source: The row given that each row's content comes from, shape ``(n,)``; differs from ``arange(n)`` only where
            rows were drawn anew.
        ages_hours: Age of a ``stale`` column's values in hours (rows, where there are no times), by column.
        points: The known change points, one per change.
    """

    columns: dict[str, NDArray[Any]]
    target: NDArray[Any] | None
    doses: Array
    source: NDArray[np.int64]
    points: tuple[Point, ...]
    ages_hours: Mapping[str, Array] = field(default_factory=dict)


class Simulator:
    """Injects changes into a stream; chunks come in the order of time.

    Changes of the population come first, in the order given, then the faults of what is read of it. The same seed and
    the same chunks give the same result.

    Args:
        changes: What to inject.
        baseline: Rows from before any change: they set the unit of every size and what a stale feed shows last.
        target: Their labels; needed for ``label`` and ``concept`` changes.
        time: Their times, ``datetime64`` of shape ``(n,)``; None numbers them backwards from -1.
        seed: Of all chance.

    Raises:
        DataError: A column that a change names is not there, or labels are missing.
    """

    def __init__(
        self,
        changes: Sequence[Change],
        baseline: Batch,
        *,
        target: NDArray[Any] | None = None,
        time: NDArray[Any] | None = None,
        seed: int = 0,
    ) -> None:
        rows = row_count(baseline)
        self._changes = tuple(changes)
        self._rng = np.random.default_rng(seed)
        self._check(baseline, target)
        self._timed = time is not None
        self._next = 0
        named = {name for c in changes for name in c.columns}
        named |= {next(iter(baseline)) for c in changes if c.kind == "concept" and not c.columns}
        self._spreads = {name: Spread(np.asarray(baseline[name])) for name in named}
        self._target_spread = Spread(target) if target is not None else None
        self._classes = classes_of(target) if target is not None else ()
        self._books = {
            (i, name): Codebook(c, np.asarray(baseline[name]), self._rng)
            for i, c in enumerate(changes)
            if c.kind == "recode"
            for name in c.columns
        }
        self._feeds = {i: Feed(c) for i, c in enumerate(changes) if c.kind == "stale"}
        at = positions(np.arange(-rows, 0) if time is None else time)
        for feed in self._feeds.values():
            feed.learn({n: np.asarray(v) for n, v in baseline.items()}, at, np.ones(rows, dtype=bool))

    def apply(
        self, columns: Batch, *, time: NDArray[Any] | None = None, target: NDArray[Any] | None = None
    ) -> Simulated:
        """Change the next rows.

        Args:
            columns: Named columns of ``n`` rows, in the order of time; nothing of them is changed in place.
            time: When each row happens, ``datetime64`` of shape ``(n,)``; None numbers the rows on from the last call.
            target: Their labels, shape ``(n,)``.

        Raises:
            DataError: A column or the labels are missing, or there are too few rows to draw others from.
        """
        rows = row_count(columns) if columns else 0
        self._check(columns, target)
        if time is None and self._timed:
            raise DataError("The simulator was given times, these rows have none.", remedy="Give time= to every call.")
        clock = np.arange(self._next, self._next + rows) if time is None else np.asarray(time)
        self._next += rows
        data = {name: np.asarray(values) for name, values in columns.items()}
        labels = None if target is None else np.asarray(target)
        doses = np.column_stack([c.dose(clock, self._rng) for c in self._changes] or [np.empty((rows, 0))])
        source = np.arange(rows)
        for i, change in enumerate(self._changes):
            if change.family != "upstream":
                data, labels, picked = self._population(change, data, labels, doses[:, i])
                source = source[picked]
        ages: dict[str, Array] = {}
        for i, change in enumerate(self._changes):
            if change.family == "upstream":
                for name, (values, age) in self._faulty(i, data, positions(clock), doses[:, i]).items():
                    data[name] = values
                    if age is not None:
                        ages[name] = age
        points = tuple(c.point(clock) for c in self._changes)
        return Simulated(data, labels, doses, source, points, ages)

    def _population(
        self, change: Change, data: dict[str, NDArray[Any]], labels: NDArray[Any] | None, dose: Array
    ) -> tuple[dict[str, NDArray[Any]], NDArray[Any] | None, NDArray[np.int64]]:
        unmoved = np.arange(len(dose))
        if not (dose > 0).any():
            return data, labels, unmoved
        if change.kind == "covariate" and change.by == "move":
            new = {n: moved(data[n], self._spreads[n], dose, change.size, self._rng) for n in change.columns}
            return {**data, **new}, labels, unmoved
        if change.kind == "label":
            assert labels is not None
            assert self._target_spread is not None
            score = label_score(labels, change, self._target_spread, self._classes)
        else:
            names = change.columns or (next(iter(data)),)
            score = np.sum([self._spreads[n].score(data[n]) for n in names], axis=0)
        if change.kind == "concept":
            assert labels is not None
            return data, exchanged(labels, score, dose, change.size, self._rng), unmoved
        source = redrawn(score, dose, change.size, self._rng, where=f"change {change.kind!r}")
        return {n: v[source] for n, v in data.items()}, None if labels is None else labels[source], source

    def _faulty(
        self, index: int, data: dict[str, NDArray[Any]], at: Array, dose: Array
    ) -> dict[str, tuple[NDArray[Any], Array | None]]:
        change, hit = self._changes[index], dose > 0
        result: dict[str, tuple[NDArray[Any], Array | None]] = {}
        if change.kind == "stale":
            feed = self._feeds[index]
            feed.learn(data, at, ~hit)
            return {name: feed.frozen(name, data, at, hit) for name in change.columns} if hit.any() else {}
        if not hit.any():
            return result
        for name in change.columns:
            values = data[name]
            if change.kind == "unit":
                new = converted(values, change, hit)
            elif change.kind == "nulls":
                new = emptied(values, hit & (self._rng.random(len(hit)) < change.size))
            elif change.kind == "recode":
                new = self._books[index, name].recoded(values, hit)
            else:
                new = zoned(values, change.size, hit)
            result[name] = (new, None)
        return result

    def _check(self, columns: Batch, target: NDArray[Any] | None) -> None:
        for change in self._changes:
            missing = [n for n in (*change.columns, *([change.key] if change.key else [])) if n not in columns]
            if missing:
                raise DataError(
                    f"The simulated change {change.kind!r} names columns that are not there: {missing}.",
                    remedy=f"There are {sorted(columns)}.",
                )
            if change.needs_target and target is None:
                raise DataError(f"The simulated change {change.kind!r} needs labels.", remedy="Give target=.")


def inject(
    columns: Batch,
    changes: Sequence[Change],
    *,
    time: NDArray[Any] | None = None,
    target: NDArray[Any] | None = None,
    seed: int = 0,
) -> Simulated:
    """Inject changes into a whole dataset.

    The rows before the first change are the baseline that sets the unit of every size; without any, all rows are.

    Args:
        columns: Named columns of ``n`` rows, in the order of time; nothing of them is changed in place.
        changes: What to inject.
        time: When each row happens, ``datetime64`` of shape ``(n,)``; None takes row numbers.
        target: Labels, shape ``(n,)``; needed for ``label`` and ``concept`` changes.
        seed: Of all chance.

    Raises:
        DataError: A column or the labels are missing, or there are too few rows to draw others from.
        ConfigError: A change makes no sense on this clock.
    """
    rows = row_count(columns)
    clock = np.arange(rows) if time is None else np.asarray(time)
    first = min((positions(np.array([c.point(clock).start]))[0] for c in changes), default=np.inf)
    before = positions(clock) < first
    if not before.any():
        before = np.ones(rows, dtype=bool)
    simulator = Simulator(
        changes,
        {name: np.asarray(values)[before] for name, values in columns.items()},
        target=None if target is None else np.asarray(target)[before],
        time=None if time is None else clock[before],
        seed=seed,
    )
    return simulator.apply(columns, time=time, target=target)
