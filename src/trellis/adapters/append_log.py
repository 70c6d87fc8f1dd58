"""Durable JSON-lines segments that a person can open, written by groups.

Two deaths are told apart. What a *process* has handed to the kernel with ``write`` outlives the process, whatever kills
it; only ``fsync`` lets it outlive the *machine*. ``fsync`` may take long, and behind another one as long again, so one
thread writes and another one syncs, and a record never waits in memory for the disk's sake.

Every writer owns its segment files, so several processes never share one. What was accepted is kept in memory until it
is synced: a disk that refuses it refuses *new* records, is tried again, and loses none that was accepted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from trellis.adapters.log_frames import SUFFIX
from trellis.errors import StorageError

logger = logging.getLogger(__name__)

_AGAIN_SECONDS = 0.2


class AppendLog:
    """An append-only log of JSON records in one directory.

    Safe for use by several threads; every process opens its own.

    Args:
        directory: Where the segments go; made if it is not there.
        flush_seconds: The flush window. An accepted record is written within it, and from then on outlives this
            process; half of it is aimed at, the other half is for a machine that is busy. It is synced, and from then
            on outlives the machine, after the window and what ``fsync`` takes: its own, and the one before it if that
            is still going on. 0 writes and syncs before returning.
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
        self._segment: _Segment | None = None
        # Taken in this order. Adding to the queue never waits for the disk, and writing never waits for a sync.
        self._sync_lock = threading.Lock()
        self._file_lock = threading.Lock()
        self._queue_lock = threading.Lock()
        self._pending: deque[_Line] = deque()  # accepted
        self._written: deque[_Group] = deque()  # and written
        self._held = 0  # records in both
        self._sequence = 0
        self._synced = 0
        self._write_fault: OSError | None = None
        self._sync_fault: OSError | None = None
        self._closed = False
        self._stop = threading.Event()
        self._to_write = threading.Event()
        self._to_sync = threading.Event()
        self._threads: list[threading.Thread] = []
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _refused(directory, error) from error

    @property
    def pending(self) -> int:
        """Records accepted and not yet synced to the disk."""
        return self._held

    @property
    def directory(self) -> Path:
        """Where the segments are."""
        return self._directory

    def append(self, record: Mapping[str, Any]) -> None:
        """Accept one record; see ``extend``."""
        self.extend([record])

    def extend(self, records: Sequence[Mapping[str, Any]]) -> list[bytes]:
        """Accept records, all or none. NaN is written as null.

        Returns:
            The records as they are written, a line of JSON each.

        Raises:
            StorageError: The disk refuses to write, too much waits for it, or the log is closed. None was accepted.
        """
        lines = [to_json(record, inf_nan_mode="null", fallback=_plain) + b"\n" for record in records]
        with self._queue_lock:
            if self._closed:
                raise StorageError("The log is closed.", where=self._directory)
            fault = self._write_fault or self._sync_fault
            if self._flush_seconds > 0 and fault is not None:
                raise _refused(self._directory, fault) from fault
            if self._held + len(lines) > self._max_pending:
                raise StorageError(
                    f"{self._held} records wait for the disk, the most that may.",
                    where=self._directory,
                    remedy="Look for a slow or full disk.",
                )
            first = self._sequence + 1
            for line in lines:
                self._sequence += 1
                self._pending.append((self._sequence, line))
            last = self._sequence
            self._held += len(lines)
            if self._flush_seconds > 0 and not self._threads:
                self._threads = [
                    threading.Thread(target=work, name=name, daemon=True)
                    for work, name in ((self._keep_writing, "log-write"), (self._keep_syncing, "log-sync"))
                ]
                for thread in self._threads:
                    thread.start()
        if self._flush_seconds > 0:
            self._to_write.set()
            return lines
        with self._sync_lock:
            try:
                self._commit(last)
            except OSError as error:
                # Refused, so not to be written later: the caller is told that it was not taken.
                self._drop(first, last)
                raise _refused(self._directory, error) from error
        return lines

    def flush(self) -> None:
        """Return once everything accepted so far is synced.

        Raises:
            StorageError: The disk refuses; the records stay in memory and are tried again.
        """
        with self._sync_lock:
            try:
                self._commit(self._sequence)
            except OSError as error:
                raise _refused(self._directory, error) from error

    def close(self) -> None:
        """Write and sync what is pending and close the segment; further records are refused.

        Raises:
            StorageError: The disk refuses the last records.
        """
        with self._queue_lock:
            self._closed = True
        for event in (self._stop, self._to_write, self._to_sync):
            event.set()
        for thread in self._threads:
            thread.join()
        self._threads = []
        try:
            self.flush()
        finally:
            with self._file_lock:
                self._retire()

    def _keep_writing(self) -> None:
        while not self._stop.is_set():
            self._to_write.wait()
            self._to_write.clear()
            self._stop.wait(self._flush_seconds / 2)
            try:
                self._write()
                self._to_sync.set()
            except OSError as error:
                self._try_again(error)

    def _keep_syncing(self) -> None:
        while not self._stop.is_set():
            self._to_sync.wait()
            self._to_sync.clear()
            self._stop.wait(self._flush_seconds / 2)  # or there were one for every write
            try:
                with self._sync_lock:
                    self._sync()
            except OSError as error:
                self._try_again(error)

    def _try_again(self, error: OSError) -> None:
        """Try again without being woken: new records are refused until it works."""
        logger.error("%s", _refused(self._directory, error))
        self._stop.wait(_AGAIN_SECONDS)
        self._to_write.set()

    def _commit(self, upto: int) -> None:
        """Write and sync if ``upto`` is not synced yet; others' records share it. The sync lock is held."""
        if self._synced < upto:
            self._write()
            self._sync()

    def _write(self) -> None:
        """Hand all that is pending to the kernel."""
        with self._file_lock:
            with self._queue_lock:
                lines = list(self._pending)
            if not lines:
                return
            try:
                if self._segment is not None and self._segment.size >= self._segment_bytes:
                    self._retire()
                if self._segment is None:
                    self._segment = self._new_segment()
                self._segment.write(b"".join(line for _, line in lines))
            except OSError as error:
                self._write_fault = error
                self._retire()
                raise
            with self._queue_lock:
                for _ in lines:
                    self._pending.popleft()
                self._written.append(_Group(self._segment, lines))
                self._write_fault = None

    def _sync(self) -> None:
        """Bring all that is written to the disk. The sync lock is held; writing goes on meanwhile."""
        with self._queue_lock:
            groups = list(self._written)
        for segment in dict.fromkeys(group.segment for group in groups):
            try:
                segment.sync()
            except OSError as error:
                self._sync_fault = error
                self._take_back()
                raise
            with self._file_lock, self._queue_lock:
                for group in [g for g in groups if g.segment is segment]:
                    self._written.popleft()
                    self._held -= len(group.lines)
                    self._synced = group.lines[-1][0]
                self._close_if_done(segment)
        self._sync_fault = None

    def _take_back(self) -> None:
        """Make all that is written and not synced pending again.

        After a failed ``fsync`` the kernel may have dropped the pages, and would not say so a second time. So the
        segments are cut back to what is known to be on the disk, and the records go to a new one.
        """
        with self._file_lock, self._queue_lock:
            for segment in dict.fromkeys(group.segment for group in self._written):
                segment.cut()
                if segment is self._segment:
                    self._segment = None
            self._pending.extendleft(line for group in reversed(self._written) for line in reversed(group.lines))
            self._written.clear()

    def _drop(self, first: int, last: int) -> None:
        """Forget pending records."""
        with self._queue_lock:
            kept = deque((n, line) for n, line in self._pending if not first <= n <= last)
            self._held -= len(self._pending) - len(kept)
            self._pending = kept

    def _new_segment(self) -> _Segment:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        made = _Segment(self._directory / f"{stamp}-{self._writer}-{self._segments:04d}{SUFFIX}")
        self._segments += 1
        return made

    def _retire(self) -> None:
        """Begin a new segment with the next write. The file lock is held."""
        segment, self._segment = self._segment, None
        if segment is not None:
            with self._queue_lock:
                self._close_if_done(segment)

    def _close_if_done(self, segment: _Segment) -> None:
        if segment is not self._segment and all(group.segment is not segment for group in self._written):
            segment.close()


_Line = tuple[int, bytes]


class _Segment:
    """One file, which only grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._synced = 0
        self._named = False  # whether its name is on the disk too
        self.size = 0

    def write(self, data: bytes) -> None:
        """Write all or nothing."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.size)
            raise
        self.size += len(data)

    def sync(self) -> None:
        """Bring to the disk what has been written when this is called, or more."""
        size = self.size
        os.fsync(self._descriptor)
        if not self._named:
            _sync_directory(self._path.parent)
            self._named = True
        self._synced = size

    def cut(self) -> None:
        """Cut off what is not synced, and close."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, self._synced)
            self.size = self._synced
        self.close()

    def close(self) -> None:
        """Close, and remove it if there is nothing in it."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        if self.size == 0:
            with contextlib.suppress(OSError):
                self._path.unlink()


@dataclass(frozen=True)
class _Group:
    """Lines that were written at once."""

    segment: _Segment
    lines: list[_Line]


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
