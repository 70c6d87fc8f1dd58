"""The simulator: every change is there, from its moment on, of its size, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis.drift.simulate import FAMILIES, Change, Simulator, inject
from trellis.errors import ConfigError, DataError

ROWS = 8_000
TIME = np.datetime64("2024-01-01", "us") + np.arange(ROWS) * np.timedelta64(600, "s")
CUT = ROWS // 2
WHEN = TIME[CUT]


def data(seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(10, 2, ROWS)
    columns = {
        "x": x,
        "twin": x + rng.normal(0, 0.5, ROWS),
        "count": rng.poisson(20, ROWS),
        "c": rng.choice(np.array(["p", "q", "r"], dtype=object), ROWS, p=[0.6, 0.3, 0.1]),
        "hour": np.arange(ROWS) // 6 % 24,
        "sent": TIME.copy(),
        "sensor": rng.integers(0, 5, ROWS),
        "flag": rng.random(ROWS) < 0.2,
        "image": rng.normal(size=(ROWS, 2, 3)).astype(np.float32),
    }
    target = (rng.random(ROWS) < 1 / (1 + np.exp(-(x - 10)))).astype(int)
    return columns, target


def one(change: Change, seed: int = 0):
    columns, target = data()
    return columns, target, inject(columns, [change], time=TIME, target=target, seed=seed)


def test_a_covariate_change_moves_x_and_keeps_the_label_given_x_and_the_ties() -> None:
    columns, target, found = one(Change("covariate", ("x",), start=WHEN, size=1.0))
    before, after = found.columns["x"][:CUT], found.columns["x"][CUT:]
    np.testing.assert_array_equal(before, columns["x"][:CUT])
    # An exponential tilt by t moves a normal by t spreads; 4000 rows and the clip at three spreads allow a tenth.
    assert (after.mean() - before.mean()) / before.std() == pytest.approx(1.0, abs=0.12)
    assert np.corrcoef(after, found.columns["twin"][CUT:])[0, 1] > 0.95
    # Whole rows are drawn: the label comes along, so P(y|x) is that of the data.
    np.testing.assert_array_equal(found.target, target[found.source])
    np.testing.assert_array_equal(found.columns["c"], columns["c"][found.source])
    near = np.abs(after - 10) < 0.5
    assert found.target[CUT:][near].mean() == pytest.approx(0.5, abs=0.06)


def test_a_moved_covariate_moves_numbers_in_spreads_and_redraws_categories() -> None:
    columns, target, found = one(Change("covariate", ("x", "count", "c", "flag"), start=WHEN, size=0.5, by="move"))
    np.testing.assert_allclose(found.columns["x"][CUT:] - columns["x"][CUT:], 0.5 * columns["x"][:CUT].std())
    assert found.columns["count"].dtype == columns["count"].dtype
    assert (found.columns["count"][CUT:] - columns["count"][CUT:] == 2).all()
    share = (found.columns["c"][CUT:] == "r").mean()
    assert share == pytest.approx(0.5 * 0.1 + 0.5 * 0.6, abs=0.03)
    assert (found.columns["flag"] != columns["flag"])[CUT:].mean() == pytest.approx(0.5, abs=0.03)
    np.testing.assert_array_equal(found.target, target)


def test_a_concept_change_keeps_both_margins_and_turns_the_relation_round() -> None:
    columns, target, found = one(Change("concept", ("x",), start=WHEN, size=1.0))
    for name in columns:
        np.testing.assert_array_equal(found.columns[name], columns[name])
    assert found.target[CUT:].sum() == target[CUT:].sum()
    assert np.corrcoef(target[CUT:], columns["x"][CUT:])[0, 1] > 0.5
    assert np.corrcoef(found.target[CUT:], columns["x"][CUT:])[0, 1] < -0.5
    np.testing.assert_array_equal(found.target[:CUT], target[:CUT])


def test_a_label_change_adds_to_the_log_odds_and_keeps_x_given_the_label() -> None:
    columns, target, found = one(Change("label", start=WHEN, size=1.5, value=1))
    share = found.target[CUT:].mean()
    odds = target[CUT:].mean() / (1 - target[CUT:].mean())
    assert np.log(share / (1 - share)) == pytest.approx(np.log(odds) + 1.5, abs=0.12)
    for label in (0, 1):
        now, then = found.columns["x"][CUT:][found.target[CUT:] == label], columns["x"][CUT:][target[CUT:] == label]
        assert now.mean() == pytest.approx(then.mean(), abs=0.3)


def test_a_numeric_label_is_tilted_by_its_spread() -> None:
    columns, _ = data()
    y = columns["x"] * 3
    found = inject(columns, [Change("label", start=WHEN, size=-0.5)], time=TIME, target=y)
    assert (found.target[CUT:].mean() - y[:CUT].mean()) / y[:CUT].std() == pytest.approx(-0.5, abs=0.1)


def test_upstream_faults_do_what_they_say() -> None:
    columns, target, found = one(Change("unit", ("x",), start=WHEN, conversion="degF to degC"))
    np.testing.assert_allclose(found.columns["x"][CUT:], (columns["x"][CUT:] - 32) / 1.8)
    _, _, found = one(Change("nulls", ("x", "count", "c", "sent"), start=WHEN, size=0.3))
    assert np.isnan(found.columns["x"][CUT:]).mean() == pytest.approx(0.3, abs=0.03)
    assert np.isnan(found.columns["count"][CUT:]).mean() == pytest.approx(0.3, abs=0.03)
    assert np.mean([v is None for v in found.columns["c"][CUT:]]) == pytest.approx(0.3, abs=0.03)
    assert np.isnat(found.columns["sent"][CUT:]).mean() == pytest.approx(0.3, abs=0.03)
    assert not np.isnan(found.columns["x"][:CUT]).any()
    _, _, found = one(Change("recode", ("c", "sensor"), start=WHEN, size=1.0))
    assert set(found.columns["c"][CUT:]) == {"p_00", "q_01", "r_02"}
    assert set(found.columns["sensor"][CUT:]) == {5, 6, 7, 8, 9}
    _, _, found = one(Change("recode", ("c",), start=WHEN, mapping={"p": "q", "q": "p"}))
    assert (found.columns["c"][CUT:] == "q").mean() == pytest.approx(0.6, abs=0.03)
    _, _, found = one(Change("time_zone", ("hour", "sent"), start=WHEN, size=-5))
    np.testing.assert_array_equal(found.columns["hour"][CUT:], (columns["hour"][CUT:] - 5) % 24)
    assert (found.columns["sent"][CUT:] - columns["sent"][CUT:] == np.timedelta64(-5, "h")).all()
    np.testing.assert_array_equal(found.target, target)


def test_times_in_text_are_shifted_as_times() -> None:
    columns = {"at": np.array(["2024-01-01T00:30:00Z"] * 4, dtype=object)}
    found = inject(columns, [Change("time_zone", ("at",), start=2, size=-1)])
    assert list(found.columns["at"]) == ["2024-01-01T00:30:00Z"] * 2 + ["2023-12-31T23:30:00Z"] * 2
    with pytest.raises(DataError, match="needs times"):
        inject({"at": np.array(["noon"] * 4, dtype=object)}, [Change("time_zone", ("at",), start=2)])


def test_a_stale_feed_shows_each_entity_its_last_value_and_how_old_it_is() -> None:
    columns, _, found = one(Change("stale", ("x",), start=WHEN, key="sensor"))
    for sensor in range(5):
        mine = np.flatnonzero(columns["sensor"] == sensor)
        last, later = mine[mine < CUT][-1], mine[mine >= CUT]
        assert (found.columns["x"][later] == columns["x"][last]).all()
        hours = (TIME[later] - TIME[last]) / np.timedelta64(1, "h")
        np.testing.assert_allclose(found.ages_hours["x"][later], hours)
    assert (found.ages_hours["x"][:CUT] == 0).all()


def test_shapes_have_their_dose_over_time() -> None:
    rng = np.random.default_rng(0)
    n = np.arange(10_000)

    def dose(**more) -> np.ndarray:
        return Change("covariate", ("x",), **more).dose(n, rng)

    sudden = dose(start=4_000, end=6_000)
    assert sudden.sum() == 2_000
    assert sudden[4_000:6_000].all()
    gradual = dose(start=2_000, shape="gradual", span=4_000)
    assert set(np.unique(gradual)) == {0.0, 1.0}
    assert gradual[3_500:4_500].mean() == pytest.approx(0.5, abs=0.06)
    assert gradual[6_000:].all()
    incremental = dose(start=2_000, shape="incremental", span=4_000)
    np.testing.assert_allclose(incremental[[1_999, 2_000, 4_000, 6_000, 9_999]], [0, 0, 0.5, 1, 1])
    recurring = dose(start=2_000, shape="recurring", span=1_000)
    assert [recurring[i] for i in (1_999, 2_500, 3_500, 4_500)] == [0, 1, 0, 1]
    seasonal = dose(start=0, shape="seasonal", span=4_000)
    np.testing.assert_allclose(seasonal[[0, 1_000, 2_000, 4_000]], [0, 0.5, 1, 0], atol=1e-9)
    # A fault has no half measures: its rise is one of rows.
    unit = Change("unit", ("x",), shape="incremental", span=4_000, conversion="km to m", start=2_000).dose(n, rng)
    assert set(np.unique(unit)) == {0.0, 1.0}


def test_points_tell_the_truth_in_the_datas_own_clock() -> None:
    change = Change("covariate", ("x",), start="2024-02-01T00:00:00+01:00", shape="incremental", span="7D")
    point = change.point(TIME)
    assert (point.family, point.start, point.full) == (
        "data",
        np.datetime64("2024-01-31T23:00:00"),
        np.datetime64("2024-02-07T23:00:00"),
    )
    assert Change("nulls", ("x",), start=50).point(np.arange(9)).start == 50
    assert set(FAMILIES.values()) == {"data", "concept", "label", "upstream"}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), parts=st.integers(1, 6))
def test_faults_and_moves_do_not_depend_on_the_chunks_and_a_seed_repeats(seed: int, parts: int) -> None:
    columns, target = data()
    changes = [
        Change("covariate", ("x",), start=WHEN, by="move", shape="incremental", span="10D"),
        Change("stale", ("twin",), start=TIME[CUT + 500], key="sensor"),
        Change("time_zone", ("hour",), start=WHEN, size=3),
        Change("recode", ("c",), start=WHEN, size=0.5),
    ]
    base = {k: v[:CUT] for k, v in columns.items()}
    whole = Simulator(changes, base, target=target[:CUT], time=TIME[:CUT], seed=seed)
    expected = whole.apply({k: v[CUT:] for k, v in columns.items()}, time=TIME[CUT:], target=target[CUT:])
    chunked = Simulator(changes, base, target=target[:CUT], time=TIME[:CUT], seed=seed)
    pieces = [
        chunked.apply({k: v[rows] for k, v in columns.items()}, time=TIME[rows], target=target[rows])
        for rows in np.array_split(np.arange(CUT, ROWS), parts)
    ]
    for name in columns:
        np.testing.assert_array_equal(np.concatenate([p.columns[name] for p in pieces]), expected.columns[name])


def test_nothing_given_is_changed_in_place_and_a_seed_repeats_exactly() -> None:
    columns, target = data()
    kept = {k: v.copy() for k, v in columns.items()}
    every = [
        Change("covariate", ("x", "c"), start=WHEN, shape="gradual", span="5D"),
        Change("label", start=WHEN),
        Change("concept", start=WHEN, size=0.5),
        Change("nulls", ("image", "flag"), start=WHEN, size=0.5),
        Change("unit", ("count",), start=WHEN, conversion="hours to minutes"),
    ]
    first = inject(columns, every, time=TIME, target=target, seed=3)
    second = inject(columns, every, time=TIME, target=target, seed=3)
    for name, values in kept.items():
        np.testing.assert_array_equal(columns[name], values)
        np.testing.assert_array_equal(first.columns[name], second.columns[name])
    np.testing.assert_array_equal(first.target, second.target)
    assert first.doses.shape == (ROWS, 5)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"kind": "flood"}, ConfigError, "none of"),
        ({"kind": "nulls"}, ConfigError, "needs columns"),
        ({"kind": "nulls", "columns": ("x",), "size": 2.0}, ConfigError, "share"),
        ({"kind": "unit", "columns": ("x",), "conversion": "ells to miles"}, ConfigError, "no conversion"),
        ({"kind": "covariate", "columns": ("x",), "shape": "gradual"}, ConfigError, "needs a span"),
        ({"kind": "covariate", "columns": ("x",), "start": 5}, ConfigError, "needs a time"),
        ({"kind": "covariate", "columns": ("gone",), "start": WHEN}, DataError, "gone"),
        ({"kind": "unit", "columns": ("c",), "start": WHEN, "conversion": "km to m"}, DataError, "no unit"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused_by_name(settings, error, text) -> None:
    with pytest.raises(error, match=text):
        one(Change(**settings))


def test_labels_and_rows_that_are_missing_are_named() -> None:
    columns, _ = data()
    with pytest.raises(DataError, match="needs labels"):
        inject(columns, [Change("concept", start=WHEN)], time=TIME)
    few = {k: v[CUT - 10 : CUT + 10] for k, v in columns.items()}
    with pytest.raises(DataError, match="too few"):
        inject(few, [Change("covariate", ("x",), start=WHEN)], time=TIME[CUT - 10 : CUT + 10])


def test_the_rooms_readme_shows_what_it_says(capsys) -> None:
    text = (Path(__file__).parents[3] / "monitoring/README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    exec(compile(code, "monitoring/README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == code.rsplit("# ", 1)[1].strip()
