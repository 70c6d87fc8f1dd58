"""Streaming drift detectors through river: when, row by row, a stream of losses changed.

They know no false-alarm budget, so they date and corroborate a change and never raise an alarm by themselves (see
``trellis.drift.DriftInputs.streams``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import drift
from river.drift import binary

# Averages of so many rows: KSWIN tests at every value and costs a millisecond each.
_KSWIN_BLOCK = 20
_LEAST = 100


def scan_losses(
    losses: NDArray[np.floating[Any]], wrong: NDArray[np.bool_], *, calm: int | None = None, seed: int = 0
) -> dict[str, tuple[int, ...]]:
    """Run five detectors over a stream.

    - ``adwin``: adaptive windowing on the losses (Bifet & Gavaldà 2007, SDM), confidence 0.002.
    - ``kswin``: Kolmogorov-Smirnov windowing on means of 20 losses (Raab, Heusinger & Schleif 2020, Neurocomputing).
    - ``page_hinkley``: cumulated sums of losses in units of their calm spread (Page 1954, Biometrika).
    - ``ddm``, ``eddm``: the rate of, and the distance between, wrong answers (Gama et al. 2004, SBIA; Baena-García et
      al. 2006).

    Args:
        losses: Loss of every labelled row in order of time, shape ``(n,)``, finite.
        wrong: Whether each answer was wrong, same shape.
        calm: Rows from the start that are taken as calm: the unit of the Page-Hinkley test; None takes a quarter.
        seed: KSWIN draws at random.

    Returns:
        Row at which each detector fired, by its name; all empty below 100 rows.
    """
    values = np.asarray(losses, dtype=np.float64)
    if len(values) < _LEAST:
        return dict.fromkeys(("adwin", "kswin", "page_hinkley", "ddm", "eddm"), ())
    first = values[: calm or len(values) // 4]
    scaled = (values - first.mean()) / (first.std() or 1.0)
    blocks = len(values) // _KSWIN_BLOCK
    means = values[: blocks * _KSWIN_BLOCK].reshape(blocks, _KSWIN_BLOCK).mean(axis=1)
    errors = np.asarray(wrong, dtype=bool)
    return {
        "adwin": _fired(drift.ADWIN(delta=0.002), values, float),
        "kswin": tuple(
            min(len(values), (i + 1) * _KSWIN_BLOCK) - 1
            for i in _fired(drift.KSWIN(alpha=1e-4, window_size=100, stat_size=30, seed=seed), means, float)
        ),
        "page_hinkley": _fired(drift.PageHinkley(delta=0.1, threshold=50.0, mode="up"), scaled, float),
        "ddm": _fired(binary.DDM(), errors, bool),
        "eddm": _fired(binary.EDDM(), errors, bool),
    }


def _fired(detector: Any, values: NDArray[Any], kind: Callable[[Any], Any]) -> tuple[int, ...]:
    found = []
    for row, value in enumerate(values.tolist()):
        detector.update(kind(value))
        if detector.drift_detected:
            found.append(row)
    return tuple(found)
