"""Embedded: the exported directory scores by itself, refuses what the service refuses, and knows its digest."""

import json
import subprocess
import sys

import numpy as np
import pytest

from trellis.errors import ArtifactError, DigestMismatchError, StorageError
from trellis.patterns import export_model
from trellis.patterns.parity import json_row

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pytorch_lightning")


def score(directory, lines, *arguments):
    """Run the exported runner where Trellis cannot be imported: no site packages of ours on the path, no cwd."""
    blocked = (
        "import sys, runpy; sys.modules['trellis'] = None; "
        "sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[0].rpartition('/')[0]); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-I", "-c", blocked, str(directory / "score.py"), *arguments]
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    return subprocess.run(command, input=text, capture_output=True, text=True, cwd=directory.parent)


@pytest.fixture
def exported(tmp_path, flights):
    export_model(flights.spec, flights.artifact, tmp_path / "out", version="7", digest=flights.manifest.digest)
    return tmp_path / "out"


@pytest.fixture
def row(flights):
    return json_row(flights.plugin, flights.unseen.columns, 0)


def test_it_holds_what_it_needs_and_scores_without_trellis(exported, flights):
    names = {"model.onnx", "manifest.json", "schema.json", "score.py", "score_fields.py", "SHA256SUMS"}
    assert {p.name for p in exported.iterdir()} == names
    assert [p.name for p in exported.parent.iterdir()] == ["out"]
    rows = [json_row(flights.plugin, flights.unseen.columns, i) for i in range(len(flights.unseen))]
    done = score(exported, rows, "--digest", flights.manifest.digest)
    assert (done.returncode, done.stderr) == (0, "")
    answers = [json.loads(line)["probability"] for line in done.stdout.splitlines()]
    inputs = {name: flights.unseen.columns[name] for name in flights.spec.inputs}
    np.testing.assert_allclose(answers, flights.batch.predictor.predict(inputs)["probability"], rtol=1e-5)
    sums = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=exported, capture_output=True, text=True)
    assert sums.returncode == 0


def test_a_bad_line_gets_its_error_in_its_place(exported, row):
    bad = [
        {**row, "carrier": "QQ"},
        {**row, "distance": 9.0},
        {**row, "distance": None},
        {**row, "distance": True},
        {**row, "flight": 3.5},
        {**row, "sched_dep": "2013-07-01T09:15:00"},
        {**row, "sched_dep": "yesterday"},
        {**row, "dest": "A" * 5},
        {**row, "colour": "red"},
        {k: v for k, v in row.items() if k != "weather_temp"},
        "[1]\n",
        "{\n",
        json.dumps(row).replace(": 1", ": NaN", 1) + "\n",
    ]
    fine = [row, {**row, "weather_temp": None, "tailnum": None}, {k: v for k, v in row.items() if k != "tailnum"}]
    done = score(exported, [fine[0], *bad, *fine[1:]])
    assert done.returncode == 1
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [set(a) for a in answers] == [{"probability"}] + [{"error"}] * len(bad) + [{"probability"}] * 2
    fields = [a["error"]["field"] for a in answers[1:-5]]
    wanted = "carrier distance distance distance flight sched_dep sched_dep dest colour weather_temp"
    assert fields == wanted.split()
    assert answers[3]["error"]["reason"] == "is missing"


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "schema.json"])
def test_a_changed_file_is_noticed(exported, row, name):
    path = exported / name
    content = path.read_bytes()
    if name == "model.onnx":
        content = content[:-1] + bytes([content[-1] ^ 1])
    else:
        digest = json.loads(content)["digest"].encode()
        content = content.replace(digest, digest[::-1])
    path.write_bytes(content)
    done = score(exported, [row])
    assert done.returncode == 1
    assert done.stderr.startswith("score: the model")
    assert done.stdout == ""


def test_another_digest_than_the_promised_one_is_refused(exported, row):
    done = score(exported, [row], "--digest", "0" * 64)
    assert done.returncode == 1
    assert "not " + "0" * 64 in done.stderr


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(tmp_path, flights, digits):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("")
    with pytest.raises(StorageError, match="not empty"):
        export_model(flights.spec, flights.artifact, taken, version="7")
    with pytest.raises(ArtifactError, match="of 'digits', not of 'flight_delay'"):
        export_model(flights.spec, digits.artifact, tmp_path / "new", version="7")
    with pytest.raises(DigestMismatchError):
        export_model(flights.spec, flights.artifact, tmp_path / "new", version="7", digest="0" * 64)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_the_verb_exports_the_champion(served, tmp_path, row, flights):
    line, options = served
    command = [*line, "export", "flight_delay", str(tmp_path / "edge")]
    done = subprocess.run([*command, "--json"], **options, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["version"], told["digest"]) == ("7", flights.manifest.digest)
    assert score(tmp_path / "edge", [row], "--digest", told["digest"]).returncode == 0
    again = subprocess.run(command, **options, capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stderr.startswith("trellis: The directory is not empty.")
