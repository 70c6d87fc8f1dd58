"""Batch: a Parquet table in, one with a prediction for every row out, in bounded memory, and resumable.

The input is cut into parts of a fixed number of rows. Each part is scored and written whole beside the output, in
``OUTPUT.work``; a run that was killed, wherever, goes on after the last whole part. Once all are there they are joined
into the output, which appears at once. Row ``i`` of the output is always row ``i`` of the input.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trellis.checks.compare import answer_problem
from trellis.contract import Batch, ModelSpec, Predictor, concat, take
from trellis.errors import ConfigError, ContractError, RequestError, close_matches
from trellis.patterns.columns import Column, read_column, require_type
from trellis.patterns.files import (
    METADATA,
    claimed,
    clear,
    guarded,
    is_done,
    join_parts,
    opened,
    part_file,
    publish,
    refused_rows,
    rejects_file,
    sha256,
    tables,
    work_directory,
    write_whole,
)
from trellis.patterns.tables import output_schema, output_table

_PART_BYTES = 64_000_000  # of a part's columns in memory, roughly
_MOST_PART_ROWS = 50_000
_SCORED_AT_ONCE = 4_096


class Features(Protocol):
    """What batch needs of the feature store: features as of each row's own time."""

    def training_set(self, service: str, rows: Batch, time: NDArray[np.datetime64]) -> Batch:
        """Return the feature columns, row for row."""

    def describe(self, service: str) -> dict[str, Any]:
        """Return the service's definition, with its ``digest``."""


@dataclass(frozen=True)
class BatchModel:
    """What scores, and which version that is.

    Attributes:
        spec: The model's declaration.
        predictor: One loaded version of it.
        version, digest: The version's name and its artifact's digest.
    """

    spec: ModelSpec
    predictor: Predictor
    version: str
    digest: str


@dataclass(frozen=True)
class BatchSummary:
    """What a run did.

    Attributes:
        model, version, digest: What scored.
        rows: Rows of the output.
        rejected: Rows without a prediction, because a field was refused.
        scored: Rows scored by this run; fewer than ``rows`` where an earlier one had begun.
        seconds, rows_per_second: Of this run.
        output, rejects: The files; ``rejects`` is None where no row was refused.
        joined: Features that came from the feature store rather than from the input.
        unused: Columns of the input that the model does not know and nobody asked to keep.
    """

    model: str
    version: str
    digest: str
    rows: int
    rejected: int
    scored: int
    seconds: float
    rows_per_second: float
    output: str
    rejects: str | None
    joined: tuple[str, ...]
    unused: tuple[str, ...]


def begun_version(output: Path) -> str | None:
    """Return the version with which an unfinished run for ``output`` began, so that it can end with the same one."""
    with suppress(OSError, ValueError, KeyError):
        return str(json.loads((work_directory(output) / "job.json").read_text())["version"])
    return None


def predict_batch(
    model: BatchModel,
    source: Path,
    output: Path,
    *,
    features: Callable[[], Features] | None = None,
    on_bad: Literal["stop", "skip"] = "stop",
    keep: Sequence[str] = (),
    part_rows: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _rows: None,
) -> BatchSummary:
    """Score every row of a Parquet file.

    Every request field of the model must be a column. A feature is taken from the input where it has a column of that
    name, null standing for a value known to be missing; otherwise it is joined as of the row's time field. Fields are
    held to the declaration as in a request (see ``columns``).

    Args:
        model: What scores.
        source: The input.
        output: The output: one row per input row, in its order, with the model's outputs.
        features: Opens the feature store; called only if the input lacks features.
        on_bad: ``stop`` refuses the input at its first bad row; ``skip`` gives every bad row nulls and a line in
            ``OUTPUT.rejects.jsonl``.
        keep: Columns of the input to carry over to the output, before the model's.
        part_rows: Rows of one part; None chooses by the width of a row.
        overwrite: Whether an output that is there, or an unfinished run of something else, may be replaced.
        progress: Called with rows done and rows in all.

    Returns:
        What was done. A run whose output is already there, from the same input and version, does nothing.

    Raises:
        RequestError: A column is missing or of a wrong type, or with ``stop`` a row is bad.
        DataError: The input is no Parquet file.
        ConfigError: Features are needed and there is no store or no time field, or ``keep`` names an unknown column.
        ContractError: The predictor failed on rows that are as declared.
        StorageError: The output is something else's, another run is at work on it, or the disk refuses.
    """
    begun = time.perf_counter()
    with opened(source) as file:
        plan = _Plan.of(model, file.schema_arrow, keep)
        rows = file.metadata.num_rows
        store = _store(model.spec, plan, features)
        identity = {
            "model": model.spec.name,
            "version": model.version,
            "digest": model.digest,
            "input": sha256(source),
            "rows": rows,
            "keep": list(keep),
            "features": store.describe(model.spec.feature_service or "")["digest"] if store else None,
        }
        schema = output_schema(model.spec, [file.schema_arrow.field(name) for name in keep])
        schema = schema.with_metadata({METADATA: json.dumps(identity, sort_keys=True).encode()})
        work, scored = work_directory(output), 0
        if not is_done(output, identity, overwrite):
            with guarded(output), claimed(work, identity, part_rows or _part_rows(model.spec), overwrite) as size:
                scored = _score_parts(_Scorer(model, plan, store, on_bad, schema), file, work, size, progress)
                join_parts(work, output, schema, math.ceil(rows / size))
        clear(work, identity)
    seconds = time.perf_counter() - begun
    rejects = rejects_file(output)
    return BatchSummary(
        model=model.spec.name,
        version=model.version,
        digest=model.digest,
        rows=rows,
        rejected=refused_rows(rejects),
        scored=scored,
        seconds=round(seconds, 3),
        rows_per_second=round(scored / seconds, 1),
        output=str(output),
        rejects=str(rejects) if rejects.exists() else None,
        joined=plan.joined,
        unused=plan.unused,
    )


