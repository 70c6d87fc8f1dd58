"""A model's artifact: the files a plug-in wrote, and the manifest that seals them.

Formats are an allow-list owned by the platform, and a file's content must match its suffix; what an artifact says about
itself never widens the list. The manifest carries no time and no machine, so the same training gives the same digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickletools
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import trellis
from trellis.decision import dumps
from trellis.errors import ArtifactError, DigestMismatchError, UnsafeFormatError

MANIFEST = "manifest.json"
SIGNATURE = "model.sig"  # over all the rest, the manifest included
ONNX_MODEL = "model.onnx"
FORMAT = 1

# Suffix -> what it is. None of these can carry code that runs when it is read.
SAFE_FORMATS: Mapping[str, str] = {
    ".onnx": "ONNX graph",
    ".safetensors": "safetensors weights",
    ".json": "JSON",
    ".ubj": "universal binary JSON (XGBoost)",
    ".parquet": "Parquet table",
    ".skops": "skops archive of trusted types",
    ".csv": "table as text",
    ".txt": "text",
    ".md": "text",
}

# Zip, gzip, bzip2, xz, zlib: what pickles are packed in.
_ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x78\x01", b"\x78\x9c", b"\x78\xda")
_IMPORTS = frozenset({"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"})

# Types a skops archive may name, beside numpy's and scipy's arrays and plain Python values.
TRUSTED_SKOPS_MODULES = ("numpy", "scipy.sparse", "sklearn", "builtins", "collections")


@dataclass(frozen=True)
class Manifest:
    """What is in an artifact.

    Attributes:
        model: The model's name.
        plugin_version, platform_version: Whose code wrote it.
        recipe, seed: How it was trained.
        inputs, outputs: Column names, in order.
        files: Name, relative to the directory, to ``{"sha256": …, "bytes": …}``.
        digest: SHA-256 over all of the above.
    """

    model: str
    plugin_version: str
    platform_version: str
    recipe: str
    seed: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    files: Mapping[str, Mapping[str, str | int]]
    digest: str = ""
    format: int = FORMAT

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(int(entry["bytes"]) for entry in self.files.values())


def seal(
    directory: Path,
    *,
    model: str,
    plugin_version: str,
    recipe: str,
    seed: int,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
) -> Manifest:
    """Check every file of ``directory`` and write its manifest.

    Raises:
        ArtifactError: The directory is empty.
        UnsafeFormatError: A file is not of an allowed format.
    """
    files = _inspect(directory)
    if not files:
        raise ArtifactError(
            f"The artifact of {model!r} is empty.", where=directory, remedy="Write the model's files in Predictor.save."
        )
    unsealed = Manifest(model, plugin_version, trellis.__version__, recipe, seed, inputs, outputs, files)
    manifest = Manifest(**{**asdict(unsealed), "digest": _digest(unsealed), "inputs": inputs, "outputs": outputs})
    partial = directory / f".{MANIFEST}.partial"
    partial.write_text(json.dumps(asdict(manifest), indent=2, sort_keys=True) + "\n")
    os.replace(partial, directory / MANIFEST)
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """Read a manifest without checking the files.

    Raises:
        ArtifactError: There is none, or it cannot be read.
    """
    path = directory / MANIFEST
    try:
        data = json.loads(path.read_text())
        return Manifest(**{**data, "inputs": tuple(data["inputs"]), "outputs": tuple(data["outputs"])})
    except FileNotFoundError:
        raise ArtifactError(
            "An artifact has no manifest.", where=path, remedy="Register the version again; its files are incomplete."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"A manifest cannot be read: {error}.", where=path, remedy="Register the version again."
        ) from error


def verify(directory: Path, digest: str | None = None) -> Manifest:
    """Check that an artifact is the one that was sealed, and safe to load.

    Args:
        directory: Where the files are.
        digest: The digest that the caller was promised, for example by the rollout plan.

    Raises:
        ArtifactError: There is no readable manifest.
        DigestMismatchError: A file was changed, added or lost, or the artifact is another one.
        UnsafeFormatError: A file is not of an allowed format.
    """
    manifest = read_manifest(directory)
    remedy = "Do not serve it; register the version again from its training run."
    if manifest.digest != _digest(manifest):
        raise DigestMismatchError(
            "A manifest was changed after it was sealed.", where=directory / MANIFEST, remedy=remedy
        )
    if digest is not None and digest != manifest.digest:
        raise DigestMismatchError(
            f"The artifact is {manifest.digest[:12]}, not {digest[:12]}.", where=directory, remedy=remedy
        )
    found = _inspect(directory)
    wrong = sorted(
        name for name in {*found, *manifest.files} if dict(found.get(name, {})) != dict(manifest.files.get(name, {}))
    )
    if wrong:
        raise DigestMismatchError(
            f"Files differ from the manifest: {', '.join(wrong)}.", where=directory, remedy=remedy
        )
    return manifest


def _digest(manifest: Manifest) -> str:
    content = {key: value for key, value in asdict(manifest).items() if key != "digest"}
    return hashlib.sha256(dumps(content).encode()).hexdigest()


def _inspect(directory: Path) -> dict[str, dict[str, str | int]]:
    files: dict[str, dict[str, str | int]] = {}
    for path in sorted(p for p in directory.rglob("*") if not p.is_dir()):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            raise UnsafeFormatError(f"{name} is a link.", where=directory, remedy="Write the file itself.")
        if name in (MANIFEST, SIGNATURE):
            continue
        _require_safe(path, name)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        files[name] = {"sha256": sha256, "bytes": path.stat().st_size}
    return files


def _require_safe(path: Path, name: str) -> None:
    """Refuse a file by its suffix, and by a content that the suffix does not admit."""
    if path.suffix not in SAFE_FORMATS:
        raise UnsafeFormatError(
            f"{name} has a format that is not allowed.",
            where=path,
            remedy=f"Write one of {', '.join(SAFE_FORMATS)}; pickles and archives of code are never loaded.",
        )
    with path.open("rb") as file:
        head = file.read(16)
        file.seek(0)
        binary = head[:1] == b"\x80" and head[1:2] <= b"\x05" and path.suffix != ".safetensors"
        what = "a pickle" if binary or _is_pickle(file) else None
    if head.startswith(_ARCHIVES) and path.suffix not in (".skops", ".safetensors"):
        what = "an archive"
    if what is not None:
        raise UnsafeFormatError(f"{name} is {what} under another name.", where=path, remedy="Write a safe format.")
    if not _begins_as(path.suffix, head, path.stat().st_size):
        raise UnsafeFormatError(
            f"{name} is no {SAFE_FORMATS[path.suffix]}.", where=path, remedy="Save it again, or name it what it is."
        )
    if path.suffix == ".skops":
        _require_trusted_skops(path, name)


def _is_pickle(file: IO[bytes]) -> bool:
    """Tell whether bytes are a pickle, of any protocol, that names something to import; nothing of it is run."""
    imports = False
    try:
        for opcode, _, _ in pickletools.genops(file):
            imports = imports or opcode.name in _IMPORTS
    except Exception:  # the first thing that is no pickle's ends it, in whatever way the disassembler stumbles
        return False
    return imports


def _begins_as(suffix: str, head: bytes, size: int) -> bool:
    """Tell whether a file begins as its suffix says; what is behind is its reader's to check."""
    match suffix:
        case ".onnx":
            return head.startswith(b"\x08")  # the first field of a ModelProto, its version
        case ".safetensors":
            return int.from_bytes(head[:8], "little") <= size - 8 and head[8:9] == b"{"
        case ".ubj":
            return head.startswith(b"{")
        case ".parquet":
            return head.startswith(b"PAR1")
        case ".skops":
            return head.startswith(b"PK\x03\x04")
        case ".json":
            return head.lstrip()[:1] in (b"{", b"[", b'"', b"-", b"t", b"f", b"n", *(b"%d" % n for n in range(10)))
    return b"\0" not in head


