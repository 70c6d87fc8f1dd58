"""Embedded: a directory that scores by itself, with no Trellis, no server and no feature store.

``model.onnx`` and ``manifest.json`` as they were sealed, ``schema.json`` with the declared fields, ``score_fields.py``,
which turns a row into the graph's inputs, ``score.py``, which runs it and needs onnxruntime and numpy alone, and
``SHA256SUMS`` over them all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from trellis.adapters.signing import verify_artifact
from trellis.artifact import MANIFEST, ONNX_MODEL, Manifest
from trellis.contract import Field, ModelSpec
from trellis.errors import ArtifactError, StorageError

# As they are here, and as they are called there.
_RUNNER = {"score_lines.py": "score.py", "score_fields.py": "score_fields.py"}


def export_model(
    spec: ModelSpec,
    artifact: Path,
    directory: Path,
    *,
    version: str,
    digest: str | None = None,
    key: Path | None = None,
) -> Manifest:
    """Write a version as a directory that scores by itself; it appears whole or not at all.

    Args:
        spec: The model's declaration.
        artifact: The version's sealed artifact.
        directory: Where to write; it must not be there yet, or be empty.
        version: The version's name.
        digest: The digest the artifact must have.
        key: The public key it must be signed for; None takes unsigned ones.

    Raises:
        ArtifactError: The artifact is another model's, is not what was sealed, or has no ONNX graph.
        SignatureError: There is a key, and the artifact is not signed by it.
        StorageError: The directory holds something, or the disk refuses.
    """
    manifest = verify_artifact(artifact, digest, key)
    if manifest.model != spec.name:
        raise ArtifactError(f"The artifact is of {manifest.model!r}, not of {spec.name!r}.", where=artifact)
    if ONNX_MODEL not in manifest.files:
        raise ArtifactError(
            f"Version {version} of {spec.name!r} has no ONNX graph, so it cannot leave the platform.",
            where=artifact,
            remedy="Let its predictor implement ExportsOnnx and train it again.",
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise StorageError("The directory is not empty.", where=directory, remedy="Give another one.")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as made:
            whole = Path(made) / "export"
            whole.mkdir()
            shutil.copyfile(artifact / ONNX_MODEL, whole / ONNX_MODEL)
            shutil.copyfile(artifact / MANIFEST, whole / MANIFEST)
            for ours, theirs in _RUNNER.items():
                shutil.copyfile(Path(__file__).with_name(ours), whole / theirs)
            (whole / "schema.json").write_text(json.dumps(_schema(spec, version, manifest), indent=1) + "\n")
            sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(whole.iterdir())}
            (whole / "SHA256SUMS").write_text("".join(f"{value}  {name}\n" for name, value in sums.items()))
            os.replace(whole, directory)
    except OSError as error:
        raise StorageError(
            f"The export could not be written: {error.strerror or error}.",
            where=directory,
            remedy="Free disk space or give another directory.",
        ) from error
    return manifest


def _schema(spec: ModelSpec, version: str, manifest: Manifest) -> dict[str, Any]:
    features = {f.name for f in spec.features}
    return {
        "model": spec.name,
        "version": version,
        "digest": manifest.digest,
        "description": spec.description,
        "target": {"name": spec.target.name, "classes": list(spec.target.classes)},
        # Features come with the row here; null says that one is known to be missing, as in a request.
        "fields": [
            {
                **_field(field),
                "nullable": field.nullable or field.name in features,
                "required": field.name in features or not field.nullable,
            }
            for field in spec.fields.values()
        ],
        "outputs": [_field(field) for field in spec.outputs],
    }


def _field(field: Field) -> dict[str, Any]:
    return {
        "name": field.name,
        "kind": field.kind,
        "description": field.description,
        "minimum": field.minimum,
        "maximum": field.maximum,
        "choices": list(field.choices) if field.choices is not None else None,
        "max_length": field.max_length,
        "shape": list(field.shape),
    }
