"""About 2,000 real flights of January to June 2013 with their features, kept beside the code as ``sample.parquet``.

They feed the conformance kit and the examples of the API page. To make the file again, from the repository's root::

    python - <<'END'
    from pathlib import Path
    from tempfile import TemporaryDirectory
    from trellis.adapters.feature_store import FeatureStore
    from trellis.catalog import Catalogue

    plugin = Catalogue([Path("models")]).plugin("flight_delay")
    with TemporaryDirectory() as scratch:
        home = Path(scratch)
        plugin.ingest(home / "raw")
        plugin.build_features(home / "raw", home / "features")
        store = FeatureStore(Path("feature_repo"), home)
        store.apply()
        rows = plugin.examples(home / "raw")
        features = store.training_set("flight_delay_v1", rows.columns, rows.time)
        plugin.write_sample(rows, features)
    END
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trellis.contract import Batch, Dataset, select
from trellis.errors import DataError

from .spec import SPEC

FILE = Path(__file__).with_name("sample.parquet")
ROWS = 2_000
UNTIL = np.datetime64("2013-07-01T00:00", "us")


def sample(rows: int = ROWS) -> Dataset:
    """Return up to ``rows`` labelled flights with features, evenly spread over the file, in time order.

    Raises:
        DataError: The file is missing or is not a sample of this declaration.
    """
    if not FILE.is_file():
        raise DataError(
            "The sample of the flight model is missing.", where=FILE, remedy="Make it again, see sample.py."
        )
    table = pq.read_table(FILE)
    missing = sorted(set(SPEC.fields) - set(table.column_names))
    if missing:
        raise DataError(f"The sample lacks {missing}.", where=FILE, remedy="Make it again, see sample.py.")
    at = np.unique(np.linspace(0, table.num_rows - 1, min(rows, table.num_rows)).round().astype(np.int64))
    columns = {name: table[name].to_numpy()[at] for name in table.column_names}
    columns = {name: column.astype(np.str_) if column.dtype == object else column for name, column in columns.items()}
    return Dataset(
        columns=select(columns, list(SPEC.fields)),
        target=columns["target"],
        row_id=columns["row_id"],
        time=columns["time"],
        known=columns["known"],
    )


def write_sample(rows: Dataset, features: Batch, path: Path = FILE) -> None:
    """Write every n-th flight before July, so that there are about ``ROWS`` of them."""
    assert rows.time is not None
    before = np.flatnonzero(rows.time < UNTIL)
    at = before[np.linspace(0, len(before) - 1, ROWS).round().astype(np.int64)]
    columns = {**rows.columns, **features, "target": rows.target, "row_id": rows.row_id}
    columns |= {"time": rows.time, "known": rows.known}
    names = [*SPEC.fields, "target", "row_id", "time", "known"]
    table = pa.table({name: pa.array(columns[name][at]) for name in names})
    part = path.with_name(f".{path.name}.part")
    pq.write_table(table, part, compression="zstd", compression_level=19)
    os.replace(part, path)
