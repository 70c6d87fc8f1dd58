"""A finished backup to an object store and back: what is kept on the machine that it was made of is lost with it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from trellis.adapters.object_files import ObjectFiles
from trellis.backup.manifest import NAME, BackupManifest, Tell, verify
from trellis.errors import BackupError, StorageError


def send(directory: Path, url: str, tell: Tell = lambda _path, _bytes: None) -> BackupManifest:
    """Copy a finished backup into an object store, below a prefix of its own name; its manifest goes last.

    So what has a manifest there is whole; a copy that was cut off has none, and is refused by ``fetch``.

    Args:
        directory: The backup.
        url: Where backups are kept, ``s3://bucket/prefix``; the bucket is made if it is not there.
        tell: Called with a part's path and its size in bytes, when it is there.

    Returns:
        The manifest.

    Raises:
        BackupError: It is unfinished, or something of its name is there already.
        StorageError: The store refuses.
    """
    directory = directory.resolve()
    manifest = BackupManifest.read(directory)
    there = _place(directory.name, url)
    there.make()
    if (found := next(there.listing(), None)) is not None:
        raise BackupError(
            f"There is something already: {found}.", where=there.where, remedy="Give the backup another name."
        )
    for part in manifest.parts:
        there.put(part.path, directory / part.path)
        tell(part.path, part.bytes)
    there.put(NAME, directory / NAME)
    return manifest


def fetch(directory: Path, url: str, tell: Tell = lambda _path, _bytes: None) -> BackupManifest:
    """Bring a backup back from an object store and check every byte of it.

    Args:
        directory: What to make; its name is the backup's. Must not exist.
        url: Where backups are kept.
        tell: Called with a part's path and how many of its bytes are done more, checking included.

    Returns:
        The manifest.

    Raises:
        BackupError: There is no whole backup of that name, or the directory exists.
        StorageError: A disk or the store refuses.
    """
    directory = directory.resolve()
    if directory.exists():
        raise BackupError("There is something already.", where=directory, remedy="Choose another place.")
    there = _place(directory.name, url)
    if NAME not in there.listing():
        raise BackupError(
            "There is no finished backup of that name: it has no manifest.",
            where=there.where,
            remedy="Name a finished one.",
        )
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".part", dir=directory.parent))
    except OSError as error:
        raise _refused(error, directory) from error
    try:
        there.fetch(NAME, part / NAME)
        for one in BackupManifest.read(part).parts:
            path = part / one.path
            path.parent.mkdir(parents=True, exist_ok=True)
            there.fetch(one.path, path)
            tell(one.path, one.bytes)
        manifest = verify(part, tell)
        os.rename(part, directory)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise _refused(error, directory) from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return manifest


def _place(name: str, url: str) -> ObjectFiles:
    base, mark, options = url.partition("?")
    return ObjectFiles(name, f"{base.rstrip('/')}/{name}{mark}{options}")


def _refused(error: OSError, directory: Path) -> StorageError:
    return StorageError(
        f"The backup was not fetched: {error.strerror or error}.",
        where=error.filename or directory,
        remedy="Make room there, or choose another place.",
    )
