"""The label ledger: predictions first, labels late, revised, twice or never; and what is known of performance by then.

``labelled`` answers "what was known at that moment" of a model's logs; ``join`` is the same on plain columns.
``performance`` sums losses per window, version and segment. ``series`` runs from estimated over corrected to realised
performance, with intervals, and scores its own earlier estimates; ``expected_harm`` says what a window cost.
"""

from trellis.ledger.cells import Cell, performance
from trellis.ledger.estimate import Agreement, Estimate
from trellis.ledger.frames import Labelled, due_at, labelled, moment, moments, scores
from trellis.ledger.harm import ExpectedHarm, expected_harm
from trellis.ledger.history import Between, Past, between_windows
from trellis.ledger.labels import CLOCK_TOLERANCE, Finding, Join, join
from trellis.ledger.loss_model import LossModel, fit_loss_model
from trellis.ledger.series import Point, Series, Track, series

__all__ = [
    "CLOCK_TOLERANCE",
    "Agreement",
    "Between",
    "Cell",
    "Estimate",
    "ExpectedHarm",
    "Finding",
    "Join",
    "Labelled",
    "LossModel",
    "Past",
    "Point",
    "Series",
    "Track",
    "between_windows",
    "due_at",
    "expected_harm",
    "fit_loss_model",
    "join",
    "labelled",
    "moment",
    "moments",
    "performance",
    "scores",
    "series",
]
