"""Model versions in MLflow: artifacts, metrics with intervals, lineage, evidence and aliases.

Artifacts go in as files (``log_artifacts``), never through a flavour, so no pickle is written and nothing is imported
to guess requirements. Registering is idempotent: a version carries the key of the run that made it, and the same key
gives back the same version, also after a kill in between.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlparse

from trellis.adapters.remote_artifacts import read_document
from trellis.artifact import Manifest
from trellis.errors import RegistryError, StorageError

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_KEY = "trellis.run_key"
DIGEST = "trellis.artifact_digest"
STAGE = "trellis.stage"
_SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Version:
    """A registered version.

    Attributes:
        model, version: Its name.
        location: Directory of the sealed artifact: a path, or ``s3://…`` (see ``remote_artifacts``).
        digest: The artifact's digest.
        run_id: MLflow's run.
        tags: Lineage: dataset digest, Git commit and so on.
        aliases: For example ``champion``.
    """

    model: str
    version: str
    location: str
    digest: str
    run_id: str
    tags: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def stage(self) -> str:
        """Where in its life the version is, for example ``candidate``."""
        return self.tags.get(STAGE, "candidate")


@dataclass(frozen=True)
class RunRecord:
    """What is kept of a training run.

    Attributes:
        key: Names the run by its inputs; the same key is the same run.
        params: Hyper-parameters and other choices.
        metrics: Name to value; intervals as ``NAME.lower`` and ``NAME.upper``.
        tags: Lineage.
        dataset: ``{"name", "digest", "source"}`` of the training rows.
        documents: File name to text: model card, conformance report, evidence.
    """

    key: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    dataset: Mapping[str, str]
    documents: Mapping[str, str]


class ModelRegistry:
    """The registry, on any MLflow tracking store.

    Args:
        tracking_uri: For example ``sqlite:////…/mlflow.db`` or a server's address.
        artifact_root: Directory for artifacts where the store is not a server.
    """

    def __init__(self, tracking_uri: str, artifact_root: Path) -> None:
        self._uri = tracking_uri
        self._root = artifact_root
        self._client_cache: MlflowClient | None = None

    @property
    def _client(self) -> MlflowClient:
        if self._client_cache is None:  # importing MLflow takes seconds
            from mlflow import MlflowClient

            for noisy in ("mlflow", "alembic"):  # MLflow sets its own level when imported
                logging.getLogger(noisy).setLevel(logging.WARNING)
            with _guarded(self._uri):
                if self._uri.startswith(_SQLITE):
                    _make_whole(Path(self._uri.removeprefix(_SQLITE)))
                made = MlflowClient(self._uri, self._uri)
            self._client_cache = cast("MlflowClient", _Guarded(made, self._uri))
        return self._client_cache

    def register(self, artifact: Path, manifest: Manifest, run: RunRecord) -> Version:
        """Keep a sealed artifact as a new version, or return the one that the same run has made already.

        Raises:
            StorageError: The store refused the write; a half-made run is removed at the next try.
        """
        model = manifest.model
        made = self._by_key(model, run.key)
        if made is not None:
            return made
        experiment = self._experiment(model)
        for stale in self._client.search_runs([experiment], f"tags.`{RUN_KEY}` = '{run.key}'"):
            self._client.delete_run(stale.info.run_id)  # left by a kill between run and version
        tags = {**run.tags, RUN_KEY: run.key, DIGEST: manifest.digest}
        created = self._client.create_run(experiment, tags=dict(tags), run_name=f"{model}-{manifest.recipe}")
        run_id = created.info.run_id
        try:
            self._log(run_id, run)
            self._client.log_artifacts(run_id, str(artifact), "model")
            for name, text in run.documents.items():
                self._client.log_text(run_id, text, name)
            self._client.set_terminated(run_id, "FINISHED")
            source = f"{created.info.artifact_uri}/model"
            version = self._client.create_model_version(model, source, run_id, tags=dict(tags))
        except OSError as error:
            self._client.set_terminated(run_id, "FAILED")
            raise StorageError(
                f"A version of {model!r} could not be kept: {error.strerror or error}.",
                where=self._root,
                remedy="Free disk space and run the flow again.",
            ) from error
        return self.version(model, str(version.version))

    def version(self, model: str, version: str) -> Version:
        """Return one version.

        Raises:
            RegistryError: There is no such version.
        """
        from mlflow.exceptions import MlflowException

        try:
            return self._version(self._client.get_model_version(model, version))
        except MlflowException as error:
            known = [v.version for v in self.versions(model)]
            raise RegistryError(
                f"{model!r} has no version {version!r}.", where=self._uri, remedy=f"It has {known or 'none'}."
            ) from error

    def versions(self, model: str) -> list[Version]:
        """Return a model's versions, oldest first; none for an unknown model."""
        found = self._client.search_model_versions(f"name = '{model}'")
        # A search does not carry aliases, so each is read once more.
        whole = [self._client.get_model_version(model, v.version) for v in found]
        return [self._version(v) for v in sorted(whole, key=lambda v: int(v.version))]

    def with_alias(self, model: str, alias: str) -> Version | None:
        """Return the version an alias points to, or None."""
        from mlflow.exceptions import MlflowException

        try:
            return self._version(self._client.get_model_version_by_alias(model, alias))
        except MlflowException:
            return None

    def set_alias(self, model: str, alias: str, version: str) -> None:
        """Point an alias at a version."""
        self._client.set_registered_model_alias(model, alias, version)

    def drop_alias(self, model: str, alias: str) -> None:
        """Take an alias away; nothing happens if it is not there."""
        if self.with_alias(model, alias) is not None:
            self._client.delete_registered_model_alias(model, alias)

    def set_stage(self, model: str, version: str, stage: str) -> None:
        """Note where in its life a version is."""
        self._client.set_model_version_tag(model, version, STAGE, stage)

    def attach(self, version: Version, name: str, text: str) -> None:
        """Add a document to a version's run, for example the gate's evidence."""
        self._client.log_text(version.run_id, text, name)

    def document(self, version: Version, name: str) -> str:
        """Return a document of a version.

        Raises:
            RegistryError: It is not there.
        """
        path = f"{version.location.rpartition('/')[0]}/{name}"
        try:
            return read_document(path)
        except OSError as error:
            raise RegistryError(
                f"Version {version.version} of {version.model!r} has no document {name!r}.", where=path
            ) from error

    def metrics(self, version: Version) -> dict[str, float]:
        """Return the metrics logged with a version."""
        return dict(self._client.get_run(version.run_id).data.metrics)

    def _by_key(self, model: str, key: str) -> Version | None:
        found = self._client.search_model_versions(f"name = '{model}' and tags.`{RUN_KEY}` = '{key}'")
        return self.version(model, str(found[0].version)) if found else None

    def _experiment(self, model: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(model)
        if found is None:
            location = None if self._uri.startswith("http") else (self._root / model).resolve().as_uri()
            experiment = self._client.create_experiment(model, artifact_location=location)
        else:
            experiment = found.experiment_id
        try:
            self._client.get_registered_model(model)
        except MlflowException:
            self._client.create_registered_model(model)
        return str(experiment)

    def _log(self, run_id: str, run: RunRecord) -> None:
        from mlflow.entities import Dataset, DatasetInput, Metric, Param

        metrics = [Metric(name, float(value), 0, 0) for name, value in run.metrics.items()]
        params = [Param(name, str(value)[:500]) for name, value in run.params.items()]
        self._client.log_batch(run_id, metrics=metrics, params=params)
        dataset = Dataset(
            name=run.dataset["name"],
            digest=run.dataset["digest"][:36],
            source_type="trellis",
            source=run.dataset["source"],
        )
        self._client.log_inputs(run_id, [DatasetInput(dataset, [])])

    def _version(self, found: Any) -> Version:
        return Version(
            model=found.name,
            version=str(found.version),
            location=_local(found.source),
            digest=found.tags.get(DIGEST, ""),
            run_id=found.run_id,
            tags=dict(found.tags),
            aliases=tuple(found.aliases or ()),
        )


class _Guarded:
    """A client whose store's refusals are errors of ours."""

    def __init__(self, client: MlflowClient, where: str) -> None:
        self._guarded_client = client
        self._where = where

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._guarded_client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with _guarded(self._where):
                return verb(*args, **kwargs)

        return call


@contextmanager
def _guarded(where: str) -> Iterator[None]:
    """Turn what MLflow says, or lets through, of a store that does not work into a StorageError.

    Raises:
        StorageError: The store refuses, for want of space say.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except Exception as error:
        of_store = type(error).__module__.partition(".")[0] in ("sqlalchemy", "sqlite3")
        if isinstance(error, MlflowException):
            of_store = error.error_code in ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR")
        if not of_store:
            raise
        raise StorageError(
            f"The model registry does not work: {str(error).splitlines()[0]}.",
            where=where,
            remedy="Check that its store is reachable and its disk has room, and run again.",
        ) from error


def _make_whole(path: Path) -> None:
    """Make MLflow's SQLite store beside its place and put it there at once.

    MLflow makes its tables one by one and cannot go on where it was stopped: a kill or a full disk in between would
    leave a store that no later run could open.
    """
    if path.exists():
        return
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=path.parent) as work:
        made = Path(work, path.name)
        MlflowClient(f"{_SQLITE}{made}", f"{_SQLITE}{made}").search_registered_models(max_results=1)
        try:
            os.link(made, path)
        except OSError:
            if not path.exists():  # else another process was faster, and its store may be in use already
                os.replace(made, path)


def _local(source: str) -> str:
    parsed = urlparse(source)
    return unquote(parsed.path) if parsed.scheme == "file" else source
