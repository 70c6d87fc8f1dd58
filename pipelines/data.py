"""Data: ingest → snapshot → validate and quarantine → build features → materialise → training set."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipelines.moments import moment
from pipelines.plugins import folder_of, plugin_named, suites_of
from pipelines.steps import flow, step
from trellis.adapters.datasets import load_dataset, save_dataset
from trellis.adapters.lineage import code_digest
from trellis.adapters.snapshots import open_snapshot, take_snapshot
from trellis.adapters.validation import TableReport, validate_table
from trellis.contract import BuildsFeatures, Dataset, ProvidesData
from trellis.decision import dumps
from trellis.errors import ContractError, CorruptSnapshotError, DataError
from trellis.settings import settings

if TYPE_CHECKING:
    from trellis.adapters.feature_store import FeatureStore


@dataclass(frozen=True)
class Tables:
    """Raw tables on disk.

    Attributes:
        path: Directory with one ``NAME.parquet`` per table.
        digest: Of their content.
    """

    path: str
    digest: str


@dataclass(frozen=True)
class Validated:
    """Raw tables without the rows that broke an expectation.

    Attributes:
        tables: The good rows.
        snapshot: Digest of the snapshot they come from.
        quarantine: Directory with the other rows and the reason of each.
        reports: What was found, per table.
    """

    tables: Tables
    snapshot: str
    quarantine: str
    reports: tuple[TableReport, ...]


@dataclass(frozen=True)
class Features:
    """Feature tables, ready for Feast.

    Attributes:
        source: Digest of the tables they were built from; empty where the model joins no features.
        version: Digest of the feature service's definition and of the code that built the tables.
        definition: Digest of the feature service's definition alone, by which it is served.
    """

    source: str
    version: str
    definition: str = ""


@dataclass(frozen=True)
class TrainingSet:
    """Labelled rows with their features, as known at their time.

    Attributes:
        path: The dataset's file.
        digest: Of its content.
        rows: How many.
        snapshot: Digest of the raw data behind it.
        features: Version of the features; empty where there are none.
        since, until: The period of the rows, RFC 3339; empty where rows have no time.
        definition: As in ``Features``.
    """

    path: str
    digest: str
    rows: int
    snapshot: str
    features: str
    since: str
    until: str
    definition: str = ""


def _tables_intact(validated: Validated) -> bool:
    try:
        return open_snapshot(Path(validated.tables.path)).digest == validated.tables.digest
    except CorruptSnapshotError:
        return False


def _features_intact(features: Features) -> bool:
    return not features.source or _features_record() == {"source": features.source, "version": features.version}


def _set_intact(training_set: TrainingSet) -> bool:
    path = Path(training_set.path)
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == training_set.digest


@step(keep=False)
def ingest(model: str) -> Tables:
    """Fetch the raw tables and keep them under their digest."""
    plugin = plugin_named(model)
    if not isinstance(plugin, ProvidesData):
        raise ContractError(
            f"{model!r} does not say where its data come from.",
            where=folder_of(plugin),
            remedy="Give the plug-in the verbs ingest and examples (trellis.contract.ProvidesData).",
        )
    snapshot = take_snapshot(plugin.ingest, settings().directory("snapshots"), origin=model)
    return Tables(str(snapshot.path), snapshot.digest)


@step(intact=_tables_intact)
def validate(model: str, tables: Tables, suites: str) -> Validated:
    """Hold every table against its suite; set bad rows aside with the reason, and fail past the stated rate.

    Args:
        model: Whose suites.
        tables: A snapshot, checked against its digest first.
        suites: Digest of the suites, so that a changed suite is a new validation.
    """
    snapshot = open_snapshot(Path(tables.path))
    files = suites_of(plugin_named(model))
    missing = sorted(set(files) - set(snapshot.tables))
    if missing:
        raise DataError(f"The snapshot lacks the tables {missing}.", where=snapshot.path, remedy="Mend the ingest.")
    quarantine = settings().directory("quarantine", f"{snapshot.digest[:16]}-{suites[:8]}")
    reports: list[TableReport] = []

    def write(directory: Path) -> None:
        for name in snapshot.tables:
            source = snapshot.path / f"{name}.parquet"
            if name not in files:
                shutil.copyfile(source, directory / source.name)
                continue
            frame = pd.read_parquet(source)
            reasons, report = validate_table(frame, files[name])
            reports.append(report)
            bad = (reasons != "").to_numpy()
            frame[bad].assign(_reason=reasons[bad].to_numpy()).to_parquet(quarantine / source.name, index=False)
            report.require_passed(snapshot.path)
            frame[~bad].to_parquet(directory / source.name, index=False)

    good = take_snapshot(write, settings().directory("validated"), origin=snapshot.digest)
    (quarantine / "report.json").write_text(dumps(reports))
    return Validated(Tables(str(good.path), good.digest), snapshot.digest, str(quarantine), tuple(reports))


@step(intact=_features_intact)
def build_features(model: str, validated: Validated, code: str) -> Features:
    """Derive the feature tables and tell Feast about them.

    Args:
        model: Whose features.
        validated: The rows to build from.
        code: Digest of the plug-in's code and of the feature definitions.
    """
    plugin = plugin_named(model)
    service = plugin.spec.feature_service
    if service is None:
        return Features("", "")
    directory = settings().directory("features")
    if isinstance(plugin, BuildsFeatures):
        plugin.build_features(Path(validated.tables.path), directory)
    store = feature_store()
    store.apply()
    definition = store.describe(service)["digest"]
    version = hashlib.sha256(dumps([definition, code]).encode()).hexdigest()
    record = {"source": validated.tables.digest, "version": version}
    (directory / "tables.json").write_text(dumps(record))
    return Features(**record, definition=definition)


@step(keep=False)
def materialize(model: str, until: str) -> dict[str, int]:
    """Bring the online store up to what was known at ``until``, or now; what is there and newer stays.

    Returns:
        How many keys were written, per view.
    """
    if plugin_named(model).spec.feature_service is None:
        return {}
    return feature_store().materialize(moment(until) if until else datetime.now(UTC))


@step(intact=_set_intact)
def build_training_set(
    model: str, validated: Validated, features: Features, code: str, since: str, until: str
) -> TrainingSet:
    """Join every labelled row with its features as they were known at its time.

    Args:
        model: Whose rows.
        validated: The raw rows.
        features: The feature tables.
        code: Digest of the plug-in's code.
        since: Rows predicted from then on, RFC 3339; empty for no border.
        until: Rows whose truth was known by then, RFC 3339; empty for no border.
    """
    plugin = plugin_named(model)
    assert isinstance(plugin, ProvidesData)
    dataset = _within(plugin.examples(Path(validated.tables.path)), since, until)
    if plugin.spec.feature_service is not None:
        assert dataset.time is not None
        joined = feature_store().training_set(plugin.spec.feature_service, dataset.columns, dataset.time)
        columns = {**dataset.columns, **{f.name: joined[f.name] for f in plugin.spec.features}}
        dataset = Dataset(columns, dataset.target, dataset.row_id, dataset.time, dataset.known)
    key = hashlib.sha256(dumps([model, validated, features, code, since, until]).encode()).hexdigest()
    path = settings().directory("training-sets") / f"{model}-{key[:16]}.parquet"
    digest = save_dataset(dataset, path)
    return TrainingSet(
        str(path), digest, len(dataset), validated.snapshot, features.version, since, until, features.definition
    )


@flow
def prepare_data(model: str, since: str = "", until: str = "", tables: Tables | None = None) -> TrainingSet:
    """From raw data to a training set.

    Args:
        model: Whose data.
        since: Start of the period, RFC 3339; empty for everything.
        until: Its end, by which the truth was known.
        tables: Raw tables to use instead of a fresh ingest.
    """
    code = model_code(model)
    raw = tables or ingest(model)
    validated = validate(model, raw, suites_digest(model))
    features = build_features(model, validated, code)
    materialize(model, until)
    return build_training_set(model, validated, features, code, since, until)


def feature_store() -> FeatureStore:
    """Return the feature store of the settings; Feast takes seconds to import, so only where a model joins features."""
    from trellis.adapters.feature_store import FeatureStore

    return FeatureStore(settings().feature_repo, settings().directory(), settings().online_store)


def model_code(model: str) -> str:
    """Return the digest of a plug-in's code and, where it joins features, of their definitions."""
    plugin = plugin_named(model)
    parts = [code_digest(folder_of(plugin))]
    if plugin.spec.feature_service is not None:
        parts.append(code_digest(settings().feature_repo))
    return hashlib.sha256(dumps(parts).encode()).hexdigest()


def suites_digest(model: str) -> str:
    """Return the digest of the suites that hold for a model's tables."""
    suites = {name: path.read_text() for name, path in suites_of(plugin_named(model)).items()}
    return hashlib.sha256(dumps(suites).encode()).hexdigest()


def load(training_set: TrainingSet) -> Dataset:
    """Read a training set's rows."""
    return load_dataset(Path(training_set.path))


def _within(dataset: Dataset, since: str, until: str) -> Dataset:
    if dataset.time is None:
        return dataset
    keep = np.ones(len(dataset), dtype=bool)
    if since:
        keep &= dataset.time >= _moment(since)
    if until:
        known = dataset.time if dataset.known is None else dataset.known
        keep &= (dataset.time < _moment(until)) & (known < _moment(until))
    if not keep.any():
        raise DataError(f"No row lies between {since or 'the start'} and {until or 'the end'}.", remedy="Widen them.")
    return dataset.take(keep)


def _moment(text: str) -> np.datetime64:
    return np.datetime64(moment(text).replace(tzinfo=None))


def _features_record() -> Mapping[str, Any]:
    path = settings().directory("features") / "tables.json"
    record: Mapping[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return record
