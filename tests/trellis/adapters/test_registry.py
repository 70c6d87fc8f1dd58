"""Versions in a real MLflow store: idempotent, complete, found again."""

from dataclasses import replace
from pathlib import Path

import pytest

from trellis.adapters.registry import ModelRegistry, RunRecord
from trellis.artifact import seal, verify
from trellis.errors import RegistryError

RECORD = RunRecord(
    key="k1",
    params={"depth": 3},
    metrics={"auc": 0.7, "auc.lower": 0.6},
    tags={"git_commit": "abc"},
    dataset={"name": "toy", "digest": "d" * 64, "source": "snapshot"},
    documents={"card.md": "# Toy"},
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> ModelRegistry:
    root = tmp_path_factory.mktemp("mlflow")
    return ModelRegistry(f"sqlite:///{root}/mlflow.db", root / "artifacts")


@pytest.fixture
def artifact(tmp_path: Path):
    (tmp_path / "m.json").write_text("[1]")
    manifest = seal(tmp_path, model="toy", plugin_version="1", recipe="default", seed=1, inputs=("x",), outputs=("y",))
    return tmp_path, manifest


def test_a_version_is_registered_once_and_carries_everything(registry: ModelRegistry, artifact):
    directory, manifest = artifact
    version = registry.register(directory, manifest, RECORD)
    again = registry.register(directory, manifest, RECORD)
    assert again == version
    assert verify(Path(version.location), version.digest) == manifest
    assert version.tags["git_commit"] == "abc"
    assert registry.metrics(version) == RECORD.metrics
    assert registry.document(version, "card.md") == "# Toy"
    other = registry.register(directory, manifest, replace(RECORD, key="k2"))
    assert [v.version for v in registry.versions("toy")] == [version.version, other.version]


def test_a_run_left_by_a_kill_before_its_version_is_replaced(registry: ModelRegistry, artifact):
    directory, manifest = artifact
    record = replace(RECORD, key="killed")
    client = registry._client
    experiment = registry._experiment("toy")
    left = client.create_run(experiment, tags={"trellis.run_key": "killed"})
    version = registry.register(directory, manifest, record)
    assert version.run_id != left.info.run_id
    active = client.search_runs([experiment], "tags.`trellis.run_key` = 'killed'")
    assert [run.info.run_id for run in active] == [version.run_id]


def test_aliases_stages_and_documents(registry: ModelRegistry, artifact):
    directory, manifest = artifact
    version = registry.register(directory, manifest, RECORD)
    assert registry.with_alias("toy", "champion") is None
    registry.set_alias("toy", "champion", version.version)
    registry.set_stage("toy", version.version, "champion")
    found = registry.with_alias("toy", "champion")
    assert found is not None
    assert (found.version, found.stage) == (version.version, "champion")
    registry.drop_alias("toy", "champion")
    registry.drop_alias("toy", "champion")
    assert registry.with_alias("toy", "champion") is None
    registry.attach(version, "evidence/gate.json", "{}")
    assert registry.document(version, "evidence/gate.json") == "{}"


def test_what_is_not_there_is_named_with_what_is(registry: ModelRegistry, artifact):
    version = registry.register(*artifact, RECORD)
    with pytest.raises(RegistryError, match="no version '99'"):
        registry.version("toy", "99")
    with pytest.raises(RegistryError, match=r"no document 'nope\.md'"):
        registry.document(version, "nope.md")
    assert registry.versions("unknown") == []
