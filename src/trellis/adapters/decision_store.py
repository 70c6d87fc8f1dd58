"""Decisions in a SQL table (SQLAlchemy): written once, never changed, found by the start of their id."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, Text, func, select

from trellis.adapters.database import Database, insert_if_absent
from trellis.decision import Decision, dumps
from trellis.errors import RegistryError

_METADATA = MetaData()
_DECISIONS = Table(
    "decisions",
    _METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("model", String(64), nullable=False, index=True),
    Column("kind", String(32), nullable=False),
    Column("at", String(40), nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("body", Text, nullable=False),
)
_DECISION = TypeAdapter(Decision)


@dataclass(frozen=True)
class Headline:
    """A decision without its evidence, which may be long; attributes as of ``Decision``."""

    id: str
    model: str
    kind: str
    at: str
    outcome: str


class DecisionStore:
    """The journal of decisions.

    Args:
        engine: What ``database.engine`` returned; the table is made if it is not there.

    Raises:
        StorageError: The database cannot be opened.
    """

    def __init__(self, engine: Engine) -> None:
        self._database = Database(engine, _METADATA, "journal of decisions")

    def record(self, decision: Decision) -> None:
        """Keep a decision; recording it again changes nothing.

        Raises:
            StorageError: The store refused the write.
        """
        row = {
            "id": decision.id,
            "model": decision.model,
            "kind": decision.kind,
            "at": decision.at,
            "outcome": decision.verdict.outcome,
            "body": dumps(decision),
        }
        with self._database.writing() as connection:
            # Ids are made from content, so one that is there already is this one.
            insert_if_absent(connection, _DECISIONS, **row)

    def get(self, start: str) -> Decision:
        """Return the one decision whose id starts so.

        Raises:
            RegistryError: None does, or several do.
            StorageError: The database does not answer.
        """
        query = select(_DECISIONS.c.body).where(_DECISIONS.c.id.startswith(start, autoescape=True)).limit(2)
        with self._database.reading() as connection:
            bodies = connection.scalars(query).all()
        if len(bodies) != 1:
            problem = "No decision" if not bodies else "More than one decision"
            raise RegistryError(f"{problem} starts with {start!r}.", remedy="List them with: trellis decisions.")
        return _DECISION.validate_python(_load(bodies[0]))

    def list(self, model: str | None = None, kind: str | None = None) -> list[Decision]:
        """Return decisions in the order of their event time, oldest first; those of one moment as they were taken.

        Raises:
            StorageError: The database does not answer.
        """
        query = select(_DECISIONS.c.body).order_by(_DECISIONS.c.at, _DECISIONS.c.number)
        if model is not None:
            query = query.where(_DECISIONS.c.model == model)
        if kind is not None:
            query = query.where(_DECISIONS.c.kind == kind)
        with self._database.reading() as connection:
            return [_DECISION.validate_python(_load(body)) for body in connection.scalars(query)]

    def headlines(self, model: str, *, limit: int) -> tuple[Headline, ...]:
        """Return the newest decisions of a model without their evidence, newest first."""
        columns = (_DECISIONS.c.id, _DECISIONS.c.model, _DECISIONS.c.kind, _DECISIONS.c.at, _DECISIONS.c.outcome)
        query = select(*columns).where(_DECISIONS.c.model == model)
        query = query.order_by(_DECISIONS.c.at.desc(), _DECISIONS.c.number.desc()).limit(limit)
        with self._database.reading() as connection:
            return tuple(Headline(*row) for row in connection.execute(query))

    def counts(self) -> dict[tuple[str, str, str], int]:
        """Return how many decisions were taken, by model, kind and outcome."""
        by = (_DECISIONS.c.model, _DECISIONS.c.kind, _DECISIONS.c.outcome)
        with self._database.reading() as connection:
            rows = connection.execute(select(*by, func.count()).group_by(*by)).all()
        return {(row[0], row[1], row[2]): row[3] for row in rows}


def _load(body: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(body)
    return data
