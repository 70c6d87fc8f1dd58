"""Checks of how a predictor answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.checks.compare import ATOL, RTOL, difference, identical
from trellis.checks.odd import FEW, ODD_ROW, Kind, OddBatch
from trellis.checks.subject import Subject
from trellis.checks.suite import CheckFailed, CheckSkipped, cause_of, check, require
from trellis.contract import take
from trellis.errors import TrellisError

_TOLERANCE = f"allowed {ATOL:g} + {RTOL:g} of the value"


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
    return _survive(subject, "empty", "")


@check
def missing_values_handled(subject: Subject) -> str:
    """A missing value is answered as declared; where the field is not nullable a named error will do too."""
    return _survive(subject, "missing", "no input can be without a value")


@check
def unknown_values_handled(subject: Subject) -> str:
    """A category or text never seen in training is answered as declared, or refused by a named error."""
    return _survive(subject, "unknown", "no input is a category or text")


def _survive(subject: Subject, kind: Kind, inapplicable: str) -> str:
    """Ask odd batches; the answers to the rows beside the odd one must be what they were."""
    cases = [odd for odd in subject.odd if odd.kind == kind]
    if not cases:
        raise CheckSkipped(inapplicable)
    child = subject.child
    require(child.load_error is None, f"a fresh interpreter cannot load it: {child.load_error}")
    others = np.array([row for row in range(FEW) if row != ODD_ROW])
    expected = take(subject.baseline, others)
    answered, refused = 0, 0
    for odd in cases:
        # Never ask here what has ended the fresh interpreter, or what it did not live to try.
        last = f"; it was asked last: {child.asked[-1]}" if child.asked else ""
        require(
            odd.label in child.survived, f"{odd.label}: a fresh interpreter did not survive it: {child.crash}{last}"
        )
        try:
            answer = _answer_or_refuse(subject, odd)
        except TrellisError as error:
            require(not odd.must_answer, f"{odd.label} must be answered and is refused: {cause_of(error)}")
            refused += 1
            continue
        if kind != "empty":
            problem, _ = difference(take(answer, others), expected)
            require(problem is None, f"{odd.label} in one row changes the others: {problem}")
        answered += 1
    return f"{answered} cases answered" + (f", {refused} refused by a named error" if refused else "")


def _answer_or_refuse(subject: Subject, odd: OddBatch) -> dict[str, NDArray[Any]]:
    try:
        return subject.answer(odd.batch, odd.label)
    except CheckFailed as failed:
        if isinstance(failed.__cause__, TrellisError):
            raise failed.__cause__ from None
        raise
