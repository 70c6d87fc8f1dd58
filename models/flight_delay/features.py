# ruff: noqa: S608 (the queries are built from constants of this file, never from what a caller sent)
"""The feature tables of the flight model, by DuckDB: one per view, each row stamped with the moment it could be known.

Rules of what is known when:

- a departure, with its delay, at the moment the aircraft leaves;
- an arrival, with its delay, at the moment the aircraft has landed;
- a cancellation one hour after the scheduled departure, which is when a flight that never left is taken for cancelled;
- the weather of an hour at the end of that hour;
- the aircraft register at the start of the year (it is a list without dates).

Rolling values stand on a regular grid of moments (15 minutes for airports, 30 for carriers, 6 hours for routes). An
event counts in the first grid moment at or after it was known, and a window of length w at moment g holds what became
known in (g - w, g]. Rates and means of few flights are drawn towards a steadier one by adding flights that behave as it
says (a Beta prior; Gelman et al., Bayesian Data Analysis, 3rd ed., section 2.4): a short window towards the key's 28
days, those towards all flights' 28 days, and these, in the first days of the year, towards one late flight in five.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import duckdb

from .source import timetable
from .spec import LATE_MINUTES

VIEWS = ("carrier_delays", "route_delays", "origin_delays", "aircraft_delays", "aircraft_facts", "origin_weather")
CANCELLED_AFTER = "INTERVAL 60 MINUTE"
OVERDUE_AFTER = "INTERVAL 15 MINUTE"
WEATHER_AFTER = "INTERVAL 60 MINUTE"
# A delay of a whole day says no more about the next flight than one of five hours.
SHORTEST, LONGEST = -60.0, 300.0
FASTEST_WIND = 250.0  # miles per hour; the year holds one reading of 1,048, an instrument's error
DRAW_SHORT, DRAW_LONG = 10, 30  # flights added to a short window and to 28 days


def build_features(snapshot: Path, directory: Path) -> None:
    """Write one ``VIEW.parquet`` per feature view into ``directory``; the same snapshot gives the same rows.

    Values are float32, keys strings, ``event_timestamp`` is ``timestamp[us, UTC]``. A table appears whole or not at
    all.

    Raises:
        CorruptSnapshotError, DataError: As for ``source.timetable``.
    """
    flights = timetable(snapshot)
    directory.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(config={"temp_directory": str(directory / ".spill")}) as db:
        db.execute("SET TimeZone = 'UTC'")
        db.register("flights", flights)
        for table in ("weather", "planes"):
            source = _quoted(snapshot / f"{table}.parquet")
            db.execute(f"CREATE VIEW {table} AS SELECT * FROM read_parquet('{source}')")
        db.execute(_EVENTS)
        db.execute(_overall())
        for name, query in _queries().items():
            part = directory / f".{name}.parquet.part"
            db.execute(f"COPY ({query}) TO '{_quoted(part)}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 20480)")
            os.replace(part, directory / f"{name}.parquet")


# One row per thing that became known: what, about which flight, and when.
_EVENTS = f"""
CREATE TABLE events AS
WITH base AS (
    SELECT carrier, origin, dest, tailnum, sched_dep, departed, landed, dep_delay, arr_delay FROM flights
)
SELECT carrier, origin, dest, departed AS known, 1 AS left_,
       least(greatest(dep_delay, {SHORTEST}), {LONGEST}) AS dep_delay,
       0 AS landed_, 0 AS late, 0.0 AS arr_delay, 0 AS cancelled, 0 AS overdue
FROM base WHERE departed IS NOT NULL
UNION ALL
SELECT carrier, origin, dest, landed, 0, 0.0, 1, (arr_delay > {LATE_MINUTES})::INT,
       least(greatest(arr_delay, {SHORTEST}), {LONGEST}), 0, 0
