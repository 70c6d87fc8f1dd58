"""What the flight model declares: the request, the features it joins, the target and the policies it is judged by.

About 900 flights leave New York's three airports on a day; every number below that counts rows is chosen for that.
"""

from __future__ import annotations

from trellis.contract import (
    DriftPolicy,
    Field,
    GatePolicy,
    Metric,
    ModelSpec,
    RetrainPolicy,
    RolloutPolicy,
    Target,
)

LATE_MINUTES = 15.0
CARRIERS = ("9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV")
ORIGINS = ("EWR", "JFK", "LGA")


def _rate(name: str, whose: str, window: str) -> Field:
    text = f"Smoothed share of {whose} flights landed in the last {window} that were over 15 minutes late."
    return Field(name, "float", text, minimum=0.0, maximum=1.0, nullable=True, example=0.2)


def _minutes(name: str, description: str) -> Field:
    return Field(name, "float", description, minimum=-120.0, maximum=1_500.0, nullable=True, example=6.0)


def _count(name: str, description: str, most: float = 10_000.0) -> Field:
    return Field(name, "float", description, minimum=0.0, maximum=most, nullable=True, example=12.0)


def _unit(name: str, description: str) -> Field:
    return Field(name, "float", description, minimum=-1.0, maximum=1.0, example=0.5)


REQUEST = (
    Field("carrier", "category", "Two-character code of the airline.", choices=CARRIERS, example="UA"),
    Field("flight", "int", "Flight number.", minimum=1, maximum=9_999, example=1545),
    Field("origin", "category", "Airport of departure.", choices=ORIGINS, example="EWR"),
    Field("dest", "category", "Airport of arrival, its three-letter code.", max_length=4, example="IAH"),
    Field(
        "tailnum",
        "text",
        "Registration of the aircraft, if it is assigned.",
        max_length=8,
        nullable=True,
        example="N14228",
    ),
    Field("sched_dep", "timestamp", "Scheduled departure, UTC.", example="2013-07-01T09:15:00Z"),
    Field(
        "sched_minutes",
        "float",
        "Scheduled time from gate to gate, minutes.",
        minimum=15.0,
        maximum=1_200.0,
        example=244.0,
    ),
    Field("distance", "float", "Great-circle distance, miles.", minimum=10.0, maximum=6_000.0, example=1_400.0),
)

