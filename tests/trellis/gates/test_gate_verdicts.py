"""The gate by simulation with known truth, beside scipy, and by its invariants."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy import stats

from trellis.contract import GatePolicy, Metric
from trellis.decision import dumps
from trellis.errors import ContractError, DataError
from trellis.gates import GateInputs, PairedBlocks, SegmentBlocks, decide, gate_inputs, paired, paired_difference
from trellis.gates.paired import studentised_bounds

POLICY = GatePolicy(margin=0.01, min_rows=100)


def evidence(rows, difference, **changes):
    """Evidence in which only the paired losses speak."""
    values = {
        "task": "binary", "metric": "auc", "greater_is_better": True, "floor": 0.6, "point": 0.8,
        "lo": 0.75, "hi": 0.85,
        "level": 0.95, "latency_p95_ms": 1.0, "artifact_bytes": 1_000, "seed": 0, "replicates": 400,
        "blocks": PairedBlocks(tuple(rows), tuple(difference), tuple(0.0 for _ in rows)),
    }  # fmt: skip
    return GateInputs(**(values | changes))


def days(rng, count, truth, *, shock=0.01, noise=0.1, size=100):
    """Daily sums of paired differences whose expectation per row is ``truth``, with a shared shock per day."""
    rows = rng.poisson(size, count) + 1
    mean = truth + shock * (rng.exponential(size=count) - 1)
    return rows.tolist(), (rows * mean + np.sqrt(rows) * noise * rng.normal(size=count)).tolist()


def outcomes(rng, truth, runs, count=30, **options):
    found = [decide(evidence(*days(rng, count, truth, **options), seed=r), POLICY).outcome for r in range(runs)]
    return {name: found.count(name) / runs for name in ("PROMOTE", "HOLD", "REJECT")}


@pytest.mark.parametrize("count", [12, 30, 90])
def test_a_candidate_at_the_margin_is_seldom_promoted(count):
    """At the margin exactly, each wrong verdict has probability 5 %; Monte Carlo error of 1,000 runs is 0.7 %."""
    rate = outcomes(np.random.default_rng(count), POLICY.margin, 1_000, count)
    assert rate["PROMOTE"] < 0.085
    assert rate["REJECT"] < 0.085
    assert rate["HOLD"] > 0.83


def test_a_worse_candidate_is_rejected_and_an_equal_one_promoted():
    rng = np.random.default_rng(1)
    worse, equal = outcomes(rng, 0.03, 200, 60), outcomes(rng, 0.0, 200, 60)
    assert worse["REJECT"] > 0.95
    assert worse["PROMOTE"] == 0
    assert equal["PROMOTE"] > 0.95
    assert equal["REJECT"] == 0


def test_a_version_whose_ways_of_serving_disagree_is_rejected_and_one_that_agrees_is_not():
    rng = np.random.default_rng(5)
    good = evidence(*days(rng, 60, -0.01), seed=1)
    assert decide(good, POLICY).outcome == "PROMOTE"
    agreed = dataclasses.replace(good, parity={"batch": 0.0, "embedded": 2e-8})
    verdict = decide(agreed, POLICY)
    [check] = [c for c in verdict.checks if c.name == "parity"]
    assert (verdict.outcome, check.passed, check.value) == ("PROMOTE", True, 2e-8)
    apart = dataclasses.replace(agreed, disagreements={"embedded": "row 7 differs by 0.2"})
    verdict = decide(apart, POLICY)
    assert verdict.outcome == "REJECT"
    assert "embedded: row 7 differs by 0.2" in verdict.reason


def test_bounds_agree_with_scipys_paired_t_on_a_large_sample():
    rng = np.random.default_rng(2)
    a, b = rng.beta(2, 8, 8_000), rng.beta(2, 8.5, 8_000)
    interval = stats.ttest_rel(a, b).confidence_interval(0.9)
    pair = paired([1] * 8_000, (a - b).tolist())
    assert (pair.bound(0.95, upper=False), pair.bound(0.95, upper=True)) == pytest.approx(interval, abs=1e-7)
    lower, upper = studentised_bounds([1] * 8_000, (a - b).tolist(), level=0.95, seed=1, replicates=1_000)
    width = interval.high - interval.low
    assert (lower, upper) == pytest.approx(interval, abs=0.06 * width)


def test_error_of_unequal_blocks_agrees_with_simulation():
    rng = np.random.default_rng(3)
    pairs = [paired(*days(rng, 40, 0.0)) for _ in range(600)]
    assert np.mean([p.error for p in pairs]) == pytest.approx(np.std([p.mean for p in pairs]), rel=0.08)


def test_the_rows_that_hold_asks_for_mostly_decide():
    """With as many days as HOLD names, an equal candidate is promoted with about the stated power of 80 %."""
    rng = np.random.default_rng(4)
    verdicts = [decide(evidence(*days(rng, 20, 0.0, shock=0.04), seed=r), POLICY) for r in range(80)]
    held = [v for v in verdicts if v.outcome == "HOLD"]
    assert len(held) > 30
    need = np.median([v.needs["rows"] for v in held])
    total = int(np.ceil((2_000 + need) / 100))
    rate = outcomes(rng, 0.0, 400, total, shock=0.04)
    assert 0.65 < rate["PROMOTE"] < 0.95


def binary_case(rng, rows=4_000, spoil=None):
    day = np.sort(rng.integers(0, 40, rows))
    truth = rng.beta(1.5, 5, rows)
    y = (rng.uniform(size=rows) < truth).astype(float)
    carrier = rng.choice(["UA", "DL", "B6", "HA"], rows, p=[0.5, 0.3, 0.18, 0.02])
    champion = np.clip(truth + rng.normal(0, 0.03, rows), 0, 1)
    candidate = np.clip(truth + rng.normal(0, 0.03, rows), 0, 1)
    if spoil is not None:
        candidate = np.where(carrier == spoil, 1 - candidate, candidate)
    return {
        "target": y, "candidate": candidate, "champion": champion, "segments": {"carrier": carrier, "distance": truth},
        "time": np.datetime64("2013-06-01", "us") + day * np.timedelta64(1, "D"), "row_id": np.arange(rows).astype(str),
    }  # fmt: skip


COMMON = {"metric": Metric("auc", 0.6), "latency_p95_ms": 0.8, "artifact_bytes": 10_000, "seed": 1, "replicates": 500}


def test_evidence_is_small_replays_exactly_and_says_why():
    inputs = gate_inputs("binary", **binary_case(np.random.default_rng(5)), **COMMON)
    text = dumps(inputs)
    again = TypeAdapter(GateInputs).validate_json(text)
    verdict = decide(inputs, GatePolicy())
    assert again == inputs
    assert len(text) < 30_000
    assert decide(again, GatePolicy()) == verdict
    assert verdict.outcome == "PROMOTE"
    assert "margin 0.005" in verdict.reason
    assert inputs.window == ("2013-06-01T00:00:00Z", "2013-07-10T00:00:00Z")
    pair = paired_difference(inputs)
    assert pair.rows == 4_000
    assert pair.blocks == 40


def test_a_spoilt_segment_is_named():
    """UA, half of the rows, spoils the whole; HA, 2 % of them, hides in the mean but not from its own test."""
    rng = np.random.default_rng(6)
    whole = decide(gate_inputs("binary", **binary_case(rng, 8_000, "B6"), **COMMON), GatePolicy(margin=0.5))
    assert whole.outcome == "REJECT"
    assert "in B6" in whole.reason
    assert whole.checks[0].name == "segment:carrier"
    small = decide(
        gate_inputs("binary", **binary_case(rng, 8_000, "HA"), **COMMON), GatePolicy(margin=0.5, min_segment_rows=100)
    )
    assert small.outcome == "REJECT"
    assert "HA" in small.reason


def split(rng, sizes, truth, count=40, noise=0.1):
    parts = {}
    for name, size in sizes.items():
        rows = np.full(count, size // count)
        shift = truth.get(name, 0.0)
        parts[name] = SegmentBlocks(
            tuple(rows.tolist()), tuple((rows * shift + np.sqrt(rows) * noise * rng.normal(size=count)).tolist())
        )
    return parts


def with_segments(parts, policy=POLICY):
    return decide(evidence([100] * 40, [0.0] * 40, segments={"carrier": parts}), policy)


def test_small_segments_are_pooled_instead_of_failed():
    rng = np.random.default_rng(7)
    sizes = {"big": 4_000} | {f"small{i}": 40 for i in range(20)}
    fine = [with_segments(split(rng, sizes, {})) for _ in range(60)]
    assert sum(v.outcome == "PROMOTE" for v in fine) >= 55  # judged apart, 20 slices of 40 rows would clear seldom
    assert "20 small ones pooled" in next(c.text for c in fine[0].checks if c.name == "segment:carrier")
    bad = with_segments(split(rng, sizes, {f"small{i}": 0.2 for i in range(20)}))
    assert bad.outcome == "REJECT"
    assert "(pooled)" in bad.reason


def test_many_segments_share_one_false_alarm():
    """Ten segments exactly at the margin: without the correction about 40 % of the verdicts would be REJECT."""
    rng = np.random.default_rng(8)
    sizes = {f"s{i}": 1_200 for i in range(10)}
    at_margin = dict.fromkeys(sizes, POLICY.segment_margin)
    found = [with_segments(split(rng, sizes, at_margin)).outcome for _ in range(400)]
    assert found.count("REJECT") / 400 < 0.09
    assert found.count("PROMOTE") == 0


def test_an_unclear_segment_holds_and_names_its_rows():
    rng = np.random.default_rng(9)
    verdicts = [with_segments(split(rng, {"s": 1_200}, {"s": 0.029}, noise=0.2)) for _ in range(10)]
    held = next(v for v in verdicts if v.outcome == "HOLD")
    assert held.needs["segment_rows"] >= 1
    assert "yet not beyond doubt" in held.reason


def test_first_version_floor_and_limits():
    rng = np.random.default_rng(10)
    case = binary_case(rng) | {"champion": None}
    first = decide(gate_inputs("binary", **case, **COMMON), GatePolicy())
    assert first.outcome == "PROMOTE"
    assert "no champion" in first.reason
    noise = decide(gate_inputs("binary", **(case | {"candidate": rng.uniform(size=4_000)}), **COMMON), GatePolicy())
    assert noise.outcome == "REJECT"
    assert noise.checks[0].name == "floor"
    point = gate_inputs("binary", **case, **COMMON).point
    near = decide(gate_inputs("binary", **case, **(COMMON | {"metric": Metric("auc", point - 0.003)})), GatePolicy())
    assert near.outcome == "HOLD"
    assert near.needs["rows"] > 0
    brier = decide(gate_inputs("binary", **case, **(COMMON | {"metric": Metric("brier", 0.25)})), GatePolicy())
    assert brier.outcome == "PROMOTE"
    assert decide(gate_inputs("binary", **case, **COMMON), GatePolicy(max_latency_ms=0.1)).outcome == "REJECT"
    assert "MB; the limit" in decide(gate_inputs("binary", **case, **COMMON), GatePolicy(max_bytes=1)).reason


def test_too_little_evidence_holds_whatever_else_fails():
    few = decide(evidence([10] * 9, [9.0] * 9, latency_p95_ms=1e9), POLICY)
    assert (few.outcome, few.needs) == ("HOLD", {"rows": 10.0})
    short = decide(evidence([100] * 3, [0.0] * 3), POLICY)
    assert (short.outcome, short.needs) == ("HOLD", {"blocks": 5.0, "rows": 500.0})


def test_the_same_model_again_is_non_inferior_and_not_superior():
    verdict = decide(evidence([50] * 20, [0.0] * 20), POLICY)
    assert verdict.outcome == "PROMOTE"
    assert next(c for c in verdict.checks if c.name == "superiority").passed is False
    better = decide(evidence(*days(np.random.default_rng(0), 60, -0.05)), POLICY)
    assert next(c for c in better.checks if c.name == "superiority").passed is True


ORDER = {"REJECT": 0, "HOLD": 1, "PROMOTE": 2}
block = st.tuples(st.integers(1, 50), st.floats(-0.5, 0.5))


@given(st.lists(block, min_size=8, max_size=25), st.floats(0, 0.3), st.floats(0.001, 0.2), st.floats(0, 0.2))
@settings(max_examples=60, deadline=None)
def test_monotone_in_the_loss_and_in_the_margin(parts, harm, margin, slack):
    rows, totals = [n for n, _ in parts], [n * d for n, d in parts]
    policy = GatePolicy(margin=margin, min_rows=1)
    before = decide(evidence(rows, totals), policy)
    after = decide(evidence(rows, [t + harm * n for n, t in zip(rows, totals, strict=True)]), policy)
    assert ORDER[after.outcome] <= ORDER[before.outcome]
    wider = decide(evidence(rows, totals), dataclasses.replace(policy, margin=margin + slack))
    assert ORDER[wider.outcome] >= ORDER[before.outcome]


@given(
    st.lists(block, min_size=1, max_size=30), st.integers(0, 2**31), st.floats(allow_nan=False, allow_infinity=False)
)
@settings(max_examples=60, deadline=None)
def test_evidence_of_any_kind_replays_bit_for_bit(parts, seed, number):
    rows, totals = [n for n, _ in parts], [n * d for n, d in parts]
    segments = {"k": {"v": SegmentBlocks(tuple(rows), tuple(totals))}}
    inputs = evidence(rows, totals, seed=seed, point=number, segments=segments)
    again = TypeAdapter(GateInputs).validate_json(dumps(inputs))
    assert again == inputs
    assert dumps(decide(again, POLICY)) == dumps(decide(inputs, POLICY))


def test_high_cardinality_and_numbers_make_few_segments():
    rng = np.random.default_rng(11)
    case = binary_case(rng)
    case["segments"] = {"dest": rng.integers(0, 500, 4_000).astype(str), "distance": rng.normal(size=4_000)}
    inputs = gate_inputs("binary", **case, **COMMON)
    assert len(inputs.segments["dest"]) == 64
    assert sum(sum(s.rows) for s in inputs.segments["dest"].values()) == 4_000
    assert len(inputs.segments["distance"]) == 4


def test_bad_input_to_the_gate_is_named():
    case = binary_case(np.random.default_rng(12))
    with pytest.raises(ContractError, match="'mae' is no binary metric"):
        gate_inputs("binary", **case, **(COMMON | {"metric": Metric("mae", 1)}))
    with pytest.raises(DataError, match="'auc' is undefined"):
        gate_inputs("binary", **(case | {"target": np.zeros(4_000)}), **COMMON)
    with pytest.raises(ContractError, match="not finite"):
        gate_inputs("binary", **(case | {"champion": np.full(4_000, np.nan)}), **COMMON)
    with pytest.raises(DataError, match="one block"):
        gate_inputs("binary", **(case | {"time": np.full(4_000, np.datetime64("2013-01-01"))}), **COMMON)


def test_other_tasks_and_rows_without_time():
    rng = np.random.default_rng(13)
    y, p = rng.integers(0, 3, 1_200), rng.dirichlet(np.ones(3), 1_200)
    good = 0.2 * p + 0.8 * np.eye(3)[y]
    ids, common = np.arange(1_200).astype(str), COMMON | {"metric": Metric("accuracy", 0.8)}
    better = decide(gate_inputs("multiclass", y, good, p, row_id=ids, **common), GatePolicy())
    assert better.outcome == "PROMOTE"
    assert decide(gate_inputs("multiclass", y, p, good, row_id=ids, **common), GatePolicy()).outcome == "REJECT"
    value, common = rng.normal(50, 10, 1_200), COMMON | {"metric": Metric("mae", 3.0)}
    near, far = value + rng.normal(0, 1, 1_200), value + rng.normal(0, 1.5, 1_200)
    policy = GatePolicy(margin=0.2)
    assert decide(gate_inputs("regression", value, near, far, row_id=ids, **common), policy).outcome == "PROMOTE"
    worse = decide(gate_inputs("regression", value, far, near, row_id=ids, **common), policy)
    assert worse.outcome == "REJECT"
    assert worse.checks[0].name == "non_inferiority"
