"""The sample beside the plug-in is what the raw data and today's feature tables say about those flights."""

import duckdb
import numpy as np
import pytest

KEYS = {
    "carrier_delays": ("carrier",),
    "route_delays": ("origin", "dest"),
    "origin_delays": ("origin",),
    "aircraft_delays": ("tailnum",),
    "aircraft_facts": ("tailnum",),
    "origin_weather": ("origin",),
}


@pytest.mark.slow
def test_the_sample_is_in_step_with_the_feature_tables(catalogue, tmp_path):
    plugin = catalogue.plugin("flight_delay")
    plugin.ingest(tmp_path / "raw")
    plugin.build_features(tmp_path / "raw", tmp_path / "features")
    every = plugin.examples(tmp_path / "raw")
    place = {row: i for i, row in enumerate(every.row_id.tolist())}
    sample = plugin.sample(400)
    rows = every.take(np.array([place[row] for row in sample.row_id.tolist()]))
    np.testing.assert_array_equal(sample.target, rows.target)
    np.testing.assert_array_equal(sample.time, rows.time)
    np.testing.assert_array_equal(sample.known, rows.known)
    for field in plugin.spec.request:
        np.testing.assert_array_equal(sample.columns[field.name], rows.columns[field.name])

    frame = rows.frame().assign(i=range(len(rows)))[["i", "carrier", "origin", "dest", "tailnum", "time"]]
    compared = 0
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        db.register("flights", frame)
        for view, keys in KEYS.items():
            same = " AND ".join(f"f.{key} = v.{key}" for key in keys)
            # The newest row at or before the departure, by a plain correlated choice: no point-in-time join of ours.
            found = db.execute(
                f"SELECT f.i, v.* FROM flights f JOIN '{tmp_path}/features/{view}.parquet' v ON {same} "
                "AND v.event_timestamp <= f.time::TIMESTAMPTZ "
                "QUALIFY row_number() OVER (PARTITION BY f.i ORDER BY v.event_timestamp DESC) = 1 ORDER BY f.i"
            ).df()
            for field in plugin.spec.features:
                if field.name in found:
                    expected = np.full(len(rows), np.nan, np.float32)
                    expected[found["i"]] = found[field.name].to_numpy(np.float32)
                    value = sample.columns[field.name]
                    # The feature store also drops what is older than the view allows.
                    assert not (np.isnan(expected) & ~np.isnan(value)).any(), field.name
                    assert (np.isnan(value) & ~np.isnan(expected)).mean() < 0.1, field.name
                    both = ~np.isnan(value)
                    np.testing.assert_allclose(value[both], expected[both], rtol=1e-5, atol=1e-5, err_msg=field.name)
                    compared += 1
    assert compared == len(plugin.spec.features) - 4  # all but the cyclical time, which is computed on demand
