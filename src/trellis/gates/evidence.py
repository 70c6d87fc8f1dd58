"""What the gate looks at: sums over blocks instead of rows, small enough to keep with every version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.contract import Metric, Task
from trellis.errors import ContractError, DataError
from trellis.metrics import GREATER_IS_BETTER, METRICS, block_sums, blocks_of, intervals, row_loss

MOST_VALUES = 64
OTHERS = "(other)"


@dataclass(frozen=True)
class PairedBlocks:
    """Losses of both versions on the same rows, summed over each block.

    Attributes:
        rows: Rows per block.
        candidate: Sum of the candidate's losses per block.
        champion: Sum of the champion's; None for a model's first version.
    """

    rows: tuple[int, ...]
    candidate: tuple[float, ...]
    champion: tuple[float, ...] | None


@dataclass(frozen=True)
class SegmentBlocks:
    """One segment's rows and candidate-minus-champion loss, summed over each block.

    Attributes:
        rows: Rows per block.
        difference: Sum of the differences per block.
    """

    rows: tuple[int, ...]
    difference: tuple[float, ...]


@dataclass(frozen=True)
class GateInputs:
    """All that a gate's verdict depends on, beside the policy.

    Attributes:
        task: The model's task; it fixes the loss (see ``trellis.metrics.row_loss``).
        metric: Name of the primary metric.
        greater_is_better: Its direction.
        floor: Its worst acceptable value.
        point, lo, hi: Its value on the test rows with one-sided bounds, each at ``level``.
        level: Level of these bounds.
        blocks: Paired losses by block.
        segments: By column, then value; empty without a champion.
        latency_p95_ms: One-row prediction, 95th percentile, milliseconds.
        artifact_bytes: Size of the artifact.
        window: First and last event time of the test rows, RFC 3339; empty where rows have no time.
        seed: Seed of the bootstrap.
        replicates: Its number of resamples.
        parity: Way of serving the artifact to its largest difference from scoring row by row; empty if not compared.
        disagreements: Way to what differs by more than rounding.
    """

    task: Task
    metric: str
    greater_is_better: bool
    floor: float
    point: float
    lo: float
    hi: float
    level: float
    blocks: PairedBlocks
    latency_p95_ms: float
    artifact_bytes: int
    seed: int
    segments: Mapping[str, Mapping[str, SegmentBlocks]] = field(default_factory=dict)
    window: tuple[str, str] = ("", "")
    replicates: int = 2_000
    parity: Mapping[str, float] = field(default_factory=dict)
    disagreements: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of test rows."""
        return sum(self.blocks.rows)


def gate_inputs(
    task: Task,
    target: NDArray[Any],
    candidate: NDArray[Any],
    champion: NDArray[Any] | None,
    *,
    metric: Metric,
    row_id: NDArray[Any],
    time: NDArray[np.datetime64] | None = None,
    segments: Mapping[str, NDArray[Any]] | None = None,
    latency_p95_ms: float,
    artifact_bytes: int,
    seed: int,
    confidence: float = 0.95,
    replicates: int = 2_000,
    parity: Mapping[str, float] | None = None,
    disagreements: Mapping[str, str] | None = None,
) -> GateInputs:
    """Make the gate's evidence from the scores of both versions on the same test rows.

    Args:
        task: The model's task.
        target: Truth, shape ``(n,)``.
        candidate: The candidate's score, as in ``trellis.metrics.row_loss``.
        champion: The champion's on the same rows; None for a first version.
        metric: The spec's primary metric with its floor.
        row_id: Id of every row.
        time: Time of every row; days are then the blocks. None takes rows as blocks.
        segments: Columns by which quality is judged too. A float column of more than 12 values is cut at its quartiles;
            beyond 64 values the rarest are taken together.
        latency_p95_ms: One-row prediction, 95th percentile, milliseconds.
        artifact_bytes: Size of the artifact.
        seed: Seed of every bootstrap.
        confidence: One-sided level of the metric's bounds; the policy's.
        replicates: Number of resamples.
        parity: Way of serving to its largest difference from scoring row by row; None if not compared.
        disagreements: Way to what differs by more than rounding.

    Raises:
        ContractError: The metric is not one of the task's, or a score is no answer to the task.
        DataError: The rows cannot be judged: the metric is undefined on them, they do not line up, or are of one day.
    """
    if metric.name not in METRICS[task]:
        raise ContractError(f"{metric.name!r} is no {task} metric.", remedy=f"Use one of {list(METRICS[task])}.")
    codes = blocks_of(time, row_id)
    values = intervals(task, target, candidate, codes, seed=seed, confidence=2 * confidence - 1, replicates=replicates)
    if metric.name not in values:
        raise DataError(f"{metric.name!r} is undefined on these rows.", remedy="Test on rows of every class.")
    losses = {"candidate": row_loss(task, target, candidate)}
    if champion is not None:
        losses["champion"] = row_loss(task, target, champion)
    whole = block_sums(losses, codes)[""][""]
    parts: dict[str, dict[str, SegmentBlocks]] = {}
    if champion is not None and segments:
        difference = {"difference": losses["candidate"] - losses["champion"]}
        labels = {name: _labels(column) for name, column in segments.items()}
        for name, found in block_sums(difference, codes, labels).items():
            if name:
                parts[name] = {v: SegmentBlocks(s.rows, s.sums["difference"]) for v, s in found.items()}
    lo, point, hi = values[metric.name]
    return GateInputs(
        task=task,
        metric=metric.name,
        greater_is_better=GREATER_IS_BETTER[metric.name],
        floor=float(metric.floor),
        point=point,
        lo=lo,
        hi=hi,
        level=confidence,
        blocks=PairedBlocks(whole.rows, whole.sums["candidate"], whole.sums.get("champion")),
        latency_p95_ms=float(latency_p95_ms),
        artifact_bytes=int(artifact_bytes),
        seed=int(seed),
        segments=parts,
        window=("", "") if time is None else (_rfc3339(np.min(time)), _rfc3339(np.max(time))),
        replicates=replicates,
        parity=dict(parity or {}),
        disagreements=dict(disagreements or {}),
    )


def _labels(column: NDArray[Any]) -> NDArray[np.str_]:
    values = np.asarray(column)
    if np.issubdtype(values.dtype, np.floating) and len(np.unique(values)) > 12:
        edges = np.unique(np.nanquantile(values, [0.25, 0.5, 0.75]))
        place = np.searchsorted(edges, values, side="right")
        names = [f"below {edges[0]:g}", *(f"from {edge:g}" for edge in edges)]
        return np.where(np.isnan(values), "missing", np.array(names)[place])
    labels = values.astype(str)
    unique, own, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(unique) <= MOST_VALUES:
        return labels
    kept = np.argsort(-counts, kind="stable")[: MOST_VALUES - 1]
    return np.where(np.isin(own, kept), labels, OTHERS)


def _rfc3339(moment: Any) -> str:
    return str(np.datetime64(moment, "s")) + "Z"
