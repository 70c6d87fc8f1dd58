"""Skew replay of a model's log: the served features beside the offline store's, joined on the request's id."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table

from trellis.contract import Batch, ModelSpec
from trellis.errors import ConfigError
from trellis.freshness import Sla
from trellis.ledger import moments
from trellis.quality import Served, SkewReport, find_skew

MOST_ROWS = 2_000


def offline_store(spec: ModelSpec) -> OfflineFeatures | None:
    """Return the settings' feature store; None where a model joins no features."""
    if spec.feature_service is None:
        return None
    from trellis.adapters.feature_store import FeatureStore
    from trellis.settings import settings

    return FeatureStore(settings().feature_repo, settings().home.resolve(), settings().online_store)


def skew_text(report: SkewReport) -> str:
    """Return a replay in one line."""
    if not report.rows:
        return "no prediction was replayed, so nothing is known of their features"
    if not report.mismatched:
        return f"none of {report.rows:,} replayed rows differs from its recomputation"
    causes = "; ".join(f"{f.cause} in {f.view}: {f.text}" for f in report.findings[:3])
    return (
        f"{report.mismatched:,} of {report.rows:,} replayed rows differ ({report.rate:.1%}, SLO {report.slo:.1%}), "
        f"first {report.first_feature} of {report.first_id} at {report.first_at}; {causes}"
    )


def skew_table(report: SkewReport, model: str) -> Group:
    """Return a replay as a table for people."""
    table = Table(title=f"{model}: served features beside their recomputation", expand=True)
    for name in ("cause", "view", "rows", "since"):
        table.add_column(name, no_wrap=True)
    table.add_column("what", overflow="fold", ratio=1)
    for f in report.findings:
        table.add_row(f.cause, f.view, f"{f.rows:,}", f.since[:16], f"{f.text}; e.g. {f.example}")
    lines = [skew_text(report) if not report.mismatched else skew_text(report).partition(";")[0]]
    if report.lagging:
        lines.append(f"{report.lagging:,} rows held older values within their freshness SLA")
    return Group(*((table,) if report.findings else ()), *lines)


class OfflineFeatures(Protocol):
    """The verbs of the feature store that a replay needs."""

    def training_set(self, service: str, rows: Batch, time: NDArray[np.datetime64]) -> dict[str, NDArray[Any]]:
        """Return the features of rows, each as of its own time."""

    def slas(self, service: str) -> tuple[Sla, ...]:
        """Return what the service's batch views promise."""


def replay(
    frame: pd.DataFrame, spec: ModelSpec, views: dict[str, str], store: OfflineFeatures, *, most: int = MOST_ROWS
) -> SkewReport | None:
    """Recompute the features of logged predictions point-in-time and compare; None where a model joins none.

    Args:
        frame: Predictions as ``read_predictions`` returns them; beyond ``most`` an even sample in time is taken.
        spec: The model's declaration.
        views: Feature view by feature.
        store: The feature store.
        most: Most rows replayed, 1 or more.

    Raises:
        ConfigError: ``most`` is less.
        MissingFeatureError: The offline store lacks the service or a table.
    """
    if most < 1:
        raise ConfigError(f"A replay of {most} rows compares nothing.", remedy="Ask for at least one: --rows 1.")
    if spec.feature_service is None:
        return None
    scored = frame[frame["time"].notna()]
    chosen = np.unique(np.linspace(0, len(scored) - 1, min(most, len(scored))).astype(np.int64)) if len(scored) else []
    rows = scored.iloc[chosen].reset_index(drop=True)
    served = _served(rows, spec, views, store.slas(spec.feature_service))
    request = {name: _request(rows, spec, name) for name in (f.name for f in spec.request)}
    stamps = [f.name for f in spec.request if f.kind == "timestamp"]
    service = spec.feature_service

    def recompute(at: NDArray[np.int64], time: NDArray[np.datetime64], shift_hours: int = 0) -> Batch:
        some = {name: values[at] for name, values in request.items()}
        if shift_hours:
            some |= {name: some[name] + np.timedelta64(timedelta(hours=shift_hours)) for name in stamps}
        return store.training_set(service, some, time)

    return find_skew(served, recompute, spec.quality)


def _served(rows: pd.DataFrame, spec: ModelSpec, views: dict[str, str], slas: tuple[Sla, ...]) -> Served:
    n = len(rows)
    sent = rows["overrides"].tolist() if "overrides" in rows else [None] * n
    features, ignored = {}, {}
    for item in spec.features:
        column = f"features.{item.name}"
        features[item.name] = rows[column].to_numpy() if column in rows else np.full(n, None, dtype=object)
        ignored[item.name] = np.array([isinstance(names, list) and item.name in names for names in sent], dtype=bool)
    by_sla = {name: sla.view for sla in slas for name in sla.features}
    return Served(
        rows["id"].to_numpy(dtype=str),
        moments(rows["time"]),
        features,
        {name: by_sla.get(name, views.get(name, "on_demand")) for name in features},
        {
            column.removeprefix("feature_times."): moments(rows[column])
            for column in rows
            if column.startswith("feature_times.")
        },
        ignored,
        {sla.view: sla.age.total_seconds() / 3600 for sla in slas},
    )


def _request(rows: pd.DataFrame, spec: ModelSpec, name: str) -> NDArray[Any]:
    column, kind = f"request.{name}", spec.fields[name].kind
    if column not in rows:
        rows = rows.assign(**{column: None})
    if kind == "timestamp":
        return moments(rows[column])
    if kind in ("float", "int", "bool"):
        return pd.to_numeric(rows[column], errors="coerce").to_numpy(dtype=np.float64)
    if kind == "tensor":
        return rows[column].to_numpy(dtype=object)
    return rows[column].fillna("").astype(str).to_numpy(dtype=str)
