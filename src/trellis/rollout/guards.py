"""Guards of a rollout that need no labels: failed requests, slow requests, and the split itself.

All three are e-processes: non-negative martingales where nothing is wrong, which by Ville's inequality ever exceed
``1/alpha`` with probability at most ``alpha``, whenever and however often one looks. They are exact at any sample size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trellis.errors import DataError

ODDS = (1.5, 2.0, 4.0, 8.0, 16.0, 64.0)
# Weight of the expected split in the alternative: shares about 10 % off at a share of 10 % are looked for first.
CONCENTRATION = 1_000.0


@dataclass(frozen=True)
class Exposure:
    """Requests answered while the canary had one share.

    A request counts once, however many rows it has. Where a rollout splits by a unit (a caller, say), units are counted
    instead; see ``trellis.rollout.draws``.

    Attributes:
        share: The canary's share, in (0, 1).
        canary, champion: Requests assigned to each.
        canary_errors, champion_errors: Of these, answered with a server error (5xx).
        canary_slow, champion_slow: Of these, slower than the agreed limit; None where that was not counted.
    """

    share: float
    canary: int
    champion: int
    canary_errors: int = 0
    champion_errors: int = 0
    canary_slow: int | None = 0
    champion_slow: int | None = 0


def exposures_of(
    share: ArrayLike,
    canary: NDArray[Any],
    failed: NDArray[Any] | None = None,
    slow: NDArray[Any] | None = None,
) -> tuple[Exposure, ...]:
    """Count requests by share; rows whose share is 0 or 1 were on no trial and are left out.

    Args:
        share: The canary's share when the request was assigned, one number or ``(n,)``.
        canary: Whether the canary answered, ``(n,)``.
        failed: Whether the answer was a server error; None for none.
        slow: Whether it was slower than the agreed limit; None where that is not counted.

    Raises:
        DataError: The columns differ in length.
    """
    arm = np.asarray(canary, dtype=bool)
    parts = [
        np.zeros(len(arm), dtype=bool) if part is None else np.asarray(part, dtype=bool) for part in (failed, slow)
    ]
    if any(part.shape != arm.shape for part in parts):
        raise DataError("Requests and their outcomes differ in number.", remedy="Give one outcome per request.")
    shares = np.broadcast_to(np.asarray(share, dtype=np.float64), arm.shape)
    found = []
    for value in np.unique(shares[(shares > 0) & (shares < 1)]).tolist():
        here = shares == value
        counts = [int((here & side & part).sum()) for part in (np.ones_like(arm), *parts) for side in (arm, ~arm)]
        found.append(Exposure(value, *(counts if slow is not None else (*counts[:4], None, None))))
    return tuple(found)


def log_evidence_worse(counts: Sequence[tuple[float, int, int]]) -> float:
    """Return the log e-value against "an event is no likelier in the canary".

    Given the event, it happened in the canary with probability ``π`` if rates are equal, and ``θπ / (1 - π + θπ)`` if
    the odds are ``θ`` times higher. The e-value is the mean over ``ODDS`` of the likelihood ratio
    ``Π θ^c / (1 - π + θπ)^(c + h)``; events are taken to be independent and rare.

    Args:
        counts: For each share ``π``: the share, the canary's events, the champion's.
    """
    logs = [
        sum(c * math.log(odds) - (c + h) * math.log(1 - p + odds * p) for p, c, h in counts) - math.log(len(ODDS))
        for odds in ODDS
    ]
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs))


def log_evidence_split(counts: Sequence[tuple[float, int, int]]) -> float:
    """Return the log e-value against "requests are split as planned" for two variants; see ``log_evidence_shares``.

    Args:
        counts: For each share: the share, the canary's requests, the champion's.
    """
    return log_evidence_shares([((p, 1 - p), (c, h)) for p, c, h in counts])


def log_evidence_shares(draws: Sequence[tuple[Sequence[float], Sequence[int]]]) -> float:
    """Return the log e-value against "each variant is drawn with its share": a sequential sample-ratio test.

    Dirichlet-multinomial mixture of Lindon & Malek (2022), "Anytime-valid inference for multinomial count data",
    NeurIPS, for shares that change on the way; the Dirichlet is centred on the planned shares.

    Args:
        draws: For each set of shares: the shares, which sum to 1, and how often each variant was drawn.
    """
    total = 0.0
    for shares, counts in draws:
        prior = [CONCENTRATION * share for share in shares]
        total += math.lgamma(sum(prior)) - math.lgamma(sum(prior) + sum(counts))
        for share, before, count in zip(shares, prior, counts, strict=True):
            total += math.lgamma(before + count) - math.lgamma(before) - count * math.log(share)
    return total
