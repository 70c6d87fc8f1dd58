"""The verbs about rollouts, as a person and as a program would use them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from trellis.adapters.plan_store import PlanStore
from trellis.adapters.prediction_log import PredictionLog, ShadowLog
from trellis.adapters.rollout_controller import RolloutController
from trellis.artifact import seal
from trellis.cli.rollout import app
from trellis.errors import (
    ConfigError,
    DataError,
    DigestMismatchError,
    ExpiredRolloutError,
    InvalidPlanError,
    RegistryError,
    RolloutBusyError,
    RolloutError,
    UnknownModelError,
)
from trellis.rollout.plan import Variant, first_plan, promoted, with_canary
from trellis.settings import settings

ROOT = Path(__file__).parents[3]
MODEL = "toy_binary"


@pytest.fixture(autouse=True)
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Versions 1 to 3 with sealed files; 2 and 3 have been champions before, 1 is now."""
    monkeypatch.setenv("TRELLIS_HOME", str(tmp_path))
    monkeypatch.setenv("TRELLIS_MODELS", str(ROOT / "tests" / "pipelines" / "toys"))
    monkeypatch.setenv("COLUMNS", "250")
    settings.cache_clear()
    store = PlanStore(settings().database_url)
    for number, version in enumerate(("2", "3", "1")):
        plan = first_plan(MODEL, variant(tmp_path, version), salt="s")
        store.save(plan, expected_revision=number, who="platform", why=f"version {version}")
    yield store
    settings.cache_clear()


def variant(home: Path, version: str) -> Variant:
    directory = home / "artifacts" / version
    directory.mkdir(parents=True)
    (directory / "toy.json").write_text(f"[0.1, 0.{version}]")
    sealed = seal(directory, model=MODEL, plugin_version="1", recipe="r", seed=1, inputs=("x",), outputs=("y",))
    return Variant(version, "champion", 1.0, str(directory), sealed.digest)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True)


