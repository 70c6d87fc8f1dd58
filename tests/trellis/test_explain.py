"""Decisions of the loop replay to the last digit from the store, and whatever is changed in it shows."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from trellis.contract import DriftPolicy, GatePolicy, Metric, RetrainPolicy, RolloutPolicy
from trellis.decision import Check, Decision, Verdict, decision_of, dumps
from trellis.errors import RegistryError
from trellis.explain import KINDS, intact, replay, same
from trellis.gates import gate_inputs
from trellis.loop import RetrainInputs, Signal, VerifyInputs
from trellis.rollout import CanaryInputs, LossStream, exposures_of
from trellis.sums import loss_sums

ROOT = Path(__file__).parents[2]


def _gate():
    random = np.random.default_rng(1)
    count = 2_000
    target = (random.random(count) < 0.3).astype(int)
    good = np.clip(0.3 + 0.4 * (target - 0.3) + random.normal(0, 0.2, count), 0.01, 0.99)
    inputs = gate_inputs(
        "binary",
        target,
        good,
        np.clip(good + random.normal(0, 0.05, count), 0.01, 0.99),
        metric=Metric("auc", 0.6),
        row_id=np.arange(count).astype(str),
        time=np.datetime64("2013-01-01", "us") + np.arange(count) * np.timedelta64(1, "h"),
        latency_p95_ms=0.4,
        artifact_bytes=1_000,
        seed=1,
        confidence=0.95,
    )
    return inputs, GatePolicy()


def _canary():
    random = np.random.default_rng(2)
    arm = random.random(3_000) < 0.3
    loss = random.random(3_000) * 0.5
    stream = LossStream().update(arm, loss, 0.3)
    return CanaryInputs(stream, exposures_of(0.3, arm), 0.3, 4.5, -0.001, 0.002), RolloutPolicy()


def _drift():
    from trellis.contract import Field
    from trellis.drift import DriftInputs, build_reference, summarise_window

    random = np.random.default_rng(3)
    hours = np.datetime64("2013-01-01", "us") + np.arange(4_000) * np.timedelta64(1, "h")
    x = Field("x", "float", "A number.")
    reference = build_reference({"x": random.normal(size=4_000)}, [x], times=hours)
    window = summarise_window(
        {"x": random.normal(2, 1, size=700)}, [x], reference, start="2013-07-01T00:00:00Z", end="2013-07-08T00:00:00Z"
    )
    return DriftInputs("toy", "1", reference, (window,), {"x": "request"}), DriftPolicy()


def _retrain():
    signals = (Signal("drift", True, 0.4, 0.25, "x moved"), Signal("performance", False, 0.01, 0.02, "no harm"))
    inputs = RetrainInputs("toy", "2013-08-01T00:00:00Z", signals, "", ("2013-07-01T00:00:00Z",), 9_000)
    return inputs, RetrainPolicy()


def _verify():
    losses = np.random.default_rng(5).random(2_000)
    new, old = loss_sums(losses[:1_000] / 5, np.arange(1_000) // 100), loss_sums(losses[1_000:] / 4)
    return VerifyInputs("toy", "2", "1", "2013-08-01T00:00:00Z", 9.0, 0.02, new, old), RetrainPolicy()


MAKERS = {"gate": _gate, "canary": _canary, "drift": _drift, "retrain": _retrain, "verify": _verify}


def _taken(kind: str) -> Decision:
    inputs, policy = MAKERS[kind]()
    verdict = KINDS[kind].decide(inputs, policy)
    return decision_of(
        kind, model="toy", subject="v2 vs v1", at="2013-08-01T00:00:00Z", inputs=inputs, policy=policy, verdict=verdict
    )


def test_evidence_of_before_levels_were_kept_replays_by_the_rule_of_then() -> None:
    """A watcher that looked twelve times where eight are declared: the level was 0.05 * 6 / (5 pi)^2."""
    inputs, policy = _drift()
    inputs = replace(inputs, looks=12)
    kept = json.loads(dumps(inputs))
    del kept["level"]
    verdict = KINDS["drift"].decide(inputs, policy)
    assert f"against {0.05 * 6 / (5 * np.pi) ** 2:.2g}," in " ".join(c.text for c in verdict.checks)
    decision = decision_of("drift", model="toy", subject="s", at="t", inputs=kept, policy=policy, verdict=verdict)
    assert same(replay(decision), verdict)
    # Kept with its level, it needs no rule.
    now = replace(inputs, level=0.02)
    verdict = KINDS["drift"].decide(now, policy)
    assert "against 0.02," in " ".join(c.text for c in verdict.checks)
    decision = decision_of("drift", model="toy", subject="s", at="t", inputs=now, policy=policy, verdict=verdict)
    assert same(replay(decision), verdict)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose store holds one decision of every kind."""
    from trellis.adapters.database import engine
    from trellis.adapters.decision_store import DecisionStore

    home = tmp_path_factory.mktemp("explain")
    (home / "store").mkdir()
    store = DecisionStore(engine(f"sqlite:///{home}/store/trellis.db"))
    for kind in MAKERS:
        store.record(_taken(kind))
    return home


