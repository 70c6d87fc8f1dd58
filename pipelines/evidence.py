"""What the guards of a rollout count, from the rows that its split drew."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trellis.contract import ModelSpec
from trellis.rollout import Exposure, exposures_of
from trellis.rollout.draws import new_draws, one_per_request, unit_exposures
from trellis.rollout.latency import Latencies, latencies_of

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
    failed, answered = (rows[name].to_numpy(dtype=bool) for name in ("failed", "answered"))
    kept = one_per_request([name.rpartition("#")[0] or name for name in rows["id"]], failed, answered)
    kept = kept[np.argsort(rows["revision"].to_numpy()[kept], kind="stable")]  # as they were drawn
    fell = failed | ~answered  # of a request without an answer some rows are lost, whichever version broke
    cached = rows["cached"].notna().to_numpy(dtype=bool) if "cached" in rows else np.zeros(len(rows), dtype=bool)
    spent = rows["latency_ms"].to_numpy(dtype=float) if "latency_ms" in rows else None
    slow = None if spent is None or cached.any() else (spent > spec.gates.max_latency_ms)[kept]
    timed = kept
    if by_unit:
        units = rows["unit"].to_numpy(dtype=str)[kept]
        exposures = unit_exposures(units, share[kept], canary[kept], fell[kept], slow)
        timed = kept[new_draws(units, share[kept], canary[kept])[0]]
    else:
        exposures = exposures_of(share[kept], canary[kept], failed=fell[kept], slow=slow)
    if spent is None or spec.rollout.max_slowdown is None:
        return exposures, None
    timed = timed[(answered & ~cached)[timed]]
    return exposures, latencies_of(np.maximum(spent[timed], _LEAST_MS), canary[timed])
