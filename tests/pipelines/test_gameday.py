"""A game day: what a scenario changes, what counts as noticed, and that a home in use is copied whole."""

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines import gameday_cli
from pipelines.gameday import SCENARIOS, Day, _recorded, change_for, copy_home, report_of
from trellis.contract import Field, Metric, ModelSpec, Target
from trellis.errors import ConfigError

SPEC = ModelSpec(
    name="ferry",
    version="1",
    task="binary",
    owner="harbour",
    description="Whether a ferry is late.",
    request=(
        Field("line", "category", "The line."),
        Field("load", "float", "How full it is."),
        Field("temp", "float", "Air temperature, degrees Fahrenheit.", nullable=True),
        Field("hour", "float", "Local hour of departure.", minimum=0, maximum=24),
    ),
    inputs=("line", "load", "temp", "hour"),
    outputs=(Field("probability", "float", "Of being late."),),
    target=Target("late", "Whether it came late.", ("no", "yes")),
    metric=Metric("auc", 0.6),
)
START = datetime(2013, 7, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    ("scenario", "columns", "family"),
    [
        ("unit", ("temp",), "upstream"),
        ("nulls", ("temp",), "upstream"),
        ("recode", ("line",), "upstream"),
        ("stale", ("load",), "upstream"),
        ("time_zone", ("hour",), "upstream"),
        ("covariate", ("load", "temp", "hour"), "data"),
        ("concept", ("load", "temp", "hour"), "concept"),
        ("label", (), "label"),
    ],
)
def test_a_scenario_takes_the_columns_it_fits(scenario, columns, family):
    (change,) = change_for(scenario, SPEC, (), START)
    assert (change.columns, change.family) == (columns, family)
    assert scenario in SCENARIOS
    assert change_for("calm", SPEC, (), START) == []


def test_a_scenario_that_fits_no_column_is_named():
    with pytest.raises(ConfigError, match="fits the scenario 'unit'"):
        change_for("unit", SPEC, ("load",), START)


def day(number, outcome="STABLE", *, injected=True, columns=(), kind="none", refused=0):
    until = f"2013-07-{7 + number:02d}T00:00:00"
    return Day(
        until, 100, refused, injected, outcome, kind, columns, "", "a-1" if columns else "", "WAIT", "watching", "d"
    )


@pytest.mark.parametrize(
    ("days", "noticed", "named", "false"),
    [
        ([day(1), day(2), day(3, "UPSTREAM_FAULT", columns=("temp",), kind="unit")], 2.0, True, 0),
        ([day(1), day(2, "DRIFT", columns=("load",), kind="sudden")], 1.0, False, 0),
        ([day(2), day(3)], None, None, 0),
        ([day(2, refused=7)], 1.0, False, 0),
        # It had drifted before: only what is new, or names the column, is this change.
        ([day(0, "DRIFT", injected=False, kind="gradual"), day(2, "DRIFT", kind="gradual")], None, None, 1),
        (
            [
                day(0, "DRIFT", injected=False, kind="gradual"),
                day(2, "DRIFT", kind="gradual"),
                day(3, "DRIFT", kind="gradual", columns=("temp",)),
            ],
            2.0,
            True,
            1,
        ),
        # The column was named before the change: naming it again tells nothing.
        (
            [
                day(0, "DRIFT", injected=False, kind="gradual", columns=("temp",)),
                day(2, "DRIFT", kind="gradual", columns=("temp",)),
                day(3, "UPSTREAM_FAULT", kind="unit", columns=("temp",)),
            ],
            2.0,
            True,
            1,
        ),
    ],
)
def test_noticed_is_what_is_new_or_names_it(days, noticed, named, false):
    found = report_of("ferry", "unit", ("temp",), datetime(2013, 7, 8), days)
    assert (found.noticed_after_days, found.named, found.false_alarms) == (noticed, named, false)
    looks = [d.until for d in days if d.injected]
    end = None if noticed is None else (datetime(2013, 7, 8) + timedelta(days=noticed)).isoformat()
    assert found.noticed_after_looks == (None if end is None else looks.index(end) + 1)


def test_a_home_in_use_is_copied_whole_and_without_its_channels(tmp_path: Path):
    home = tmp_path / "home"
    (home / "store").mkdir(parents=True)
    for name in ("alerts", "predictions"):
        (home / name).mkdir()
    (home / "feast").mkdir()
    (home / "feast" / "registry.db").write_bytes(b"no database, whatever its name")
    store = sqlite3.connect(home / "store" / "trellis.db")
    store.execute("PRAGMA journal_mode=WAL")
    store.execute("CREATE TABLE t (x)")
    store.execute("INSERT INTO t VALUES (7)")
    store.commit()  # still in the write-ahead log
    target = home / "game-day"
    for _ in range(2):  # an earlier drill's copy is not copied into the next
        copy_home(home, target)
    store.close()
    with sqlite3.connect(target / "store" / "trellis.db") as copy:
        assert copy.execute("SELECT x FROM t").fetchall() == [(7,)]
    assert sorted(p.name for p in target.iterdir()) == ["feast", "predictions", "store"]
    assert (target / "feast" / "registry.db").read_bytes().startswith(b"no database")
    with pytest.raises(ConfigError, match="no system to drill"):
        copy_home(tmp_path / "elsewhere", tmp_path / "x")


def test_one_event_time_far_ahead_does_not_say_which_traffic_is_the_newest(tmp_path: Path):
    from trellis.adapters.prediction_log import LabelLog, PredictionLog

    predictions, labels = (log(tmp_path, SPEC.name, flush_seconds=1) for log in (PredictionLog, LabelLog))
    for i in range(96):
        sent = (START + timedelta(hours=i)).isoformat()
        record = {"id": str(i), "time": sent, "received_at": sent, "outputs": {"probability": 0.5}}
        predictions.append(record | ({"time": "2099-07-08T00:00:00Z"} if i == 50 else {}))
        labels.append({"id": str(i), "value": 1, "observed_at": "2099-08-01T00:00:00Z", "received_at": sent})
    predictions.close()
    labels.close()
    rows, _ = _recorded(SPEC, tmp_path, 2)
    assert rows["id"].tolist() == [str(i) for i in range(47, 96) if i != 50]


@pytest.mark.parametrize("days", [("--quiet-days", "0", "--days", "0"), ("--days", "-1"), ("--quiet-days", "-2")])
def test_a_game_day_without_a_day_is_refused_before_anything_is_copied(days, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRELLIS_HOME", str(tmp_path))
    assert gameday_cli.main(["ferry", *days]) == 1
    told = capsys.readouterr().err
    assert "shows nothing" in told
    assert "--days of 1 or more" in told
    assert list(tmp_path.iterdir()) == []
