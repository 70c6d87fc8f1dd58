"""Which of the loop's alerts are open follows from its state alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trellis.adapters.alert_files import raise_alert, read_alerts
from trellis.adapters.loop_alerts import keep_loop_alerts
from trellis.loop import Cycle, Loop

FAILED = Cycle("m-cycle-1", "retrain-1", "drift", "2013-07-01T00:00:00Z", "1", outcome="failed", why="disk full")
BROKEN = Loop("m", cycle=FAILED, failures=3, broken_since="2013-07-02T00:00:00Z", number=9, moved_at="2013-07-02")


def opened(directory) -> set[str]:
    return {a.outcome for a in read_alerts(directory) if a.status == "open"}


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        (Loop("m"), set()),
        (BROKEN, {"BREAKER_OPEN", "RETRAINING_FAILED"}),
        (replace(BROKEN, broken_since="", failures=1), {"RETRAINING_FAILED"}),
        (replace(BROKEN, broken_since="", failures=0), set()),  # reset: a person has mended the cause
        (replace(BROKEN, stage="training"), {"BREAKER_OPEN"}),  # half open: one more is tried
        (replace(BROKEN, cycle=replace(FAILED, outcome="regressed")), {"BREAKER_OPEN", "RETRAINING_REGRESSED"}),
        (replace(BROKEN, cycle=replace(FAILED, outcome="held")), {"BREAKER_OPEN"}),
        (replace(BROKEN, cycle=replace(FAILED, outcome="promoted"), broken_since="", failures=0), set()),
    ],
)
@pytest.mark.parametrize("earlier", [Loop("m"), BROKEN])
def test_the_open_alerts_are_those_of_the_state(tmp_path, earlier, state, wanted):
    keep_loop_alerts(tmp_path, earlier)
    keep_loop_alerts(tmp_path, state)
    assert opened(tmp_path) == wanted
    files = {p: p.read_bytes() for p in tmp_path.glob("*")}
    assert not keep_loop_alerts(tmp_path, state)  # channels are told only where something changed
    assert {p: p.read_bytes() for p in tmp_path.glob("*")} == files


def test_others_alerts_are_left_alone_and_what_changed_is_said(tmp_path):
    fault = raise_alert(
        tmp_path, model="m", outcome="UPSTREAM_FAULT", key="1", severity="critical", reason="", action="", at="2013"
    )
    before = fault.read_bytes()
    assert keep_loop_alerts(tmp_path, BROKEN)
    assert keep_loop_alerts(tmp_path, Loop("m", cycle=FAILED), "2013-07-05")
    assert {a.closed_at for a in read_alerts(tmp_path) if a.status == "closed"} == {"2013-07-05"}
    assert fault.read_bytes() == before
