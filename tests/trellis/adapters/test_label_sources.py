"""Labels from files and tables: taken once, whatever the format; refused rows are kept with their reason."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from trellis.adapters.label_sources import LabelColumns, import_labels
from trellis.adapters.prediction_log import LabelLog, read_labels
from trellis.cli import app
from trellis.errors import DataError
from trellis.settings import settings

ROWS = pd.DataFrame(
    {
        "id": ["007", "b", "c", "b", None, "d", "e"],
        "value": ["1", "0", "late", "1", "1", None, "1"],
        "observed_at": ["2024-03-01T10:00:00Z"] * 3 + ["2024-03-02T10:00:00+01:00"] + ["2024-03-01"] * 2 + ["soon"],
    }
)


def write(tmp_path, kind: str):
    if kind == "table":
        url = f"sqlite:///{tmp_path / 'truths.db'}"
        engine = sa.create_engine(url)
        ROWS.to_sql("truths", engine, index=False)
        engine.dispose()
        return url, "truths"
    path = tmp_path / f"labels.{kind}"
    ROWS.to_csv(path, index=False) if kind == "csv" else ROWS.to_parquet(path, index=False)
    return path, None


@pytest.mark.parametrize("kind", ["csv", "parquet", "table"])
def test_the_same_labels_from_everywhere_and_only_once(tmp_path, kind) -> None:
    source, table = write(tmp_path, kind)
    home = tmp_path / "home"
    earlier = LabelLog(home, "toy", flush_seconds=0)
    stamp = "2024-03-01T10:00:00+00:00"
    earlier.append({"id": "007", "value": 1.0, "observed_at": stamp, "received_at": stamp})
    earlier.close()
    first = import_labels(home, "toy", source, LabelColumns(), table=table)
    assert (first.rows, first.taken, first.known, first.refused) == (7, 3, 1, 3)
    log = read_labels(home, "toy")
    assert log["id"].tolist() == ["007", "b", "c", "b"]
    assert log["value"].tolist() == [1.0, 0, "late", 1]
    assert log["observed_at"].iloc[3] == pd.Timestamp("2024-03-02T09:00:00Z")
    reasons = [json.loads(line)["reason"] for line in first.kept.read_text().splitlines()]
    assert reasons == ["no id", "no value", "no readable time of observation"]
    again = import_labels(home, "toy", source, LabelColumns(), table=table)
    assert (again.taken, again.known) == (0, 4)
    assert len(read_labels(home, "toy")) == 4


def test_what_cannot_be_read_is_named(tmp_path) -> None:
    source, _ = write(tmp_path, "csv")
    with pytest.raises(DataError, match=r"lack the columns \['truth'\].*there are \['id'"):
        import_labels(tmp_path, "toy", source, LabelColumns(value="truth"))
    with pytest.raises(DataError, match="cannot be read"):
        import_labels(tmp_path, "toy", tmp_path / "none.parquet", LabelColumns())
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(DataError, match="cannot be read"):
        import_labels(tmp_path, "toy", tmp_path / "broken.parquet", LabelColumns())
    with pytest.raises(DataError, match="no CSV or Parquet"):
        import_labels(tmp_path, "toy", tmp_path / "labels.xls", LabelColumns())
    for place, text in (("its byte 7 is 0xf6", "id,v,Größe\nb,1,2\n"), ("cannot be read", "id,v\nb,Größe\n")):
        (tmp_path / "latin.csv").write_bytes(text.encode("latin-1"))
        with pytest.raises(DataError, match=place):
            import_labels(tmp_path, "toy", tmp_path / "latin.csv", LabelColumns("id", "v", None))
    with pytest.raises(DataError, match="The table 'none' cannot be read"):
        import_labels(tmp_path, "toy", f"sqlite:///{tmp_path / 'empty.db'}", LabelColumns(), table="none")
    assert len(read_labels(tmp_path, "toy")) == 0


def test_the_verb(tmp_path, monkeypatch) -> None:
    source, _ = write(tmp_path, "csv")
    monkeypatch.setenv("TRELLIS_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    try:
        call = ["labels", "import", "digits", str(source)]
        told = CliRunner().invoke(app, call, catch_exceptions=False)
        assert (told.exit_code, told.stdout.splitlines()[0]) == (3, "4 labels taken of 7 rows; 0 were known already.")
        found = json.loads(CliRunner().invoke(app, [*call, "--json"], catch_exceptions=False).stdout)
        assert (found["taken"], found["known"]) == (0, 4)
        by_now = CliRunner().invoke(app, [*call, "--time-column", "", "--json"], catch_exceptions=False)
        assert json.loads(by_now.stdout)["refused"] == 2
    finally:
        settings.cache_clear()
