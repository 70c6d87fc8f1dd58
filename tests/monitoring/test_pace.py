"""Looks at a model's own pace: one judges when it is due, and those in between spend nothing of the budget."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from monitoring import follow as job
from monitoring.alerts import DIAGNOSED
from monitoring.pace import alone, looks_taken
from monitoring.watch import WatchResult, watch
from tests.monitoring.test_watch_job import celsius, samples
from trellis.adapters.failure_log import FailureLog
from trellis.adapters.look_store import LookStore
from trellis.decision import Decision
from trellis.drift import look_alpha
from trellis.explain import replay, same

ROOT = Path(__file__).parents[2]


def look(served, until=None) -> WatchResult:
    return watch(served.subject, served.home, until or served.now, report=False, paced=True)


def evidence(served) -> list[str]:
    return sorted(path.name for path in (served.home / "drift" / "ferry_delay").glob("*.json"))


def turned(rows):
    return {**rows, "late": 1 - rows["late"]}


def looks(served, days: int, hours: float, change=lambda r: r) -> list[WatchResult]:
    """Serve days, and look at them every so many hours."""
    begun = served.now
    served.serve(days, change)
    return [look(served, begun + timedelta(hours=hours * i)) for i in range(1, int(days * 24 / hours) + 1)]


def test_a_watcher_that_looks_more_often_judges_at_the_declared_pace_and_with_a_whole_share(served) -> None:
    served.serve(14)
    found = looks(served, 30, 45)
    policy = served.subject.spec.drift
    judged = [r for r in found if r.judged]
    assert [r.decision.verdict.outcome for r in judged] == ["STABLE"] * 8
    assert {r.diagnosis.alpha for r in judged} == {look_alpha(policy)}
    ends = [r.end for r in judged]
    assert ends == [r.end for r in found[::2]]  # every 3.75 days
    assert len(evidence(served)) == len(list((served.home / "looks" / "ferry_delay").glob("*.json"))) == 8
    assert looks_taken(served.home / "drift" / "ferry_delay", served.now) == 8
    # In between the verdict on record stands, and what labels tell is told anew.
    assert found[-1].decision == judged[-1].decision
    assert found[-1].evidence == judged[-1].evidence
    assert found[-1].end > judged[-1].end
    ended = samples(served.home, "trellis_watch_window_end_seconds")[()]
    assert ended == served.now.timestamp()
    assert samples(served.home, "trellis_model_loss") == {("1",): pytest.approx(found[-1].series[-1].loss)}
    assert samples(served.home, "trellis_drift_outcome")[("STABLE",)] == 1
    assert len(samples(served.home, "trellis_drift_psi")) == len(judged[-1].diagnosis.shifts)


def test_the_first_days_of_a_service_are_not_judged(served) -> None:
    """Half a window of afternoons is no week: nothing is decided of it, and the first look that is, is a whole one."""
    served.serve(3, turned)
    first = look(served)
    assert (first.judged, first.decision.verdict.outcome, first.alert) == (False, "INSUFFICIENT", None)
    assert "a verdict needs" in first.decision.verdict.reason
    assert evidence(served) == []
    then = served.now
    served.serve(3, turned)
    whole = look(served)
    assert (whole.judged, whole.decision.verdict.outcome) == (True, "DRIFT")
    assert watch(served.subject, served.home, then, report=False).judged  # by hand it is


def test_drift_is_heard_at_the_next_due_look_and_stands_until_the_one_after(served) -> None:
    served.serve(14)
    assert look(served).judged
    served.serve(3, turned)
    between = look(served)
    assert (between.judged, between.decision.verdict.outcome, between.alert) == (False, "STABLE", None)
    served.serve(4, turned)
    due = look(served)
    assert (due.judged, due.decision.verdict.outcome) == (True, "DRIFT")
    assert due.alert is not None
    served.serve(1)
    after = look(served)
    assert (after.judged, after.decision, after.alert) == (False, due.decision, None)
    assert samples(served.home, "trellis_drift_outcome")[("DRIFT",)] == 1
    assert json.loads(due.alert.read_text())["status"] == "open"


def test_a_certain_fault_is_heard_between_two_looks_once_and_spends_nothing(served) -> None:
    served.serve(14)
    assert look(served).judged
    broken = looks(served, 2, 6, lambda r: {**r, "temp": np.full(len(r["temp"]), None)})
    assert not any(r.judged for r in broken)
    told = [r for r in broken if r.alert is not None]
    # Nulls need a tenth of a week's rows, 17 hours.
    assert [r.end for r in told] == [broken[2].end]
    alarm = told[0]
    assert (alarm.decision.verdict.outcome, alarm.diagnosis.severity) == ("UPSTREAM_FAULT", "warning")  # no loss
    assert [(f.column, f.kind) for f in alarm.diagnosis.faults] == [("temp", "nulls")]
    assert samples(served.home, "trellis_drift_fault") == {("temp", "nulls", "weather"): 1.0}
    assert {r.decision.id for r in broken[2:]} == {alarm.decision.id}
    assert len(evidence(served)) == 2
    assert looks_taken(served.home / "drift" / "ferry_delay", served.now) == 1
    stored = TypeAdapter(Decision).validate_json(alarm.evidence.read_bytes())
    assert same(replay(stored), alarm.decision.verdict)
    # The next due look judges all, with a whole share, and the episode goes on.
    served.serve(2, lambda r: {**r, "temp": np.full(len(r["temp"]), None)})
    due = look(served)
    assert (due.judged, due.decision.verdict.outcome, due.alert) == (True, "UPSTREAM_FAULT", alarm.alert)
    assert due.diagnosis.alpha == look_alpha(served.subject.spec.drift)


def episodes(served) -> list[tuple[str, str]]:
    bodies = [json.loads(path.read_text()) for path in (served.home / "alerts").glob("*.json")]
    mine = [b for b in bodies if b["outcome"] in DIAGNOSED]
    return [(b["outcome"], b["status"]) for b in sorted(mine, key=lambda b: str(b["opened_at"]))]


def looked_at_monthly(served) -> None:
    drift = replace(served.subject.spec.drift, looks_per_month=1.0)
    served.subject = replace(served.subject, spec=replace(served.subject.spec, drift=drift))


def test_a_fault_that_came_and_went_between_two_looks_is_over_and_heard_again_if_it_returns(served) -> None:
    looked_at_monthly(served)

    def broken(rows):
        return {**rows, "temp": np.full(len(rows["temp"]), None)}

    served.serve(14)
    due = look(served)
    served.serve(1, broken)
    assert (look(served).diagnosis.outcome, episodes(served)) == ("UPSTREAM_FAULT", [("UPSTREAM_FAULT", "open")])
    served.serve(1)
    assert (look(served).judged, episodes(served)) == (False, [("UPSTREAM_FAULT", "open")])  # a window has some yet
    served.serve(7)
    mended = look(served)
    assert (mended.judged, mended.decision, mended.alert) == (False, due.decision, None)
    assert episodes(served) == [("UPSTREAM_FAULT", "closed")]
    assert samples(served.home, "trellis_drift_fault") == {}
    page = LookStore(served.home).latest("ferry_delay")[-1]
    assert (page.end, page.outcome, page.decision) == (mended.end, "STABLE", due.decision.id)
    kept = evidence(served)
    assert look(served).decision == due.decision
    served.serve(1)
    look(served)
    assert evidence(served) == kept  # that it is over is told once, too
    stored = TypeAdapter(Decision).validate_json((served.home / "drift" / "ferry_delay" / kept[-1]).read_bytes())
    assert same(replay(stored), stored.verdict)
    served.serve(1, broken)
    assert look(served).alert is not None
    assert episodes(served) == [("UPSTREAM_FAULT", "closed"), ("UPSTREAM_FAULT", "open")]
    assert looks_taken(served.home / "drift" / "ferry_delay", served.now) == 1


def test_a_certain_fault_hides_nothing_of_what_the_last_look_measured(served) -> None:
    served.serve(14, turned)
    due = look(served)
    assert due.diagnosis.harm.real

    def measured():
        names = ("trellis_model_loss_increase_low", "trellis_model_loss_increase_allowed", "trellis_drift_psi")
        return {name: samples(served.home, name) for name in names}

    before = measured()
    assert len(before["trellis_drift_psi"]) == len(due.diagnosis.shifts) > 1
    for _ in range(2):  # the look that tells the fault, and one that finds it on record
        served.serve(1, lambda r: {**turned(r), "temp": np.full(len(r["temp"]), None)})
        assert look(served).decision.verdict.outcome == "UPSTREAM_FAULT"
        assert samples(served.home, "trellis_drift_fault") == {("temp", "nulls", "weather"): 1.0}
        assert samples(served.home, "trellis_drift_outcome")[("UPSTREAM_FAULT",)] == 1
        assert measured() == before
    page = LookStore(served.home).latest("ferry_delay")[-1]
    assert {c.name: (c.psi, c.fault) for c in page.drift} == {
        s.name: (s.psi, "nulls" if s.name == "temp" else "") for s in due.diagnosis.shifts
    }
    # Another version's figures are not the champion's.
    served.subject = replace(served.subject, version="2")
    look(served)
    assert measured()["trellis_drift_psi"] == {}


def test_between_two_looks_nothing_ends_what_a_look_that_judged_has_told(served) -> None:
    """A converted unit needs a test; that it is not among the certain faults does not mean that it is over."""
    looked_at_monthly(served)
    served.serve(14)
    served.serve(7, celsius)
    assert look(served).decision.verdict.outcome == "UPSTREAM_FAULT"
    served.serve(1, lambda r: {**celsius(r), "late_rate": np.full(len(r["late_rate"]), None)})
    assert look(served).diagnosis.views == ("line_delays",)
    assert episodes(served) == [("UPSTREAM_FAULT", "open")] * 2
    served.serve(8, celsius)
    assert (look(served).judged, episodes(served)) == (
        False,
        [("UPSTREAM_FAULT", "open"), ("UPSTREAM_FAULT", "closed")],
    )


def test_a_fault_that_needs_a_test_waits_for_its_look(served) -> None:
    """Of a converted unit that leaves no trace on a grid, only a shift against training makes a fault."""
    served.serve(14)
    look(served)
    served.serve(3, celsius)
    between = look(served)
    assert (between.judged, between.decision.verdict.outcome) == (False, "STABLE")
    served.serve(4, celsius)
    assert look(served).decision.verdict.outcome == "UPSTREAM_FAULT"


def test_too_few_rows_spend_no_look_and_leave_nothing(served) -> None:
    served.serve(2)
    early = look(served)
    assert (early.judged, early.evidence, early.decision.verdict.outcome) == (False, None, "INSUFFICIENT")
    assert samples(served.home, "trellis_drift_outcome")[("INSUFFICIENT",)] == 1
    assert evidence(served) == []
    served.serve(5)
    assert look(served).judged
    # One by hand that had too few is not what the pace is counted from.
    watch(served.subject, served.home, served.now + timedelta(days=6.5), report=False)
    served.days += 6
    served.serve(5)
    assert look(served).judged


def test_another_versions_verdict_does_not_stand_for_the_champion(served) -> None:
    served.serve(7, turned)
    assert look(served).decision.verdict.outcome == "DRIFT"
    served.serve(1, version="2")
    served.subject = replace(served.subject, version="2")
    found = look(served)
    assert (found.judged, found.evidence, found.decision.verdict.outcome) == (False, None, "INSUFFICIENT")


def test_damaged_evidence_is_left_alone_and_the_look_before_counts(served, caplog) -> None:
    served.serve(14)
    kept = look(served)
    (served.home / "drift" / "ferry_delay" / "20130716T120000Z.json").write_text("{}")
    served.serve(2)
    found = look(served)
    assert (found.judged, found.decision) == (False, kept.decision)
    assert "20130716T120000Z.json cannot be read" in caplog.text


def test_one_look_at_a_time(served) -> None:
    """A second process waits for the first, so that it finds the evidence of that one."""
    code = "import sys; from pathlib import Path; from monitoring.pace import alone\n"
    code += "with alone(Path(sys.argv[1])): print('in', flush=True)"
    with alone(served.home):
        other = subprocess.Popen([sys.executable, "-c", code, str(served.home)], cwd=ROOT, stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(3)
    assert other.communicate(timeout=30)[0] == b"in\n"


def test_the_watching_job_asks_for_paced_looks(served, monkeypatch) -> None:
    """Whenever the logs grew, and only then; the looks go through the command line's own code, in this process."""
    from monitoring import __main__ as cli
    from trellis import settings as module

    module.settings.cache_clear()
    monkeypatch.setenv("TRELLIS_HOME", str(served.home))
    monkeypatch.setattr("monitoring.subject.subject_of", lambda model, _settings: served.subject)
    taken: list[int] = []

    def here(command: list[str], **_) -> subprocess.CompletedProcess:
        taken.append(cli.main(command[3:]))
        return subprocess.CompletedProcess(command, taken[-1], "", "")

    monkeypatch.setattr(job.subprocess, "run", here)

    class Rounds(threading.Event):
        left = 20

        def wait(self, timeout=None) -> bool:
            self.left -= 1
            if self.left % 2:
                served.serve(1)
            if not self.left:
                self.set()
            return self.is_set()

    served.serve(7)
    job.follow(lambda: ["ferry_delay"], served.home, 0, Rounds(), report=False)
    module.settings.cache_clear()
    assert len(taken) == 11
    assert not set(taken) & {1, 2}
    assert len(evidence(served)) == 3  # 10 days after the first, at eight in 30


def test_the_watching_job_looks_where_requests_only_fail(tmp_path, monkeypatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr(job, "_look", lambda model, report: looked.append(model) or True)

    class Rounds(threading.Event):
        left = 4

        def wait(self, timeout=None) -> bool:
            self.left -= 1
            if self.left == 2:
                log = FailureLog(tmp_path, "toy", flush_seconds=0.0)
                log.append({"id": "a#0"})
                log.close()
            if not self.left:
                self.set()
            return self.is_set()

    job.follow(lambda: ["toy"], tmp_path, 0, Rounds())
    assert looked == ["toy"]


def test_a_look_that_was_killed_before_its_end_is_still_due_and_its_alert_is_heard(served, monkeypatch) -> None:
    from monitoring import watch as module

    served.serve(14, turned)
    with monkeypatch.context() as patch:
        patch.setattr(module, "follow_up", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            look(served)
    again = look(served)
    assert (again.judged, again.decision.verdict.outcome) == (True, "DRIFT")
    assert again.alert is not None
