"""Which rows of the log are draws of the split: independent of each other, each with a known share.

A row is one where every row is drawn by itself. Two things break that. Rows of one request succeed or fail together,
and rows of one unit (a caller, say) are all on the variant that the unit was drawn for. Counted as if they were
independent, one odd request of a thousand rows, or one busy caller, would decide a rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trellis.rollout.guards import Exposure, exposures_of


def one_per_request(request: Sequence[str], failed: NDArray[Any], answered: NDArray[Any]) -> NDArray[np.intp]:
    """Return the row that stands for each request: the first that failed where it was answered, else its first.

    Where versions are alike, that row's variant is a draw with the split's share, whether the request fails or not.
    Where it was answered, every version that could fail on its rows did, and the first of these rows was drawn like any
    other. Where it was not, it failed as a whole, however the rows were split, so that any fixed row stands for it.

    Args:
        request: Name of the request of every row, ``(n,)``, the rows of each in their order.
        failed: Whether the variant drawn failed on the row, ``(n,)``.
        answered: Whether the row was answered in the end, ``(n,)``.

    Returns:
        Indices of rows, rising.
    """
    _, first, code = np.unique(np.asarray(request, dtype=str), return_index=True, return_inverse=True)
    telling = np.flatnonzero(np.asarray(failed, dtype=bool) & np.asarray(answered, dtype=bool))
    which, where = np.unique(code[telling], return_index=True)
    first[which] = telling[where]
    return np.sort(first)


def new_draws(unit: Sequence[str], share: NDArray[Any], canary: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Return the rows in which a unit was drawn anew, and the canary's share of that draw.

    A unit is drawn when it is first seen. When the share has grown from ``a`` to ``b``, one that was the champion's is
    drawn again: it has become the canary's with probability ``(b - a) / (1 - a)``. One that is the canary's stays.

    Args:
        unit: Unit of every row, ``(n,)``, in the order in which the rows were drawn.
        share: The canary's share at that time, ``(n,)``.
        canary: Whether the canary was drawn, ``(n,)``.

    Returns:
        Indices of rows, rising, and the shares of their draws.
    """
    rows = pd.DataFrame({"unit": np.asarray(unit, dtype=str), "share": share, "canary": np.asarray(canary, dtype=bool)})
    units = rows.groupby("unit", sort=False)
    highest = rows["share"].groupby(rows["unit"], sort=False).cummax()
    before = highest.groupby(rows["unit"], sort=False).shift(fill_value=0.0).to_numpy(dtype=np.float64)
    was_canary = units["canary"].cummax().groupby(rows["unit"], sort=False).shift(fill_value=False).to_numpy(dtype=bool)
    first = units.cumcount().to_numpy() == 0
    now = rows["share"].to_numpy(dtype=np.float64)
    drawn = np.flatnonzero(first | (~was_canary & (now > before)))
    return drawn, (now[drawn] - before[drawn]) / (1 - before[drawn])


def unit_exposures(
    unit: Sequence[str], share: NDArray[Any], canary: NDArray[Any], failed: NDArray[Any], slow: NDArray[Any] | None
) -> tuple[Exposure, ...]:
    """Count units: each at its draws, as slow if the answer was, and as failed once at the first of its failures.

    Where versions are alike, whether and when a unit first fails does not depend on the variant that it was drawn for.

    Args:
        unit: Unit of every row, ``(n,)``, in the order in which the rows were drawn.
        share: The canary's share at that time, ``(n,)``.
        canary: Whether the canary was drawn, ``(n,)``.
        failed: Whether the variant drawn failed on the row, ``(n,)``.
        slow: Whether the answer was slower than the agreed limit, ``(n,)``; None where that is not counted.
    """
    drawn, chance = new_draws(unit, share, canary)
    arm = np.asarray(canary, dtype=bool)
    asked = exposures_of(chance, arm[drawn], slow=None if slow is None else slow[drawn])
    rows = np.flatnonzero(failed)
    _, at = np.unique(np.asarray(unit, dtype=str)[rows], return_index=True)
    fell = rows[np.sort(at)]
    events = exposures_of(share[fell], arm[fell], failed=np.ones(len(fell), dtype=bool))
    return (*asked, *(Exposure(e.share, 0, 0, e.canary_errors, e.champion_errors) for e in events))
