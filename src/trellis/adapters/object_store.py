"""Artifacts in an S3-compatible object store, over pyarrow: fetched once into a local directory, and small documents.

Credentials and address come from where every S3 client looks: ``AWS_ENDPOINT_URL``, ``AWS_SHARED_CREDENTIALS_FILE`` (or
a role of the machine's), ``AWS_DEFAULT_REGION``. A path is handed on as it is, so callers need not know which it was.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from trellis.errors import ArtifactError, StorageError

SCHEME = "s3://"
_CONNECT_SECONDS, _REQUEST_SECONDS = 5.0, 60.0


def is_remote(location: str) -> bool:
    """Tell whether a location is in an object store."""
    return location.startswith(SCHEME)


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
    if not is_remote(location):
        return Path(location)
    copy = home / "artifacts" / digest
    if copy.is_dir():
        return copy
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=copy.parent))
    except OSError as error:
        raise _refused(str(copy), error, "Free disk space.") from error
    try:
        _download(location, partial)
        if not copy.is_dir():  # else another process was faster, with the same files
            os.replace(partial, copy)
        return copy
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_text(location: str) -> str:
    """Return a document's text.

    Raises:
        FileNotFoundError: There is none.
        StorageError: The store does not answer or refuses.
    """
    if not is_remote(location):
        return Path(location).read_text()
    try:
        with _store().open_input_stream(location.removeprefix(SCHEME)) as stream:
            return str(stream.read().decode())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _refused(location, error) from error


def make_bucket(name: str) -> None:
    """Make a bucket, if it is not there.

    Raises:
        StorageError: The store does not answer or refuses.
    """
    try:
        _store().create_dir(name)
    except OSError as error:
        raise _refused(SCHEME + name, error) from error


def _download(location: str, target: Path) -> None:
    from pyarrow.fs import FileSelector, FileType

    store, root = _store(), location.removeprefix(SCHEME).rstrip("/")
    try:
        for found in store.get_file_info(FileSelector(root, recursive=True)):
            if found.type != FileType.File:
                continue
            path = target / found.path.removeprefix(root + "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            with store.open_input_stream(found.path) as source, path.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
    except FileNotFoundError:
        raise ArtifactError(
            "The object store has no such artifact.", where=location, remedy="Register the version again."
        ) from None
    except OSError as error:
        raise _refused(location, error) from error


@cache
def _store() -> Any:
    from pyarrow.fs import S3FileSystem

    return S3FileSystem(
        region=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
        endpoint_override=os.environ.get("AWS_ENDPOINT_URL"),
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_REQUEST_SECONDS,
        allow_bucket_creation=True,
    )


def _refused(
    where: str,
    error: OSError,
    remedy: str = "Check AWS_ENDPOINT_URL and the credentials (AWS_SHARED_CREDENTIALS_FILE), and that the store is up.",
) -> StorageError:
    why = str(error.strerror or error).splitlines()[0]
    return StorageError(f"An artifact could not be read or written: {why}.", where=where, remedy=remedy)
