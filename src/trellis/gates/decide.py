"""The gate's verdict."""

from __future__ import annotations

from trellis.contract import GatePolicy
from trellis.decision import Check, Verdict
from trellis.gates.evidence import GateInputs
from trellis.gates.paired import Paired, paired, studentised_bounds
from trellis.gates.segments import segment_checks

FEWEST_BLOCKS = 8


def decide(inputs: GateInputs, policy: GatePolicy) -> Verdict:
    """Say whether a candidate may take traffic.

    REJECT if one check fails beyond doubt: the metric's better bound misses the floor, the candidate is worse than the
    champion by more than the margin (lower bound above it), a segment is, or latency or size exceeds its limit.
    PROMOTE if every check is met beyond doubt. HOLD otherwise, with the rows still needed in ``needs``.

    Every bound is one-sided at ``policy.confidence``. PROMOTE needs all checks at once, so no correction for their
    number is due: a candidate beyond the margin, or below the floor, is promoted with probability at most
    ``1 - confidence`` (intersection-union, Berger 1982, Technometrics 24). REJECT needs only one; the segments' bounds
    are corrected for their number (Bonferroni), the floor's and the overall one are not. All rests on blocks being
    independent of each other.

    Args:
        inputs: The evidence; see ``gate_inputs``.
        policy: The model's margins and limits.

    Returns:
        PROMOTE, HOLD or REJECT. The check ``superiority`` informs and never decides.
    """
    needs: dict[str, float] = {}
    checks = [
        _floor(inputs, needs),
        *_against_champion(inputs, policy, needs),
        *_limits(inputs, policy),
        *_parity(inputs),
    ]
    blocks = sum(n > 0 for n in inputs.blocks.rows)
    informative = {"superiority"}
    failed = [c for c in checks if c.passed is False and c.name not in informative]
    unsure = [c for c in checks if c.passed is None and c.name not in informative]
    enough = inputs.rows >= policy.min_rows and blocks >= FEWEST_BLOCKS
    size = Check(
        "evidence",
        True if enough else None,
        f"{inputs.rows} test rows in {blocks} independent blocks; a verdict needs {policy.min_rows} in "
        f"{FEWEST_BLOCKS}.",
        value=float(inputs.rows),
        bound=float(policy.min_rows),
    )
    if not enough:
        needs = {"rows": float(max(policy.min_rows - inputs.rows, 0))}
        if blocks < FEWEST_BLOCKS:
            missing = FEWEST_BLOCKS - blocks
            needs = {"blocks": float(missing), "rows": max(needs["rows"], float(round(inputs.rows / blocks * missing)))}
        return Verdict("HOLD", size.text, (size, *checks), needs)
    ordered = (*failed, *unsure, *(c for c in checks if c not in failed and c not in unsure), size)
    if failed:
        return Verdict("REJECT", " ".join(c.text for c in failed), ordered)
    if unsure:
        return Verdict("HOLD", " ".join(c.text for c in unsure), ordered, needs)
    deciding = next((c for c in checks if c.name == "non_inferiority"), checks[0])
    return Verdict("PROMOTE", deciding.text, ordered)


def paired_difference(inputs: GateInputs) -> Paired | None:
    """Return the candidate's mean loss less the champion's with its error; None for a first version."""
    if inputs.blocks.champion is None:
        return None
    pairs = zip(inputs.blocks.candidate, inputs.blocks.champion, strict=True)
    return paired(inputs.blocks.rows, [a - b for a, b in pairs])


def _floor(inputs: GateInputs, needs: dict[str, float]) -> Check:
    safe, hopeful = (inputs.lo, inputs.hi) if inputs.greater_is_better else (inputs.hi, inputs.lo)
    sign = 1.0 if inputs.greater_is_better else -1.0
    side, word = ("lower", "at least") if inputs.greater_is_better else ("upper", "at most")
    text = (
        f"{inputs.metric} {inputs.point:.4f}, {side} {inputs.level:.0%} bound {safe:.4f}; "
        f"the floor is {word} {inputs.floor:g}"
    )
    if sign * safe >= sign * inputs.floor:
        return Check("floor", True, f"{text}.", safe, inputs.floor)
    if sign * hopeful < sign * inputs.floor:
        return Check("floor", False, f"{text}, and even the other bound {hopeful:.4f} misses it.", safe, inputs.floor)
    width = abs(inputs.point - safe)
    gap = max(abs(inputs.point - inputs.floor), width / 4)
    more = _more(inputs.rows * (1.5 * width / gap) ** 2, inputs.rows)
    needs["rows"] = max(needs.get("rows", 0.0), more)
    return Check("floor", None, f"{text}, which {more:.0f} more rows may settle.", safe, inputs.floor)


