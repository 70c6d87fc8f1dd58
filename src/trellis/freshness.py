"""How old a feature may be when it is used: a view's SLA on event time, and what is done with a row past it.

A feature view declares both as tags: ``freshness_sla``, an ISO 8601 duration, and ``freshness_action``. Unlike a view's
``ttl``, past which a value is missing in training and serving alike, the SLA is a promise about serving: how old the
newest event of an entity may be at the time of the prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from trellis.errors import ConfigError

Action = Literal["serve", "impute", "reject", "fall_back"]
_DURATION = TypeAdapter(timedelta)


@dataclass(frozen=True)
class Sla:
    """What a view promises.

    Attributes:
        view: Its name.
        features: Its features.
        age: Largest acceptable age of the event that a value comes from, inclusive.
        action: What is done past it: ``serve`` uses the value and says so; ``impute`` takes it as missing; ``reject``
            refuses the request; ``fall_back`` answers the row with the model's declared default.
    """

    view: str
    features: tuple[str, ...]
    age: timedelta
    action: Action = "serve"


def sla_of(view: str, features: Sequence[str], tags: Mapping[str, str]) -> Sla | None:
    """Read a view's SLA from its tags; None where it declares none.

    Raises:
        ConfigError: The duration or the action means nothing, or there is an action without an SLA.
    """
    text, action = tags.get("freshness_sla"), tags.get("freshness_action", "serve")
    where = f"feature view {view}"
    if action not in get_args(Action):
        known = ", ".join(get_args(Action))
        raise ConfigError(f"The freshness_action {action!r} is not known.", where=where, remedy=f"Use one of {known}.")
    if text is None:
        if "freshness_action" in tags:
            raise ConfigError(
                "A freshness_action is declared and no freshness_sla.", where=where, remedy="Add the tag, e.g. PT1H."
            )
        return None
    try:
        age = _DURATION.validate_python(text) if text.startswith("P") else None
    except ValidationError:
        age = None
    if age is None or age < timedelta(0):
        raise ConfigError(
            f"The freshness_sla {text!r} is no ISO 8601 duration.", where=where, remedy="Write for example PT30M."
        )
    return Sla(view, tuple(features), age, action)  # type: ignore[arg-type]  # checked above


def overdue(
    slas: Sequence[Sla], times: Mapping[str, NDArray[Any]], now: NDArray[np.datetime64]
) -> dict[str, NDArray[np.bool_]]:
    """Tell which rows of which views are past their SLA.

    Args:
        slas: The promises.
        times: Event time per view, n rows, ``datetime64[us]``; NaT where a view has no row, which is never overdue.
        now: The rows' own time, n rows, ``datetime64[us]``.

    Returns:
        The views with at least one such row, each with n booleans.
    """
    judged = [sla for sla in slas if sla.view in times]
    if not judged:
        return {}
    limits = np.array([sla.age for sla in judged], "timedelta64[us]")
    late = now - np.stack([times[sla.view] for sla in judged]) > limits[:, None]
    if not late.any():
        return {}
    return {sla.view: rows for sla, rows in zip(judged, late, strict=True) if rows.any()}
