"""The plan store: the current rollout plan of every model, changed by compare-and-set, with its whole history.

SQLAlchemy Core, so SQLite on a laptop and PostgreSQL on a stack. Every change is one transaction that writes the plan
and who changed it and why.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError

from trellis.adapters.database import Database, engine, insert_if_absent
from trellis.decision import dumps
from trellis.errors import InvalidPlanError, StaleRevisionError
from trellis.rollout.plan import RolloutPlan

_metadata = sa.MetaData()

_plans = sa.Table(
    "rollout_plans",
    _metadata,
    sa.Column("model", sa.String(63), primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
)

_changes = sa.Table(
    "rollout_plan_changes",
    _metadata,
    sa.Column("model", sa.String(63), primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
)

_adapter = TypeAdapter(RolloutPlan)


@dataclass(frozen=True)
class Change:
    """One entry of a plan's history.

    Attributes:
        plan: The plan after the change.
        at: When it was written, RFC 3339 in UTC.
        who: ``platform`` or an operator's name.
        why: The reason in one sentence.
    """

    plan: RolloutPlan
    at: str
    who: str
    why: str


class PlanStore:
    """Rollout plans in a SQL database; safe for many processes.

    Args:
        url: SQLAlchemy URL, for example ``sqlite:///var/store/trellis.db`` or ``postgresql+psycopg://…``.

    Raises:
        StorageError: The database cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(engine(url), _metadata, "plan store")

    def current(self, model: str) -> RolloutPlan | None:
        """Return the plan of ``model``, or None where it has none.

        Raises:
            StorageError: The database does not answer.
            InvalidPlanError: What is stored is no plan.
        """
        with self._database.reading() as connection:
            return self.stored(connection, model)

    def stored(self, connection: sa.Connection, model: str) -> RolloutPlan | None:
        """Do what ``current`` does inside somebody else's transaction."""
        document = connection.execute(sa.select(_plans.c.document).where(_plans.c.model == model)).scalar()
        return None if document is None else _plan(model, document, self._database.where)

    def save(self, plan: RolloutPlan, *, expected_revision: int, who: str, why: str) -> RolloutPlan:
        """Make ``plan`` the current one if the stored revision still is ``expected_revision``.

        Saying the same again is harmless: where the current plan already is this one, written by the same hand on the
        same base, it is returned and nothing is written. So a step that crashed after its write can be run again.

        Args:
            plan: The new plan; its own revision is ignored.
            expected_revision: The revision it was made from; 0 where the model has no plan.
            who: ``platform`` or an operator's name.
            why: The reason in one sentence.

        Returns:
            The plan as stored, its revision ``expected_revision + 1``.

        Raises:
            StaleRevisionError: Somebody else changed the plan first; nothing was written.
            StorageError: The database refuses.
        """
        with self._database.writing() as connection:
            return self.write(connection, plan, expected_revision=expected_revision, who=who, why=why)

    def write(
        self, connection: sa.Connection, plan: RolloutPlan, *, expected_revision: int, who: str, why: str
    ) -> RolloutPlan:
        """Do what ``save`` does inside a transaction that somebody else has begun and ends.

        Raises:
            StaleRevisionError: Somebody else changed the plan first; the transaction must be given up.
        """
        stored = replace(plan, revision=expected_revision + 1)
        document = dumps(stored)
        if self._claim(connection, stored, document, expected_revision):
            at = datetime.now(UTC).isoformat()
            row = {"model": plan.model, "revision": stored.revision, "document": document, "at": at}
            connection.execute(_changes.insert().values(**row, who=who, why=why))
            return stored
        newest = connection.execute(
            sa.select(_changes).where(_changes.c.model == plan.model).order_by(_changes.c.revision.desc()).limit(1)
        ).one_or_none()
        if newest is not None and (newest.document, newest.who) == (document, who):
            return stored
        found = 0 if newest is None else newest.revision
        by = "" if newest is None else f", written by {newest.who!r}: {newest.why}"
        raise StaleRevisionError(
            f"The plan of {plan.model!r} is at revision {found}, not {expected_revision}{by}.",
            where=self._database.where,
            remedy="Read the current plan, decide again, and save on its revision.",
        )

    def history(self, model: str, *, last: int | None = None) -> list[Change]:
        """Return every change of a model's plan, or the ``last`` ones, oldest first.

        Raises:
            StorageError: The database does not answer.
            InvalidPlanError: What is stored is no plan.
        """
        query = sa.select(_changes).where(_changes.c.model == model).order_by(_changes.c.revision.desc()).limit(last)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        where = self._database.where
        return [Change(_plan(model, row.document, where), row.at, row.who, row.why) for row in reversed(rows)]

    def models(self) -> list[str]:
        """Return the models that have a plan, sorted.

        Raises:
            StorageError: The database does not answer.
        """
        with self._database.reading() as connection:
            return list(connection.execute(sa.select(_plans.c.model).order_by(_plans.c.model)).scalars())

    def close(self) -> None:
        """Give the connections back."""
        self._database.close()

    def _claim(self, connection: sa.Connection, plan: RolloutPlan, document: str, expected: int) -> bool:
        """Write the plan where the revision is as expected; being first, the statement takes the lock it needs."""
        values = {"revision": plan.revision, "document": document}
        if expected > 0:
            where = (_plans.c.model == plan.model) & (_plans.c.revision == expected)
            return connection.execute(_plans.update().where(where).values(**values)).rowcount == 1
        return insert_if_absent(connection, _plans, model=plan.model, **values)


def _plan(model: str, document: str, where: str) -> RolloutPlan:
    try:
        return _adapter.validate_json(document)
    except (ValidationError, InvalidPlanError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.what
        remedy = "Restore the database, or this plan from its last good entry in rollout_plan_changes."
        raise InvalidPlanError(f"The stored plan of {model!r} is none: {what}", where=where, remedy=remedy) from error
