"""Artifacts by their location: a path as it is, an object store's fetched once into a directory of the home.

Address and credentials of a store come from where every S3 client looks, see ``trellis.adapters.object_files``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from trellis.adapters.object_files import ObjectFiles
from trellis.errors import ArtifactError, StorageError

_SCHEME = "s3://"
_PARTIAL = ".partial-"
_LEFT_SECONDS = 3600.0  # a fetch that has written nothing for so long was cut short


def local_artifact(location: str, digest: str, home: Path) -> Path:
    """Return a directory with an artifact's files: the location itself, or the store's copy in ``<home>/artifacts``.

    A copy is found by the digest, which never means another content, and appears whole or not at all; whoever loads it
    verifies it as ever.

    Args:
        location: A path, or ``s3://bucket/key``.
        digest: The artifact's digest.
        home: Trellis's home.

    Raises:
        ArtifactError: The store has no such artifact.
        StorageError: The store does not answer or refuses, or the disk does.
    """
    if not location.startswith(_SCHEME):
        return Path(location)
    copy = home / "artifacts" / digest
    if copy.is_dir():
        return copy
    store = ObjectFiles("artifacts", location)
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        _clear(copy.parent)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=copy.parent))
    except OSError as error:
        raise StorageError(
            f"No artifact can be kept: {error.strerror or error}.", where=copy.parent, remedy="Free disk space."
        ) from error
    try:
        names = list(store.listing())
        if not names:
            raise ArtifactError(
                "The object store has no such artifact.", where=store.where, remedy="Register the version again."
            )
        for name in names:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            store.fetch(name, partial / name)
        if not copy.is_dir():  # else another process was faster, with the same files
            os.replace(partial, copy)
        return copy
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _clear(directory: Path) -> None:
    """Remove what fetches that were cut short have left behind; a killed process cannot do so itself."""
    for partial in directory.glob(f"{_PARTIAL}*"):
        with suppress(OSError):  # whoever fetches at the same time may clear it as well
            newest = max(path.stat().st_mtime for path in (partial, *partial.rglob("*")))
            if time.time() - newest > _LEFT_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)


def read_document(location: str) -> str:
    """Return the text of a small file beside an artifact.

    Raises:
        OSError: There is none.
        StorageError: The store does not answer or refuses.
    """
    if not location.startswith(_SCHEME):
        return Path(location).read_text()
    place, _, name = location.rpartition("/")
    with tempfile.TemporaryDirectory() as work:
        path = Path(work, "document")
        store = ObjectFiles("documents", place)
        if name not in store.listing():
            raise FileNotFoundError(2, "it is not there", location)
        store.fetch(name, path)
        return path.read_text()
