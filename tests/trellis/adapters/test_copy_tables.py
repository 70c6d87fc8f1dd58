"""A server's tables are copied whole into a file, which then lives a life of its own."""

import pytest

from trellis.adapters.database import copy_tables, engine
from trellis.adapters.decision_store import DecisionStore
from trellis.decision import Verdict, decision_of
from trellis.errors import StorageError


def decision(number):
    verdict = Verdict("HOLD", f"because of {number}")
    return decision_of(
        "gate", model="toy", subject=f"v{number}", at="2024-01-01T00:00:00Z", inputs={}, policy={}, verdict=verdict
    )


def file_at(path):
    path.touch()
    return engine(f"sqlite:///{path}")


def test_rows_and_their_order_are_copied_and_the_copy_takes_more(database, tmp_path):
    source = engine(database("copied"))
    journal = DecisionStore(source)
    for number in range(1_200):  # more than are read at a time
        journal.record(decision(number))
    target = file_at(tmp_path / "copy.db")
    copy_tables(source, target)
    copied = DecisionStore(target)
    assert copied.list("toy") == journal.list("toy")
    copied.record(decision(1_200))
    assert [d.subject for d in copied.list("toy")] == [f"v{number}" for number in range(1_201)]
    assert len(journal.list("toy")) == 1_200


def test_a_server_that_is_away_leaves_no_half_copy(tmp_path):
    target = file_at(tmp_path / "copy.db")
    with pytest.raises(StorageError, match="does not work"):
        copy_tables(engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing"), target)
    assert (tmp_path / "copy.db").stat().st_size == 0
