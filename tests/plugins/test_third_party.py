"""A plug-in installed from a package of its own is found, checked and tested; no file of the platform knows it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trellis.catalog import Catalogue
from trellis.checks import Report
from trellis.contract import ProvidesData

PACKAGE = Path(__file__).parent / "trellis-plugin-diabetes"
NAME = "diabetes_progression"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel and install it into a directory that goes away, with an ordinary installer."""
    root = tmp_path_factory.mktemp("third_party")
    source = shutil.copytree(PACKAGE, root / "source", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
               "--no-cache-dir", "--disable-pip-version-check", "--target", root / "site", source]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root / "site"


def run(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(site), "TRELLIS_HOME": str(site.parent), "TRELLIS_MODELS": str(site / "no")}
    command = [sys.executable, *(str(argument) for argument in arguments)]
    return subprocess.run(command, env=env, cwd=site.parent, capture_output=True, text=True)


TRELLIS = ("-c", "from trellis.cli import main; main()")


def test_it_is_listed_with_its_package_as_origin(site: Path) -> None:
    done = run(site, *TRELLIS, "models", "list", "--json")
    assert done.returncode == 0, done.stderr
    [row] = [row for row in json.loads(done.stdout) if row["name"] == NAME]
    assert row["origin"] == "package trellis-plugin-diabetes 1.0 (trellis_plugin_diabetes:plugin)"
    assert row["problem"] is None


def test_it_passes_the_kit_on_the_command_line(site: Path) -> None:
    done = run(site, *TRELLIS, "models", "check", NAME, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = Report.from_json(done.stdout)
    outcomes = {result.name: result.outcome for result in report.checks}
    assert outcomes.pop("unknown_values_handled") == "skipped"  # it has neither categories nor texts
    assert set(outcomes.values()) == {"passed"}
    assert report.cost["fresh_load_peak_memory_mb"] > 0


def test_its_own_tests_run_the_kit_with_readable_ids(site: Path) -> None:
    tests = site.parent / "source" / "tests"
    done = run(site, "-m", "pytest", tests, "-v", "-p", "no:cacheprovider", "--rootdir", tests.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"test_conformance[{NAME}:training_repeats] PASSED" in done.stdout
    assert f"test_conformance[{NAME}:unknown_values_handled] SKIPPED" in done.stdout


def test_it_brings_its_own_data(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)
    plugin = Catalogue().plugin(NAME)
    assert isinstance(plugin, ProvidesData)
    plugin.ingest(tmp_path)
    rows = plugin.examples(tmp_path)
    assert len(rows) == 442  # patients in Efron et al. (2004)
    assert (rows.target.min(), rows.target.max()) == (25, 346)


def test_it_is_gone_once_its_directory_is(site: Path) -> None:
    assert NAME not in Catalogue().names()