def trellis(home: Path, *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process."""
    import io
    from contextlib import redirect_stderr, redirect_stdout

    from trellis import settings
    from trellis.cli import main

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("TRELLIS_HOME", str(home))
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys, "argv", ["trellis", *arguments])
        settings.settings.cache_clear()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            settings.settings.cache_clear()
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_a_decision_replays_from_the_store_to_the_last_digit(home: Path, kind: str):
    code, out, err = trellis(home, "explain", f"{kind}-", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["replay_agrees"], found["intact"]) == (True, True)
    assert found["verdict"] == json.loads(dumps(_taken(kind).verdict))


def _body(home: Path, kind: str, body: str | None = None) -> str:
    engine = sa.create_engine(f"sqlite:///{home}/store/trellis.db")
    with engine.begin() as connection:
        where = {"kind": kind}
        if body is not None:
            connection.execute(sa.text("update decisions set body = :body where kind = :kind"), {**where, "body": body})
        found: str = connection.execute(sa.text("select body from decisions where kind = :kind"), where).scalar_one()
    engine.dispose()
    return found


def _change(body: str, kind: str, what: str) -> str:
    data = json.loads(body)
    if what == "evidence":
        inputs = data["inputs"]["inputs"]
        number = {"gate": "lo", "canary": "days", "retrain": "new_labels", "verify": "margin"}.get(kind)
        if number:
            inputs[number] = inputs[number] / 2 if kind != "retrain" else 1
        else:
            inputs["windows"][0]["rows"] = 3
    elif what == "outcome":
        data["verdict"]["outcome"] = "PROMOTE" if data["verdict"]["outcome"] != "PROMOTE" else "HOLD"
    else:  # both, so that they agree: only the id tells
        policy = {"gate": "max_bytes", "canary": "max_days", "drift": "min_rows"}.get(kind, "cooldown_days")
        data["inputs"]["policy"][policy] = data["inputs"]["policy"][policy] + 1
        changed = TypeAdapter(Decision).validate_python(data)
        data["verdict"] = json.loads(dumps(replay(changed)))
    return dumps(data)


@pytest.mark.parametrize("what", ["evidence", "outcome", "both"])
@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_what_was_changed_in_the_store_shows(home: Path, kind: str, what: str):
    body = _body(home, kind)
    _body(home, kind, _change(body, kind, what))
    try:
        code, out, _ = trellis(home, "explain", f"{kind}-")
    finally:
        _body(home, kind, body)
    assert code == 1
    assert ("DISAGREES" in out) == (what != "both")
    assert "changed after it was recorded" in out


def test_evidence_that_cannot_be_read_and_ids_that_are_not_there_are_named(home: Path):
    body = _body(home, "gate")
    data = json.loads(body)
    del data["inputs"]["inputs"]["blocks"]
    _body(home, "gate", dumps(data))
    try:
        code, out, err = trellis(home, "explain", "gate-")
    finally:
        _body(home, "gate", body)
    assert (code, out) == (1, "")
    assert err.startswith("trellis: The evidence of 'gate-")
    assert len(err.splitlines()) == 1
    code, out, err = trellis(home, "explain", "nothing")
    assert (code, out) == (1, "")
    assert "No decision starts with 'nothing'" in err
    code, out, err = trellis(home, "explain", "")
    assert (code, out) == (1, "")
    assert "More than one" in err
    with pytest.raises(RegistryError, match="omen"):
        replay(replace(_taken("gate"), kind="omen"))


def test_decisions_are_listed_for_people_and_for_machines(home: Path, tmp_path: Path):
    code, out, _ = trellis(home, "decisions")
    assert code == 0
    for kind in MAKERS:
        assert kind in out
    code, out, _ = trellis(home, "decisions", "--kind", "gate", "--json")
    (found,) = json.loads(out)
    assert (code, found["kind"], found["verdict"]["outcome"]) == (0, "gate", "PROMOTE")
    code, out, _ = trellis(home, "decisions", "--model", "other")
    assert (code, out) == (0, "No decision yet. Train a model with: trellis flow train NAME\n")


def test_a_kind_alone_means_its_latest_decision(tmp_path: Path):
    from trellis.adapters.database import engine
    from trellis.adapters.decision_store import DecisionStore

    (tmp_path / "store").mkdir()
    store = DecisionStore(engine(f"sqlite:///{tmp_path}/store/trellis.db"))
    store.record(_taken("gate"))
    store.record(replace(_taken("gate"), at="1999-01-01T00:00:00Z", id="gate-earlier"))
    code, out, err = trellis(tmp_path, "explain", "gate", "--json")
    assert (code, json.loads(out)["id"]) == (0, _taken("gate").id), err


def test_a_verdict_is_told_with_its_arithmetic_by_the_command_itself(home: Path):
    code = "import sys; sys.argv = ['trellis', 'explain', 'canary-']; from trellis.cli import main; main()"
    environment = {"PATH": "", "TRELLIS_HOME": str(home), "COLUMNS": "160"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    verdict = _taken("canary").verdict
    assert verdict.outcome in done.stdout
    for check in verdict.checks:
        assert check.name in done.stdout
    assert "gives the same verdict, to the last digit" in " ".join(done.stdout.split())


numbers = st.none() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)


@given(numbers, numbers, st.dictionaries(st.text(max_size=5), st.integers(0, 10**6), max_size=3))
def test_a_verdict_read_back_is_the_one_that_was_written(value, bound, needs):
    verdict = Verdict("HOLD", "Because.", (Check("c", None, "c", value, bound),), needs)
    decision = decision_of("gate", model="m", subject="s", at="t", inputs={}, policy={}, verdict=verdict)
    back = TypeAdapter(Decision).validate_json(dumps(decision))
    assert back.verdict == verdict
    assert same(back.verdict, verdict)
    assert intact(back)
