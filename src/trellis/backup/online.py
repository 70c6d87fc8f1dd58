"""The online store after a restore: what is not in the home is written anew from the feature tables."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path


def refill(repo: Path, home: Path, online_store: str = "sqlite") -> dict[str, int]:
    """Write the online store anew, up to the moment that it had been brought to.

    Redis is not backed up: it holds the latest rows of the feature tables, and they are in the home.

    Args:
        repo: Directory of the Feast definitions.
        home: The restored home.
        online_store: ``sqlite`` or a Redis URL.

    Returns:
        How many keys were written, per view; nothing where nothing had been materialised.
    """
    marks = home / "feast" / "watermarks.json"
    if not marks.is_file():
        return {}
    until: list[datetime] = [datetime.fromisoformat(mark["until"]) for mark in json.loads(marks.read_text()).values()]
    if not until:
        return {}
    from trellis.adapters.feature_store import FeatureStore

    return FeatureStore(repo, home, online_store).materialize(max(until), since=datetime(1970, 1, 1, tzinfo=UTC))
