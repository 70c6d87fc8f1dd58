"""The verbs about models, as a person and as a program would use them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from trellis.checks import Report, check_names
from trellis.cli.models import app
from trellis.settings import settings


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRELLIS_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("TRELLIS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setattr("trellis.cli.models._catalogue", lambda: _only_folders())
    settings.cache_clear()
    yield tmp_path / "models"
    settings.cache_clear()


def _only_folders():  # what happens to be installed is not what is tested
    from trellis.catalog import Catalogue

    return Catalogue([settings().models], entry_points=False)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def broken(models: Path, name: str, code: str) -> None:
    (models / name).mkdir(parents=True)
    (models / name / "__init__.py").write_text(code)


def test_new_then_check_then_show(models: Path) -> None:
    made = run("new", "bike_trips", "--task", "regression")
    assert made.exit_code == 0, made.output
    assert (models / "bike_trips" / "README.md").exists()
    checked = run("check", "bike_trips", "--report", models / "report.json")
    assert checked.exit_code == 0, checked.output
    assert all(name in checked.stdout for name in check_names())
    report = Report.from_json((models / "report.json").read_text())
    assert report.passed
    assert f"18 passed, 1 skipped in {report.seconds:.1f} s, artifact {report.artifact[:12]}" in checked.stdout
    shown = run("show", "bike_trips")
    assert shown.exit_code == 0
    assert "asked_at" in shown.stdout
    declared = json.loads(run("show", "bike_trips", "--json").stdout)
    assert (declared["name"], declared["metric"]["name"]) == ("bike_trips", "mae")


def test_new_goes_where_it_is_told(models: Path, tmp_path: Path) -> None:
    assert run("new", "elsewhere", "--into", tmp_path / "other").exit_code == 0
    assert (tmp_path / "other" / "elsewhere" / "spec.py").exists()
    assert not models.exists()


def test_list_keeps_a_broken_plugin_with_its_cause(models: Path) -> None:
    assert run("new", "sound_one").exit_code == 0
    broken(models, "torn_one", "import not_there_xyz")
    listed = run("list")
    assert listed.exit_code == 0
    assert "not_there_xyz" in listed.stdout
    rows = {row["name"]: row for row in json.loads(run("list", "--json").stdout)}
    assert rows["sound_one"]["problem"] is None
    assert rows["sound_one"]["task"] == "binary"
    assert rows["torn_one"]["task"] is None
    assert "not_there_xyz" in rows["torn_one"]["problem"]


def test_list_of_nothing_says_how_to_start() -> None:
    assert "trellis models new NAME" in run("list").stdout
    assert json.loads(run("list", "--json").stdout) == []


def test_a_failing_check_leaves_with_1_and_prints_json_for_machines(models: Path) -> None:
    broken(models, "torn_two", "raise RuntimeError('no luck')")
    found = run("check", "torn_two", "--json")
    assert found.exit_code == 1
    report = Report.from_json(found.stdout)
    assert not report.passed
    assert all("no luck" in result.detail for result in report.checks)
    table = run("check", "torn_two", "--report", models / "report.json")
    assert table.exit_code == 1
    assert "19 failed" in table.stdout
    assert not Report.from_json((models / "report.json").read_text()).passed  # a failure is worth keeping too


def test_only_runs_what_is_asked_for(models: Path) -> None:
    assert run("new", "partly").exit_code == 0
    found = Report.from_json(run("check", "partly", "--only", "spec_complete", "--json").stdout)
    assert [result.name for result in found.checks] == ["spec_complete"]


@pytest.mark.parametrize("verb", ["check", "show"])
def test_a_misspelt_name_is_one_line_on_stderr(verb: str, models: Path) -> None:
    assert run("new", "flight_delay").exit_code == 0
    found = run(verb, "flight_dleay")
    assert found.exit_code == 1
    assert found.stdout == ""
    assert "Did you mean 'flight_delay'" in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [["check"], ["check", "x", "--rows", "3"], ["new", "x", "--task", "art"], ["fly"], ["list", "--no"]]
)
def test_wrong_usage_leaves_with_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_new_refuses_bad_and_taken_names(models: Path) -> None:
    assert "no name for a model" in run("new", "Bad-Name").stderr
    assert run("new", "once").exit_code == 0
    again = run("new", "once")
    assert (again.exit_code, again.stdout) == (1, "")
    assert "there already" in again.stderr


def test_a_report_that_cannot_be_written_is_a_named_error(models: Path) -> None:
    assert run("new", "reported").exit_code == 0
    found = run("check", "reported", "--only", "spec_complete", "--report", models / "no" / "such" / "report.json")
    assert found.exit_code == 1
    assert "The report cannot be written" in found.stderr
