"""A home with something of everything in it, and what somebody would miss of it."""

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
from sqlalchemy import text

from trellis.adapters.database import engine
from trellis.adapters.decision_store import DecisionStore
from trellis.adapters.feature_store import FeatureStore
from trellis.adapters.plan_store import PlanStore
from trellis.adapters.registry import ModelRegistry, RunRecord
from trellis.artifact import seal, verify
from trellis.rollout.plan import RolloutPlan, Variant

NOW = datetime(2013, 7, 1, 12, tzinfo=UTC)
DEFINITIONS = """
import os
from datetime import timedelta
from pathlib import Path
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

shop = Entity(name="shop", value_type=ValueType.STRING)
source = FileSource(
    name="sales", path=str(Path(os.environ["TRELLIS_HOME"]) / "features/sales.parquet"), timestamp_field="event_timestamp"
)
sales = FeatureView(
    name="sales", entities=[shop], ttl=timedelta(days=9), schema=[Field(name="sum", dtype=Float64)], source=source
)
everything = FeatureService(name="everything", features=[sales])
"""
SHOPS = pd.DataFrame(
    {
        "shop": ["a", "b", "a"],
        "sum": [1.25, -3.5, 7.0],
        "event_timestamp": pd.to_datetime(["2013-06-30", "2013-07-01", "2013-07-01"], utc=True),
    }
)
"""Kept: a, the later row; b."""
LATEST = {"a": 7.0, "b": -3.5}
