"""A new plug-in passes every check as it is, for each task; and making one spoils nothing that is there."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest

from trellis.catalog import Catalogue
from trellis.checks import run_checks
from trellis.contract import ProvidesData, Task, TrainingData, TrainingRun
from trellis.errors import ConfigError, StorageError
from trellis.metrics import GREATER_IS_BETTER, compute
from trellis.scaffold import scaffold

NOTHING = Catalogue(entry_points=False)


@pytest.mark.parametrize("task", get_args(Task))
def test_a_new_plugin_passes_the_kit(task: Task, tmp_path: Path) -> None:
    scaffold(f"new_{task}", task, tmp_path, NOTHING)
    report = run_checks(f"new_{task}", folders=[tmp_path], entry_points=False)
    assert report.passed, report.failures
    assert [result.name for result in report.checks if result.outcome == "skipped"] == ["onnx_agrees"]


@pytest.mark.parametrize("task", get_args(Task))
def test_a_new_plugin_provides_its_data_and_beats_its_floor(task: Task, tmp_path: Path) -> None:
    scaffold(f"fed_{task}", task, tmp_path / "models", NOTHING)
    plugin = Catalogue([tmp_path / "models"], entry_points=False).plugin(f"fed_{task}")
    assert isinstance(plugin, ProvidesData)
    plugin.ingest(tmp_path / "raw")
    assert len(pd.read_parquet(tmp_path / "raw" / f"fed_{task}.parquet")) == 6_000
    rows = plugin.examples(tmp_path / "raw")
    data = TrainingData(rows.take(slice(0, 3_600)), rows.take(slice(3_600, 4_800)))
    predictor = plugin.train(data, TrainingRun(seed=1, recipe="default", scratch=tmp_path))
    held_out = rows.take(slice(4_800, 6_000))
    inputs = {name: held_out.columns[name] for name in plugin.spec.inputs}
    score = predictor.predict(inputs)[plugin.spec.score.name]
    metric = plugin.spec.metric
    value = compute(task, held_out.target, score)[metric.name]
    assert value > metric.floor if GREATER_IS_BETTER[metric.name] else value < metric.floor


def test_a_new_plugin_is_clean_by_the_platforms_own_linter(tmp_path: Path) -> None:
    for task in get_args(Task):
        scaffold(f"clean_{task}", task, tmp_path, NOTHING)
    config = Path(__file__).parents[3] / "pyproject.toml"
    for verb in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *verb, "--no-cache", "--config", config, tmp_path], capture_output=True
        )
        assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize("name", ["", "Bikes", "my-model", "1st", "a b", "../up", "a" * 64, "é", "x\n", "a.b"])
def test_a_bad_name_is_refused_and_nothing_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no name for a model"):
        scaffold(name, "binary", tmp_path / "models", NOTHING)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no task"):
        scaffold("fine", "ranking", tmp_path, NOTHING)  # type: ignore[arg-type]


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "__init__.py").write_text("precious")
    with pytest.raises(ConfigError, match="there already"):
        scaffold("mine", "binary", tmp_path, NOTHING)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "__init__.py"]
    assert (mine / "__init__.py").read_text() == "precious"


def test_a_name_taken_elsewhere_is_refused_with_its_origin(tmp_path: Path) -> None:
    scaffold("taken", "binary", tmp_path / "here", NOTHING)
    with pytest.raises(ConfigError, match="is taken") as caught:
        scaffold("taken", "binary", tmp_path / "there", Catalogue([tmp_path / "here"], entry_points=False))
    assert caught.value.where == str(tmp_path / "here" / "taken")


def test_a_place_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        scaffold("fine", "binary", tmp_path / "file", NOTHING)
