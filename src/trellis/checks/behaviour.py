"""Checks of how a predictor answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.checks.compare import ATOL, RTOL, difference, identical
from trellis.checks.subject import Subject
from trellis.checks.suite import CheckFailed, CheckSkipped, cause_of, check, require
from trellis.contract import Batch, Field, take
from trellis.errors import TrellisError

_TOLERANCE = f"allowed {ATOL:g} + {RTOL:g} of the value"
_ODD_ROW, _FEW = 3, 8


@check
def output_as_declared(subject: Subject) -> str:
    """The answer has the declared columns, dtypes, shapes and ranges; class probabilities add up to 1."""
    baseline = subject.baseline
    score = baseline[subject.spec.score.name]
    return f"{len(score)} rows, {subject.spec.score.name} from {float(score.min()):.4g} to {float(score.max()):.4g}"


@check
def answers_repeat(subject: Subject) -> str:
    """The same rows asked twice get the same answer, bit for bit."""
    first, second = subject.baseline, subject.answer(subject.probe)
    for name in first:
        require(identical(first[name], second[name]), f"{name} differs between two calls on the same rows")
    return f"{len(first)} columns identical"


@check
def inputs_untouched(subject: Subject) -> str:
    """A prediction changes neither the batch nor its arrays."""
    given = subject.probe
    arrays, before = dict(given), {name: column.copy() for name, column in given.items()}
    subject.answer(given)
    require(list(given) == list(before), f"the batch's columns became {list(given)}")
    for name, column in before.items():
        require(given[name] is arrays[name], f"{name} was replaced in the batch")
        require(identical(given[name], column), f"the values of {name} were changed")
    return f"{len(before)} columns unchanged"


@check
def one_row_as_in_batch(subject: Subject) -> str:
    """A row alone gets the answer that it gets within a batch."""
    probe, baseline = subject.probe, subject.baseline
    rows = len(next(iter(probe.values())))
    worst = 0.0
    looked = np.unique(np.linspace(0, rows - 1, 20).astype(int))
    for row in looked:
        only = slice(int(row), int(row) + 1)
        problem, gap = difference(subject.answer(take(probe, only)), take(baseline, only))
        require(problem is None, f"row {row} alone against the same row among {rows}: {problem}")
        worst = max(worst, gap)
    return f"{len(looked)} rows, largest difference {worst:.2g} ({_TOLERANCE})"


@check
def column_order_free(subject: Subject) -> str:
    """Columns are found by name: the batch's order of columns does not matter."""
    probe = subject.probe
    if len(probe) < 2:
        raise CheckSkipped("the model has one input")
    names = list(probe)
    for order in (names[::-1], names[1:] + names[:1]):
        problem, _ = difference(subject.answer({name: probe[name] for name in order}), subject.baseline)
        require(problem is None, f"with the columns in another order, {problem}")
    return f"{len(names)} columns in two other orders ({_TOLERANCE})"


@check
def row_order_kept(subject: Subject) -> str:
    """Answers come in the order of the rows, and no row's answer depends on its neighbours."""
    probe, baseline = subject.probe, subject.baseline
    rows = len(next(iter(probe.values())))
    order = np.random.default_rng(0).permutation(rows)
    problem, worst = difference(subject.answer(take(probe, order)), take(baseline, order))
    require(problem is None, f"with the rows in another order, {problem}")
    return f"{rows} rows shuffled, largest difference {worst:.2g} ({_TOLERANCE})"


@check
def empty_batch_answered(subject: Subject) -> str:
    """A batch of no rows gets an answer of no rows."""
    subject.answer(take(subject.probe, slice(0, 0)))
    return "0 rows in, 0 rows out"


@check
def missing_values_handled(subject: Subject) -> str:
    """A missing value is answered as declared; where the field is not nullable a named error will do too."""
    fields = [subject.spec.fields[name] for name in subject.spec.inputs]
    cases = [(f"{f.name} = {label}", {f.name: column}, f.nullable)
             for f in fields for label, column in _without_value(f, subject.probe[f.name])]  # fmt: skip
    nullable = {f.name: next(_without_value(f, subject.probe[f.name]))[1] for f in fields if f.nullable}
    if len(nullable) > 1:
        cases.append(("every nullable field missing", nullable, True))
    if not cases:
        raise CheckSkipped("no input can be without a value")
    return _survive(subject, cases)


@check
def unknown_values_handled(subject: Subject) -> str:
    """A category or text never seen in training is answered as declared, or refused by a named error."""
    cases = []
    for name in subject.spec.inputs:
        f = subject.spec.fields[name]
        if f.kind in ("category", "text"):
            strange = ("never seen"[: f.max_length], "☃" * min(f.max_length, 40))
            cases += [(f"{name} = {s[:12]!r}", {name: _with(subject.probe[name], s)}, False) for s in strange]
    if not cases:
        raise CheckSkipped("no input is a category or text")
    return _survive(subject, cases)


def _survive(subject: Subject, cases: list[tuple[str, dict[str, NDArray[Any]], bool]]) -> str:
    """Ask a few rows of which one is odd; the others' answers must be what they were."""
    probe, few = subject.probe, slice(0, _FEW)
    others = np.array([row for row in range(_FEW) if row != _ODD_ROW])
    expected = take(subject.baseline, others)
    answered, refused = 0, 0
    for label, changed, must_answer in cases:
        batch = {**take(probe, few), **{name: column[few] for name, column in changed.items()}}
        try:
            answer = _answer_or_refuse(subject, batch, label)
        except TrellisError as error:
            require(not must_answer, f"{label} is declared nullable and refused: {cause_of(error)}")
            refused += 1
            continue
        problem, _ = difference(take(answer, others), expected)
        require(problem is None, f"{label} in one row changes the others: {problem}")
        answered += 1
    return f"{answered} cases answered, {refused} refused by a named error"


def _answer_or_refuse(subject: Subject, batch: Batch, label: str) -> dict[str, NDArray[Any]]:
    try:
        return subject.answer(batch, label)
    except CheckFailed as failed:
        if isinstance(failed.__cause__, TrellisError):
            raise failed.__cause__ from None
        raise


def _without_value(f: Field, column: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the column with no value in one row, in each way a value of this kind can be missing."""
    if f.kind in ("float", "int", "tensor"):
        odd = column.astype(column.dtype if column.dtype.kind == "f" else np.float64)
        odd[_ODD_ROW] = np.nan
        yield "NaN", odd
    elif f.kind == "timestamp":
        odd = column.copy()
        odd[_ODD_ROW] = np.datetime64("NaT")
        yield "NaT", odd
    elif f.kind in ("category", "text"):
        yield "None", _with(column, None)
        yield "''", _with(column, "")


def _with(column: NDArray[Any], value: str | None) -> NDArray[Any]:
    odd = column.astype(object)
    odd[_ODD_ROW] = value
    return odd