def good(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def refused(error: type[Exception], *arguments: object) -> str:
    """Run a verb that must fail with a named error and change nothing."""
    controller = RolloutController(settings().database_url)
    before = controller.plans.history(MODEL), controller.store.history(MODEL)
    result = run(*arguments)
    assert type(result.exception) is error, (result.output, result.exception)
    assert (controller.plans.history(MODEL), controller.store.history(MODEL)) == before
    return str(result.exception)


def test_start_show_pause_resume_promote_explain(plans):
    assert "v2 50% (canary)" in good("start", MODEL, 2, "--why", "it won in June", "--who", "anna")
    assert "trial, step 1, paused" in good("pause", MODEL, "--why", "labels are late")
    assert "paused" not in good("resume", MODEL, "--why", "they came")
    told = json.loads(good("promote", MODEL, "--why", "known from elsewhere", "--json"))
    assert told["rollout"]["stage"] == "champion"
    assert told["plan"]["variants"][0]["version"] == "2"
    assert plans.current(MODEL).champion.version == "2"
    shown = good("show", MODEL)
    assert "v2 100% (champion)" in shown
    assert "known from elsewhere" in shown
    reasons = [t["why"] for t in json.loads(good("explain", MODEL, "--json"))]
    assert reasons == ["it won in June", "labels are late", "they came", "known from elsewhere"]
    assert "anna" in good("explain", MODEL)


def test_abort_and_rollback_go_back_to_the_champion(plans):
    good("start", MODEL, 2, "--why", "try", "--strategy", "blue_green")
    assert [v.role for v in plans.current(MODEL).variants] == ["champion", "standby"]
    good("abort", MODEL, "--why", "wrong version")
    assert [v.version for v in plans.current(MODEL).variants] == ["1"]
    good("start", MODEL, 2, 3, "--why", "which is best", "--strategy", "bandit")
    assert len(plans.current(MODEL).canaries) == 2
    assert "version 1 answers everything again" in good("rollback", MODEL, "--why", "none")
    assert "version 3 answers everything again" in good("rollback", MODEL, "--why", "the one before")
    assert "version 2 answers everything again" in good("rollback", MODEL, "--why", "and before that")
    assert "--to" in refused(InvalidPlanError, "rollback", MODEL, "--why", "nothing is before it")
    assert "version 3 answers everything again" in good("rollback", MODEL, "--why", "it was good", "--to", 3)
    assert "cannot go back to version 9" in refused(InvalidPlanError, "rollback", MODEL, "--why", "x", "--to", 9)
    good("start", MODEL, 2, "--why", "try", "--supersede")
    assert "Roll it back first" in refused(RolloutError, "rollback", MODEL, "--why", "x", "--to", 1)


def test_what_makes_no_sense_is_refused_and_nothing_is_changed(plans, tmp_path):
    why = ("--why", "because")
    assert "needs a reason" in refused(RolloutError, "start", MODEL, 2, "--why", " ")
    refused(RegistryError, "start", MODEL, 99, *why)  # unknown version
    refused(InvalidPlanError, "start", MODEL, 1, *why)  # the champion itself
    refused(InvalidPlanError, "start", MODEL, 2, 3, *why)  # a canary is one
    refused(ConfigError, "start", MODEL, 2, *why, "--strategy", "hope")
    refused(UnknownModelError, "start", "toy_binari", 2, *why)
    for verb in ("pause", "resume", "abort", "promote"):
        assert "nothing to" in refused(ExpiredRolloutError, verb, MODEL, *why)
    assert run("abort", MODEL).exit_code == 2  # no --why at all
    good("start", MODEL, 2, *why)
    assert "--supersede" in refused(RolloutBusyError, "start", MODEL, 3, *why)
    assert "needs a reason" in refused(RolloutError, "promote", MODEL, "--why", "")
    refused(RolloutError, "resume", MODEL, *why)
    refused(InvalidPlanError, "promote", MODEL, *why, "--version", 3)
    good("start", MODEL, 3, *why, "--supersede")
    assert plans.current(MODEL).canary.version == "3"
    (tmp_path / "artifacts" / "2" / "toy.json").write_text("[0, 1]")
    refused(DigestMismatchError, "start", MODEL, 2, *why, "--supersede")


def test_the_way_back_does_not_hang_on_the_plugin(plans, monkeypatch, tmp_path):
    plan = plans.current(MODEL)
    plans.save(with_canary(plan, plans.history(MODEL)[0].plan.champion, 0.3), expected_revision=3, who="x", why="y")
    monkeypatch.setenv("TRELLIS_MODELS", str(tmp_path / "empty"))
    settings.cache_clear()
    assert "version 1 answers everything again" in good("rollback", MODEL, "--why", "the plug-in is gone as well")


def test_a_canary_planned_by_the_flow_can_be_promoted_by_hand(plans):
    plan = plans.current(MODEL)
    two = plans.history(MODEL)[0].plan.champion
    saved = plans.save(with_canary(plan, two, 0.5), expected_revision=3, who="platform", why="gate-12: good")
    good("promote", MODEL, "--why", "now")
    assert plans.current(MODEL).variants == promoted(saved).variants


def test_plan_says_how_long_and_exits_3_where_that_is_too_long():
    enough = ("plan", MODEL, "--variance", 0.03, "--per-day", 900)
    told = json.loads(good(*enough, "--json"))
    assert told["promote"]["days"] < 30
    assert told["promote"]["rows"] > told["promote"]["single_look_rows"]
    assert "PROMOTE" in good(*enough)
    longer = run("plan", MODEL, "--variance", 0.03, "--per-day", 5, "--json")
    assert longer.exit_code == 3
    assert json.loads(longer.stdout)["in_time"] is False
    assert json.loads(run(*enough, "--share", 1.0, "--json").stdout)["promote"]["days"] is None
    assert "--per-day" in refused(DataError, "plan", MODEL)
    assert "--variance" in refused(DataError, "plan", MODEL, "--per-day", 100)
    refused(InvalidPlanError, *enough, "--power", 0.2)
    refused(InvalidPlanError, *enough, "--paired-variance", 0.001)  # its policy has no shadow_rate
    pairs = (*enough, "--paired-variance", 0.001, "--shadow-rate", 1.0)
    assert json.loads(good(*pairs, "--json"))["paired"]["promote_rows"] < told["promote"]["rows"] / 2
    assert "On the same rows (100% of the champion's): PROMOTE after" in good(*pairs)


def test_a_shadow_is_compared_overall_and_by_segment(tmp_path: Path):
    """300 rows; the shadow turns every fourth decision of the segment b, and one of its rows failed."""
    predictions, shadows = PredictionLog(tmp_path, MODEL, flush_seconds=0), ShadowLog(tmp_path, MODEL, flush_seconds=0)
    moment = {"time": "2013-07-01T00:00:00Z", "received_at": "2026-01-01T00:00:00Z"}
    answered, scored = [], []
    for n in range(300):
        common = {"id": f"p{n}", "model": MODEL, "revision": 1, "unit": "u", **moment}
        answered.append({**common, "version": "1", "request": {"x": 1.0, "z": "ab"[n % 2]}})
        said = 0.9 if n % 8 == 1 else 0.2
        pair = {**common, "version": "2", "primary_version": "1", "primary": {"probability": 0.2}}
        pair |= {"primary_latency_ms": 2.0, "score_ms": 1.0 + n / 300, "memory_mb": 12.5}
        scored.append(pair | ({"error": "broke", "outputs": {}} if n == 299 else {"outputs": {"probability": said}}))
    predictions.extend(answered)
    shadows.extend(scored)
    told = json.loads(run("shadow", MODEL, "--json").stdout)
    assert (told["version"], told["primary"], told["rows"], told["failed"]) == ("2", "1", 299, 1)
    assert [one["segment"] for one in told["comparisons"]] == ["", "z=a", "z=b"]
    every, a, b = told["comparisons"]
    assert (every["disagreement"]["mean"], b["disagreement"]["mean"]) == pytest.approx((38 / 299, 38 / 149))
    assert every["difference"]["mean"] == pytest.approx(38 * 0.7 / 299)
    assert (a["disagreement"]["mean"], a["difference"]["mean"], a["difference"]["rows"]) == (0.0, 0.0, 150)
    assert b["difference"]["lower"] > 0 > a["difference"]["lower"] - 1e-12
    assert told["latency_ms"]["primary_answering"] == {"p50": 2.0, "p95": 2.0, "p99": 2.0}
    assert told["memory_mb"] == 12.5
    text = run("shadow", MODEL, "--version", "2").stdout
    assert "version 2 in the shadow of 1, 299 rows" in text
    assert "z=b" in text
    assert "12.5 MB" in text
    assert "1 rows could not be scored" in text
    refused = run("shadow", MODEL, "--version", "3").exception
    assert isinstance(refused, RolloutError)
    assert "Version 3" in str(refused)


def test_errors_are_one_line_and_exit_code_1(tmp_path):
    code = "import sys; from trellis.cli import main; sys.argv[0] = 'trellis'; main()"
    command = [sys.executable, "-c", code, "rollout", "abort", MODEL, "--why", "x"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 1
    assert done.stderr.startswith("trellis: No rollout of 'toy_binary' is going on")
    assert len(done.stderr.splitlines()) == 1


def test_plan_sizes_an_experiment_and_refuses_what_has_no_size():
    enough = ("plan", MODEL, "--variance", 0.03, "--per-day", 2_000, "--strategy", "ab")
    one, two = (json.loads(good(*enough, "--arms", arms, "--json")) for arms in (1, 2))
    assert one["rows"] < two["rows"]
    assert one["days"] < two["days"]
    assert "of an arm and the champion" in good(*enough)
    late = run("plan", MODEL, "--variance", 0.03, "--per-day", 5, "--strategy", "ab")
    assert late.exit_code == 3
    assert "longer than the" in late.output
    for strategy in ("bandit", "blue_green"):
        assert "no size to plan" in refused(InvalidPlanError, *enough[:-1], strategy)


@pytest.mark.parametrize("strategy", ["canary", "ab"])
def test_plan_refuses_numbers_beyond_all_measure_by_the_options_name(strategy):
    usual = {"--variance": "0.03", "--per-day": "2000"}
    for option, value in (("--variance", "inf"), ("--variance", "1e300"), ("--per-day", "inf"), ("--per-day", "nan")):
        given = [part for pair in (usual | {option: value}).items() for part in pair]
        found = run("plan", MODEL, *given, "--strategy", strategy)
        assert found.exit_code == 1
        assert isinstance(found.exception, InvalidPlanError)
        assert option in str(found.exception)
    assert "--harm" in refused(InvalidPlanError, "plan", MODEL, "--variance", 0.03, "--per-day", 2_000, "--harm", "nan")
