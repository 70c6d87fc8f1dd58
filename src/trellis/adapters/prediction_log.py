"""The prediction log and the label log: durable JSON-lines segments that a person can open.

Every writer owns its segment files (``<home>/predictions/<model>/…jsonl``), so several processes never share one. A
background thread commits groups of records with one ``fsync``. What was handed over is kept in memory until the disk
has it: a full disk refuses *new* records, is tried again, and loses none that was accepted. Reading keeps what it has
parsed in ``.parsed/`` beside the segments (see ``log_frames``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic_core import to_json

from trellis.adapters.log_frames import SUFFIX, read_frame
from trellis.errors import StorageError

logger = logging.getLogger(__name__)


class AppendLog:
    """An append-only log of JSON records in one directory, with group commit.

    Safe for use by several threads; every process opens its own.

    Args:
        directory: Where the segments go; made if it is not there.
        flush_seconds: Longest time an accepted record stays only in memory, besides what the disk takes to sync the
            group before it; 0 writes and syncs before returning.
        segment_bytes: A segment that has grown past this is closed and a new one begun.
        max_pending: Most records held in memory; further ones are refused.

    Raises:
        StorageError: The directory cannot be made.
    """

    def __init__(
        self,
        directory: Path,
        *,
        flush_seconds: float = 0.05,
        segment_bytes: int = 64_000_000,
        max_pending: int = 50_000,
    ) -> None:
        self._directory = directory
        self._flush_seconds = flush_seconds
        self._segment_bytes = segment_bytes
        self._max_pending = max_pending
        self._writer = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._segments = 0
        self._descriptor: int | None = None
        self._path: Path | None = None
        self._offset = 0
        # One lock for the queue, one for the file: adding to the queue never waits for the disk.
        self._queue_lock = threading.Lock()
        self._file_lock = threading.Lock()
        self._pending: deque[tuple[int, bytes]] = deque()
        self._sequence = 0
        self._durable = 0
        self._fault: OSError | None = None
        self._closed = False
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _refused(directory, error) from error

    @property
    def pending(self) -> int:
        """Records accepted and not yet on the disk."""
        return len(self._pending)

    @property
    def directory(self) -> Path:
        """Where the segments are."""
        return self._directory

    def append(self, record: Mapping[str, Any]) -> None:
        """Accept one record; see ``extend``."""
        self.extend([record])

    def extend(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Accept records, all or none. NaN is written as null.

        Raises:
            StorageError: The disk refuses to write, too much waits for it, or the log is closed. None was accepted.
        """
        lines = [to_json(record, inf_nan_mode="null", fallback=_plain) + b"\n" for record in records]
        with self._queue_lock:
            if self._closed:
                raise StorageError("The log is closed.", where=self._directory)
            if self._flush_seconds > 0 and self._fault is not None:
                raise _refused(self._directory, self._fault) from self._fault
            if len(self._pending) + len(lines) > self._max_pending:
                raise StorageError(
                    f"{len(self._pending)} records wait for the disk, the most that may.",
                    where=self._directory,
                    remedy="Look for a slow or full disk.",
                )
            first = self._sequence + 1
            for line in lines:
                self._sequence += 1
                self._pending.append((self._sequence, line))
            last = self._sequence
            if self._flush_seconds > 0 and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
                self._thread.start()
        if self._flush_seconds > 0:
            self._wake.set()
            return
        try:
            self._commit(last)
        except OSError as error:
            # Refused, so not to be written later: the caller is told that it was not taken.
            with self._queue_lock:
                self._pending = deque((n, line) for n, line in self._pending if not first <= n <= last)
            raise _refused(self._directory, error) from error

    def flush(self) -> None:
        """Return once everything accepted so far is on the disk.

        Raises:
            StorageError: The disk refuses; the records stay in memory and are tried again.
        """
        try:
            self._commit(self._sequence)
        except OSError as error:
            raise _refused(self._directory, error) from error

    def close(self) -> None:
        """Write what is pending and close the segment; further records are refused.

        Raises:
            StorageError: The disk refuses the last records.
        """
        with self._queue_lock:
            self._closed = True
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        try:
            self.flush()
        finally:
            with self._file_lock:
                self._close_segment()

    def _run(self) -> None:
        """Commit whatever has gathered, at most ``flush_seconds`` after the first record of a group came in."""
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            self._stop.wait(self._flush_seconds)
            try:
                self._commit(self._sequence)
            except OSError as error:
                logger.error("%s", _refused(self._directory, error))
                # Try again without being woken: new records are refused until it works.
                self._stop.wait(0.2)
                self._wake.set()

    def _commit(self, upto: int) -> None:
        """Write and sync every pending record if ``upto`` is not durable yet; others' records share the sync."""
        with self._file_lock:
            if self._durable >= upto:
                return
            with self._queue_lock:
                group = list(self._pending)
            if not group:
                return
            try:
                self._write(b"".join(line for _, line in group))
            except OSError as error:
                self._fault = error
                raise
            with self._queue_lock:
                while self._pending and self._pending[0][0] <= group[-1][0]:
                    self._pending.popleft()
                self._fault = None
            self._durable = group[-1][0]

    def _write(self, data: bytes) -> None:
        if self._descriptor is None or self._offset >= self._segment_bytes:
            self._close_segment()
            self._open_segment()
        assert self._descriptor is not None
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
            os.fsync(self._descriptor)
        except OSError:
            # Cut the half-written group off. After a failed fsync the kernel may have dropped the pages, so the group
            # goes to a new segment next time.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._offset)
            self._close_segment()
            raise
        self._offset += len(data)

    def _open_segment(self) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        path = self._directory / f"{stamp}-{self._writer}-{self._segments:04d}{SUFFIX}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        try:
            _sync_directory(self._directory)
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        self._segments += 1
        self._descriptor, self._path, self._offset = descriptor, path, 0

    def _close_segment(self) -> None:
        descriptor, path = self._descriptor, self._path
        self._descriptor = self._path = None
        if descriptor is not None and path is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            if self._offset == 0:
                with contextlib.suppress(OSError):
                    path.unlink()


