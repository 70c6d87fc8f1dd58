"""The split that the service executes: sticky, uniform, and growing a share only adds units."""

from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from trellis.rollout.plan import Variant, first_plan, unit_position, with_canary

UNITS = st.text(min_size=1, max_size=30)
SALTS = st.text(max_size=10)


def plan(share, salt):
    first = first_plan("toy", Variant("1", "champion", 1.0, "/1", "1"), salt=salt)
    return with_canary(first, Variant("2", "canary", 0.0, "/2", "2"), share)


@given(UNITS, SALTS, st.floats(0, 1))
def test_a_unit_stays_where_it_is(unit, salt, share):
    assert plan(share, salt).assign(unit) == plan(share, salt).assign(unit)


@given(UNITS, SALTS, st.floats(0, 1), st.floats(0, 1))
def test_a_growing_share_only_adds_units(unit, salt, one, two):
    small, large = sorted((one, two))
    if plan(small, salt).assign(unit).role == "canary":
        assert plan(large, salt).assign(unit).role == "canary"


@given(UNITS, SALTS)
def test_the_ends_of_the_scale(unit, salt):
    assert plan(0.0, salt).assign(unit).role == "champion"
    assert plan(1.0, salt).assign(unit).role == "canary"


def test_units_spread_evenly_and_salts_are_independent():
    n, bins = 40_000, 20
    first = [int(unit_position("a", f"user-{i}") * bins) for i in range(n)]
    second = [int(unit_position("b", f"user-{i}") * bins) for i in range(n)]
    together = [0] * (bins * bins)
    for a, b in zip(first, second, strict=True):
        together[a * bins + b] += 1
    # One chi-square test over the pairs looks at both at once; the data are fixed, so it cannot flicker.
    assert chisquare(together).pvalue > 0.001
