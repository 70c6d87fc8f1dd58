"""Snapshots are named by their content, written once, and any later change is found."""

import os
from pathlib import Path

import pandas as pd
import pytest

from trellis.adapters.snapshots import open_snapshot, take_snapshot
from trellis.errors import CorruptSnapshotError, DataError, StorageError

FRAME = pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y", None]})


def _write(frame: pd.DataFrame = FRAME):
    return lambda directory: frame.to_parquet(directory / "table.parquet", index=False)


def test_the_same_content_is_kept_once_and_other_content_beside_it(tmp_path: Path):
    first = take_snapshot(_write(), tmp_path, origin="toy")
    again = take_snapshot(_write(), tmp_path, origin="toy")
    other = take_snapshot(_write(FRAME.assign(a=0)), tmp_path, origin="toy")
    assert first == again
    assert first.digest != other.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({first.path.name, other.path.name})
    assert open_snapshot(first.path) == first
    assert first.tables["table"]["rows"] == 3


@pytest.mark.parametrize("damage", ["edit", "remove", "record", "no record"])
def test_damage_is_named_with_its_place(tmp_path: Path, damage: str):
    snapshot = take_snapshot(_write(), tmp_path, origin="toy")
    table, record = snapshot.path / "table.parquet", snapshot.path / "snapshot.json"
    if damage == "edit":
        data = bytearray(table.read_bytes())
        data[len(data) // 2] ^= 1
        table.write_bytes(bytes(data))
    elif damage == "remove":
        table.unlink()
    elif damage == "record":
        record.write_text(record.read_text().replace(snapshot.digest, "0" * 64))
    else:
        record.unlink()
    with pytest.raises(CorruptSnapshotError, match="ingest again") as caught:
        open_snapshot(snapshot.path)
    assert str(snapshot.path) in str(caught.value)


def test_a_failed_ingest_leaves_nothing(tmp_path: Path):
    def fails(directory: Path) -> None:
        _write()(directory)
        raise ValueError("the source went away")

    with pytest.raises(ValueError, match="went away"):
        take_snapshot(fails, tmp_path, origin="toy")
    with pytest.raises(DataError, match="wrote no table"):
        take_snapshot(lambda _: None, tmp_path, origin="toy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full to stand in for a full disk")
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path):
    def fills(directory: Path) -> None:
        _write()(directory)
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(StorageError, match="No space left") as caught:
        take_snapshot(fills, tmp_path, origin="toy")
    assert caught.value.remedy is not None
    assert os.listdir(tmp_path) == []
