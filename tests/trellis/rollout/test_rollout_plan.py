"""The split over one, two and many canaries: sticky, as planned, monotone, independent between salts."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from trellis.errors import InvalidPlanError
from trellis.rollout.plan import (
    RolloutPlan,
    Shadow,
    Variant,
    first_plan,
    previous_champion,
    promoted,
    unit_position,
    with_canaries,
    with_canary,
    with_standby,
)

BASE = first_plan("toy", Variant("0", "champion", 1.0, "/0", "0"), salt="s")
UNITS = [f"user-{i}" for i in range(400)]


def arm(version):
    return Variant(version, "canary", 0.0, f"/{version}", version)


def plan_of(weights, salt="s"):
    return replace(with_canaries(BASE, [(arm(str(i + 1)), w) for i, w in enumerate(weights)]), salt=salt)


def split(plan, units=UNITS):
    return [plan.assign(unit).version for unit in units]


@given(st.lists(st.floats(0.001, 0.2), min_size=1, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_a_share_that_grows_at_the_champions_cost_loses_no_unit(weights, data):
    index = data.draw(st.integers(0, len(weights) - 1))
    more = list(weights)
    more[index] = min(weights[index] + data.draw(st.floats(0, 0.5)), 1 - (sum(weights) - weights[index]))
    before, after = split(plan_of(weights)), split(plan_of(more))
    for old, new in zip(before, after, strict=True):
        if old == str(index + 1):
            assert new == old
        elif len(weights) <= 2 and old != new:  # with two arms or one, nobody but the champion gives
            assert (old, new) == ("0", str(index + 1))


@pytest.mark.parametrize("weights", [(0.3,), (0.2, 0.3), (0.5, 0.5), (0.1, 0.2, 0.3), (0.05, 0.1, 0.15, 0.2, 0.3)])
def test_the_split_is_as_planned_and_independent_between_salts(weights):
    units = [f"u{i}" for i in range(20_000)]
    one, two = split(plan_of(weights, "a"), units), split(plan_of(weights, "b"), units)
    names = [v.version for v in plan_of(weights).variants if v.weight > 0]
    expected = [v.weight * len(units) for v in plan_of(weights).variants if v.weight > 0]
    assert chisquare([one.count(n) for n in names], expected).pvalue > 0.001
    pairs = list(zip(one, two, strict=True))
    table = [[pairs.count((a, b)) for b in names] for a in names]
    assert chi2_contingency(table).pvalue > 0.001
    assert split(plan_of(weights, "a"), units[:500]) == one[:500]


def test_one_canary_keeps_the_low_end_when_a_second_joins():
    """What was sticky yesterday stays: the second arm takes from the champion's end."""
    alone, beside = split(with_canary(BASE, arm("1"), 0.3)), split(plan_of((0.3, 0.3)))
    assert all(new == "1" for old, new in zip(alone, beside, strict=True) if old == "1")
    assert beside.count("2") > 80


def test_plans_that_make_no_sense_are_refused():
    with pytest.raises(InvalidPlanError, match="sum"):
        plan_of((0.7, 0.7))
    with pytest.raises(InvalidPlanError, match="twice"):
        with_canaries(BASE, [(arm("1"), 0.1), (arm("1"), 0.1)])
    with pytest.raises(InvalidPlanError, match="twice"):
        with_standby(BASE, arm("0"))
    with pytest.raises(InvalidPlanError, match="standby"):
        RolloutPlan("toy", 0, "s", (replace(BASE.champion, weight=0.9), Variant("1", "standby", 0.1, "/", "1")))
    with pytest.raises(InvalidPlanError, match="one champion"):
        RolloutPlan("toy", 0, "s", (Variant("1", "canary", 1.0, "/", "1"),))
    assert sum(v.weight for v in plan_of((1 / 3, 1 / 3, 1 / 3)).variants) == pytest.approx(1)


def test_a_unit_keeps_its_place_from_release_to_release():
    """Another hash would draw every caller anew. OpenSSL's answer: ``openssl mac -macopt size:8 BLAKE2BMAC``, its key
    the BLAKE2b-256 of the salt (``b2sum -l 256``).
    """
    assert unit_position("salt", "flight-1") == 0xA08F2B356E7498A6 / 2**64


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12))
def test_going_back_never_comes_to_a_version_twice(versions):
    """Each rollback is a plan of its own in the history; the way back ends at a champion that had none before it."""
    history = [replace(BASE, variants=(replace(arm(v), role="champion", weight=1.0),)) for v in versions]
    seen = [versions[-1]]
    while True:
        try:
            history.append(previous_champion(history))
        except InvalidPlanError:
            break
        seen.append(history[-1].champion.version)
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(versions)


def test_a_rolled_back_version_comes_back_by_name_only():
    history = [replace(BASE, variants=(replace(arm(v), role="champion", weight=1.0),)) for v in "123"]
    history.append(previous_champion(history))
    assert history[-1].champion.version == "2"
    assert previous_champion(history).champion.version == "1"
    assert previous_champion(history, "3").champion.version == "3"
    for to in ("2", "7"):
        with pytest.raises(InvalidPlanError, match=rf"cannot go back to version {to}"):
            previous_champion(history, to)
    with pytest.raises(InvalidPlanError, match="never had another champion"):
        previous_champion(history[:1])


def test_an_earlier_champion_that_won_again_took_over_from_the_one_between():
    one, two = (replace(BASE, variants=(replace(arm(v), role="champion", weight=1.0),)) for v in "12")
    trial = with_canary(two, arm("1"), 0.5)
    again = promoted(trial)
    back = previous_champion([one, two, trial, again])
    assert back.champion.version == "2"
    with pytest.raises(InvalidPlanError, match="--to"):
        previous_champion([one, two, trial, again, back])
    warm = with_standby(two, arm("1"))
    window = with_standby(one, arm("2"))
    assert previous_champion([one, two, warm, window]).champion.version == "2"
    # A rollback in the window, to the old version that was kept warm, is one.
    with pytest.raises(InvalidPlanError, match="--to"):
        previous_champion([two, warm, window, two])


def test_a_version_promoted_by_hand_before_it_answered_took_over_from_the_champion():
    one, two, three = (replace(BASE, variants=(replace(arm(v), role="champion", weight=1.0),)) for v in "123")
    warm = with_standby(three, arm("2"))
    shadow = replace(three, shadows=(Shadow("2", 0.1, "", ""),))
    for trial in (warm, shadow):
        assert previous_champion([one, two, three, trial, two]).champion.version == "3"
    # Blue-green rollouts one after another: only a switch that was taken back leaves the line.
    window = with_standby(two, arm("3"))
    assert previous_champion([one, three, warm, window, three, warm, window]).champion.version == "3"
    assert previous_champion([one, three, warm, window, two, window, warm, three]).champion.version == "2"
    assert previous_champion([one, three, warm, window, three]).champion.version == "1"
