"""Failed and slow requests of a rollout that splits by a unit (a caller, say): per request, with the units as clusters.

The exact guards count a unit once, so one bad hour that all units share uses them up and leaves nothing to be told by.
Here every request counts, and how far the comparison may be off is taken from whole units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trellis.rollout.stream import LossStream


@dataclass(frozen=True)
class UnitCounts:
    """Requests of a split by unit, as running sums over units.

    Attributes:
        canary, champion: Units that were ever drawn for each; one that changed sides is of both, and none counts twice.
        failures: Failed requests as losses of 0 and 1, all requests of a unit being one draw.
        slowness: Slow ones likewise; None where slow answers are not counted.
    """

    canary: int
    champion: int
    failures: LossStream
    slowness: LossStream | None = None


def count_units(
    unit: ArrayLike, share: NDArray[Any], canary: NDArray[Any], failed: NDArray[Any], slow: NDArray[Any] | None
) -> UnitCounts:
    """Count requests by variant, with their units as clusters.

    Args:
        unit: Unit of every request, ``(n,)``, in the order in which they were drawn.
        share: The canary's share at that time, ``(n,)``.
        canary: Whether the canary was drawn, ``(n,)``.
        failed: Whether the variant drawn failed on the request, ``(n,)``.
        slow: Whether the answer was slower than the agreed limit, ``(n,)``; None where that is not counted.
    """
    names, arm = np.asarray(unit, dtype=str), np.asarray(canary, dtype=bool)

    def stream(event: NDArray[Any]) -> LossStream:
        return LossStream().update(arm, np.asarray(event, dtype=np.float64), share, unit=names)

    sides = (len(np.unique(names[side])) for side in (arm, ~arm))
    return UnitCounts(next(sides), next(sides), stream(failed), None if slow is None else stream(slow))
