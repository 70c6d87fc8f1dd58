"""Backup, wipe, restore: everything is as it was; what is half finished, damaged or in the way is refused."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from redis import Redis
from sqlalchemy import text
from typer.testing import CliRunner

from tests.trellis.backup.conftest import make_home, missed
from trellis import settings
from trellis.adapters import object_files
from trellis.adapters.database import engine
from trellis.adapters.feature_store import FeatureStore
from trellis.adapters.object_files import ObjectFiles
from trellis.adapters.postgres_dump import PostgresDatabase
from trellis.backup import BackupManifest, backup, fetch, restore, save, send, verify
from trellis.backup.online import refill
from trellis.backup.save import Dump
from trellis.cli import app
from trellis.errors import BackupError, ConfigError, StorageError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A small home without vendors: a file, a log, a database."""
    home = tmp_path / "home"
    (home / "store").mkdir(parents=True)
    (home / "a").mkdir()
    (home / "a/table.parquet").write_bytes(bytes(range(256)) * 5000)
    (home / "a/empty").touch()
    with closing(sqlite3.connect(home / "store/t.db")) as db:
        db.execute("pragma journal_mode=wal")
        db.execute("create table t (n integer)")
        db.execute("insert into t values (1)")
        db.commit()
    return home


def tree(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_backup_wipe_restore_and_nothing_is_missed(pristine: Path, tmp_path: Path):
    before = missed(pristine)
    assert before["champion"] == "1"
    assert [(change.who, change.why) for change in before["history"]] == [("anna", "first"), ("platform", "better")]
    assert before["online"] == "{'sum': [7.0, -3.5, nan]}"
    assert before["trained"] == "{'sum': [1.25, nan, nan]}"
    made = backup(pristine, tmp_path / "saved")
    assert verify(tmp_path / "saved") == made
    shutil.rmtree(pristine)
    restore(tmp_path / "saved", pristine)
    assert missed(pristine) == before


def test_the_same_on_postgresql_with_artifacts_in_a_store_of_objects(database, tmp_path: Path):
    url = database("trellis")
    home = make_home(tmp_path, url)
    with engine(database("mlflow")).begin() as connection:
        connection.execute(text("create table runs (id serial primary key, name text)"))
        connection.execute(text("insert into runs (name) values ('é'), (null)"))
    bucket, emptied = tmp_path / "bucket", tmp_path / "emptied"
    (bucket / "1/model").mkdir(parents=True)
    (bucket / "1/model/graph.onnx").write_bytes(os.urandom(3_000_000))
    (bucket / "read me.txt").write_text("ä")
    before, objects = missed(home, url), tree(bucket)
    databases = [PostgresDatabase("trellis", url), PostgresDatabase("mlflow", url.removesuffix("trellis") + "mlflow")]
    made = backup(home, tmp_path / "saved", databases=databases, stores=[ObjectFiles("artifacts", bucket.as_uri())])
    assert (made.databases, made.stores) == (("mlflow", "trellis"), ("artifacts",))
    assert "secret" not in "".join(repr(one) for one in databases)

    shutil.rmtree(home)
    place = [ObjectFiles("artifacts", emptied.as_uri())]
    with pytest.raises(BackupError, match=r"database 'mlflow' is not empty.*trellis:\*\*\*@127"):
        restore(tmp_path / "saved", home, databases=databases, stores=place)
    database("trellis"), database("mlflow")
    restore(tmp_path / "saved", home, databases=databases, stores=place)
    assert missed(home, url) == before
    assert tree(emptied) == objects
    with engine(databases[1].url).begin() as connection:
        assert connection.execute(text("insert into runs (name) values ('x') returning id")).scalar() == 3
        assert connection.execute(text("select name from runs order by id")).scalars().all() == ["é", None, "x"]


def test_a_database_may_be_dumped_and_restored_by_somebody_else(database, home: Path, tmp_path: Path):
    url = database("elsewhere")
    with engine(url).begin() as connection:
        connection.execute(text("create table t (n int)"))
    PostgresDatabase("elsewhere", url).dump(tmp_path / "made.dump")
    backup(home, tmp_path / "saved", databases=[Dump("elsewhere", tmp_path / "made.dump")])
    shutil.rmtree(home)
    with pytest.raises(BackupError, match=r"holds \['elsewhere'\], and none were named"):
        restore(tmp_path / "saved", home)
    restore(tmp_path / "saved", home, databases_are_done=True)
    fresh = PostgresDatabase("elsewhere", database("elsewhere"))
    assert fresh.is_empty()
    fresh.restore(tmp_path / "saved/databases/elsewhere.dump")
    assert not fresh.is_empty()
    (tmp_path / "plain.sql").write_text("create table t (n int);")
    with pytest.raises(BackupError, match="no dump in PostgreSQL's custom format"):
        backup(home, tmp_path / "again", databases=[Dump("elsewhere", tmp_path / "plain.sql")])
    assert not list(tmp_path.glob(".again*"))


def test_a_dump_that_breaks_off_leaves_the_database_empty(database, tmp_path: Path):
    url = database("broken")
    with engine(url).begin() as connection:
        connection.execute(text("create table t as select n, md5(n::text) from generate_series(1, 200000) n"))
    PostgresDatabase("broken", url).dump(tmp_path / "whole.dump")
    whole = (tmp_path / "whole.dump").read_bytes()
    (tmp_path / "half.dump").write_bytes(whole[: len(whole) // 2])
    empty = PostgresDatabase("broken", database("broken"))
    with pytest.raises(StorageError, match=r"pg_restore failed.*Check that the server answers"):
        empty.restore(tmp_path / "half.dump")
    assert empty.is_empty()


def test_what_cannot_be_reached_is_named_without_its_password(postgres, home: Path, tmp_path: Path, monkeypatch):
    away = PostgresDatabase("away", "postgresql://u:secret@127.0.0.1:1/x")
    with pytest.raises(StorageError, match=r"pg_dump failed: .*u:\*\*\*@127.0.0.1:1") as caught:
        backup(home, tmp_path / "saved", databases=[away])
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "saved").exists()
    with pytest.raises(ConfigError, match=r"URL of the database 'x' is none of PostgreSQL's"):
        PostgresDatabase("x", "mysql://u:secret@h/x").is_empty()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"pg_dump is not here.*Install PostgreSQL's client programs"):
        backup(home, tmp_path / "saved", databases=[away])
    with pytest.raises(ConfigError, match="no object store's"):
        backup(home, tmp_path / "saved", stores=[ObjectFiles("o", "gopher://x")])


def test_a_redis_is_written_anew_from_the_tables_up_to_where_it_was(redis_url: str, tmp_path: Path):
    home = make_home(tmp_path, until=datetime(2013, 6, 30, 12, tzinfo=UTC), online_store=redis_url)
    repo, keys = tmp_path / "repo", {"shop": np.array(["a", "b"])}

    def online():
        return FeatureStore(repo, home, redis_url).online("everything", keys, {})[0]["sum"].tolist()

    before = online()
    assert before[0] == 1.25
    with Redis.from_url(redis_url) as client:
        client.flushall()
    assert np.isnan(online()).all()
    refill(repo, home, redis_url)
    assert repr(online()) == repr(before)  # b's row is later than what had been materialised


def test_writers_may_go_on_and_the_copy_is_of_one_moment(home: Path, tmp_path: Path):
    stop, log = threading.Event(), home / "grows.jsonl"

    def write():
        with closing(sqlite3.connect(home / "store/t.db", timeout=30)) as db, log.open("a") as lines:
            n = 1
            while not stop.is_set():
                n += 1
                with db:  # two rows in one transaction: a copy has both or none
                    db.execute("insert into t values (?)", (n,))
                    db.execute("insert into t values (?)", (-n,))
                lines.write(json.dumps({"n": n}) + "\n")
                lines.flush()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not log.exists() or log.stat().st_size < 500:
            time.sleep(0.01)
        for number in range(3):
            backup(home, tmp_path / f"saved{number}")
    finally:
        stop.set()
        writer.join()
    for number in range(3):
        saved = tmp_path / f"saved{number}"
        verify(saved)
        with closing(sqlite3.connect(saved / "home/store/t.db")) as db:
            assert db.execute("select sum(n) from t").fetchone() == (1,)
            assert db.execute("select count(*) > 2 from t").fetchone() == (1,)
        assert sorted(path.name for path in (saved / "home/store").iterdir()) == ["t.db"]


KILLED = """
import os, signal, sys
from pathlib import Path
from trellis.backup import backup, restore

mode, source, target, count = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
seen = 0
def tell(path, size):
    global seen
    seen += 1
    if seen == count:
        os.kill(os.getpid(), signal.SIGKILL)
if mode == "backup":
    if count == 0:  # everything is written, and nothing has its name yet
        os.rename = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
    backup(source, target, tell=tell)
else:
    restore(source, target, tell=tell)
"""


def killed(mode: str, source: Path, target: Path, count: int) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, mode, source, target, str(count)], stderr=subprocess.PIPE)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.parametrize("moment", [1, 3, 0])
def test_a_killed_backup_is_none(home: Path, tmp_path: Path, moment: int):
    killed("backup", home, tmp_path / "saved", moment)
    assert not (tmp_path / "saved").exists()
    left = list(tmp_path.glob(".saved.*.part"))
    assert len(left) == 1
    if moment:
        with pytest.raises(BackupError, match="no finished backup"):
            restore(left[0], home)
    backup(home, tmp_path / "saved")
    verify(tmp_path / "saved")


