"""What is done, row by row, about feature views that are past their freshness SLA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.prediction.errors import StaleFeaturesError
from services.prediction.metrics import Metrics
from trellis.contract import Batch, ModelSpec
from trellis.freshness import Sla, overdue


@dataclass(frozen=True)
class Settled:
    """What was done about late views.

    Attributes:
        imputed: Feature to the rows (bool) whose value counts as missing.
        told: Row to view to what was done: ``served``, ``imputed`` or ``fell_back``.
        fallback: Row to the reason for which it is not to be scored.
    """

    imputed: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    told: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    fallback: Mapping[int, str] = field(default_factory=dict)

    def rows(self, view: str, done: str, count: int) -> NDArray[np.bool_]:
        """Return the rows (bool) about whose view this was done."""
        return np.array([self.told.get(row, {}).get(view) == done for row in range(count)], np.bool_)


NOTHING = Settled()


def settle(
    spec: ModelSpec,
    slas: Sequence[Sla],
    times: Batch,
    expired: Batch,
    now: NDArray[np.datetime64],
    overrides: Sequence[Sequence[str]],
    metrics: Metrics,
) -> Settled:
    """Follow each view's declared action; decided on event time, which Feast's own online read does not look at.

    Where an action cannot be followed the next stricter one is: a value past its ttl is not served, a feature that may
    not be missing is not imputed, and there is no falling back without a declared default.

    Args:
        spec: The model's declaration.
        slas: Its views' promises.
        times: Event time per view, n rows.
        expired: Per view the rows (bool) past its ttl, whose values are missing already.
        now: The rows' own time.
        overrides: Per row, the features that the caller sent; a view of which all were sent is not looked at.
        metrics: Counts rows by view and what was done.

    Raises:
        StaleFeaturesError: A view's action is ``reject``, or nothing milder is possible.
    """
    late = overdue(slas, times, now)
    if not late:
        return NOTHING
    needed = {f.name for f in spec.features if not f.nullable}
    imputed: dict[str, NDArray[np.bool_]] = {}
    told: dict[int, dict[str, str]] = {}
    fallback: dict[int, str] = {}
    for sla in slas:
        if sla.view not in late:
            continue
        used = [name for name in sla.features if name in spec.fields]
        open_rows = np.array([not set(used) <= set(sent) for sent in overrides], np.bool_)
        rows = np.flatnonzero(late[sla.view] & open_rows)
        gone = expired[sla.view] if sla.view in expired else np.zeros(len(now), np.bool_)
        for row in rows.tolist():
            action: str = sla.action
            if action == "serve" and gone[row]:
                action = "impute"
            if action == "impute" and needed.intersection(used) - set(overrides[row]):
                action = "fall_back"
            if action == "reject" or (action == "fall_back" and spec.default is None):
                metrics.settled(spec.name, sla.view, "rejected")
                raise StaleFeaturesError(late_sentence(sla, _age(sla, times, now, row)), row)
            if action == "fall_back":
                fallback[row] = f"{sla.view} is past its SLA"
            if action == "impute":
                for name in used:
                    imputed.setdefault(name, np.zeros(len(now), np.bool_))[row] = True
            told.setdefault(row, {})[sla.view] = DONE[action]
    for row_told in told.values():
        for view, done in row_told.items():
            metrics.settled(spec.name, view, done)
    return Settled(imputed, told, fallback)


DONE = {"serve": "served", "impute": "imputed", "fall_back": "fell_back"}


def late_sentence(sla: Sla, age: timedelta) -> str:
    """Say how old a view's features are, and what it promises."""
    return f"The features of {sla.view} are {age} old (h:mm:ss) at the row's time, and the view promises {sla.age}."


def _age(sla: Sla, times: Batch, now: NDArray[Any], row: int) -> timedelta:
    age: timedelta = (now[row] - times[sla.view][row]).astype("timedelta64[s]").item()
    return age
