"""Making a backup."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from trellis.adapters.object_files import ObjectFiles
from trellis.adapters.postgres_dump import PostgresDatabase
from trellis.backup.manifest import CHUNK, BackupManifest, Part, Tell, safe
from trellis.errors import BackupError, StorageError

_SQLITE = b"SQLite format 3\0"
_JOURNALS = ("-wal", "-shm", "-journal")


@dataclass(frozen=True)
class Dump:
    """A database that was dumped by somebody else, with ``pg_dump --format=custom``.

    Attributes:
        name: Of the database.
        file: The finished dump.
    """

    name: str
    file: Path

    def dump(self, path: Path) -> None:
        """Take the dump over."""
        with self.file.open("rb") as file:
            if file.read(5) != b"PGDMP":
                raise BackupError(
                    "This is no dump in PostgreSQL's custom format.",
                    where=self.file,
                    remedy="Make it with: pg_dump --format=custom.",
                )
        shutil.copyfile(self.file, path)


def backup(
    home: Path,
    destination: Path,
    *,
    databases: Sequence[PostgresDatabase | Dump] = (),
    stores: Sequence[ObjectFiles] = (),
    tell: Tell = lambda _path, _bytes: None,
) -> BackupManifest:
    """Save a home, databases and object stores into a new directory.

    The platform may go on working meanwhile. SQLite files are copied through SQLite, dumps are transactions, logs are
    copied as far as they were written. Killed, it leaves ``.NAME.*.part`` beside ``destination``, which may be deleted.

    Args:
        home: Directory of everything Trellis writes.
        destination: The backup; must not exist.
        databases: PostgreSQL databases.
        stores: Object stores.
        tell: Called with a part's path and how many of its bytes are done more.

    Returns:
        The manifest.

    Raises:
        BackupError: The destination exists or lies in the home; the home is missing, or holds what cannot be saved.
        StorageError: A disk, database or store refuses.
    """
    home, destination = home.resolve(), destination.resolve()
    if not home.is_dir():
        raise BackupError("There is no home to back up.", where=home, remedy="Set TRELLIS_HOME.")
    if destination.is_relative_to(home):
        raise BackupError("A backup in the home is lost with it.", where=destination, remedy="Choose another place.")
    if destination.exists():
        raise BackupError("There is something already.", where=destination, remedy="Choose another name.")
    for names in ([one.name for one in databases], [one.name for one in stores]):
        if len(set(names)) < len(names) or not all(safe(name) and "/" not in name for name in names):
            raise BackupError(f"Names must be plain words and differ: {names}.", remedy="Rename them.")
    begun = datetime.now(UTC)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".part", dir=destination.parent))
    except OSError as error:
        raise _refused(error, destination) from error
    try:
        parts = [*_dumped(databases, part, tell), *_saved(home, part, tell), *_fetched(stores, part, tell)]
        manifest = BackupManifest(
            begun.isoformat(), version("trellis-mlops"), str(home), tuple(sorted(parts, key=lambda one: one.path))
        )
        manifest.write(part)
        _reach_the_disk(part)
        os.rename(part, destination)
        _sync(destination.parent)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise _refused(error, destination) from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return manifest


def _dumped(databases: Sequence[PostgresDatabase | Dump], part: Path, tell: Tell) -> Iterator[Part]:
    for one in databases:
        path = part / "databases" / f"{one.name}.dump"
        path.parent.mkdir(exist_ok=True)
        one.dump(path)
        yield _listed(part, path, tell)


def _saved(home: Path, part: Path, tell: Tell) -> Iterator[Part]:
    files = list(_files(home))
    whole = {path for path in files if _is_sqlite(path)}
    journals = {path.with_name(path.name + suffix) for path in whole for suffix in _JOURNALS}
    # Databases first: they refer to files.
    for path in sorted(whole) + [path for path in files if path not in whole | journals]:
        target = part / "home" / path.relative_to(home)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path in whole:
            _copy_sqlite(path, target)
            yield _listed(part, target, tell)
        elif (copied := _copy(path, target, tell)) is not None:
            yield Part(target.relative_to(part).as_posix(), *copied)


def _fetched(stores: Sequence[ObjectFiles], part: Path, tell: Tell) -> Iterator[Part]:
    for store in stores:
        for key in store.listing():
            if not safe(key):
                raise BackupError(
                    f"The key {key!r} makes no file name.", where=store.where, remedy="Rename the object."
                )
            path = part / "objects" / store.name / key
            path.parent.mkdir(parents=True, exist_ok=True)
            store.fetch(key, path)
            yield _listed(part, path, tell)


def _files(home: Path) -> Iterator[Path]:
    """Yield a home's files, sorted; what is neither file nor directory holds nothing, links are refused."""
    for directory, folders, names in os.walk(home, onerror=_raise):
        here = Path(directory)
        folders.sort()
        for name in sorted([*names, *folders]):
            path = here / name
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                continue  # gone since it was listed
            if stat.S_ISLNK(mode):
                raise BackupError(
                    "The home has a symbolic link.", where=path, remedy="Put what it points to in its place."
                )
            if stat.S_ISREG(mode):
                yield path


def _raise(error: OSError) -> None:
    raise error


def _is_sqlite(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except FileNotFoundError:
        return False


def _copy_sqlite(source: Path, target: Path) -> None:
    """Copy a database that others may be writing to, as of one moment."""
    try:
        with (
            closing(sqlite3.connect(f"file:{quote(str(source))}?mode=ro", uri=True, timeout=30)) as old,
            closing(sqlite3.connect(target)) as new,
        ):
            old.backup(new)
            found = new.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        raise StorageError(f"The database cannot be copied: {error}.", where=source, remedy="Mend it first.") from error
    if found != "ok":
        raise StorageError(f"The database is damaged: {found}.", where=source, remedy="Restore an earlier backup.")


def _copy(source: Path, target: Path, tell: Tell) -> tuple[int, str] | None:
    """Copy a file and return its size and digest; None where it is gone since it was listed."""
    digest, size = hashlib.sha256(), 0
    try:
        reading = source.open("rb")
    except FileNotFoundError:
        return None
    with reading, target.open("xb") as writing:
        left = os.fstat(reading.fileno()).st_size  # a log may grow while it is read
        while left and (chunk := reading.read(min(CHUNK, left))):
            digest.update(chunk)
            writing.write(chunk)
            left -= len(chunk)
            size += len(chunk)
            tell(str(source), len(chunk))
    return size, digest.hexdigest()


def _listed(part: Path, path: Path, tell: Tell) -> Part:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    size = path.stat().st_size
    tell(str(path), size)
    return Part(path.relative_to(part).as_posix(), size, digest.hexdigest())


def _reach_the_disk(directory: Path) -> None:
    for here, _, names in os.walk(directory):
        for name in names:
            _sync(Path(here) / name)
        _sync(Path(here))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refused(error: OSError, destination: Path) -> StorageError:
    remedy = "Free space there, or choose another place." if error.errno == errno.ENOSPC else "Choose another place."
    return StorageError(
        f"The backup was not made: {error.strerror or error}.", where=error.filename or destination, remedy=remedy
    )