def _against_champion(inputs: GateInputs, policy: GatePolicy, needs: dict[str, float]) -> list[Check]:
    pair = paired_difference(inputs)
    if pair is None or inputs.blocks.champion is None:
        return [
            Check("non_inferiority", True, "There is no champion yet to compare with; the floor and the limits decide.")
        ]
    if pair.blocks < 2:
        return [Check("non_inferiority", None, f"{pair.rows} rows in {pair.blocks} block show no spread.")]
    totals = zip(inputs.blocks.candidate, inputs.blocks.champion, strict=True)
    lower, upper = studentised_bounds(
        inputs.blocks.rows,
        [a - b for a, b in totals],
        level=policy.confidence,
        seed=inputs.seed,
        replicates=inputs.replicates,
    )
    text = (
        f"Mean loss of the candidate less the champion's {pair.mean:+.5f} (standard error {pair.error:.5f}, "
        f"{pair.rows} rows, {pair.blocks} blocks)"
    )
    level, margin = f"{policy.confidence:.0%}", policy.margin
    if upper <= margin:
        main = Check(
            "non_inferiority", True, f"{text}: upper {level} bound {upper:+.5f} <= margin {margin:g}.", upper, margin
        )
    elif lower > margin:
        main = Check(
            "non_inferiority", False, f"{text}: lower {level} bound {lower:+.5f} > margin {margin:g}.", lower, margin
        )
    else:
        more = _rows_needed(pair, margin, policy.confidence)
        needs["rows"] = max(needs.get("rows", 0.0), more)
        main = Check(
            "non_inferiority",
            None,
            f"{text}: the {level} bounds {lower:+.5f} and {upper:+.5f} leave the margin {margin:g} open; about "
            f"{more:.0f} more rows would settle it.",
            upper,
            margin,
        )
    better = Check(
        "superiority",
        upper < 0,
        f"Upper {level} bound of the difference {upper:+.5f}: the candidate is {'' if upper < 0 else 'not '}better "
        "beyond doubt.",
        upper,
        0.0,
    )
    return [main, *segment_checks(inputs.segments, policy, needs), better]


def _rows_needed(pair: Paired, margin: float, level: float) -> float:
    """Plan for a candidate as good as the champion; if that was enough already, for the difference that was seen.

    The second distance is at least a quarter of the margin: to tell a difference from a margin it equals takes forever.
    """
    planned = pair.rows_for(margin, level)
    if planned <= pair.rows:
        planned = max(pair.rows_for(max(abs(margin - pair.mean), margin / 4), level), 2.0 * pair.rows)
    return _more(planned, pair.rows)


def _more(planned: float, rows: int) -> float:
    return float(max(1, round(planned - rows)))


def _parity(inputs: GateInputs) -> list[Check]:
    """Refuse a version that answers otherwise in a batch or on its own than online; nothing if none were compared."""
    ways = sorted({*inputs.parity, *inputs.disagreements})
    if not ways:
        return []
    worst = max(inputs.parity.values(), default=0.0)
    if inputs.disagreements:
        told = "; ".join(f"{way}: {what}" for way, what in sorted(inputs.disagreements.items()))
        return [Check("parity", False, f"The ways of serving it do not agree: {told}.", worst)]
    text = f"Online and {', '.join(ways)} give the same answers; the largest difference is {worst:.2g}."
    return [Check("parity", True, text, worst)]


def _limits(inputs: GateInputs, policy: GatePolicy) -> list[Check]:
    slow, big = inputs.latency_p95_ms, inputs.artifact_bytes
    return [
        Check(
            "latency",
            slow <= policy.max_latency_ms,
            f"One-row latency p95 {slow:.2f} ms; the limit is {policy.max_latency_ms:g} ms.",
            slow,
            policy.max_latency_ms,
        ),
        Check(
            "artifact_size",
            big <= policy.max_bytes,
            f"The artifact has {big / 1e6:.2f} MB; the limit is {policy.max_bytes / 1e6:g} MB.",
            float(big),
            float(policy.max_bytes),
        ),
    ]
