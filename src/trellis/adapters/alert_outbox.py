"""The outbox of alerts: what each channel was told of each, and the silences, in the platform's SQL store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from trellis.adapters.database import Database, engine
from trellis.adapters.leases import Lease, Leases, lease_table
from trellis.alerts import Delivery, Silence

_metadata = sa.MetaData()

_deliveries = sa.Table(
    "alert_deliveries",
    _metadata,
    sa.Column("alert", sa.String(255), primary_key=True),
    sa.Column("channel", sa.String(63), primary_key=True),
    sa.Column("told", sa.String(32), nullable=False),
    sa.Column("told_at", sa.Float, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_at", sa.Float, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
)

_silences = sa.Table(
    "alert_silences",
    _metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("model", sa.String(63), nullable=False),
    sa.Column("kind", sa.String(63), nullable=False),
    sa.Column("until", sa.Float, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
)

_leases = lease_table("alert_leases", _metadata)


class AlertOutbox:
    """Deliveries and silences.

    Args:
        url: SQLAlchemy URL of the platform's store.

    Raises:
        StorageError: The database cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(engine(url), _metadata, "outbox of alerts")
        self._leases = Leases(_leases, self._database.engine, what="outbox")

    def deliveries(self) -> list[Delivery]:
        """Return every row.

        Raises:
            StorageError: The database does not answer.
        """
        with self._database.reading() as connection:
            return [Delivery(**row._mapping) for row in connection.execute(sa.select(_deliveries))]

    def keep(self, rows: Iterable[Delivery]) -> None:
        """Write rows in one transaction; a later one of the same alert and channel replaces the earlier.

        Raises:
            StorageError: The database refuses.
        """
        self._put(_deliveries, [asdict(row) for row in rows], ("alert", "channel"))

    def silences(self) -> list[Silence]:
        """Return every silence, ended ones too.

        Raises:
            StorageError: The database does not answer.
        """
        with self._database.reading() as connection:
            return [Silence(**row._mapping) for row in connection.execute(sa.select(_silences))]

    def silence(self, silence: Silence) -> None:
        """Keep a silence.

        Raises:
            StorageError: The database refuses.
        """
        self._put(_silences, [asdict(silence)], ("id",))

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """Hold the right to send: two senders would tell everything twice.

        Raises:
            LeaseHeldError: Another process is sending.
            StorageError: The database refuses.
        """
        with self._leases.hold("alerts", seconds=60.0, renew=True) as held:
            yield held

    def _put(self, table: sa.Table, rows: list[dict[str, object]], key: tuple[str, ...]) -> None:
        with self._database.writing() as connection:
            dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
            for row in rows:
                insert = dialect.insert(table).values(**row)
                others = {name: value for name, value in row.items() if name not in key}
                connection.execute(insert.on_conflict_do_update(index_elements=list(key), set_=others))