FROM base WHERE landed IS NOT NULL
UNION ALL
SELECT carrier, origin, dest, sched_dep + {CANCELLED_AFTER}, 0, 0.0, 0, 0, 0.0, 1, 0
FROM base WHERE departed IS NULL
UNION ALL  -- a flight becomes overdue ...
SELECT carrier, origin, dest, sched_dep + {OVERDUE_AFTER}, 0, 0.0, 0, 0, 0.0, 0, 1
FROM base WHERE departed IS NULL OR departed > sched_dep + {OVERDUE_AFTER}
UNION ALL  -- ... until it leaves or is taken for cancelled
SELECT carrier, origin, dest, coalesce(departed, sched_dep + {CANCELLED_AFTER}), 0, 0.0, 0, 0, 0.0, 0, -1
FROM base WHERE departed IS NULL OR departed > sched_dep + {OVERDUE_AFTER}
"""

_SUMS = ("left_", "dep_delay", "landed_", "late", "arr_delay", "cancelled", "overdue")


def _grid(keys: Sequence[str], minutes: int, windows: Sequence[tuple[str, float]]) -> str:
    """Return CTEs ``rolling``: for every key and grid moment ``g`` since the key's first event, windowed sums.

    Args:
        keys: Columns of ``events`` to group by; may be empty.
        minutes: Width of the grid.
        windows: Pairs of a sum's column and a window in hours; the result is named ``COLUMN_HOURSh``.
    """
    step = f"INTERVAL {minutes} MINUTE"
    bucket = f"time_bucket({step}, known + {step} - INTERVAL 1 MICROSECOND)"
    group = "".join(f"{key}, " for key in keys)
    sums = ", ".join(f"sum({c}) AS {c}" for c in _SUMS)
    using = ", ".join([*keys, "g"])
    partition = f"PARTITION BY {', '.join(keys)} " if keys else ""
    rolled = ", ".join(
        f"sum(coalesce({column}, 0)) OVER ({partition}ORDER BY g "
        f"ROWS BETWEEN {round(hours * 60 / minutes) - 1} PRECEDING AND CURRENT ROW) AS {column}_{hours:g}h"
        for column, hours in windows
    )
    return f"""
    buckets AS (SELECT {group}{bucket} AS g, {sums} FROM events GROUP BY ALL),
    span AS (SELECT {group}min(g) AS first FROM buckets{" GROUP BY " + ", ".join(keys) if keys else ""}),
    grid AS (SELECT {group}unnest(generate_series(first, (SELECT max(g) FROM buckets), {step})) AS g FROM span),
    rolling AS (SELECT {group}g, sum(coalesce(overdue, 0)) OVER ({partition}ORDER BY g) AS overdue_now, {rolled}
                FROM grid LEFT JOIN buckets USING ({using}))"""


def _overall() -> str:
    """All flights' last 28 days, on the finest grid: what few flights are drawn towards."""
    windows = [("late", 672), ("landed_", 672), ("dep_delay", 672), ("left_", 672), ("arr_delay", 672)]
    return f"""
    CREATE TABLE overall AS WITH {_grid((), 15, windows)}
    SELECT g, (late_672h + 20) / (landed__672h + 100) AS rate, dep_delay_672h / (left__672h + 100) AS dep_delay,
           arr_delay_672h / (landed__672h + 100) AS arr_delay
    FROM rolling"""


def _rate(hours: int, prior: str, weight: int) -> str:
    return f"(late_{hours}h + {weight} * {prior}) / (landed__{hours}h + {weight})"


def _mean(column: str, count: str, hours: int, prior: str, weight: int) -> str:
    return f"({column}_{hours}h + {weight} * {prior}) / ({count}_{hours}h + {weight})"


