"""The rollouts: where each stands, every transition it made, and the lease of the controller that may act on it.

A transition writes the plan, the state, the history and the decision's id in one transaction. Two fences keep a
controller that was away for too long from doing harm: its lease's token, and the numbers it read (the plan's revision
and the rollout's transitions), both compared in that same transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import sqlalchemy as sa
from pydantic import TypeAdapter

from trellis.adapters.database import Database, engine, insert_if_absent
from trellis.adapters.leases import Lease, Leases, lease_table
from trellis.adapters.plan_store import PlanStore
from trellis.decision import dumps
from trellis.errors import StaleRevisionError
from trellis.rollout.document import Rollout, Transition
from trellis.rollout.plan import RolloutPlan

_metadata = sa.MetaData()

_rollouts = sa.Table(
    "rollouts",
    _metadata,
    sa.Column("model", sa.String(63), primary_key=True),
    sa.Column("id", sa.String(255), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
)

_transitions = sa.Table(
    "rollout_transitions",
    _metadata,
    sa.Column("serial", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("model", sa.String(63), nullable=False, index=True),
    sa.Column("id", sa.String(255), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("decision", sa.String(64), nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.UniqueConstraint("id", "number", name="one_transition_per_number"),
)

_leases = lease_table("rollout_leases", _metadata)

_adapter = TypeAdapter(Rollout)


class RolloutStore:
    """Rollouts in the same SQL database as the plans; safe for many processes.

    Args:
        url: SQLAlchemy URL of the plan store.
        clock: Seconds since the epoch, for leases.

    Raises:
        StorageError: The database cannot be opened.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        self._plans = PlanStore(url)
        self._database = Database(engine(url), _metadata, "rollout store")
        self._leases = Leases(_leases, self._database.engine, what="rollout", clock=clock)

    def current(self, model: str) -> Rollout | None:
        """Return the model's newest rollout, open or over; None where it never had one.

        Raises:
            StorageError: The database does not answer.
        """
        query = sa.select(_rollouts.c.document).where(_rollouts.c.model == model)
        with self._database.reading() as connection:
            document = connection.execute(query).scalar()
        return None if document is None else _adapter.validate_json(document)

    def history(self, model: str, *, last: int | None = None) -> list[Transition]:
        """Return every transition of every rollout of the model, or the ``last`` ones, oldest first.

        Raises:
            StorageError: The database does not answer.
        """
        query = sa.select(_transitions).where(_transitions.c.model == model)
        query = query.order_by(_transitions.c.serial.desc()).limit(last)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return [
            Transition(_adapter.validate_json(r.document), r.at, r.who, r.why, r.decision, r.revision)
            for r in reversed(rows)
        ]

    def commit(
        self,
        before: Rollout | None,
        after: Rollout,
        plan: RolloutPlan,
        *,
        expected_revision: int,
        who: str,
        why: str,
        decision: str = "",
        lease: Lease | None = None,
    ) -> RolloutPlan:
        """Write one transition: state, history and, where it changes, the plan, all or none of it.

        Saying the same again is harmless, as with ``PlanStore.save``.

        Args:
            before: The newest rollout as it was read; None where the model never had one.
            after: The rollout after the transition.
            plan: The plan that goes with it.
            expected_revision: The plan's revision as it was read.
            who: ``platform`` or an operator's name.
            why: The reason in one sentence.
            decision: Id of the decision behind it.
            lease: The controller's lease; None for an operator, whom only the numbers bind.

        Returns:
            The plan as it is stored now.

        Raises:
            StaleRevisionError: Plan or rollout changed since they were read; nothing was written.
            LeaseHeldError: The lease is another's by now; nothing was written.
            StorageError: The database refuses.
        """
        with self._database.writing() as connection:
            if lease is not None:
                self._leases.check(connection, lease)
            document = dumps(after)
            if not self._claim(connection, before, after, document):
                found = connection.execute(
                    sa.select(_rollouts.c.document).where(_rollouts.c.model == after.model)
                ).scalar()
                stored = self._plans.stored(connection, after.model)
                if found == document and stored is not None:
                    return stored
                raise StaleRevisionError(
                    f"The rollout of {after.model!r} has moved since it was read.",
                    where=self._database.where,
                    remedy="Read it again, decide again.",
                )
            stored = self._plans.stored(connection, after.model)
            revision = stored.revision if stored is not None else 0
            if stored is None or not _same(stored, plan) or revision != expected_revision:
                text = f"{decision}: {why}" if decision else why
                stored = self._plans.write(connection, plan, expected_revision=expected_revision, who=who, why=text)
            row = {"model": after.model, "id": after.id, "number": after.number, "document": document}
            at = datetime.now(UTC).isoformat()
            connection.execute(
                _transitions.insert().values(
                    **row, at=at, who=who, why=why, decision=decision, revision=stored.revision
                )
            )
            return stored

    @contextmanager
    def lease(self, model: str, *, seconds: float = 30.0) -> Iterator[Lease]:
        """Hold the right to act on a model's rollout.

        It is free at the end of the block, after ``seconds``, or as soon as its holder, if a process of this machine,
        is no more.

        Raises:
            LeaseHeldError: Another controller holds it.
            StorageError: The database refuses.
        """
        with self._leases.hold(model, seconds=seconds) as held:
            yield held

    def close(self) -> None:
        """Give the connections back."""
        self._plans.close()
        self._database.close()

    def _claim(self, connection: sa.Connection, before: Rollout | None, after: Rollout, document: str) -> bool:
        values = {"id": after.id, "number": after.number, "document": document}
        if before is None:
            return insert_if_absent(connection, _rollouts, model=after.model, **values)
        was = (_rollouts.c.model == after.model) & (_rollouts.c.id == before.id) & (_rollouts.c.number == before.number)
        return connection.execute(_rollouts.update().where(was).values(**values)).rowcount == 1


def _same(one: RolloutPlan, other: RolloutPlan) -> bool:
    return (one.salt, one.variants, one.shadows, one.unit) == (other.salt, other.variants, other.shadows, other.unit)
