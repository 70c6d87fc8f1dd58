"""Loading a sealed artifact for scoring: through ONNX Runtime where the model exports it, else by its plug-in."""

from __future__ import annotations

from pathlib import Path

from trellis.adapters.signing import verify_artifact
from trellis.artifact import ONNX_MODEL
from trellis.contract import ModelPlugin, Predictor
from trellis.ensemble import load_artifact
from trellis.errors import ArtifactError


def load_predictor(
    plugin: ModelPlugin, directory: Path, digest: str | None = None, key: Path | None = None
) -> tuple[Predictor, str]:
    """Check an artifact and load it the way it will be served.

    Args:
        plugin: The model's plug-in.
        directory: The artifact.
        digest: The digest it must have; None takes the manifest's word.
        key: The public key it must be signed for; None takes unsigned ones.

    Returns:
        The predictor, and ``onnx`` or ``python``.

    Raises:
        ArtifactError: It is another model's, or not what was sealed (see ``verify_artifact``).
        SignatureError: There is a key, and the artifact is not signed by it.
    """
    manifest = verify_artifact(directory, digest, key)
    if manifest.model != plugin.spec.name:
        raise ArtifactError(f"The artifact is of {manifest.model!r}, not of {plugin.spec.name!r}.", where=directory)
    if ONNX_MODEL in manifest.files:
        from trellis.adapters.onnx_predictor import OnnxPredictor

        return OnnxPredictor(directory / ONNX_MODEL), "onnx"
    return load_artifact(plugin, directory), "python"
