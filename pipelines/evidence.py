"""What the guards of a rollout count, from the rows that its split drew."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trellis.contract import ModelSpec
from trellis.rollout import Exposure, exposures_of
from trellis.rollout.draws import new_draws, one_per_request, unit_exposures
from trellis.rollout.latency import Latencies, latencies_of
from trellis.rollout.units import UnitCounts, count_units

_LEAST_MS = 1e-3


def guard_counts(
    spec: ModelSpec, rows: pd.DataFrame, share: NDArray[np.float64], canary: NDArray[np.bool_], *, by_unit: bool
) -> tuple[tuple[Exposure, ...], Latencies | None]:
    """Count requests, failures and slow answers by variant, and the latencies if the policy asks for them.

    Answers from the cache were not computed, and the variant with more traffic finds more of them. So they have no part
    in the latencies, and where there are any the fixed limit is not asked: nobody knows the split of what remains.

    Args:
        spec: The model's declaration.
        rows: What ``read_assigned`` gives.
        share: The canary's share for each row, ``(n,)``.
        canary: Whether the canary was drawn, ``(n,)``.
        by_unit: Whether the split draws units and not rows.
    """
    if not len(rows):
        return (), None
    kept, fell, slow = _requests(spec, rows)
    timed = kept
    if by_unit:
        units = rows["unit"].to_numpy(dtype=str)[kept]
        exposures = unit_exposures(units, share[kept], canary[kept], fell, slow)
        timed = kept[new_draws(units, share[kept], canary[kept])[0]]
    else:
        exposures = exposures_of(share[kept], canary[kept], failed=fell, slow=slow)
    if "latency_ms" not in rows or spec.rollout.max_slowdown is None:
        return exposures, None
    timed = timed[(rows["answered"].to_numpy(dtype=bool) & ~_cached(rows))[timed]]
    spent = rows["latency_ms"].to_numpy(dtype=float)[timed]
    return exposures, latencies_of(np.maximum(spent, _LEAST_MS), canary[timed])


def unit_counts(
    spec: ModelSpec, rows: pd.DataFrame, share: NDArray[np.float64], canary: NDArray[np.bool_]
) -> UnitCounts | None:
    """Count the same requests where the split draws units, with these as clusters; None without a row.

    Args:
        spec: The model's declaration.
        rows: What ``read_assigned`` gives.
        share: The canary's share for each row, ``(n,)``.
        canary: Whether the canary was drawn, ``(n,)``.
    """
    if not len(rows):
        return None
    kept, fell, slow = _requests(spec, rows)
    return count_units(rows["unit"].to_numpy(dtype=str)[kept], share[kept], canary[kept], fell, slow)


def _requests(
    spec: ModelSpec, rows: pd.DataFrame
) -> tuple[NDArray[np.intp], NDArray[np.bool_], NDArray[np.bool_] | None]:
    """Return the row that stands for each request, as they were drawn, whether it failed, and whether it was slow."""
    failed, answered = (rows[name].to_numpy(dtype=bool) for name in ("failed", "answered"))
    kept = one_per_request([name.rpartition("#")[0] or name for name in rows["id"]], failed, answered)
    kept = kept[np.argsort(rows["revision"].to_numpy()[kept], kind="stable")]
    fell = failed | ~answered  # of a request without an answer some rows are lost, whichever version broke
    if "latency_ms" not in rows or _cached(rows).any():
        return kept, fell[kept], None
    return kept, fell[kept], (rows["latency_ms"].to_numpy(dtype=float) > spec.gates.max_latency_ms)[kept]


def _cached(rows: pd.DataFrame) -> NDArray[np.bool_]:
    return rows["cached"].notna().to_numpy(dtype=bool) if "cached" in rows else np.zeros(len(rows), dtype=bool)
