"""The loops: where each model's stands, every transition it made, and the lease of the turn that may act on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from pydantic import TypeAdapter

from trellis.adapters.database import Database, engine, insert_if_absent
from trellis.adapters.leases import Lease, Leases, lease_table
from trellis.decision import dumps
from trellis.errors import StaleRevisionError
from trellis.loop import Loop

_metadata = sa.MetaData()

_loops = sa.Table(
    "loops",
    _metadata,
    sa.Column("model", sa.String(63), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
)

_transitions = sa.Table(
    "loop_transitions",
    _metadata,
    sa.Column("serial", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("model", sa.String(63), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("decision", sa.String(64), nullable=False),
    sa.UniqueConstraint("model", "number", name="one_loop_transition_per_number"),
)

_leases = lease_table("loop_leases", _metadata)
_adapter = TypeAdapter(Loop)


@dataclass(frozen=True)
class LoopTransition:
    """One entry of a loop's history.

    Attributes:
        state: The loop after it.
        at: Wall clock at which it was written, RFC 3339 in UTC.
        who: ``platform`` or an operator's name.
        why: The reason in one sentence.
        decision: Id of the decision that it follows; empty for an operator's word.
    """

    state: Loop
    at: str
    who: str
    why: str
    decision: str


class LoopStore:
    """Loops in the SQL database of the plans; safe for many processes.

    Args:
        url: SQLAlchemy URL.
        lease_seconds: For how long a turn that shows no sign of life keeps others out.
        clock: Seconds since the epoch, for leases.

    Raises:
        StorageError: The database cannot be opened.
    """

    def __init__(self, url: str, *, lease_seconds: float = 60.0, clock: Callable[[], float] = time.time) -> None:
        self._database = Database(engine(url), _metadata, "loop store")
        self._leases = Leases(_leases, self._database.engine, what="loop", clock=clock)
        self._seconds = lease_seconds

    def current(self, model: str) -> Loop:
        """Return where a model's loop stands; one that never moved is watching.

        Raises:
            StorageError: The database does not answer.
        """
        query = sa.select(_loops.c.document).where(_loops.c.model == model)
        with self._database.reading() as connection:
            document = connection.execute(query).scalar()
        return Loop(model) if document is None else _adapter.validate_json(document)

    def models(self) -> list[str]:
        """Return the models whose loop has moved, sorted.

        Raises:
            StorageError: The database does not answer.
        """
        with self._database.reading() as connection:
            return list(connection.execute(sa.select(_loops.c.model).order_by(_loops.c.model)).scalars())

    def history(self, model: str) -> list[LoopTransition]:
        """Return every transition of a model's loop, oldest first.

        Raises:
            StorageError: The database does not answer.
        """
        query = sa.select(_transitions).where(_transitions.c.model == model).order_by(_transitions.c.serial)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return [LoopTransition(_adapter.validate_json(r.document), r.at, r.who, r.why, r.decision) for r in rows]

    def commit(
        self, before: Loop, after: Loop, *, who: str, why: str, decision: str = "", lease: Lease | None = None
    ) -> None:
        """Write one transition: state and history, all or none of it; saying the same again is harmless.

        Args:
            before: The loop as it was read.
            after: The loop after the transition.
            who: ``platform`` or an operator's name.
            why: The reason in one sentence.
            decision: Id of the decision behind it.
            lease: The turn's lease; None for an operator, whom only the number binds.

        Raises:
            StaleRevisionError: The loop moved since it was read; nothing was written.
            LeaseHeldError: The lease is another's by now; nothing was written.
            StorageError: The database refuses.
        """
        document = dumps(after)
        with self._database.writing() as connection:
            if lease is not None:
                self._leases.check(connection, lease)
            if not self._claim(connection, before, after, document):
                query = sa.select(_loops.c.document).where(_loops.c.model == after.model)
                if connection.execute(query).scalar() == document:
                    return
                raise StaleRevisionError(
                    f"The loop of {after.model!r} has moved since it was read.",
                    where=self._database.where,
                    remedy="Read it again, decide again.",
                )
            at = datetime.now(UTC).isoformat()
            row = {"model": after.model, "number": after.number, "document": document, "at": at}
            connection.execute(_transitions.insert().values(**row, who=who, why=why, decision=decision))

    @contextmanager
    def lease(self, model: str) -> Iterator[Lease]:
        """Hold the right to take a turn, renewed while the block lasts.

        Raises:
            LeaseHeldError: Another turn is under way.
            StorageError: The database refuses.
        """
        with self._leases.hold(model, seconds=self._seconds, renew=True) as held:
            yield held

    def _claim(self, connection: sa.Connection, before: Loop, after: Loop, document: str) -> bool:
        values = {"number": after.number, "document": document}
        if before.number == 0:
            return insert_if_absent(connection, _loops, model=after.model, **values)
        was = (_loops.c.model == after.model) & (_loops.c.number == before.number)
        return connection.execute(_loops.update().where(was).values(**values)).rowcount == 1
