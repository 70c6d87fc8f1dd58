"""Bringing a backup back, into nothing but empty places."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from trellis.adapters.object_files import ObjectFiles
from trellis.adapters.postgres_dump import PostgresDatabase
from trellis.backup.manifest import BackupManifest, Tell, verify
from trellis.errors import BackupError, StorageError

# A volume's own; it is no content.
_IGNORED = frozenset({"lost+found"})
_UNFINISHED = ".restoring"


def restore(
    source: Path,
    home: Path,
    *,
    databases: Sequence[PostgresDatabase] = (),
    stores: Sequence[ObjectFiles] = (),
    databases_are_done: bool = False,
    tell: Tell = lambda _path, _bytes: None,
) -> BackupManifest:
    """Check a backup to the last byte, then restore it.

    Databases come first, each in one transaction, objects next; the home comes last and by renaming, so a home that is
    there is whole. Killed, the places that are filled by then refuse the next try until they are emptied.

    Args:
        source: The backup.
        home: Where the home goes; the very path it was saved from, empty or not there.
        databases: Where dumps go, by name; each must be empty.
        stores: Where objects go, by name; each must be empty.
        databases_are_done: The dumps have been restored by somebody else.
        tell: Called with a part's path and how many of its bytes are done more, checking included.

    Returns:
        The manifest.

    Raises:
        BackupError: The backup is unfinished or damaged, a place is not empty, or one is missing.
        StorageError: A disk, database or store refuses.
    """
    source, home = source.resolve(), home.resolve()
    manifest = BackupManifest.read(source)
    if str(home) != manifest.home:
        raise BackupError(
            f"The backup is of {manifest.home}, and its plans and registry name paths there.",
            where=home,
            remedy=f"Set TRELLIS_HOME={manifest.home}.",
        )
    to_databases = {one.name: one for one in databases}
    to_stores = {one.name: one for one in stores}
    wanted = () if databases_are_done else manifest.databases
    for names, places, option in ((wanted, to_databases, "--database"), (manifest.stores, to_stores, "--objects")):
        if set(names) != set(places) and not (databases_are_done and places is to_databases):
            raise BackupError(
                f"The backup holds {sorted(names) or 'none'}, and {sorted(places) or 'none'} were named.",
                where=source,
                remedy=f"Give each of its own a place, and no other: {option} NAME=….",
            )
    _check_empty(home, [to_databases[name] for name in wanted], [to_stores[name] for name in manifest.stores])
    verify(source, tell)
    for part, path in manifest.below("databases"):
        if path.stem in wanted:
            to_databases[path.stem].restore(source / part.path)
            tell(part.path, part.bytes)
    for store in to_stores.values():
        store.make()
    for part, path in manifest.below("objects"):
        name, *key = path.parts
        to_stores[name].put("/".join(key), source / part.path)
        tell(part.path, part.bytes)
    _restore_home(manifest, source, home, tell)
    return manifest


def _check_empty(home: Path, databases: Sequence[PostgresDatabase], stores: Sequence[ObjectFiles]) -> None:
    if home.exists() and (found := sorted(set(os.listdir(home)) - _IGNORED)):
        left = " An earlier restore was cut off." if _UNFINISHED in found else ""
        raise BackupError(
            f"The home is not empty, it has {found[0]!r}.{left}",
            where=home,
            remedy="Stop the platform and move what is there out of the way.",
        )
    for database in databases:
        if not database.is_empty():
            raise BackupError(
                f"The database {database.name!r} is not empty.", where=database.where, remedy="Make an empty one."
            )
    for store in stores:
        if next(iter(store.listing()), None) is not None:
            raise BackupError(
                f"The object store {store.name!r} is not empty.", where=store.where, remedy="Name an empty place."
            )


def _restore_home(manifest: BackupManifest, source: Path, home: Path, tell: Tell) -> None:
    staging = home / _UNFINISHED
    try:
        staging.mkdir(parents=True)
        for part, path in manifest.below("home"):
            target = staging / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with (source / part.path).open("rb") as reading, target.open("xb") as writing:
                shutil.copyfileobj(reading, writing, 1 << 20)
                writing.flush()
                os.fsync(writing.fileno())
            tell(part.path, part.bytes)
        # The home may be a volume, which cannot be renamed as a whole.
        for name in sorted(os.listdir(staging)):
            os.rename(staging / name, home / name)
        staging.rmdir()
        handle = os.open(home, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    except OSError as error:
        raise StorageError(
            f"The home was not restored: {error.strerror or error}.",
            where=error.filename or home,
            remedy="Empty it, make room, and restore again.",
        ) from error