def test_a_killed_restore_is_seen_and_refused_until_it_is_cleared(home: Path, tmp_path: Path):
    made = backup(home, tmp_path / "saved")
    before = tree(home)
    shutil.rmtree(home)
    checks = len(made.parts) + 1  # the last kill falls into the copying
    killed("restore", tmp_path / "saved", home, checks)
    assert os.listdir(home) == [".restoring"]
    with pytest.raises(BackupError, match="An earlier restore was cut off"):
        restore(tmp_path / "saved", home)
    shutil.rmtree(home)
    restore(tmp_path / "saved", home)
    assert tree(home).keys() == before.keys() - {"store/t.db-wal", "store/t.db-shm"}


def damage_byte(saved: Path):
    path = saved / "home/a/table.parquet"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)


def edit_manifest(saved: Path):
    path = saved / "manifest.json"
    path.write_text(path.read_text().replace("home/a/empty", "home/a/other"))


DAMAGE = {
    "a bit flipped": (damage_byte, "table.parquet is not what was saved"),
    "a file cut off": (lambda saved: os.truncate(saved / "home/store/t.db", 100), "t.db is not what was saved"),
    "a file gone": (lambda saved: (saved / "home/a/empty").unlink(), "home/a/empty is missing"),
    "a file added": (lambda saved: (saved / "home/x").touch(), "home/x is not in the manifest"),
    "the manifest edited": (edit_manifest, "not the one that was sealed"),
    "the manifest cut off": (lambda saved: os.truncate(saved / "manifest.json", 100), "manifest cannot be read"),
    "the manifest gone": (lambda saved: (saved / "manifest.json").unlink(), "no finished backup"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_backup_is_refused_before_anything_is_written(home: Path, tmp_path: Path, what: str):
    saved = tmp_path / "saved"
    backup(home, saved)
    shutil.rmtree(home)
    harm, message = DAMAGE[what]
    harm(saved)
    with pytest.raises(BackupError, match=message):
        restore(saved, home)
    assert not home.exists()


def test_a_manifest_cannot_lead_out_of_the_backup(home: Path, tmp_path: Path):
    made = backup(home, tmp_path / "saved")
    part = made.parts[0]
    forged = BackupManifest(made.made_at, made.platform, made.home, (type(part)("home/../../x", 0, part.sha256),))
    forged.write(tmp_path / "saved")
    with pytest.raises(BackupError, match="leads out of the backup"):
        verify(tmp_path / "saved")


def test_nothing_is_ever_written_over(home: Path, tmp_path: Path):
    saved = tmp_path / "saved"
    backup(home, saved)
    before = tree(saved)
    with pytest.raises(BackupError, match="There is something already"):
        backup(home, saved)
    with pytest.raises(BackupError, match="home is not empty, it has 'a'"):
        restore(saved, home)
    assert tree(saved) == before
    with pytest.raises(BackupError, match="lost with it"):
        backup(home, home / "saved")
    with pytest.raises(BackupError, match=r"backup is of .*/home.*Set TRELLIS_HOME="):
        restore(saved, tmp_path / "elsewhere")
    with pytest.raises(BackupError, match="no home to back up"):
        backup(tmp_path / "nowhere", tmp_path / "other")


def test_a_volume_that_is_empty_but_for_its_own_folder_takes_a_restore(home: Path, tmp_path: Path):
    backup(home, tmp_path / "saved")
    shutil.rmtree(home)
    (home / "lost+found").mkdir(parents=True)
    restore(tmp_path / "saved", home)
    assert (home / "a/table.parquet").read_bytes() == bytes(range(256)) * 5000


def test_a_link_or_a_damaged_database_is_named(home: Path, tmp_path: Path):
    (home / "link").symlink_to("/etc")
    with pytest.raises(BackupError, match=r"symbolic link. \[.*/link\]"):
        backup(home, tmp_path / "saved")
    (home / "link").unlink()
    os.mkfifo(home / "pipe")  # holds nothing, and must not stop the copy
    data = bytearray((home / "store/t.db").read_bytes())
    data[100:] = b"\xff" * (len(data) - 100)
    (home / "store/t.db").write_bytes(data)
    with pytest.raises(StorageError, match=r"t.db"):
        backup(home, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert not list(tmp_path.glob("*.part"))


def test_a_full_disk_is_named_and_leaves_nothing(home: Path, tmp_path: Path, monkeypatch):
    def to_a_full_disk(source, target, tell):
        with Path("/dev/full").open("wb") as writing:
            writing.write(b"x" * 100_000)

    monkeypatch.setattr(save, "_copy", to_a_full_disk)
    with pytest.raises(StorageError, match=r"No space left on device.*Free space"):
        backup(home, tmp_path / "saved")
    assert os.listdir(tmp_path) == ["home"]


def test_only_the_owner_can_read_a_backup(home: Path, tmp_path: Path):
    backup(home, tmp_path / "saved")
    assert (tmp_path / "saved").stat().st_mode & 0o077 == 0


def test_the_verbs(home: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TRELLIS_HOME", str(home))
    settings.settings.cache_clear()
    try:
        run = CliRunner().invoke
        saved = str(tmp_path / "saved")
        made = run(app, ["backup", saved, "--json"])
        assert made.exit_code == 0, made.output
        assert json.loads(made.stdout)["parts"] == 3
        checked = run(app, ["restore", saved, "--check"])
        assert (checked.exit_code, checked.stdout.startswith("Whole: ")) == (0, True)
        again = run(app, ["restore", saved])
        assert "home is not empty" in str(again.exception)
        bad = run(app, ["backup", str(tmp_path / "b"), "--database", "x"])
        assert "--database 'x' has no value" in str(bad.exception)
        shutil.rmtree(home)
        assert run(app, ["restore", saved]).exit_code == 0
        assert (home / "a/table.parquet").exists()
    finally:
        settings.settings.cache_clear()


def test_a_backup_goes_to_a_store_of_objects_and_comes_back(home: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TRELLIS_HOME", str(home))
    settings.settings.cache_clear()
    run, away = CliRunner().invoke, (tmp_path / "bucket/backups").as_uri()
    try:
        assert run(app, ["backup", str(tmp_path / "monday"), "--send", away]).exit_code == 0
        saved = tree(tmp_path / "monday")
        assert tree(tmp_path / "bucket/backups/monday") == saved
        again = run(app, ["restore", str(tmp_path / "monday"), "--fetch", away, "--check"])
        assert "There is something already" in str(again.exception)
        shutil.rmtree(tmp_path / "monday"), shutil.rmtree(home)
        assert run(app, ["restore", str(tmp_path / "monday"), "--fetch", away]).exit_code == 0
        assert tree(tmp_path / "monday") == saved
        assert (home / "a/table.parquet").exists()
    finally:
        settings.settings.cache_clear()
    with pytest.raises(BackupError, match=r"There is something already: databases|There is something already: home"):
        send(tmp_path / "monday", away)


def test_a_copy_that_was_cut_off_or_changed_is_none(home: Path, tmp_path: Path, monkeypatch):
    away = (tmp_path / "bucket").as_uri()
    backup(home, tmp_path / "monday")
    put, sent = ObjectFiles.put, []

    def breaks(store, key, path):
        if len(sent) == 2:
            raise StorageError("The store is away.")
        sent.append(key)
        put(store, key, path)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectFiles, "put", breaks)
        with pytest.raises(StorageError, match="away"):
            send(tmp_path / "monday", away)
    assert len(tree(tmp_path / "bucket/monday")) == 2
    with pytest.raises(BackupError, match="no finished backup of that name"):
        fetch(tmp_path / "back/monday", away)
    shutil.rmtree(tmp_path / "bucket/monday")
    send(tmp_path / "monday", away)
    damage = tmp_path / "bucket/monday/home/a/table.parquet"
    damage.write_bytes(b"x" + damage.read_bytes()[1:])
    with pytest.raises(BackupError, match=r"home/a/table\.parquet is not what was saved"):
        fetch(tmp_path / "back/monday", away)
    assert list((tmp_path / "back").iterdir()) == []


def test_a_store_that_keeps_something_else_is_caught(tmp_path: Path, monkeypatch):
    """As one that stores the frames of a chunked upload with the content."""
    store = ObjectFiles("artifacts", (tmp_path / "bucket").as_uri())
    (tmp_path / "x").write_bytes(b"content")
    monkeypatch.setattr(
        object_files.shutil, "copyfileobj", lambda _reading, writing, _size: writing.write(b"7\ncontent\n")
    )
    with pytest.raises(StorageError, match=r"kept 10 bytes of a/x, of 7.*AWS_REQUEST_CHECKSUM_CALCULATION"):
        store.put("a/x", tmp_path / "x")
