"""The files of a batch run: the input read in tables of a fixed size, the parts beside the output, and the output."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trellis.errors import DataError, StorageError

METADATA = b"trellis.batch"
_READ_ROWS = 8_192


@contextmanager
def opened(source: Path) -> Iterator[pq.ParquetFile]:
    """Open the input.

    Raises:
        DataError: It is no Parquet file.
    """
    try:
        # Column chunks are read through a small buffer, so that one large row group does not fill the memory.
        file = pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"The input cannot be read as Parquet: {str(error).splitlines()[0]}", where=source, remedy="Check the path."
        ) from error
    with file:
        yield file


def tables(file: pq.ParquetFile, names: list[str], start: int, size: int) -> Iterator[pa.Table]:
    """Yield tables of ``size`` rows (the last may have fewer) from row ``start`` on; row groups before it are not read.

    Raises:
        DataError: A page of the file cannot be read.
    """
    counts = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    group = 0
    while group < len(counts) and start >= counts[group]:
        start -= counts[group]
        group += 1
    groups = list(range(group, len(counts)))
    held: list[pa.RecordBatch] = []
    held_rows = 0
    for read in _batches(file, names, groups, min(size, _READ_ROWS)):
        batch = read
        if start:
            skipped = min(start, batch.num_rows)
            start, batch = start - skipped, batch.slice(skipped)
        while held_rows + batch.num_rows >= size:
            head = batch.slice(0, size - held_rows)
            yield pa.Table.from_batches([*held, head])
            batch, held, held_rows = batch.slice(head.num_rows), [], 0
        if batch.num_rows:
            held.append(batch)
            held_rows += batch.num_rows
    if held:
        yield pa.Table.from_batches(held)


def _batches(file: pq.ParquetFile, names: list[str], groups: list[int], rows: int) -> Iterator[pa.RecordBatch]:
    if not groups:
        return
    batches = file.iter_batches(batch_size=rows, row_groups=groups, columns=names)
    while True:
        try:
            batch = next(batches, None)
        except (OSError, pa.ArrowException) as error:
            remedy = "Write it again."
            if "Expected all lists to be of size" in str(error):
                remedy = "Write the tensors as plain lists: Arrow cannot read back a null among fixed-size ones."
            raise DataError(
                f"The input cannot be read to its end: {str(error).splitlines()[0]}.", remedy=remedy
            ) from error
        if batch is None:
            return
        yield batch


def is_done(output: Path, identity: dict[str, Any], overwrite: bool) -> bool:
    """Tell whether the output is there and the same.

    Raises:
        StorageError: It is another one, and may not be replaced.
    """
    if not output.exists():
        return False
    try:
        metadata = pq.read_schema(output).metadata or {}
    except (OSError, pa.ArrowException):
        metadata = {}
    if metadata.get(METADATA) == json.dumps(identity, sort_keys=True).encode():
        return True
    if overwrite:
        return False
    raise StorageError(
        "The output is there already, and of another input or version.",
        where=output,
        remedy="Give another file, or --overwrite.",
    )


@contextmanager
def claimed(work: Path, identity: dict[str, Any], part_rows: int, overwrite: bool) -> Iterator[int]:
    """Hold the work directory for one process; yield the part size of the run that is in it, old or new.

    Raises:
        StorageError: Another process holds it, or another run is unfinished in it.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StorageError("Another process is at work on this output.", where=work, remedy="Let it end.") from None
        job = work / "job.json"
        held: dict[str, Any] | None = None
        with suppress(OSError, ValueError):
            held = json.loads(job.read_text())
        if held is not None and {k: v for k, v in held.items() if k != "part_rows"} != identity:
            other = ", ".join(sorted(k for k in identity if held.get(k) != identity[k]))
            if not overwrite:
                raise StorageError(
                    f"An unfinished run for this output differs in: {other}.",
                    where=work,
                    remedy="Give the same input and version to finish it, or --overwrite to begin again.",
                )
            held = None
        if held is None:
            for path in work.glob("part-*"):
                path.unlink()
            write_whole(job, json.dumps({**identity, "part_rows": part_rows}, indent=1).encode())
        yield int(held["part_rows"]) if held else part_rows


def join_parts(work: Path, output: Path, schema: pa.Schema, parts: int) -> None:
    """Put the parts together and let the output appear, the list of refused rows before it."""
    partial = work / "output.partial"
    with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for number in range(parts):
            writer.write_table(pq.read_table(part_file(work, number)).cast(schema))
    refused = b"".join(path.read_bytes() for path in sorted(work.glob("part-*.rejects.jsonl")))
    if refused:
        write_whole(rejects_file(output), refused)
    else:
        rejects_file(output).unlink(missing_ok=True)
    publish(partial, output)


def clear(work: Path, identity: dict[str, Any]) -> None:
    """Remove the work directory of a finished run, and no other's."""
    with suppress(OSError, ValueError):
        held = json.loads((work / "job.json").read_text())
        if {k: v for k, v in held.items() if k != "part_rows"} == identity:
            shutil.rmtree(work)


@contextmanager
def guarded(output: Path) -> Iterator[None]:
    """Turn what the disk refuses into a StorageError that names the output."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise StorageError(
            f"The output could not be written: {error.strerror or error}.",
            where=output,
            remedy="Free disk space and start the same command again; finished parts are kept.",
        ) from error


def sha256(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    publish(partial, path)


def publish(partial: Path, path: Path) -> None:
    """Bring a file to the disk, then give it its name."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def work_directory(output: Path) -> Path:
    """Return where an output's parts are until it is whole."""
    return output.with_name(f"{output.name}.work")


def rejects_file(output: Path) -> Path:
    """Return where an output's refused rows are listed."""
    return output.with_name(f"{output.name}.rejects.jsonl")


def part_file(work: Path, number: int, suffix: str = ".parquet") -> Path:
    """Return a part's file."""
    return work / f"part-{number:06d}{suffix}"


def refused_rows(path: Path) -> int:
    """Return how many rows a list of refused ones names."""
    if not path.exists():
        return 0
    with path.open() as lines:
        return len({json.loads(line)["row"] for line in lines})
