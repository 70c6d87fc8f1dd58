"""Objects below one place of an object store, as files: S3, or a directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from pyarrow import ArrowInvalid, fs

from trellis.errors import ConfigError, StorageError


@dataclass(frozen=True)
class ObjectFiles:
    """A place in an object store.

    Attributes:
        name: What a backup calls it.
        url: ``s3://bucket/prefix``, or ``file:///directory``. Address and credentials come from where every S3 client
            looks: ``AWS_ENDPOINT_URL``, ``AWS_DEFAULT_REGION``, ``AWS_SHARED_CREDENTIALS_FILE``; the address may also
            be in the URL, ``?endpoint_override=host:port&scheme=http``.
    """

    name: str
    url: str = field(repr=False)

    @property
    def where(self) -> str:
        """The URL without credentials and options."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def listing(self) -> Iterator[str]:
        """Yield every object's key below the place, sorted.

        Raises:
            ConfigError: The URL is none of an object store.
            StorageError: The store does not answer.
        """
        store, root = self._opened
        with self._guarded():
            found = store.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=True))
        yield from sorted(one.path[len(root) :].lstrip("/") for one in found if one.type == fs.FileType.File)

    def fetch(self, key: str, path: Path) -> None:
        """Write an object's bytes to a new file.

        Raises:
            StorageError: The store does not answer, or has no such object.
        """
        store, root = self._opened
        with self._guarded(), store.open_input_stream(f"{root}/{key}") as reading, path.open("xb") as writing:
            shutil.copyfileobj(reading, writing, 1 << 20)

    def put(self, key: str, path: Path) -> None:
        """Make an object of a file.

        Raises:
            StorageError: The store refuses, or keeps something else.
        """
        store, root = self._opened
        target = f"{root}/{key}"
        with self._guarded(), path.open("rb") as reading:
            if isinstance(store, fs.LocalFileSystem):
                store.create_dir(target.rpartition("/")[0], recursive=True)
            with store.open_output_stream(target) as writing:
                shutil.copyfileobj(reading, writing, 1 << 20)
            kept = store.get_file_info(target).size
        if kept != path.stat().st_size:
            raise StorageError(
                f"The object store {self.name!r} kept {kept} bytes of {key}, of {path.stat().st_size}.",
                where=self.where,
                remedy="It may not know checksums in trailers: set AWS_REQUEST_CHECKSUM_CALCULATION=when_required.",
            )

    def make(self) -> None:
        """Make the place, its bucket included, if it is not there.

        Raises:
            ConfigError: The URL is none of an object store.
            StorageError: The store does not answer, or refuses.
        """
        store, root = self._opened
        with self._guarded():
            store.create_dir(root, recursive=True)

    @cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        try:
            store, root = fs.FileSystem.from_uri(self.url)
            if isinstance(store, fs.S3FileSystem) and "endpoint_override" not in self.url:
                store = fs.S3FileSystem(
                    region=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
                    endpoint_override=os.environ.get("AWS_ENDPOINT_URL"),
                    connect_timeout=5,
                    request_timeout=60,
                    allow_bucket_creation=True,
                )
        except ArrowInvalid as error:
            raise ConfigError(
                f"The place of {self.name!r} is no object store's.",
                where=self.where,
                remedy="Write s3://bucket/prefix.",
            ) from error
        return store, root.rstrip("/")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"The object store {self.name!r} refuses: {error}.",
                where=self.where,
                remedy="Check its address, the credentials and that the bucket is there.",
            ) from error
