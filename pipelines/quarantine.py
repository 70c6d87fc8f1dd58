"""Quarantined rows held against the suites as they are now."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from pipelines.data import ingest
from pipelines.plugins import plugin_named, suites_of
from trellis.adapters.validation import validate_table
from trellis.settings import settings


@dataclass(frozen=True)
class Replayed:
    """One table's quarantine, replayed.

    Attributes:
        snapshot: Start of the snapshot's digest, and of the suites' that set the rows aside.
        table: The table.
        rows: Rows in quarantine.
        released: Of these, those that pass now. They come back by themselves at the next run of a flow, because a
            changed suite is a new validation of the whole snapshot.
    """

    snapshot: str
    table: str
    rows: int
    released: int


def replay_quarantine(model: str) -> list[Replayed]:
    """Validate every quarantined row of the model's current snapshot again."""
    snapshot = ingest(model).digest[:16]
    suites = suites_of(plugin_named(model))
    found = []
    for path in sorted(settings().directory("quarantine").glob(f"{snapshot}-*/*.parquet")):
        frame = pd.read_parquet(path)
        if path.stem not in suites or frame.empty:
            continue
        reasons, _ = validate_table(frame.drop(columns="_reason"), suites[path.stem])
        found.append(Replayed(path.parent.name, path.stem, len(frame), int((reasons == "").sum())))
    return found
