"""Snapshots: raw tables as Parquet files under the digest of their content, written once and checked when read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from trellis.decision import dumps
from trellis.errors import CorruptSnapshotError, DataError, StorageError

RECORD = "snapshot.json"


@dataclass(frozen=True)
class Snapshot:
    """Raw tables that never change.

    Attributes:
        digest: SHA-256 over the names and digests of the tables.
        path: Directory that holds one ``NAME.parquet`` per table.
        tables: Name to ``{"sha256": …, "rows": …, "bytes": …}``.
        origin: What it was made from: a plug-in's name, or another snapshot's digest.
    """

    digest: str
    path: Path
    tables: Mapping[str, Mapping[str, Any]]
    origin: str


def take_snapshot(write: Callable[[Path], None], root: Path, *, origin: str) -> Snapshot:
    """Let ``write`` fill a directory with Parquet tables and keep it under its digest; the same content is kept once.

    Args:
        write: Writes ``NAME.parquet`` files into the directory it is given.
        root: Where snapshots live.
        origin: What the tables are made from, kept in the record.

    Raises:
        DataError: Nothing was written.
        StorageError: The disk refused the write; nothing is left behind.
    """
    root.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=root))
    try:
        write(partial)
        tables = {path.stem: _describe(path) for path in sorted(partial.glob("*.parquet"))}
        if not tables:
            raise DataError("An ingest wrote no table.", where=origin, remedy="Write one NAME.parquet per table.")
        digest = _digest(tables)
        record = {"digest": digest, "tables": tables, "origin": origin}
        (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        path = root / digest[:16]
        if not path.exists():
            os.replace(partial, path)
        return Snapshot(digest, path, tables, origin)
    except OSError as error:
        raise StorageError(
            f"A snapshot could not be written: {error.strerror}.", where=root, remedy="Free disk space and run again."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def open_snapshot(path: Path) -> Snapshot:
    """Read a snapshot and check every table against its digest.

    Raises:
        CorruptSnapshotError: A table or the record is missing or was changed.
    """
    remedy = f"Delete {path.name} and ingest again."
    try:
        data = json.loads((path / RECORD).read_text())
        snapshot = Snapshot(data["digest"], path, data["tables"], data["origin"])
    except (OSError, ValueError, KeyError) as error:
        raise CorruptSnapshotError("A snapshot has no readable record.", where=path / RECORD, remedy=remedy) from error
    for name, expected in snapshot.tables.items():
        table = path / f"{name}.parquet"
        if not table.exists():
            raise CorruptSnapshotError(f"The table {name!r} of a snapshot is missing.", where=table, remedy=remedy)
        if _sha256(table) != expected["sha256"]:
            raise CorruptSnapshotError(
                f"The table {name!r} of a snapshot is not the one that was taken.", where=table, remedy=remedy
            )
    if _digest(snapshot.tables) != snapshot.digest:
        raise CorruptSnapshotError("A snapshot's record was changed.", where=path / RECORD, remedy=remedy)
    return snapshot


def _describe(path: Path) -> dict[str, Any]:
    return {"sha256": _sha256(path), "rows": pq.ParquetFile(path).metadata.num_rows, "bytes": path.stat().st_size}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(tables: Mapping[str, Mapping[str, Any]]) -> str:
    return hashlib.sha256(dumps({name: table["sha256"] for name, table in tables.items()}).encode()).hexdigest()


def record_of(snapshot: Snapshot) -> dict[str, Any]:
    """Return the snapshot as JSON values, its path relative to nothing: for journals and run tags."""
    return {**asdict(snapshot), "path": str(snapshot.path)}
