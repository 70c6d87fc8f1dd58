"""Data quality and skew in a look: named, published, and in its result."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import numpy as np

from monitoring.alerts import NOTED
from monitoring.channel_config import LOG
from monitoring.metrics import read_families
from monitoring.notify import tell
from monitoring.skew import skew_table, skew_text
from monitoring.watch import watch
from trellis.adapters.alert_files import read_alerts
from trellis.adapters.alert_outbox import AlertOutbox
from trellis.errors import MissingFeatureError
from trellis.freshness import sla_of

QUIET = {"report": False}


def samples(home, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(v for k, v in sorted(s.labels.items()) if k != "model"): s.value
        for f in read_families(home / "metrics")
        for s in f.samples
        if s.name == name
    }


class Offline:
    """Our port, answered from what was drawn: the features as they were, or with one of them changed."""

    def __init__(self, rows, change=lambda rows: rows) -> None:
        self.by_time = {t: i for i, t in enumerate(rows["time"])}
        self.rows = change(rows)

    def training_set(self, service, rows, time):
        at = [self.by_time.get(t) for t in time]
        return {
            name: np.array([np.nan if i is None else self.rows[name][i] for i in at])
            for name in ("temp", "wind", "late_rate")
        }

    def slas(self, service):
        return (sla_of("weather", ("temp", "wind"), {"freshness_sla": "PT2H"}),)


def test_a_healthy_window_has_neither_finding_nor_skew(served) -> None:
    until = served.serve(21)
    result = watch(served.subject, served.home, until, store=Offline(served.drawn(0, 21)), **QUIET)
    assert result.quality == ()
    assert (result.skew.rows, result.skew.mismatched) == (700, 0)
    assert samples(served.home, "trellis_data_quality") == {}
    assert samples(served.home, "trellis_skew_rate") == {(): 0.0}
    assert "none of 700" in skew_text(result.skew)


def test_skew_is_named_published_and_shown(served, capsys) -> None:
    from rich.console import Console

    until = served.serve(7)
    other = Offline(served.drawn(0, 7), lambda r: {**r, "temp": (r["temp"] - 32) / 1.8})
    report = watch(served.subject, served.home, until, store=other, **QUIET).skew
    assert [(f.cause, f.view, f.features) for f in report.findings] == [("changed_transform", "weather", ("temp",))]
    assert samples(served.home, "trellis_skew_finding") == {("changed_transform", "weather"): 700.0}
    assert samples(served.home, "trellis_skew_rate")[()] > samples(served.home, "trellis_skew_slo")[()]
    assert "first temp of 0-0 at 2013-07-02T00:00:00Z" in skew_text(report)
    Console(width=100).print(skew_table(report, "ferry_delay"))
    assert "1.8 x the offline value" in capsys.readouterr().out.replace("\n", " ").replace("  ", " ")


def test_a_look_without_a_replay_says_nothing_new_of_skew_and_forgets_nothing(served) -> None:
    until = served.serve(7)
    other = Offline(served.drawn(0, 7), lambda r: {**r, "temp": (r["temp"] - 32) / 1.8})
    watch(served.subject, served.home, until, store=other, **QUIET)
    names = ("trellis_skew_rate", "trellis_skew_slo", "trellis_skew_rows", "trellis_skew_finding")
    before = {name: samples(served.home, name) for name in names}
    watch(served.subject, served.home, served.serve(7), **QUIET)
    assert all(before.values())
    assert {name: samples(served.home, name) for name in names} == before
    watch(served.subject, served.home, served.serve(7), store=Offline(served.drawn(14, 7)), **QUIET)
    assert samples(served.home, "trellis_skew_rate") == {(): 0.0}
    assert samples(served.home, "trellis_skew_finding") == {}


def test_a_store_without_the_tables_loses_the_replay_and_not_the_look(served, caplog) -> None:
    class Gone(Offline):
        def training_set(self, service, rows, time):
            raise MissingFeatureError("The table of 'weather' is gone.")

    result = watch(served.subject, served.home, served.serve(7), store=Gone(served.drawn(0, 7)), **QUIET)
    assert result.skew is None
    assert result.decision.verdict.outcome == "STABLE"
    assert "could not be replayed" in caplog.text


def alerts(home) -> dict[tuple[str, str], tuple[str, int]]:
    """Kind and column of every alert of these outcomes, with its status and how many looks it has lasted."""
    bodies = [json.loads(path.read_text()) for path in sorted((home / "alerts").glob("*.json"))]
    mine = [b for b in bodies if b["outcome"] in NOTED]
    assert all(b["severity"] == "warning" for b in mine)
    mine.sort(key=lambda b: str(b["opened_at"]))  # of several episodes the newest
    return {(b["kind"], ",".join(b["columns"])): (b["status"], b["looks"]) for b in mine}


def test_faults_of_rows_and_skew_reach_the_channels_while_they_last_once(served) -> None:
    """Who has no Prometheus, only a chat or a mailbox, hears of them too."""

    def seats(rows):
        return {**rows, "load": np.where(np.arange(len(rows["load"])) % 20, rows["load"], 1.7)}

    celsius = Offline(served.drawn(0, 7), lambda r: {**r, "temp": (r["temp"] - 32) / 1.8})
    until = served.serve(7, seats)
    for _ in range(2):  # looked at again it is the same look
        watch(served.subject, served.home, until, store=celsius, **QUIET)
    assert alerts(served.home) == {("out_of_range", "load"): ("open", 1), ("skew", ""): ("open", 1)}
    outbox, channel = AlertOutbox(f"sqlite:///{served.home}/trellis.db"), LOG
    told = {a.outcome: a.explained_by for a in read_alerts(served.home / "alerts")}
    assert told == {"DATA_QUALITY": "trellis watch ferry_delay", "SKEW": "trellis skew ferry_delay"}
    assert tell(served.home, outbox, [channel]).sent == 1  # both in one message
    watch(served.subject, served.home, served.serve(7, seats), **QUIET)  # no replay says nothing of skew
    assert alerts(served.home) == {("out_of_range", "load"): ("open", 2), ("skew", ""): ("open", 1)}
    assert tell(served.home, outbox, [channel]).sent == 0
    watch(served.subject, served.home, until + timedelta(days=300), **QUIET)  # no rows say nothing at all
    watch(served.subject, served.home, served.serve(7), store=Offline(served.drawn(14, 7)), **QUIET)
    assert alerts(served.home) == {("out_of_range", "load"): ("closed", 2), ("skew", ""): ("closed", 1)}
    assert tell(served.home, outbox, [channel]).sent == 1
    watch(served.subject, served.home, served.serve(7, seats), **QUIET)  # a new episode
    files = [p.name for p in (served.home / "alerts").glob("*data_quality*")]
    assert len(files) == 2


def test_rows_are_told_of_and_their_alerts_closed_while_no_drift_can_be_judged(served) -> None:
    """In the first days of a service, and of a champion of which no verdict stands yet."""

    def seats(rows):
        return {**rows, "load": np.where(np.arange(len(rows["load"])) % 2, rows["load"], 7.0)}

    def look():
        return watch(served.subject, served.home, served.now, paced=True, **QUIET)

    served.serve(2, seats)
    look()  # 200 rows of the 300 that are asked
    assert alerts(served.home) == {}
    served.serve(3, seats)
    assert look().decision.verdict.outcome == "INSUFFICIENT"  # three quarters of a week are not served
    assert alerts(served.home) == {("out_of_range", "load"): ("open", 1)}
    served.serve(9)
    assert look().judged
    assert alerts(served.home) == {("out_of_range", "load"): ("closed", 1)}
    served.subject = replace(served.subject, version="2")
    served.serve(1, seats, version="2")
    assert look().decision.verdict.outcome == "INSUFFICIENT"
    assert alerts(served.home)[("out_of_range", "load")] == ("open", 1)


def test_a_few_odd_rows_are_a_finding_and_no_alert(served) -> None:
    until = served.serve(7, lambda r: {**r, "load": np.where(np.arange(len(r["load"])) % 200, r["load"], 1.7)})
    result = watch(served.subject, served.home, until, **QUIET)
    assert [f.kind for f in result.quality] == ["out_of_range"]
    assert alerts(served.home) == {}


def test_an_assumption_that_fails_is_an_alert_until_it_holds_again(served) -> None:
    served.serve(14)
    until = served.serve(7, lambda r: {**r, "late": 1 - r["late"]})
    result = watch(served.subject, served.home, until, **QUIET)
    assert result.series[-1].flags == ("concept_drift",)
    assert alerts(served.home) == {("concept_drift", ""): ("open", 1)}
    told = {a.outcome: a for a in read_alerts(served.home / "alerts")}["PERFORMANCE_ASSUMPTION"]
    assert "version 1's performance" in told.reason
    assert "labels contradict the estimate" in told.reason
    assert told.explained_by == "trellis performance ferry_delay"
    watch(served.subject, served.home, served.serve(7), **QUIET)
    assert alerts(served.home) == {("concept_drift", ""): ("closed", 1)}


def test_outliers_are_told_from_earlier_windows(served) -> None:
    served.serve(14)

    def odd(rows):
        # Every value is possible by itself; together they never occurred.
        some = np.arange(len(rows["time"])) % 8 == 0
        return {
            **rows,
            "load": np.where(some, 0.02, rows["load"]),
            "temp": np.where(some, 20.0, rows["temp"]),
            "late_rate": np.where(some, 0.6, rows["late_rate"]),
        }

    until = served.serve(7, odd)
    (found,) = watch(served.subject, served.home, until, **QUIET).quality
    assert found.kind == "outliers"
    assert 0.1 < found.share < 0.16
    assert samples(served.home, "trellis_data_quality") == {("", "outliers"): found.share}


def test_broken_rows_are_findings_beside_the_verdict(served) -> None:
    until = served.serve(7, lambda r: {**r, "load": np.where(np.arange(len(r["load"])) % 20, r["load"], 1.7)})
    result = watch(served.subject, served.home, until, **QUIET)
    assert [(f.kind, f.column, f.rows) for f in result.quality] == [("out_of_range", "load", 35)]
