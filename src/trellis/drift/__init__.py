"""Drift: summaries of what was served, statistics on them, and the verdicts they lead to."""

from trellis.drift.faults import PREDICTION, REQUEST, Fault
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
from trellis.drift.verdict import Diagnosis, DriftInputs, Harm, decide, diagnose, look_alpha

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
    "NumericSummary",
    "Reference",
    "ReferenceColumn",
    "Shift",
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
    "look_alpha",
    "merge",
    "sketch_window",
    "summarise_like",
    "summarise_window",
]