def _require_trusted_skops(path: Path, name: str) -> None:
    """Refuse a skops archive that names a type outside the platform's list, whatever list it brings itself."""
    try:
        with zipfile.ZipFile(path) as archive:
            schema = json.loads(archive.read("schema.json"))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UnsafeFormatError(f"{name} is no skops archive: {error}.", where=path, remedy="Save it again.") from error
    untrusted = sorted(t for t in _skops_types(schema) if not _trusted(t))
    if untrusted:
        raise UnsafeFormatError(
            f"{name} names types that the platform does not trust: {', '.join(untrusted)}.",
            where=path,
            remedy="Use estimators of scikit-learn, or export to ONNX.",
        )


def _trusted(qualified: str) -> bool:
    return any(qualified == m or qualified.startswith(m + ".") for m in TRUSTED_SKOPS_MODULES) and (
        # Functions and bound methods can be any callable of a trusted module, eval among them.
        not qualified.startswith("builtins.")
        or qualified.removeprefix("builtins.")
        in {"dict", "list", "tuple", "set", "str", "int", "float", "bool", "type", "NoneType", "slice"}
    )


def _skops_types(node: object) -> set[str]:
    found: set[str] = set()
    if isinstance(node, dict):
        if "__class__" in node and "__module__" in node:
            found.add(f"{node['__module__']}.{node['__class__']}")
        for value in node.values():
            found |= _skops_types(value)
    elif isinstance(node, list):
        for value in node:
            found |= _skops_types(value)
    return found
