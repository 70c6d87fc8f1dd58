"""The features of rows whose versions were released with different feature services, each row's from its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.prediction.features import Found, OnlineFeatures, find
from services.prediction.metrics import Metrics
from trellis.contract import ModelSpec
from trellis.rollout.plan import RolloutPlan


def find_each(
    specs: Sequence[ModelSpec],
    store: OnlineFeatures | None,
    rows: Sequence[Mapping[str, Any]],
    sent: Sequence[frozenset[str] | set[str]],
    metrics: Metrics,
    down: Exception | None = None,
) -> Found:
    """Find the features of validated rows, each by the feature service of its own declaration.

    Args:
        specs: One declaration for all rows, or one for each; they differ in the feature service alone.
        store: The online store.
        rows: Field values.
        sent: The fields that the caller sent, per row.
        metrics: Counts rows answered without data.
        down: Why the store could not be read, where that was tried before.

    Returns:
        As ``find`` does. A view that only some rows' services have is NaT for the others.

    Raises:
        RequestError, StaleFeaturesError, UnavailableError: As in ``find``.
    """
    services = list(dict.fromkeys(spec.feature_service for spec in specs))
    if len(services) == 1:
        return find(specs[0], store, rows, sent, metrics, down)
    count = len(rows)
    columns: dict[str, NDArray[Any]] = {}
    times: dict[str, NDArray[np.datetime64]] = {}
    overrides: list[tuple[str, ...]] = [()] * count
    degraded: list[tuple[str, ...]] = [()] * count
    stale: dict[int, Mapping[str, str]] = {}
    fallback: dict[int, str] = {}
    for service in services:
        mine = [i for i, spec in enumerate(specs) if spec.feature_service == service]
        found = find(specs[mine[0]], store, [rows[i] for i in mine], [sent[i] for i in mine], metrics, down)
        for name, values in found.columns.items():
            whole = columns.setdefault(name, np.empty((count, *values.shape[1:]), values.dtype))
            if whole.dtype != values.dtype:
                columns[name] = whole = whole.astype(np.result_type(whole, values))
            whole[mine] = values
        for view, moments in found.times.items():
            times.setdefault(view, np.full(count, np.datetime64("NaT"), "datetime64[us]"))[mine] = moments
        for part, row in enumerate(mine):
            overrides[row], degraded[row] = found.overrides[part], found.degraded[part]
        stale |= {mine[part]: told for part, told in found.stale.items()}
        fallback |= {mine[part]: why for part, why in found.fallback.items()}
    return Found(columns, times, tuple(overrides), tuple(degraded), stale, fallback)


def declarations(spec: ModelSpec, plan: RolloutPlan, versions: Collection[str]) -> dict[str, ModelSpec]:
    """Return the declaration by version where a version reads another feature service than it names.

    Where a version could not be loaded the champion answers, and from the champion's features.
    """
    reads: dict[str, ModelSpec] = {}
    for variant in plan.variants:
        answers = variant if variant.version in versions else plan.champion
        service = answers.release.feature_service if answers.release is not None else ""
        if service and service != spec.feature_service:
            reads[variant.version] = replace(spec, feature_service=service)
    return reads
