"""What failed while a request was answered, and its records; nothing here runs while nothing fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from trellis.adapters.failure_log import LOST
from trellis.errors import StorageError
from trellis.rollout.plan import Variant

logger = logging.getLogger(__name__)


class Log(Protocol):
    """Where records go."""

    def extend(self, records: Sequence[Mapping[str, Any]]) -> list[bytes]:
        """Accept records, all or none, and return them as lines of JSON; StorageError where they cannot be kept."""


@dataclass
class Attempt:
    """One request on its way through the versions.

    Attributes:
        assigned: The variants that the split drew, by row; empty before the split, and where the caller named one.
        common: Gives what all records of a row share.
        links: Links of the fallback chain that answered, and why.
        scoring: The version that is being asked.
        failed: Version that failed, its role, the cause and the rows.
    """

    assigned: Sequence[Variant] = ()
    common: Callable[[int], Mapping[str, Any]] = lambda _row: {}
    links: dict[str, str] = field(default_factory=dict)
    scoring: str = ""
    failed: list[tuple[str, str, str, Sequence[int]]] = field(default_factory=list)


def failure_records(attempt: Attempt, *, answered: bool) -> list[dict[str, Any]]:
    """Return a record for every version and row that failed, and without an answer for every other row of the request.

    A request is answered as a whole or not at all, so where one version fails for good the other rows are lost too.
    """
    if not attempt.assigned:
        return []

    def record(row: int, version: str, role: str, cause: str) -> dict[str, Any]:
        named = {"version": version, "variant": role, "assigned": attempt.assigned[row].version}
        return {**attempt.common(row), **named, "cause": cause}

    found = [record(int(i), version, role, cause) for version, role, cause, rows in attempt.failed for i in rows]
    if not answered:
        told = {int(i) for *_, rows in attempt.failed for i in rows}
        rest = [(i, v) for i, v in enumerate(attempt.assigned) if i not in told]
        found += [record(i, v.version, v.role, LOST) for i, v in rest]
    return found


def timed_out(attempt: Attempt) -> list[dict[str, Any]]:
    """Return the records of a request whose time was over while a version was being asked; none if none was."""
    rows = [i for i, v in enumerate(attempt.assigned) if v.version == attempt.scoring]
    if not rows:
        return []
    role = attempt.assigned[rows[0]].role
    late = Attempt(attempt.assigned, attempt.common, failed=[(attempt.scoring, role, "timeout", rows)])
    return failure_records(late, answered=False)


def keep(log: Callable[[], Log], records: Sequence[Mapping[str, Any]], refused: Callable[[], None]) -> None:
    """Hand records over; an answer does not fail because its failures cannot be kept."""
    if not records:
        return
    try:
        log().extend(records)
    except StorageError as error:
        refused()
        logger.error("%s", error)