FEATURES = (
    # carrier_delays
    _rate("carrier_late_rate_3h", "the carrier's", "3 hours"),
    _rate("carrier_late_rate_1d", "the carrier's", "24 hours"),
    _rate("carrier_late_rate_7d", "the carrier's", "7 days"),
    _rate("carrier_late_rate_28d", "the carrier's", "28 days"),
    _minutes("carrier_dep_delay_3h", "Smoothed mean delay of the carrier's departures in the last 3 hours, minutes."),
    _count("carrier_landed_3h", "The carrier's flights landed in the last 3 hours."),
    # route_delays
    _rate("route_late_rate_1d", "the route's", "24 hours"),
    _rate("route_late_rate_7d", "the route's", "7 days"),
    _rate("route_late_rate_28d", "the route's", "28 days"),
    _minutes("route_delay_7d", "Smoothed mean arrival delay on the route in the last 7 days, minutes."),
    _count("route_landed_28d", "Flights on the route landed in the last 28 days."),
    # origin_delays
    _rate("origin_late_rate_3h", "the origin's", "3 hours"),
    _rate("origin_late_rate_1d", "the origin's", "24 hours"),
    _minutes("origin_dep_delay_1h", "Smoothed mean delay of the origin's departures in the last hour, minutes."),
    _minutes("origin_dep_delay_3h", "Smoothed mean delay of the origin's departures in the last 3 hours, minutes."),
    _count("origin_departed_1h", "Flights that left the origin in the last hour."),
    _count("origin_overdue", "Flights 15 minutes or more past their scheduled departure and still at the origin."),
    _count("origin_cancelled_6h", "Flights of the origin that became known as cancelled in the last 6 hours."),
    # aircraft_delays
    _minutes("aircraft_last_delay", "Arrival delay of the aircraft's last landed flight from New York, minutes."),
    _rate("aircraft_late_rate_28d", "the aircraft's", "28 days"),
    _count("aircraft_landed_28d", "The aircraft's flights from New York landed in the last 28 days."),
    # aircraft_facts
    Field(
        "aircraft_year",
        "float",
        "Year the aircraft was built.",
        minimum=1940.0,
        maximum=2030.0,
        nullable=True,
        example=2004.0,
    ),
    Field(
        "aircraft_seats", "float", "Seats of the aircraft.", minimum=1.0, maximum=900.0, nullable=True, example=182.0
    ),
    # origin_weather
    Field(
        "weather_temp",
        "float",
        "Air temperature, degrees Fahrenheit.",
        minimum=-60.0,
        maximum=140.0,
        nullable=True,
        example=72.0,
    ),
    Field(
        "weather_humid", "float", "Relative humidity, percent.", minimum=0.0, maximum=110.0, nullable=True, example=60.0
    ),
    Field(
        "weather_wind_speed",
        "float",
        "Wind speed, miles per hour.",
        minimum=0.0,
        maximum=250.0,
        nullable=True,
        example=9.2,
    ),
    Field(
        "weather_precip", "float", "Rain of the hour, inches.", minimum=0.0, maximum=20.0, nullable=True, example=0.0
    ),
    Field(
        "weather_pressure",
        "float",
        "Sea-level pressure, millibars.",
        minimum=850.0,
        maximum=1_100.0,
        nullable=True,
        example=1_013.0,
    ),
    Field("weather_visib", "float", "Visibility, miles.", minimum=0.0, maximum=100.0, nullable=True, example=10.0),
    # departure_time, on demand
    _unit("hour_sin", "Sine of the scheduled local time of day, one turn per 24 hours."),
    _unit("hour_cos", "Cosine of the scheduled local time of day, one turn per 24 hours."),
    _unit("weekday_sin", "Sine of the local weekday, one turn per week from Monday."),
    _unit("weekday_cos", "Cosine of the local weekday, one turn per week from Monday."),
)

SPEC = ModelSpec(
    name="flight_delay",
    version="1.0",
    task="binary",
    owner="flight-operations",
    description="Probability, at scheduled departure, that a flight from New York arrives more than 15 minutes late.",
    request=REQUEST,
    features=FEATURES,
    inputs=("carrier", "origin", "dest", "sched_minutes", "distance", *(f.name for f in FEATURES)),
    outputs=(
        Field(
            "probability",
            "float",
            "Probability of arriving more than 15 minutes late.",
            minimum=0.0,
            maximum=1.0,
            example=0.21,
        ),
    ),
    target=Target(
        name="late",
        description="Whether the flight arrived more than 15 minutes after its scheduled arrival.",
        classes=("on_time", "late"),
        delay_hours=6.0,  # scheduled departure to landing: 3 hours at the median, 6 for the long and the late
    ),
    metric=Metric("auc", floor=0.65),
    feature_service="flight_delay_v1",
    entity_keys=("carrier", "origin", "dest", "tailnum"),
    time_field="sched_dep",
    default={"probability": 0.24},  # of all flights that landed in 2013, 23.7 % were late
    segments=("carrier", "origin"),
    recipes=("xgboost", "tabnet"),
    gates=GatePolicy(margin=0.005, segment_margin=0.03, min_rows=2_000, min_segment_rows=400, max_bytes=50_000_000),
    # 10 % of the traffic is 90 flights a day: the first step can end after three or four days.
    rollout=RolloutPolicy(steps=(0.1, 0.5), margin=0.02, min_labels=300, max_days=30.0),
    # A look every third or fourth day sees about 3,000 flights.
    drift=DriftPolicy(min_rows=2_000, looks_per_month=8.0),
    # Two weeks bring 12,000 labels, enough for a new month or a new season to show.
    retrain=RetrainPolicy(cooldown_days=14.0, budget_per_month=2, min_new_labels=8_000),
)