class PredictionLog(AppendLog):
    """The log of one model's answers, under ``<home>/predictions/<model>/``; arguments as for ``AppendLog``.

    A record is ``{"id", "model", "version", "variant", "revision", "time", "received_at", "unit", "request": {…},
    "features": {…}, "feature_times": {view: RFC 3339 or null}, "overrides": [names], "outputs": {…}, "latency_ms"}``.
    """

    def __init__(self, home: Path, model: str, **options: Any) -> None:
        super().__init__(home / "predictions" / model, **options)


class ShadowLog(AppendLog):
    """The log of what one model's shadows answered, under ``<home>/shadows/<model>/``; arguments as for ``AppendLog``.

    A record is ``{"id", "model", "version" (the shadow's), "primary_version", "revision", "time", "received_at",
    "unit", "primary": {output: value}, "outputs": {output: value}, "primary_latency_ms", "score_ms"}``, where ``id`` is
    the prediction's; one that the shadow could not score has ``error`` and empty ``outputs``.
    """

    def __init__(self, home: Path, model: str, **options: Any) -> None:
        super().__init__(home / "shadows" / model, **options)


class LabelLog(AppendLog):
    """The log of one model's truths, under ``<home>/labels/<model>/``; arguments as for ``AppendLog``.

    A record is ``{"id", "value", "observed_at", "received_at"}``.
    """

    def __init__(self, home: Path, model: str, **options: Any) -> None:
        super().__init__(home / "labels" / model, **options)


def read_predictions(
    home: Path, model: str, since: datetime | None = None, until: datetime | None = None
) -> pd.DataFrame:
    """Read a model's predictions as a flat frame, in order of event time.

    Nested parts become columns ``request.x``, ``features.x``, ``feature_times.view`` and ``outputs.x``; ``time`` and
    ``received_at`` are ``datetime64[ns, UTC]``. A prediction id that several writers logged (a retry that reached
    another process) is kept once, the earliest received.

    Args:
        home: Trellis's home.
        model: The model.
        since: Earliest event time, inclusive.
        until: Latest event time, exclusive.

    Returns:
        One row per prediction; ``attrs`` has ``torn`` (last lines cut off by a crash or still being written) and
        ``duplicates``. Empty, with the fixed columns, where nothing was logged.

    Raises:
        DataError: A line other than a segment's last is damaged.
    """
    fixed = ("id", "model", "version", "variant", "revision", "time", "received_at", "unit", "overrides", "latency_ms")
    frame = read_frame(home / "predictions" / model, fixed)
    frame = _distinct(frame, ["id"])
    keep = pd.Series(True, index=frame.index)
    if since is not None:
        keep &= frame["time"] >= pd.Timestamp(since)
    if until is not None:
        keep &= frame["time"] < pd.Timestamp(until)
    attrs = frame.attrs
    frame = frame[keep].sort_values(["time", "id"], kind="stable", ignore_index=True)
    frame.attrs = attrs
    return frame


def read_shadows(home: Path, model: str) -> pd.DataFrame:
    """Read what a model's shadows answered, paired with the primary's answers, in the order of event time.

    Returns:
        One row per prediction and shadow version, with ``primary.x`` beside ``outputs.x``; ``attrs`` as for
        ``read_predictions``.

    Raises:
        DataError: A line other than a segment's last is damaged.
    """
    fixed = ("id", "model", "version", "primary_version", "revision", "time", "received_at", "unit", "error")
    frame = _distinct(read_frame(home / "shadows" / model, fixed), ["id", "version"])
    attrs = frame.attrs
    frame = frame.sort_values(["time", "id"], kind="stable", ignore_index=True)
    frame.attrs = attrs
    return frame


def read_labels(home: Path, model: str) -> pd.DataFrame:
    """Read a model's labels in the order of their arrival; one that came twice unchanged is kept once.

    A revised label (same id, other value or time of observation) stays, after the earlier one.

    Returns:
        Columns ``id``, ``value``, ``observed_at`` and ``received_at``; ``attrs`` as for ``read_predictions``.

    Raises:
        DataError: A line other than a segment's last is damaged.
    """
    frame = read_frame(home / "labels" / model, ("id", "value", "observed_at", "received_at"))
    return _distinct(frame, ["id", "value", "observed_at"])


def _distinct(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    attrs = dict(frame.attrs)
    # Values may be unhashable only in damaged input; ids and labels are scalars.
    ordered = frame.sort_values("received_at", kind="stable", ignore_index=True)
    kept = ordered.drop_duplicates(names, ignore_index=True)
    kept.attrs = {**attrs, "duplicates": len(ordered) - len(kept)}
    return kept


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value: Any) -> Any:
    """Turn numpy scalars and arrays into JSON values."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def _refused(directory: Path, error: OSError) -> StorageError:
    return StorageError(
        f"The disk refuses to write the log: {error.strerror or error}.",
        where=directory,
        remedy="Free space or repair the disk; accepted records wait in memory and are written then.",
    )