@dataclass(frozen=True)
class _Plan:
    """Which columns come from where."""

    sent: tuple[str, ...]
    joined: tuple[str, ...]
    keep: tuple[str, ...]
    unused: tuple[str, ...]

    @classmethod
    def of(cls, model: BatchModel, schema: pa.Schema, keep: Sequence[str]) -> _Plan:
        spec, have = model.spec, list(schema.names)
        for field in spec.request:
            if field.name not in have:
                # A nullable one too: in a table, a column that is absent is more likely one that is misspelt.
                remedy = f"{close_matches(field.name, have)} Add it, with nulls where it is not known."
                raise RequestError(field.name, "the input has no such column", remedy=remedy)
        for name in keep:
            if name not in have or name in {f.name for f in spec.outputs}:
                raise ConfigError(f"The column {name!r} cannot be kept.", remedy=close_matches(name, have))
        for name in set(have) & set(spec.fields):
            require_type(spec.fields[name], schema.field(name).type)
        sent = tuple(name for name in spec.fields if name in have)
        joined = tuple(f.name for f in spec.features if f.name not in have)
        unused = tuple(name for name in have if name not in spec.fields and name not in keep)
        return cls(sent, joined, tuple(keep), unused)


class _Scorer:
    """Turns the rows of one part into the part's output."""

    def __init__(
        self, model: BatchModel, plan: _Plan, store: Features | None, on_bad: Literal["stop", "skip"], schema: pa.Schema
    ) -> None:
        self._model, self.plan, self._store, self.on_bad, self._schema = model, plan, store, on_bad, schema

    def score(self, table: pa.Table, first: int) -> tuple[pa.Table, list[dict[str, Any]]]:
        """Score rows; ``first`` is the number of the first of them in the input."""
        spec = self._model.spec
        needed = {f.name for f in spec.request if not f.nullable}  # a feature may be sent as missing, as in a request
        read = {
            name: read_column(spec.fields[name], table.column(name), may_miss=name not in needed)
            for name in self.plan.sent
        }
        columns = {name: column.values for name, column in read.items()}
        refused = _refusals(read, first)
        good = np.ones(table.num_rows, np.bool_)
        good[[int(line["row"]) - first for line in refused]] = False
        if self._store is not None and good.any():
            columns, good = self._join(columns, good, refused, first)
        if refused and self.on_bad == "stop":
            worst = min(refused, key=lambda line: int(line["row"]))
            raise RequestError(
                f"row {worst['row']}, {worst['field']}",
                str(worst["reason"]),
                remedy="Mend the input, or give such rows nulls with --on-bad skip; finished parts are kept.",
            )
        inputs = {name: columns[name][good] for name in spec.inputs}
        scored = [self._predict(take(inputs, slice(i, i + _SCORED_AT_ONCE))) for i in _steps(int(good.sum()))]
        outputs = concat(scored) if scored else {}
        return output_table(spec, outputs, good, table.select(self.plan.keep), self._schema), refused

    def _join(
        self, columns: dict[str, NDArray[Any]], good: NDArray[np.bool_], refused: list[dict[str, Any]], first: int
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
        """Add the features that the input lacks to the good rows; what must not be missing and is makes a row bad."""
        spec, rows = self._model.spec, np.flatnonzero(good)
        assert self._store is not None
        assert spec.feature_service is not None
        assert spec.time_field is not None
        asked = take({f.name: columns[f.name] for f in spec.request}, rows)
        found = self._store.training_set(spec.feature_service, asked, asked[spec.time_field])
        good, columns = good.copy(), dict(columns)
        for name in self.plan.joined:
            values = np.asarray(found[name])
            missing = np.array([v is None or v != v for v in values.tolist()], np.bool_)
            whole = np.full(len(good), "" if values.dtype.kind in "OU" else np.nan, values.dtype)
            whole[rows] = values
            columns[name] = whole
            if not spec.fields[name].nullable and missing.any():
                for row in rows[missing & good[rows]].tolist():
                    entity = ", ".join(f"{key}={columns[key][row]!s:.60}" for key in spec.entity_keys)
                    reason = f"there are no features for {entity} at that time"
                    refused.append({"row": first + row, "field": name, "reason": reason})
                    good[row] = False
        return columns, good

    def _predict(self, inputs: Batch) -> dict[str, NDArray[Any]]:
        spec, rows = self._model.spec, len(next(iter(inputs.values())))
        where = f"{spec.name} {self._model.version}"
        try:
            answer = self._model.predictor.predict(inputs)
            outputs = {f.name: np.asarray(answer[f.name]).reshape(rows, *f.shape) for f in spec.outputs}
        except Exception as error:  # an author's code may raise anything
            raise ContractError(f"The predictor raised {type(error).__name__}: {error}.", where=where) from error
        problem = answer_problem(spec, outputs, rows)
        if problem:
            raise ContractError(f"The predictor's answer is not as declared: {problem}.", where=where)
        return outputs


def _refusals(read: dict[str, Column], first: int) -> list[dict[str, Any]]:
    return [
        {"row": first + row, "field": name, "reason": reason}
        for name, column in read.items()
        for row, reason in column.refused.items()
    ]


def _steps(rows: int) -> range:
    return range(0, rows, _SCORED_AT_ONCE)


def _score_parts(
    scorer: _Scorer, file: pq.ParquetFile, work: Path, size: int, progress: Callable[[int, int], None]
) -> int:
    """Write every part that is not there yet; return how many rows this run scored."""
    rows, done, scored = file.metadata.num_rows, 0, 0
    while done * size < rows and part_file(work, done).exists():
        done += 1
    if scorer.on_bad == "stop" and any(work.glob("part-*.rejects.jsonl")):
        raise ConfigError(
            "The unfinished run has skipped bad rows.", where=work, remedy="Go on with --on-bad skip, or --overwrite."
        )
    progress(min(done * size, rows), rows)
    names = list(dict.fromkeys([*scorer.plan.sent, *scorer.plan.keep]))
    for number, table in enumerate(tables(file, names, done * size, size), start=done):
        part, refused = scorer.score(table, number * size)
        if refused:
            lines = sorted(refused, key=lambda line: (line["row"], line["field"]))
            write_whole(
                part_file(work, number, ".rejects.jsonl"), "".join(json.dumps(line) + "\n" for line in lines).encode()
            )
        partial = part_file(work, number, ".partial")
        pq.write_table(part, partial, compression="zstd")
        publish(partial, part_file(work, number))
        scored += table.num_rows
        progress(number * size + table.num_rows, rows)
    return scored


def _store(spec: ModelSpec, plan: _Plan, features: Callable[[], Features] | None) -> Features | None:
    if not plan.joined:
        return None
    if spec.time_field is None or features is None:
        why = "declares no time field" if spec.time_field is None else "has no feature store here"
        raise ConfigError(
            f"The input lacks the features {list(plan.joined)[:5]} and {spec.name!r} {why}.",
            remedy="Add them to the input.",
        )
    return features()


def _part_rows(spec: ModelSpec) -> int:
    width = sum(4 * math.prod(f.shape) if f.shape else 16 for f in spec.fields.values())
    return int(min(_MOST_PART_ROWS, max(1_000, _PART_BYTES // width)))
