"""Is the candidate worse in a segment? Slices too small to tell are judged together instead of failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist

from trellis.contract import GatePolicy
from trellis.decision import Check
from trellis.gates.evidence import SegmentBlocks
from trellis.gates.paired import Paired, paired
from trellis.metrics import t_quantile

FEWEST_BLOCKS = 8
POOL = "(pooled)"
# A segment is judged on its own only if it would be cleared with this probability were it as good as before.
CLEARING_POWER = 0.95


def segment_checks(
    segments: Mapping[str, Mapping[str, SegmentBlocks]], policy: GatePolicy, needs: dict[str, float]
) -> list[Check]:
    """Return one check per segment column.

    Of each column, segments below ``policy.min_segment_rows``, and those whose spread leaves them no power at
    ``policy.segment_margin``, are pooled. Every segment of enough rows, pooled or not, is tested for harm: lower bound
    above the margin, at Bonferroni's level over all segments of all columns, which share a chance of at most
    ``1 - confidence`` of a false alarm. Each one judged alone, and the pool, must be cleared by an upper bound within
    the margin; a pool without power holds nothing up unless its mean already exceeds the margin. Bounds are Student's t
    over blocks.

    Args:
        segments: By column, then value.
        policy: Margins, level and sizes.
        needs: Is given the rows that unclear segments still need, under ``segment_rows``.
    """
    judged = {column: _judge(parts, policy) for column, parts in segments.items()}
    tests = sum(len(tested) for tested, _, _ in judged.values())
    level = 1 - (1 - policy.confidence) / max(tests, 1)
    return [_check(column, *parts, level, policy, needs) for column, parts in sorted(judged.items())]


def _judge(
    parts: Mapping[str, SegmentBlocks], policy: GatePolicy
) -> tuple[dict[str, Paired], dict[str, Paired], list[str]]:
    """Return whom to test for harm, whom to clear, and who was pooled."""
    tested, alone, pooled = {}, {}, []
    for value, part in parts.items():
        pair = paired(part.rows, part.difference)
        big = pair.rows >= policy.min_segment_rows and pair.blocks >= FEWEST_BLOCKS
        if big:
            tested[value] = pair
        if big and _has_power(pair, policy):
            alone[value] = pair
        else:
            pooled.append(value)
    if pooled:
        pool = _together([parts[value] for value in pooled])
        if pool.rows >= policy.min_segment_rows and pool.blocks >= FEWEST_BLOCKS:
            tested[POOL] = pool
            if _has_power(pool, policy) or pool.mean > policy.segment_margin:
                alone[POOL] = pool
    return tested, alone, pooled


def _has_power(pair: Paired, policy: GatePolicy) -> bool:
    reach = t_quantile(policy.confidence, pair.blocks - 1) + NormalDist().inv_cdf(CLEARING_POWER)
    return reach * pair.error <= policy.segment_margin


def _together(parts: Sequence[SegmentBlocks]) -> Paired:
    rows = [sum(column) for column in zip(*(p.rows for p in parts), strict=True)]
    return paired(rows, [sum(column) for column in zip(*(p.difference for p in parts), strict=True)])


def _check(
    column: str,
    tested: Mapping[str, Paired],
    alone: Mapping[str, Paired],
    pooled: Sequence[str],
    level: float,
    policy: GatePolicy,
    needs: dict[str, float],
) -> Check:
    name, margin = f"segment:{column}", policy.segment_margin
    worst = {v: p.bound(level, upper=False) for v, p in tested.items()}
    harmed = sorted((v for v, bound in worst.items() if bound > margin), key=lambda v: -worst[v])
    share = f"{len(pooled)} small ones pooled" if pooled else "none pooled"
    if harmed:
        told = ", ".join(f"{v} {tested[v].mean:+.4f} (lower bound {worst[v]:+.4f})" for v in harmed)
        text = f"By {column} the candidate is worse than the margin {margin:g} in {told}, at {level:.2%} each."
        return Check(name, False, text, worst[harmed[0]], margin)
    if not alone:
        return Check(name, True, f"By {column} no segment has rows enough to be judged apart ({share}).", None, margin)
    upper = {v: p.bound(policy.confidence, upper=True) for v, p in alone.items()}
    top = max(upper, key=lambda v: upper[v])
    text = (
        f"By {column}, {len(alone)} judged, {share}: worst {top} {alone[top].mean:+.4f} on {alone[top].rows} rows, "
        f"upper bound {upper[top]:+.4f}"
    )
    unclear = [v for v, bound in upper.items() if bound > margin]
    if not unclear:
        return Check(name, True, f"{text} <= margin {margin:g}.", upper[top], margin)
    more = 1.0
    for value in unclear:
        pair = alone[value]
        gap = max(abs(margin - pair.mean), margin / 4)
        more = max(more, round(max(pair.rows_for(gap, policy.confidence), 1.5 * pair.rows) - pair.rows))
    needs["segment_rows"] = max(needs.get("segment_rows", 0.0), float(more))
    text = f"{text} > margin {margin:g}, yet not beyond doubt; about {more:.0f} more of its rows would settle it."
    return Check(name, None, text, upper[top], margin)
