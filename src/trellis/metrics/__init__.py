"""Quality in numbers: per-row losses, metrics, and intervals that respect dependence within a day."""

from trellis.metrics.blocks import BlockSums, block_sums, blocks_of
from trellis.metrics.intervals import Interval, block_weights, intervals, t_quantile
from trellis.metrics.points import GREATER_IS_BETTER, METRICS, compute, row_loss

__all__ = [
    "GREATER_IS_BETTER",
    "METRICS",
    "BlockSums",
    "Interval",
    "block_sums",
    "block_weights",
    "blocks_of",
    "compute",
    "intervals",
    "row_loss",
    "t_quantile",
]
