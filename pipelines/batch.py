"""Batch scoring: choose a version → score a table, part by part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.data import feature_store
from pipelines.plugins import plugin_named
from pipelines.steps import flow, step
from trellis.adapters.loading import load_predictor
from trellis.cli.batch import locate
from trellis.patterns import BatchModel, BatchSummary, begun_version, predict_batch
from trellis.settings import settings


@dataclass(frozen=True)
class Chosen:
    """The version that scores."""

    version: str
    path: str
    digest: str


# Neither step's result is kept: the version is what the plan says now, and the table's own work directory beside the
# output knows which parts are done, also after a kill inside the step.
@step(keep=False)
def choose_version(model: str, output: str, version: str) -> Chosen:
    """Return the version asked for, or the one an unfinished run for the output began with, or the champion.

    Raises:
        RolloutError: The model has no plan.
        RegistryError: There is no such version.
    """
    name, path, digest = locate(model, version or begun_version(Path(output)))
    return Chosen(name, str(path), digest)


@step(keep=False)
def score_table(
    model: str, chosen: Chosen, source: str, output: str, on_bad: Literal["stop", "skip"], keep: list[str]
) -> BatchSummary:
    """Write one row for every row of a Parquet file, in its order; see ``trellis.patterns.predict_batch``.

    Raises:
        TrellisError: As ``predict_batch`` and ``load_predictor``.
    """
    plugin = plugin_named(model)
    predictor, _ = load_predictor(plugin, Path(chosen.path), chosen.digest, settings().verify_key)
    scorer = BatchModel(plugin.spec, predictor, chosen.version, chosen.digest)
    return predict_batch(scorer, Path(source), Path(output), features=feature_store, on_bad=on_bad, keep=keep)


@flow
def predict_table(
    model: str,
    source: str,
    output: str,
    version: str = "",
    on_bad: Literal["stop", "skip"] = "stop",
    keep: list[str] | None = None,
) -> BatchSummary:
    """Score a Parquet file into another, in bounded memory; killed and run again, it goes on after the last part.

    Args:
        model: What scores.
        source: Parquet file with a column per request field; features it lacks are joined as of each row's time.
        output: Parquet file to write; it appears whole.
        version: Score with this version; empty for the unfinished run's, or the champion.
        on_bad: ``stop`` at the first bad row, or ``skip``: nulls and a line in ``OUTPUT.rejects.jsonl``.
        keep: Columns of the input to carry over.
    """
    return score_table(model, choose_version(model, output, version), source, output, on_bad, keep or [])
