"""``trellis rollout shadow``: what a shadow would have answered beside what was answered, on the same rows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from trellis.contract import ModelSpec
from trellis.errors import RolloutError
from trellis.rollout.shadow import Interval, compare


def shadow_report(spec: ModelSpec, shadows: pd.DataFrame, predictions: pd.DataFrame, version: str = "") -> Any:
    """Return a shadow's comparison with the champion that it last ran beside.

    Args:
        spec: The model's declaration; its ``segments`` are looked at one by one.
        shadows: As ``read_shadows`` returns.
        predictions: As ``read_predictions`` returns; they know the rows' segments.
        version: The shadow; the one that scored last if empty.

    Returns:
        ``version``, ``primary``, ``rows``, ``failed``, ``comparisons`` (segment, share of rows that are decided
        otherwise, and mean of shadow less primary, each with bounds that hold at every look), ``latency_ms`` and
        ``memory_mb`` (what loading the version took in the shadows' process; None where it was not noted).

    Raises:
        RolloutError: There is no such shadow.
    """
    found = shadows[shadows["version"] == version] if version else shadows
    if found.empty:
        what = f"Version {version} of {spec.name!r} has" if version else f"No version of {spec.name!r} has"
        raise RolloutError(
            f"{what} not scored in the shadow yet.", remedy="Start a rollout of a model whose policy has a shadow_rate."
        )
    last = found.iloc[-1]
    rows = found[(found["version"] == last["version"]) & (found["primary_version"] == last["primary_version"])]
    ours, theirs = f"outputs.{spec.score.name}", f"primary.{spec.score.name}"
    good = rows[rows["error"].isna() & (rows[ours].notna() if ours in rows else False)].reset_index(drop=True)
    made = []
    if len(good):
        pair = np.stack(good[theirs].map(np.asarray).tolist()), np.stack(good[ours].map(np.asarray).tolist())
        made = list(compare(spec.task, *pair))
        known = predictions.drop_duplicates("id").set_index("id").reindex(good["id"])
        for name in spec.segments:
            column = next((c for c in (f"request.{name}", f"features.{name}") if c in known), None)
            if column is not None:
                values = known[column].astype(object).where(known[column].notna(), "(missing)").astype(str)
                labels = np.array([f"{name}={value}" for value in values])
                # All segments of all columns are looked at together.
                made += compare(spec.task, *pair, labels, alpha=0.05 / len(spec.segments))[1:]
    return {
        "version": str(last["version"]),
        "primary": str(last["primary_version"]),
        "rows": len(good),
        "failed": len(rows) - len(good),
        "comparisons": [asdict(one) for one in made],
        "latency_ms": {
            "primary_answering": _quantiles(good, "primary_latency_ms"),
            "shadow_scoring": _quantiles(good, "score_ms"),
        },
        "memory_mb": float(good["memory_mb"].max())
        if "memory_mb" in good and good["memory_mb"].notna().any()
        else None,
    }


def _quantiles(rows: pd.DataFrame, name: str) -> dict[str, float] | None:
    values = rows[name].dropna().to_numpy(dtype=float) if name in rows else np.empty(0)
    if not len(values):
        return None
    return {f"p{level}": round(float(np.quantile(values, level / 100)), 3) for level in (50, 95, 99)}


def interval_text(found: dict[str, Any], form: str) -> str:
    """Return an interval as a person reads it."""
    one = Interval(**found)
    return f"{one.mean:{form}} ({one.lower:{form}} to {one.upper:{form}})"
