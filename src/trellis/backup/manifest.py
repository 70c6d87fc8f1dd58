"""What a backup holds: one line per part with its digest, and a seal over all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from trellis.errors import BackupError

NAME = "manifest.json"
FORMAT = 1
CHUNK = 1 << 20

Tell = Callable[[str, int], None]  # a part's path, and how many of its bytes are done more


@dataclass(frozen=True)
class Part:
    """One file of a backup.

    Attributes:
        path: Relative to the backup, ``/``-separated: ``home/…``, ``databases/NAME.dump``, ``objects/NAME/…``.
        bytes: Its size.
        sha256: Of its content, hexadecimal.
    """

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class BackupManifest:
    """Everything about a backup but its bytes.

    Attributes:
        made_at: When it was begun, RFC 3339 in UTC.
        platform: Trellis's version.
        home: The home it was made from, absolute. Registry and plans hold paths below it.
        parts: Every file, by path.
        format: Of this manifest.
    """

    made_at: str
    platform: str
    home: str
    parts: tuple[Part, ...]
    format: int = FORMAT

    def below(self, folder: str) -> Iterator[tuple[Part, PurePosixPath]]:
        """Yield the parts in a folder of the backup, each with its path inside that folder."""
        for part in self.parts:
            path = PurePosixPath(part.path)
            if path.is_relative_to(folder):
                yield part, path.relative_to(folder)

    @property
    def databases(self) -> tuple[str, ...]:
        """Names of the dumped databases."""
        return tuple(path.stem for _, path in self.below("databases"))

    @property
    def stores(self) -> tuple[str, ...]:
        """Names of the object stores of which something was kept."""
        return tuple(sorted({path.parts[0] for _, path in self.below("objects")}))

    @property
    def bytes(self) -> int:
        """Size of all parts."""
        return sum(part.bytes for part in self.parts)

    def write(self, directory: Path) -> None:
        """Write it into a backup, sealed."""
        body = asdict(self)
        text = json.dumps({**body, "seal": _seal(body)}, indent=1, sort_keys=True)
        (directory / NAME).write_text(text)

    @classmethod
    def read(cls, directory: Path) -> BackupManifest:
        """Read a backup's manifest and check its seal.

        Raises:
            BackupError: There is none, or it is damaged, or of a later format.
        """
        path = directory / NAME
        try:
            body: dict[str, Any] = json.loads(path.read_text())
            seal = body.pop("seal")
            whole = seal == _seal(body)
        except FileNotFoundError:
            raise BackupError(
                "This is no finished backup: it has no manifest.", where=directory, remedy="Name a finished one."
            ) from None
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise BackupError("The manifest cannot be read.", where=path, remedy="Use another backup.") from error
        if not whole:
            raise BackupError("The manifest is not the one that was sealed.", where=path, remedy="Use another backup.")
        if body["format"] != FORMAT:
            raise BackupError(
                f"The backup's format is {body['format']}, this version reads {FORMAT}.",
                where=path,
                remedy=f"Restore it with Trellis {body['platform']} and upgrade afterwards.",
            )
        parts = tuple(Part(**part) for part in body["parts"])
        for part in parts:
            if not safe(part.path):
                raise BackupError(f"{part.path!r} leads out of the backup.", where=path, remedy="Use another backup.")
        return cls(**{**body, "parts": parts})


def verify(directory: Path, tell: Tell = lambda _path, _bytes: None) -> BackupManifest:
    """Read every byte of a backup and compare it with the manifest.

    Args:
        directory: The backup.
        tell: Called with every part's path and bytes read.

    Raises:
        BackupError: It is unfinished, or a part is missing, changed or not listed.
    """
    manifest = BackupManifest.read(directory)
    listed = {part.path for part in manifest.parts} | {NAME}
    found = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}
    for names, what in ((listed - found, "is missing"), (found - listed, "is not in the manifest")):
        if names:
            raise BackupError(f"{min(names)} {what}.", where=directory, remedy="Use another backup.")
    for part in manifest.parts:
        digest = hashlib.sha256()
        with (directory / part.path).open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                tell(part.path, len(chunk))
        if digest.hexdigest() != part.sha256:
            raise BackupError(
                f"{part.path} is not what was saved: its digest differs.", where=directory, remedy="Use another backup."
            )
    return manifest


def safe(path: str) -> bool:
    """Tell whether a relative path stays below its root wherever it is joined."""
    parts = path.split("/")
    return not any(part in ("", ".", "..") for part in parts) and "\0" not in path and "\\" not in path


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
