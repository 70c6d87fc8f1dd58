"""What operators did by hand, where no other table keeps it: who, when, what and why; written once, never changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from trellis.adapters.database import engine
from trellis.errors import ConfigError, StorageError

_metadata = sa.MetaData()
_actions = sa.Table(
    "operator_actions",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("action", sa.String(63), nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
)


@dataclass(frozen=True)
class Deed:
    """One thing that somebody did.

    Attributes:
        at: RFC 3339 in UTC.
        action: For example ``rollout promote`` or ``key revoke``.
        subject: What was acted upon.
        who, why: As the operator gave them.
    """

    at: str
    action: str
    subject: str
    who: str
    why: str


class AuditTrail:
    """Deeds in the platform's SQL database; safe for many processes.

    Args:
        url: SQLAlchemy URL.

    Raises:
        StorageError: The database cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self._where = sa.engine.make_url(url).render_as_string(hide_password=True)
        self._engine = engine(url)
        with self._guarded():
            try:
                _metadata.create_all(self._engine)
            except sa.exc.DatabaseError:
                _metadata.create_all(self._engine)  # another process made it between our look and our try

    def record(self, action: str, subject: str, *, who: str, why: str) -> None:
        """Keep what is being done; called before it is done, so that nothing is done unseen.

        Raises:
            ConfigError: There is no name or no reason.
            StorageError: The database refuses.
        """
        if not who.strip() or not why.strip():
            raise ConfigError("An action by hand needs a name and a reason.", remedy='Give --who and --why "…".')
        at = datetime.now(UTC).isoformat()
        with self._guarded(), self._engine.begin() as connection:
            connection.execute(_actions.insert().values(at=at, action=action, subject=subject, who=who, why=why))

    def history(self) -> list[Deed]:
        """Return everything, oldest first.

        Raises:
            StorageError: The database does not answer.
        """
        with self._guarded(), self._engine.connect() as connection:
            rows = connection.execute(sa.select(_actions).order_by(_actions.c.number)).all()
        return [Deed(row.at, row.action, row.subject, row.who, row.why) for row in rows]

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            raise StorageError(
                f"The audit trail does not answer: {type(error).__name__}.",
                where=self._where,
                remedy="Look for a stopped database or a full disk.",
            ) from error