def _queries() -> dict[str, str]:
    month, stamp = 672, "g::TIMESTAMPTZ AS event_timestamp"
    carrier = [("late", h) for h in (3, 24, 168, month)] + [("landed_", h) for h in (3, 24, 168, month)]
    carrier += [("dep_delay", 3), ("left_", 3)]
    route = [("late", h) for h in (24, 168, month)] + [("landed_", h) for h in (24, 168, month)] + [("arr_delay", 168)]
    origin = [("late", h) for h in (3, 24, month)] + [("landed_", h) for h in (3, 24, month)]
    origin += [("dep_delay", 1), ("dep_delay", 3), ("left_", 1), ("left_", 3), ("cancelled", 6)]
    return {
        "carrier_delays": f"""
            WITH {_grid(("carrier",), 30, carrier)},
            drawn AS (SELECT rolling.*, o.dep_delay AS usual, {_rate(month, "o.rate", DRAW_LONG)} AS steady
                      FROM rolling JOIN overall o USING (g))
            SELECT carrier, {stamp},
                   ({_rate(3, "steady", DRAW_SHORT)})::FLOAT AS carrier_late_rate_3h,
                   ({_rate(24, "steady", DRAW_SHORT)})::FLOAT AS carrier_late_rate_1d,
                   ({_rate(168, "steady", DRAW_SHORT)})::FLOAT AS carrier_late_rate_7d,
                   steady::FLOAT AS carrier_late_rate_28d,
                   ({_mean("dep_delay", "left_", 3, "usual", DRAW_SHORT)})::FLOAT AS carrier_dep_delay_3h,
                   landed__3h::FLOAT AS carrier_landed_3h
            FROM drawn ORDER BY g, carrier""",
        "route_delays": f"""
            WITH {_grid(("origin", "dest"), 360, route)},
            drawn AS (SELECT rolling.*, o.arr_delay AS usual, {_rate(month, "o.rate", DRAW_LONG)} AS steady
                      FROM rolling JOIN overall o USING (g))
            SELECT origin, dest, {stamp},
                   ({_rate(24, "steady", DRAW_SHORT)})::FLOAT AS route_late_rate_1d,
                   ({_rate(168, "steady", DRAW_SHORT)})::FLOAT AS route_late_rate_7d,
                   steady::FLOAT AS route_late_rate_28d,
                   ({_mean("arr_delay", "landed_", 168, "usual", DRAW_SHORT)})::FLOAT AS route_delay_7d,
                   landed__{month}h::FLOAT AS route_landed_28d
            FROM drawn ORDER BY g, origin, dest""",
        "origin_delays": f"""
            WITH {_grid(("origin",), 15, origin)},
            drawn AS (SELECT rolling.*, o.dep_delay AS usual, {_rate(month, "o.rate", DRAW_LONG)} AS steady
                      FROM rolling JOIN overall o USING (g))
            SELECT origin, {stamp},
                   ({_rate(3, "steady", DRAW_SHORT)})::FLOAT AS origin_late_rate_3h,
                   ({_rate(24, "steady", DRAW_SHORT)})::FLOAT AS origin_late_rate_1d,
                   ({_mean("dep_delay", "left_", 1, "usual", DRAW_SHORT)})::FLOAT AS origin_dep_delay_1h,
                   ({_mean("dep_delay", "left_", 3, "usual", DRAW_SHORT)})::FLOAT AS origin_dep_delay_3h,
                   left__1h::FLOAT AS origin_departed_1h,
                   overdue_now::FLOAT AS origin_overdue,
                   cancelled_6h::FLOAT AS origin_cancelled_6h
            FROM drawn ORDER BY g, origin""",
        # One row per landing. Two landings of one aircraft in one minute (a wrong registration) become one row.
        "aircraft_delays": f"""
            WITH landings AS (
                SELECT tailnum, landed AS g, max(arr_delay) AS delay, count(*) AS n,
                       count_if(arr_delay > {LATE_MINUTES}) AS late
                FROM flights WHERE landed IS NOT NULL AND tailnum IS NOT NULL GROUP BY ALL
            ),
            rolling AS (
                SELECT *, sum(n) OVER month AS landed__{month}h, sum(late) OVER month AS late_{month}h FROM landings
                WINDOW month AS (PARTITION BY tailnum ORDER BY g
                                 RANGE BETWEEN INTERVAL {month} HOUR PRECEDING AND CURRENT ROW)
            )
            SELECT tailnum, rolling.g::TIMESTAMPTZ AS event_timestamp,
                   delay::FLOAT AS aircraft_last_delay,
                   ({_rate(month, "o.rate", DRAW_SHORT)})::FLOAT AS aircraft_late_rate_28d,
                   landed__{month}h::FLOAT AS aircraft_landed_28d
            FROM rolling ASOF JOIN overall o ON rolling.g >= o.g
            ORDER BY event_timestamp, tailnum""",
        "aircraft_facts": """
            SELECT tailnum, TIMESTAMPTZ '2013-01-01 00:00:00+00' AS event_timestamp,
                   max(year)::FLOAT AS aircraft_year, max(seats)::FLOAT AS aircraft_seats
            FROM planes GROUP BY tailnum ORDER BY tailnum""",
        "origin_weather": f"""
            SELECT origin, time_hour + {WEATHER_AFTER} AS event_timestamp,
                   max(temp)::FLOAT AS weather_temp, max(humid)::FLOAT AS weather_humid,
                   max(wind_speed) FILTER (wind_speed <= {FASTEST_WIND})::FLOAT AS weather_wind_speed,
                   max(precip)::FLOAT AS weather_precip,
                   max(pressure)::FLOAT AS weather_pressure, max(visib)::FLOAT AS weather_visib
            FROM weather GROUP BY origin, time_hour ORDER BY event_timestamp, origin""",
    }


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
