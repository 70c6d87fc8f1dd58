"""The batch flow: the same table as the command makes, one row per row, and a kill inside costs a part."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trellis.adapters.plan_store import PlanStore
from trellis.artifact import seal
from trellis.errors import ConfigError, RequestError, RolloutError
from trellis.rollout.plan import Variant, first_plan
from trellis.settings import settings

ROOT = Path(__file__).parents[2]
MODEL = "toy_binary"
LOW, HIGH = 0.125, 0.875


def deploy(home, version, low=LOW, revision=0):
    directory = home / "artifacts" / version
    directory.mkdir(parents=True)
    (directory / "toy.json").write_text(json.dumps([low, HIGH]))
    manifest = seal(
        directory, model=MODEL, plugin_version="1", recipe="linear", seed=1, inputs=("x", "z"), outputs=("probability",)
    )
    plan = first_plan(MODEL, Variant(version, "champion", 1.0, str(directory), manifest.digest), salt="s")
    PlanStore(settings().database_url).save(plan, expected_revision=revision, who="platform", why="test")


def table(path, rows, bad=()):
    x = np.where(np.arange(rows) % 3 == 0, 1.0, -1.0)
    x[list(bad)] = 99.0
    moments = pa.array(np.datetime64("2013-01-01", "us") + np.arange(rows) * np.timedelta64(1, "s"))
    columns = {"x": x, "z": ["a"] * rows, "at": moments.cast(pa.timestamp("us", "UTC")), "key": np.arange(rows)}
    pq.write_table(pa.table(columns), path)
    return x


def test_the_flow_writes_one_right_row_for_every_row_and_running_again_does_nothing(home, tmp_path):
    from pipelines.batch import predict_table

    deploy(home, "1")
    x = table(tmp_path / "in.parquet", 5_000)
    told = predict_table(MODEL, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), keep=["key"])
    assert (told.rows, told.scored, told.version, told.rejected) == (5_000, 5_000, "1", 0)
    out = pq.read_table(tmp_path / "out.parquet")
    assert out["key"].to_pylist() == list(range(5_000))
    np.testing.assert_array_equal(out["probability"].to_numpy(), np.where(x > 0, HIGH, LOW))
    again = predict_table(MODEL, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), keep=["key"])
    assert (again.rows, again.scored) == (5_000, 0)


def test_bad_rows_stop_the_flow_or_get_nulls_and_a_reason(home, tmp_path):
    from pipelines.batch import predict_table

    deploy(home, "1")
    table(tmp_path / "in.parquet", 100, bad=(7, 70))
    paths = (str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"))
    with pytest.raises(RequestError, match="row 7, x"):
        predict_table(MODEL, *paths)
    assert not (tmp_path / "out.parquet").exists()
    told = predict_table(MODEL, *paths, on_bad="skip")
    assert (told.rows, told.rejected) == (100, 2)
    nulls = pq.read_table(tmp_path / "out.parquet")["probability"].is_null().to_pylist()
    assert [i for i, missing in enumerate(nulls) if missing] == [7, 70]


def test_a_model_without_a_plan_is_named(home, tmp_path):
    from pipelines.batch import predict_table

    table(tmp_path / "in.parquet", 10)
    with pytest.raises(RolloutError, match="no rollout plan"):
        predict_table(MODEL, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"))


def test_the_command_says_what_it_did_and_refuses_what_it_does_not_know(home, tmp_path):
    from typer.testing import CliRunner

    from pipelines.__main__ import app

    deploy(home, "1")
    table(tmp_path / "in.parquet", 10)
    asked = ["predict-batch", MODEL, "--input", str(tmp_path / "in.parquet"), "--output", str(tmp_path / "out.parquet")]
    wrong = CliRunner().invoke(app, [*asked, "--on-bad", "hope"])
    assert isinstance(wrong.exception, ConfigError)
    done = CliRunner().invoke(app, [*asked, "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["rows"] == 10


def test_killed_inside_a_step_it_goes_on_with_the_version_it_began_with(home, tmp_path):
    """SIGKILL between two parts; meanwhile another version has become the champion."""
    deploy(home, "1")
    x = table(tmp_path / "in.parquet", 200_000)
    paths = (str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"))
    code = "import sys; from pipelines.batch import predict_table; predict_table(*sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, MODEL, *paths], cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL
    )
    work, end = tmp_path / "out.parquet.work", time.monotonic() + 60
    while not list(work.glob("part-*.parquet")):
        assert process.poll() is None, "it was done before the first look"
        assert time.monotonic() < end
        time.sleep(0.001)
    process.kill()
    process.wait(10)
    assert not (tmp_path / "out.parquet").exists()
    deploy(home, "2", low=0.5, revision=1)
    from pipelines.batch import predict_table

    told = predict_table(MODEL, *paths)
    assert told.version == "1"
    assert 0 < told.scored < told.rows == 200_000
    out = pq.read_table(tmp_path / "out.parquet")
    np.testing.assert_array_equal(out["probability"].to_numpy(), np.where(x > 0, HIGH, LOW))
    assert not work.exists()


def test_it_is_a_deployment_too():
    from pipelines.deployments import FLOWS

    assert FLOWS["predict_table"].name == "predict-table"
