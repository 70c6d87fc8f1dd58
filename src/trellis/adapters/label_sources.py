"""Labels from files and tables: read in bulk, checked row by row, and appended to the label log at most once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import sqlalchemy as sa

from trellis.adapters.prediction_log import LabelLog, read_labels
from trellis.errors import DataError, StorageError

_CHUNK = 20_000


@dataclass(frozen=True)
class LabelColumns:
    """Names of the columns that hold a label.

    Attributes:
        id: The prediction's id.
        value: The truth.
        observed_at: When it became known; None takes the moment of the import.
    """

    id: str = "id"
    value: str = "value"
    observed_at: str | None = "observed_at"


@dataclass(frozen=True)
class Intake:
    """What became of the rows of a file or table.

    Attributes:
        rows: Rows read.
        taken: Labels appended to the log.
        known: Rows that the log held already, or that came twice.
        refused: Rows without an id, a value or a readable time; kept with the reason.
        kept: File with the refused rows; None where there are none.
    """

    rows: int
    taken: int
    known: int
    refused: int
    kept: Path | None


def import_labels(
    home: Path, model: str, source: str | Path, columns: LabelColumns, *, table: str | None = None
) -> Intake:
    """Append the labels of a CSV or Parquet file, or of a database table; importing again appends nothing.

    Values are not judged here: what is impossible for the model's task is a finding of the ledger, and stays in the
    log. A crash in between is made good by importing again.

    Args:
        home: Trellis's home.
        model: Whose labels.
        source: A file by its suffix, or a SQLAlchemy URL with ``table``.
        columns: Where in a row the label is.
        table: Table or view of the database.

    Raises:
        DataError: The source cannot be read, or lacks a column.
        StorageError: The disk refuses the log; what was taken before is kept.
    """
    known = {_key(*row) for row in read_labels(home, model)[["id", "value", "observed_at"]].itertuples(index=False)}
    now = datetime.now(UTC)
    rows = taken = twice = 0
    refused: list[dict[str, Any]] = []
    log = LabelLog(home, model, flush_seconds=0)
    try:
        for frame in _table(str(source), table) if table else _file(Path(source)):
            absent = [c for c in (columns.id, columns.value, columns.observed_at) if c and c not in frame]
            if absent:
                raise DataError(
                    f"The labels lack the columns {absent}.",
                    where=table or source,
                    remedy=f"Name them; there are {list(map(str, frame.columns))[:20]}.",
                )
            rows += len(frame)
            records = []
            for label, reason in _labels(frame, columns, now):
                if reason:
                    refused.append({**label, "reason": reason})
                    continue
                key = _key(label["id"], label["value"], pd.Timestamp(label["observed_at"]))
                if key in known:
                    twice += 1
                    continue
                known.add(key)
                records.append({**label, "received_at": now.isoformat()})
            log.extend(records)
            taken += len(records)
    finally:
        log.close()
    return Intake(rows, taken, twice, len(refused), _keep(home, model, now, refused))


def _file(path: Path) -> Iterator[pd.DataFrame]:
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_CHUNK):
                    yield batch.to_pandas()
        elif path.suffix == ".csv":
            # Ids stay text: 007 is not 7.
            text = pa_csv.ConvertOptions(column_types={name: pa.string() for name in _header(path)})
            with pa_csv.open_csv(path, convert_options=text) as reader:
                for batch in reader:
                    yield batch.to_pandas()
        else:
            raise DataError(f"{path.name} is no CSV or Parquet file.", where=path, remedy="Use .csv or .parquet.")
    except UnicodeDecodeError as error:
        raise DataError(
            f"The header is not UTF-8: its byte {error.start} is {error.object[error.start]:#04x}.",
            where=path,
            remedy="Save the file as UTF-8.",
        ) from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"The labels cannot be read: {' '.join(str(error).split())[:200]}.", where=path, remedy="Mend the file."
        ) from error


def _header(path: Path) -> list[str]:
    with path.open("rb") as file:
        line = file.readline().decode("utf-8-sig")
    return [name.strip().strip('"') for name in line.rstrip("\r\n").split(",")]


def _table(url: str, name: str) -> Iterator[pd.DataFrame]:
    schema, _, table = name.rpartition(".")
    try:
        engine = sa.create_engine(url)
        with engine.connect() as connection:
            known = sa.Table(table, sa.MetaData(), schema=schema or None, autoload_with=engine)
            found = connection.execution_options(stream_results=True).execute(sa.select(known))
            while chunk := found.fetchmany(_CHUNK):
                yield pd.DataFrame(chunk, columns=list(found.keys()), dtype=object)
        engine.dispose()
    except (sa.exc.SQLAlchemyError, ModuleNotFoundError) as error:
        place = sa.engine.make_url(url).render_as_string(hide_password=True) if "://" in url else "the URL given"
        raise DataError(
            f"The table {name!r} cannot be read: {type(error).__name__}.", where=place, remedy="Check URL and table."
        ) from error


def _labels(frame: pd.DataFrame, columns: LabelColumns, now: datetime) -> Iterator[tuple[dict[str, Any], str]]:
    given = pd.Series([now.isoformat()] * len(frame)) if columns.observed_at is None else frame[columns.observed_at]
    times = pd.to_datetime(given.reset_index(drop=True), utc=True, errors="coerce", format="ISO8601")
    for name, value, raw, at in zip(frame[columns.id], frame[columns.value], given, times, strict=True):
        label = {"id": _text(name), "value": _value(value), "observed_at": _text(raw)}
        missing = "no id" if not label["id"] else "no value" if label["value"] is None else ""
        reason = missing or ("no readable time of observation" if pd.isna(at) else "")
        yield (label if reason else {**label, "observed_at": at.isoformat()}), reason


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value).strip()


def _value(value: Any) -> str | float | int | bool | None:
    """Return a label as JSON holds it; a number in text is a number."""
    if hasattr(value, "item"):
        value = value.item()
    if value is None or value != value or value == "":
        return None
    if isinstance(value, str):
        try:
            return float(value) if any(c in value for c in ".eE") else int(value)
        except ValueError:
            return value
    return value if isinstance(value, bool | int | float) else str(value)


def _key(name: Any, value: Any, at: Any) -> tuple[str, str, Any]:
    """Return what makes a label the same one: 1 and 1.0 are."""
    number = float(value) if isinstance(value, bool | int | float) else value
    return str(name), str(number), None if at is None or pd.isna(at) else pd.Timestamp(at).value


def _keep(home: Path, model: str, now: datetime, refused: list[dict[str, Any]]) -> Path | None:
    if not refused:
        return None
    path = home / "quarantine" / "labels" / f"{model}-{now.strftime('%Y%m%dT%H%M%S%f')}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, sort_keys=True, default=str) + "\n" for row in refused))
    except OSError as error:
        raise StorageError(
            f"The refused rows could not be kept: {error.strerror or error}.", where=path, remedy="Free disk space."
        ) from error
    return path
