"""The quality of served rows: features against their recomputation (skew), and rows against their declaration."""

from trellis.quality.clocks import ahead_of_clock, newest_time
from trellis.quality.rows import ColumnHistory, QualityFinding, check_rows, finding
from trellis.quality.skew import Recompute, Served, SkewFinding, SkewReport, find_skew

__all__ = [
    "ColumnHistory",
    "QualityFinding",
    "Recompute",
    "Served",
    "SkewFinding",
    "SkewReport",
    "ahead_of_clock",
    "check_rows",
    "find_skew",
    "finding",
    "newest_time",
]
