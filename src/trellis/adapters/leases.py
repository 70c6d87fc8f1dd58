"""Leases: the right to act on something, kept in a row with an expiry and a token that grows with every holder."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from trellis.adapters.database import guarded, insert_if_absent
from trellis.errors import LeaseHeldError


@dataclass(frozen=True)
class Lease:
    """The right to act for a model, until it expires.

    Attributes:
        model: Whose.
        holder: Host, process and a number of its own.
        token: Grows by one with every holder; a transition is refused under any but the newest.
    """

    model: str
    holder: str
    token: int


def lease_table(name: str, metadata: sa.MetaData) -> sa.Table:
    """Return the table of one kind of lease."""
    return sa.Table(
        name,
        metadata,
        sa.Column("model", sa.String(63), primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
    )


class Leases:
    """The leases of one kind.

    Args:
        table: Made by ``lease_table``.
        engine: Where it is.
        what: What the holder acts on, for error messages: ``rollout``, ``loop``.
        clock: Seconds since the epoch.
    """

    def __init__(
        self, table: sa.Table, engine: sa.Engine, *, what: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._table, self._engine, self._what, self._clock = table, engine, what, clock
        self._store = f"{what} store's leases"
        self._where = engine.url.render_as_string(hide_password=True)

    @contextmanager
    def hold(self, model: str, *, seconds: float, renew: bool = False) -> Iterator[Lease]:
        """Hold a lease for the block.

        It is free at the end of the block, after ``seconds``, or as soon as its holder, if a process of this machine,
        is no more.

        Args:
            model: Whose.
            seconds: For how long it holds.
            renew: Renew it while the block lasts, for work that takes longer; a process that sleeps does not renew.

        Raises:
            LeaseHeldError: Another one holds it.
            StorageError: The database refuses.
        """
        holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        taken = self._take(model, holder, seconds)
        ended = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(taken, seconds, ended), daemon=True)
        if renew:
            renewing.start()
        try:
            yield taken
        finally:
            ended.set()
            if renew:
                renewing.join()
            with guarded(self._engine, self._store), self._engine.begin() as connection:
                connection.execute(self._table.update().where(self._ours(taken)).values(holder="", expires=0.0))

    def check(self, connection: sa.Connection, lease: Lease) -> None:
        """Keep a lease within a transaction: nobody takes it before that ends.

        Raises:
            LeaseHeldError: It is another's by now.
        """
        # An update and no read: it locks the row.
        if connection.execute(self._table.update().where(self._ours(lease)).values(holder=lease.holder)).rowcount != 1:
            raise LeaseHeldError(
                f"Another controller took the {self._what} of {lease.model!r} over.",
                where=self._where,
                remedy="Leave it to that one, or look again.",
            )

    def _take(self, model: str, holder: str, seconds: float) -> Lease:
        table, until = self._table, self._clock() + seconds
        with guarded(self._engine, self._store), self._engine.begin() as connection:
            # The first statement writes, and so takes the lock.
            insert_if_absent(connection, table, model=model, holder="", token=0, expires=0.0)
            held = connection.execute(sa.select(table).where(table.c.model == model).with_for_update()).one()
            # One that ends later than any taken now could was taken before the clock was set back: it counts as over.
            if held.holder and held.expires > self._clock() and held.expires <= until and not _dead(held.holder):
                raise LeaseHeldError(
                    f"{held.holder} is acting on the {self._what} of {model!r}.",
                    where=self._where,
                    remedy=f"Try again in {held.expires - self._clock():.0f} s.",
                )
            token = held.token + 1
            values = {"holder": holder, "token": token, "expires": until}
            connection.execute(table.update().where(table.c.model == model).values(**values))
        return Lease(model, holder, token)

    def _renew(self, lease: Lease, seconds: float, ended: threading.Event) -> None:
        while not ended.wait(seconds / 3):
            try:
                with self._engine.begin() as connection:
                    mine = self._table.update().where(self._ours(lease))
                    if connection.execute(mine.values(expires=self._clock() + seconds)).rowcount != 1:
                        return
            except sa.exc.SQLAlchemyError:
                continue  # the store is away; the next write tells

    def _ours(self, lease: Lease) -> sa.ColumnElement[bool]:
        return (self._table.c.model == lease.model) & (self._table.c.token == lease.token)


def _dead(holder: str) -> bool:
    """Return whether the holder was a process of this machine that is no more; when in doubt it lives."""
    host, pid, _ = holder.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
