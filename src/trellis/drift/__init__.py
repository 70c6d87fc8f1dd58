"""Drift: summaries of what was served, statistics on them, and the verdicts they lead to."""

from trellis.drift.budget import look_alpha, pace_days
from trellis.drift.causes import HarmEstimate, SegmentLoss
from trellis.drift.faults import PREDICTION, REQUEST, Fault
from trellis.drift.findings import Diagnosis, DriftInputs, Harm
from trellis.drift.joint import Signal, joint_against_history, joint_signals
from trellis.drift.outcomes import Outcomes, outcomes_like, reference_outcomes
from trellis.drift.reference import (
    Reference,
    ReferenceColumn,
    build_reference,
    distance,
    flatten,
    sketch_window,
    summarise_window,
)
from trellis.drift.shift import Shift, compare
from trellis.drift.summary import CategorySummary, NumericSummary, Summary, Window, WindowSketch, merge, summarise_like
from trellis.drift.units import CONVERSIONS, Conversion, declared_unit, find_conversion
from trellis.drift.verdict import decide, diagnose

__all__ = [
    "CONVERSIONS",
    "PREDICTION",
    "REQUEST",
    "CategorySummary",
    "Conversion",
    "Diagnosis",
    "DriftInputs",
    "Fault",
    "Harm",
    "HarmEstimate",
    "NumericSummary",
    "Outcomes",
    "Reference",
    "ReferenceColumn",
    "SegmentLoss",
    "Shift",
    "Signal",
    "Summary",
    "Window",
    "WindowSketch",
    "build_reference",
    "compare",
    "decide",
    "declared_unit",
    "diagnose",
    "distance",
    "find_conversion",
    "flatten",
    "joint_against_history",
    "joint_signals",
    "look_alpha",
    "merge",
    "outcomes_like",
    "pace_days",
    "reference_outcomes",
    "sketch_window",
    "summarise_like",
    "summarise_window",
]
