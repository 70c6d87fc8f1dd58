"""The look's further questions, end to end: asked of the logs, answered in the evidence, held to the budget."""

from __future__ import annotations

import json
from datetime import timedelta

import numpy as np
import pytest

from monitoring.pace import looks_taken
from monitoring.watch import watch
from trellis.decision import dumps
from trellis.drift import look_alpha


def test_a_concept_change_without_a_shift_is_named_with_segments_and_streams(served) -> None:
    served.serve(28)

    def turned(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        worse = rows["line"] == "south"
        return {**rows, "late": np.where(worse & (rows["probability"] < 0.5), 1, rows["late"])}

    until = served.serve(14, turned)
    result = watch(served.subject, served.home, until, report=False)
    found = result.diagnosis
    assert result.alert is not None
    alert = json.loads(result.alert.read_text())
    assert (alert["severity"], alert["cause"]) == ("critical", "concept drift")
    assert (found.outcome, found.cause) == ("DRIFT", "concept drift"), found.reason
    assert found.segments == ("line=south",)
    assert found.severity == "critical"
    assert "adwin" in found.confirmed


def test_ties_that_come_undone_are_seen_though_no_column_moves(served) -> None:
    served.serve(42, lambda rows: {**rows, "wind": np.sort(rows["wind"])[np.argsort(np.argsort(rows["temp"]))]})
    until = served.serve(7)
    result = watch(served.subject, served.home, until, report=False, windows=6)
    assert (result.diagnosis.kind, result.diagnosis.cause) == ("joint", "data drift"), result.diagnosis.reason
    assert any(c.name == "joint.domain_classifier" and not c.passed for c in result.decision.verdict.checks)


def test_looks_of_a_month_are_counted_and_the_same_look_once(served) -> None:
    until = served.serve(14)
    directory = served.home / "drift" / served.subject.spec.name
    levels = []
    for days in (3, 2, 1, 1, 0):
        result = watch(served.subject, served.home, until - timedelta(days=days), report=False)
        levels.append(result.diagnosis.alpha)
    assert looks_taken(directory, until) == 3
    assert looks_taken(directory, until + timedelta(days=31)) == 0
    assert levels[:4] == pytest.approx([levels[0]] * 4)
    (directory / "notes.json").write_text(dumps({}))
    assert looks_taken(directory, until) == 3


def test_looks_newest_first_spend_no_more_than_those_in_order_and_each_stays_what_it_was(served) -> None:
    until, policy = served.serve(36), served.subject.spec.drift
    ends = [until - timedelta(days=day, microseconds=day) for day in range(25)]
    taken = [watch(served.subject, served.home, end, report=False) for end in ends]
    levels = [result.diagnosis.alpha for result in taken]
    assert levels == [look_alpha(policy, k) for k in range(25)]
    assert sum(levels) <= policy.false_alarms_per_month
    assert watch(served.subject, served.home, ends[3], report=False).decision == taken[3].decision


@pytest.mark.parametrize("microseconds", [0, 5])
def test_a_look_taken_again_is_the_same_decision_whatever_was_taken_since(served, microseconds: int) -> None:
    until = served.serve(28)
    past = until - timedelta(days=14) + timedelta(microseconds=microseconds)
    first = watch(served.subject, served.home, past, report=False)
    for days in range(10):
        watch(served.subject, served.home, until - timedelta(days=days), report=False)
    again = watch(served.subject, served.home, past, report=False)
    assert again.decision == first.decision
    assert again.diagnosis.alpha == look_alpha(served.subject.spec.drift)
