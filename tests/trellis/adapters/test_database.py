"""The database that goes away, comes back, or is another one by now; and errors that say so without a password."""

import shutil
import subprocess
import sys

import pytest
import sqlalchemy as sa

from trellis.adapters.api_keys import KeyStore
from trellis.adapters.database import engine
from trellis.adapters.decision_store import DecisionStore
from trellis.adapters.plan_store import PlanStore
from trellis.adapters.rollout_store import RolloutStore
from trellis.errors import StorageError
from trellis.rollout.plan import Variant, first_plan

PLAN = first_plan("toy", Variant("1", "champion", 1.0, "/1", "d1"), salt="s")


def save(store, revision=0):
    return store.save(PLAN, expected_revision=revision, who="anna", why="try")


@pytest.mark.parametrize("made", [PlanStore, RolloutStore, KeyStore, lambda url: DecisionStore(engine(url))])
def test_a_place_that_is_not_there_is_named(made):
    with pytest.raises(StorageError, match=r"cannot be opened: No such file.*/nowhere/at/all.*TRELLIS_STORE_URL"):
        made("sqlite:////nowhere/at/all/trellis.db")


@pytest.mark.parametrize("url", ["nonsense", "postgresql+nodriver://host/name", "mongodb://host/name"])
def test_a_url_that_says_nothing_is_named_with_what_to_write(url):
    with pytest.raises(StorageError, match=r"TRELLIS_STORE_URL.*postgresql\+psycopg"):
        PlanStore(url)


def test_a_server_that_is_not_there_is_named_without_its_password():
    with pytest.raises(StorageError, match="plan store does not work") as caught:
        PlanStore("postgresql+psycopg://anna:geheim@127.0.0.1:9/trellis")
    assert "geheim" not in str(caught.value)
    assert "127.0.0.1:9" in str(caught.value)


def test_a_file_that_is_taken_away_is_missed_and_not_made_anew_and_works_again_when_it_is_back(tmp_path):
    path, away = tmp_path / "trellis.db", tmp_path / "away.db"
    store = PlanStore(f"sqlite:///{path}")
    save(store)
    path.rename(away)
    for _ in range(3):
        with pytest.raises(StorageError, match="unable to open"):
            store.current("toy")
    with pytest.raises(StorageError):
        save(store, 1)
    assert not path.exists()
    away.rename(path)
    assert store.current("toy").revision == 1
    assert save(store, 1).revision == 2
    store.close()


def test_opening_a_second_store_keeps_the_locks_of_the_first(tmp_path):
    """POSIX drops all locks of a process on a file when it closes any descriptor of it (SQLite, "How To Corrupt", 2.2).

    Without them another process that ends takes itself for the last and deletes the write-ahead log under this one.
    """
    url = f"sqlite:///{tmp_path}/trellis.db"
    store = PlanStore(url)
    save(store)
    RolloutStore(url)
    code = (
        "import sys; from trellis.adapters.plan_store import PlanStore; store = PlanStore(sys.argv[1])\n"
        "plan = store.current('toy'); store.save(plan, expected_revision=plan.revision, who='anna', why='try')\n"
        "store.close()\n"
    )
    for revision in (2, 3):
        subprocess.run([sys.executable, "-c", code, url], check=True, timeout=60)
        assert store.current("toy").revision == revision
    store.close()


def test_a_file_that_was_restored_from_a_copy_is_the_one_that_is_read(tmp_path):
    path, copy = tmp_path / "trellis.db", tmp_path / "copy.db"
    store = PlanStore(f"sqlite:///{path}")
    save(store)
    store.close()  # what is in the write-ahead log is in the file afterwards
    shutil.copy(path, copy)
    save(store, 1)
    reader = PlanStore(f"sqlite:///{path}")
    assert reader.current("toy").revision == 2
    for old in tmp_path.glob("trellis.db*"):
        old.unlink()
    copy.rename(path)
    assert reader.current("toy").revision == 1
    assert [change.plan.revision for change in store.history("toy")] == [1]
    reader.close()


def test_a_server_that_ends_every_connection_costs_no_error(url):
    """As it does when it is started anew; SQLite has nobody who could."""
    store = PlanStore(url)
    save(store)
    if url.startswith("postgresql"):
        other = sa.create_engine(url)
        with other.connect() as connection:
            ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() "
            assert connection.execute(sa.text(ended + "AND pid <> pg_backend_pid()")).scalar() >= 1
        other.dispose()
    assert store.current("toy").revision == 1
    store.close()


def test_stores_share_a_database(url):
    plans, rollouts, keys = PlanStore(url), RolloutStore(url), KeyStore(url)
    decisions = DecisionStore(engine(url))
    save(plans)
    assert (rollouts.current("toy"), keys.known(), decisions.list()) == (None, [], [])
    assert plans.models() == ["toy"]
