"""A version, ready to score: verified, loaded and warmed, and every call of it held to the contract."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.prediction.errors import VersionError
from trellis.adapters.remote_artifacts import local_artifact
from trellis.adapters.signing import verify_artifact
from trellis.artifact import ONNX_MODEL
from trellis.contract import Batch, Field, ModelPlugin, ModelSpec, Predictor, row_count, select
from trellis.ensemble import load_artifact
from trellis.errors import ArtifactError
from trellis.rollout.plan import Variant

_ROUNDING = 1e-6


@dataclass(frozen=True)
class LoadedVersion:
    """A version ready to score.

    Attributes:
        version, digest: As in the plan.
        predictor: What scores.
        engine: ``onnx`` or ``python``.
        seconds: How long one row took when it was warm.
    """

    version: str
    digest: str
    predictor: Predictor
    engine: str
    seconds: float = float("inf")


def load(
    plugin: ModelPlugin, sample: Batch, variant: Variant, home: Path, verify_key: Path | None = None
) -> LoadedVersion:
    """Verify, load and warm one version, apart from anything that is serving.

    Args:
        plugin: The model's plug-in.
        sample: One row of its inputs, to warm up with.
        variant: Which version.
        home: Trellis's home, where an artifact of an object store is kept.
        verify_key: The public key that the version must be signed for; None takes an unsigned one.

    Raises:
        TrellisError: The files are not what the plan promises, cannot be loaded, or do not score.
    """
    directory = local_artifact(variant.location, variant.digest, home)
    manifest = verify_artifact(directory, variant.digest, verify_key)
    if manifest.model != plugin.spec.name:
        raise ArtifactError(f"The artifact is of {manifest.model!r}, not {plugin.spec.name!r}.", where=directory)
    predictor: Predictor
    if (directory / ONNX_MODEL).exists():
        from trellis.adapters.onnx_predictor import OnnxPredictor

        predictor, engine = OnnxPredictor(directory / ONNX_MODEL), "onnx"
    else:
        predictor, engine = load_artifact(plugin, directory), "python"
    version = LoadedVersion(variant.version, variant.digest, predictor, engine)
    inputs = select(sample, plugin.spec.inputs)
    fastest = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        score(plugin.spec, version, inputs)
        fastest = min(fastest, time.perf_counter() - started)
    return replace(version, seconds=fastest)


def score(spec: ModelSpec, version: LoadedVersion, inputs: Batch) -> dict[str, NDArray[Any]]:
    """Call a predictor and hold it to the contract.

    Raises:
        VersionError: It raised, or its answer lacks an output, has other rows, is not finite or outside its range.
    """
    rows = row_count(inputs)
    where = f"{spec.name} {version.version}"
    try:
        answer = version.predictor.predict(inputs)
        outputs = {f.name: np.asarray(answer[f.name]) for f in spec.outputs}
    except Exception as error:  # an author's code may raise anything
        raise VersionError(f"The predictor raised {type(error).__name__}: {error}.", "raised", where=where) from error
    for declared in spec.outputs:
        values = outputs[declared.name]
        if values.ndim == 2 and not declared.shape and values.shape[1] == 1:
            outputs[declared.name] = values = values[:, 0]
        if values.shape != (rows, *declared.shape):
            what = f"The output {declared.name!r} has shape {values.shape} for {rows} rows."
            raise VersionError(what, "malformed", where=where)
        if values.dtype.kind in "fiu" and (wrong := _out_of_range(declared, values)):
            raise VersionError(f"The output {declared.name!r} {wrong}.", "out_of_range", where=where)
    return outputs


def _out_of_range(declared: Field, values: NDArray[Any]) -> str:
    """Say what is wrong with numbers; empty if nothing is. A bound may be passed by what rounding to 32 bits costs."""
    if values.size == 1:
        least = most = values.item()  # a tenth of what two reductions cost
    else:
        least, most = values.min(), values.max()
    if not (math.isfinite(least) and math.isfinite(most)):
        return "is not finite"
    low, high = declared.minimum, declared.maximum
    if low is not None and least < low - _ROUNDING * max(1.0, abs(low)):
        return f"is {least:.6g}, below the declared minimum {low:g}"
    if high is not None and most > high + _ROUNDING * max(1.0, abs(high)):
        return f"is {most:.6g}, above the declared maximum {high:g}"
    return ""
