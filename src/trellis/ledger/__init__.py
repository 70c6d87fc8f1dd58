"""The label ledger: predictions first, labels late, revised, twice or never; and what is known of performance by then.

``labelled`` answers "what was known at that moment" of a model's logs; ``join`` is the same on plain columns.
``performance`` sums losses per window, version and segment.
"""

from trellis.ledger.cells import Cell, performance
from trellis.ledger.frames import Labelled, labelled, moment, moments, scores
from trellis.ledger.labels import CLOCK_TOLERANCE, Finding, Join, join

__all__ = [
    "CLOCK_TOLERANCE",
    "Cell",
    "Finding",
    "Join",
    "Labelled",
    "join",
    "labelled",
    "moment",
    "moments",
    "performance",
    "scores",
]
