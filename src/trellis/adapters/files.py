"""Writing small files so that a reader sees the old one or the new one, never half."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from trellis.errors import StorageError


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content.

    Raises:
        StorageError: The disk refused; the old content stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(
            f"{path.name} could not be written: {error.strerror or error}.", where=path, remedy="Free disk space."
        ) from error
