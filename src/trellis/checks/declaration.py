"""Checks of what a plug-in says about itself, and of the sample that stands for its data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.checks.compare import identical
from trellis.checks.subject import Subject
from trellis.checks.suite import check, require
from trellis.contract import Dataset, Field
from trellis.metrics import METRICS

# Name and kind of the first output, by task: what the platform's metrics, service and monitors read.
SCORES = {
    "binary": ("probability", "float"),
    "multiclass": ("probabilities", "tensor"),
    "regression": ("value", "float"),
}

_DTYPES = {"float": "fiu", "int": "iuf", "bool": "b", "category": "UO", "text": "UO", "timestamp": "M", "tensor": "f"}


@check
def names_agree(subject: Subject) -> str:
    """Catalogue, declaration, artifact and answer call the model and its columns by the same names."""
    spec = subject.spec
    require(spec.name == subject.name, f"the catalogue says {subject.name!r}, the spec {spec.name!r}")
    name, kind = SCORES[spec.task]
    first = spec.outputs[0]
    require(
        (first.name, first.kind) == (name, kind),
        f"the first output of a {spec.task} model is {name!r} ({kind}); this one is {first.name!r} ({first.kind})",
    )
    answered = set(subject.baseline)
    require(answered == {f.name for f in spec.outputs}, f"predict returns {sorted(answered)}")
    manifest = subject.manifest
    outputs = tuple(f.name for f in spec.outputs)
    require(manifest.model == spec.name, f"the artifact is of {manifest.model!r}")
    require(manifest.inputs == spec.inputs, f"the artifact's inputs are {manifest.inputs}, the spec's {spec.inputs}")
    require(manifest.outputs == outputs, f"the artifact's outputs are {manifest.outputs}, the spec's {outputs}")
    return f"{spec.name}: {len(spec.inputs)} inputs, outputs {', '.join(outputs)}"


@check
def spec_complete(subject: Subject) -> str:
    """Every field, output and target is described, and the metric is one the platform computes for the task."""
    spec = subject.spec
    fields = (*spec.request, *spec.features, *spec.outputs)
    silent = [f.name for f in fields if not f.description.strip()]
    require(not silent, f"no description: {', '.join(silent)}")
    require(bool(spec.version.strip()), "no version")
    require(bool(spec.target.description.strip()), "the target has no description")
    require(
        spec.metric.name in METRICS[spec.task],
        f"{spec.metric.name!r} is no {spec.task} metric; known are {', '.join(sorted(METRICS[spec.task]))}",
    )
    classes = spec.target.classes
    require(len(set(classes)) == len(classes), f"classes named twice: {classes}")
    if spec.task == "multiclass":
        shape = spec.score.shape
        require(shape == (len(classes),), f"the score's shape is {shape}, there are {len(classes)} classes")
    for f in fields:
        _require_example_fits(f)
    require(subject.recipe is None or subject.recipe in spec.recipes, f"no recipe {subject.recipe!r}: {spec.recipes}")
    return f"{len(fields)} fields described, judged by {spec.metric.name}"


def _require_example_fits(f: Field) -> None:
    if f.example is None or f.kind == "tensor":
        return
    if f.kind in ("float", "int"):
        low, high = f.minimum, f.maximum
        inside = (low is None or f.example >= low) and (high is None or f.example <= high)
        require(inside, f"{f.name}: the example {f.example} is outside {low}–{high}")
    if f.choices is not None:
        require(f.example in f.choices, f"{f.name}: the example {f.example!r} is no choice")


@check
def sample_as_declared(subject: Subject) -> str:
    """The sample repeats, runs forward in time, and its columns and truth are as the declaration says."""
    spec, sample = subject.spec, subject.sample
    require(len(sample) <= subject.rows, f"sample({subject.rows}) has {len(sample)} rows")
    again = subject.plugin.sample(subject.rows)
    for name, column in sample.columns.items():
        require(name in again.columns and identical(column, again.columns[name]), f"{name} differs when asked again")
    require(identical(sample.target, again.target), "the target differs when asked again")
    missing = [name for name in spec.fields if name not in sample.columns]
    require(not missing, f"lacks the declared fields {missing}")
    for f in spec.fields.values():
        problem = _column_problem(f, sample.columns[f.name])
        require(problem is None, f"{f.name}: {problem}")
    _require_rows(sample)
    target = np.asarray(sample.target)
    if spec.task == "regression":
        require(target.dtype.kind in "fiu" and bool(np.all(np.isfinite(target))), "the target is not finite numbers")
    else:
        seen = set(np.unique(target).tolist())
        allowed = set(range(len(spec.target.classes)))
        require(seen <= allowed, f"the target holds {sorted(seen)}; the classes are 0–{len(allowed) - 1}")
        require(len(seen) > 1, f"the target holds only {seen}")
    return f"{len(sample)} rows, {len(spec.fields)} fields"


def _require_rows(sample: Dataset) -> None:
    ids = sample.row_id.tolist()
    require(len(set(ids)) == len(ids), f"{len(ids) - len(set(ids))} row ids are used twice")
    if sample.time is not None:
        backwards = int(np.sum(np.diff(sample.time.astype("datetime64[us]").astype(np.int64)) < 0))
        require(backwards == 0, f"time runs backwards {backwards} times")
        if sample.known is not None:
            early = int(np.sum(sample.known < sample.time))
            require(early == 0, f"{early} truths were known before the prediction")


def missing_values(column: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where a column has no value: NaN, NaT, None or the empty string."""
    if column.dtype.kind in "fM":
        empty: NDArray[np.bool_] = np.isnat(column) if column.dtype.kind == "M" else np.isnan(column)
        return empty if empty.ndim == 1 else np.asarray(empty.reshape(len(empty), -1).any(axis=1))
    if column.dtype.kind in "UO":
        return np.array([v is None or v == "" or v != v for v in column.tolist()], dtype=bool)
    return np.zeros(len(column), dtype=bool)


def _column_problem(f: Field, column: NDArray[Any]) -> str | None:
    if column.dtype.kind not in _DTYPES[f.kind]:
        return f"dtype {column.dtype} for a declared {f.kind}"
    if column.shape[1:] != f.shape:
        return f"shape {column.shape[1:]} of a row, declared is {f.shape}"
    missing = missing_values(column)
    if missing.any() and not f.nullable:
        return f"{int(missing.sum())} rows have no value, and it is not declared nullable"
    present = column[~missing]
    if not len(present):
        return None
    if f.kind in ("float", "int", "tensor"):
        low, high = float(present.min()), float(present.max())
        if (f.minimum is not None and low < f.minimum) or (f.maximum is not None and high > f.maximum):
            return f"values from {low:.6g} to {high:.6g}, declared is {f.minimum}–{f.maximum}"
    if f.kind in ("category", "text"):
        wrong = [v for v in present.tolist() if not isinstance(v, str)]
        if wrong:
            return f"holds a {type(wrong[0]).__name__} where a string belongs"
        longest = max(len(v) for v in present.tolist())
        if longest > f.max_length:
            return f"{longest} characters, declared are at most {f.max_length}"
        strange = sorted(set(present.tolist()) - set(f.choices)) if f.choices is not None else []
        if strange:
            return f"holds {strange[:3]}, which are no choices"
    return None
