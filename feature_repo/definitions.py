"""What the feature store holds: entities, views with an owner and a freshness SLA, and one feature service per model.

Declarations only. Feast runs this file when the repository is applied; nobody imports it. The tables are written by
each plug-in's ``build_features`` to ``$TRELLIS_HOME/features/VIEW.parquet``.
"""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float32, UnixTimestamp

FEATURES = Path(os.environ["TRELLIS_HOME"]) / "features"
OWNER = "flight-operations"

carrier = Entity(name="carrier", value_type=ValueType.STRING, description="Two-character code of an airline.")
origin = Entity(name="origin", value_type=ValueType.STRING, description="Airport of departure.")
dest = Entity(name="dest", value_type=ValueType.STRING, description="Airport of arrival.")
aircraft = Entity(
    name="aircraft", join_keys=["tailnum"], value_type=ValueType.STRING, description="A registered aircraft."
)


def _view(
    name: str,
    entities: list[Entity],
    ttl: timedelta,
    sla: str,
    about: str,
    features: list[str],
    action: str = "serve",
) -> FeatureView:
    """Declare a batch view over its table.

    ``sla`` is the largest acceptable age of an entity's newest event when it is used, ISO 8601. ``action`` is what the
    prediction service does past it: ``serve`` (and say so), ``impute``, ``reject`` or ``fall_back``. The models have
    learned from values of any age up to ``ttl``, past which a value is missing, so most are served.
    """
    return FeatureView(
        name=name,
        entities=entities,
        ttl=ttl,
        schema=[Field(name=feature, dtype=Float32) for feature in features],
        source=FileSource(name=name, path=str(FEATURES / f"{name}.parquet"), timestamp_field="event_timestamp"),
        owner=OWNER,
        tags={"owner": OWNER, "freshness_sla": sla, "freshness_action": action},
        description=about,
    )


carrier_delays = _view(
    "carrier_delays",
    [carrier],
    timedelta(hours=12),
    "PT1H",
    "A carrier's late arrivals and departure delays in rolling windows, every 30 minutes.",
    [
        "carrier_late_rate_3h",
        "carrier_late_rate_1d",
        "carrier_late_rate_7d",
        "carrier_late_rate_28d",
        "carrier_dep_delay_3h",
        "carrier_landed_3h",
    ],
)
route_delays = _view(
    "route_delays",
    [origin, dest],
    timedelta(days=2),
    "PT12H",
    "A route's late arrivals in rolling windows, every 6 hours.",
    ["route_late_rate_1d", "route_late_rate_7d", "route_late_rate_28d", "route_delay_7d", "route_landed_28d"],
)
origin_delays = _view(
    "origin_delays",
    [origin],
    timedelta(hours=12),
    "PT30M",
    "Congestion of an airport of departure, every 15 minutes.",
    [
        "origin_late_rate_3h",
        "origin_late_rate_1d",
        "origin_dep_delay_1h",
        "origin_dep_delay_3h",
        "origin_departed_1h",
        "origin_overdue",
        "origin_cancelled_6h",
    ],
)
aircraft_delays = _view(
    "aircraft_delays",
    [aircraft],
    timedelta(days=28),
    "P28D",  # an aircraft that does not fly has no newer event
    "An aircraft's last known delay and its recent record, at each of its landings.",
    ["aircraft_last_delay", "aircraft_late_rate_28d", "aircraft_landed_28d"],
    action="impute",
)
aircraft_facts = _view(
    "aircraft_facts",
    [aircraft],
    timedelta(0),  # never too old
    "P1Y",
    "The aircraft register: year of building and seats.",
    ["aircraft_year", "aircraft_seats"],
)
origin_weather = _view(
    "origin_weather",
    [origin],
    timedelta(hours=6),
    "PT2H",
    "Weather at the airport of departure, known at the end of each hour.",
    [
        "weather_temp",
        "weather_humid",
        "weather_wind_speed",
        "weather_precip",
        "weather_pressure",
        "weather_visib",
    ],
)

scheduled_departure = RequestSource(name="scheduled_departure", schema=[Field(name="sched_dep", dtype=UnixTimestamp)])


@on_demand_feature_view(
    sources=[scheduled_departure],
    schema=[Field(name=name, dtype=Float32) for name in ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")],
    mode="python",
    owner=OWNER,
    # "arrays": it takes numpy arrays as well as lists. "pure": the same inputs always give the same features, so that
    # serving may remember them.
    tags={"owner": OWNER, "freshness_sla": "PT0S", "arrays": "true", "pure": "true"},
    description="Hour of day and weekday of the scheduled departure on New York's clocks, as points on a circle.",
)
def departure_time(inputs: dict[str, Any]) -> dict[str, Any]:
    # Feast stores the body of this function alone, so it brings what it needs; it works on whole columns.
    from datetime import UTC, datetime
    from zoneinfo import ZoneInfo

    import numpy as np

    times = inputs["sched_dep"]
    arrays = isinstance(times, np.ndarray)
    if not arrays:
        times = [t.astimezone(UTC).replace(tzinfo=None) if t is not None and t.tzinfo else t for t in times]
    utc = np.array(times, dtype="datetime64[s]")
    hours = utc.astype("datetime64[h]")
    few = len(hours) < 16  # finding equal hours takes longer than looking them all up
    unique, inverse = (hours, slice(None)) if few else np.unique(hours, return_inverse=True)
    new_york = ZoneInfo("America/New_York")
    offsets = [
        0
        if np.isnat(hour)
        else datetime.fromtimestamp(int(hour.astype("int64")) * 3600, tz=new_york).utcoffset().total_seconds()
        for hour in unique
    ]
    local = utc.astype("int64") + np.array(offsets, dtype="int64")[inverse]  # clocks change on the hour
    day = local % 86_400 / 86_400
    week = (local // 86_400 + 3) % 7 / 7  # the first of January 1970 was a Thursday, day 3
    missing = np.isnat(utc)
    turns = {"hour_sin": np.sin, "hour_cos": np.cos, "weekday_sin": np.sin, "weekday_cos": np.cos}
    out = {}
    for name, turn in turns.items():
        angle = 2 * np.pi * (day if name.startswith("hour") else week)
        values = turn(angle).astype("float32")
        values[missing] = np.nan
        out[name] = values if arrays else list(values)  # items of type float32, from which Feast infers the type
    return out


flight_delay_v1 = FeatureService(
    name="flight_delay_v1",
    features=[
        carrier_delays,
        route_delays,
        origin_delays,
        aircraft_delays,
        aircraft_facts,
        origin_weather,
        departure_time,
    ],
    owner=OWNER,
    tags={"owner": OWNER, "model": "flight_delay", "time_field": "sched_dep"},
    description="What the flight delay model joins to a scheduled departure.",
)
