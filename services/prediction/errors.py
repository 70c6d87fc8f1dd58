"""How errors become answers: one JSON form, and a status for every branch of the error tree."""

from __future__ import annotations

from typing import Any

from trellis.errors import ContractError, RequestError, StorageError, TrellisError, UnknownModelError


class UnavailableError(TrellisError):
    """The service cannot answer just now, through no fault of the caller (503).

    Args:
        what: As for every error, like ``remedy``.
        retry_after: Seconds after which asking again makes sense.
    """

    def __init__(self, what: str, *, remedy: str | None = None, retry_after: int = 1) -> None:
        self.retry_after = retry_after
        super().__init__(what, remedy=remedy)


class StaleFeaturesError(UnavailableError):
    """A feature view is past its freshness SLA, and the view's action is to refuse (503).

    Args:
        what: Which view, how old and how old it may be.
        row: The first such row.
    """

    def __init__(self, what: str, row: int) -> None:
        remedy = f"Materialise the view and try again, or send its features with the row (rows.{row})."
        super().__init__(what, remedy=remedy, retry_after=30)


class DeadlineError(TrellisError):
    """The answer is on its way, and was not there in the time that the request allows (504)."""


class VersionError(ContractError):
    """A version failed on a request.

    Args:
        what: As for every error, like ``where``.
        cause: ``raised``, ``malformed``, ``out_of_range`` or ``not_loaded``.
    """

    def __init__(self, what: str, cause: str, *, where: object = None) -> None:
        self.cause = cause
        super().__init__(what, where=where)


def status_of(error: TrellisError) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, UnknownModelError):
        return 404
    if isinstance(error, DeadlineError):
        return 504
    return 503


def body_of(error: TrellisError) -> dict[str, Any]:
    """Return an error as ``{"error": {"field", "reason", "remedy"}}``; server-side paths stay in the log."""
    field = error.field if isinstance(error, RequestError) else "model" if isinstance(error, UnknownModelError) else ""
    reason = error.reason if isinstance(error, RequestError) else error.what
    remedy = error.remedy
    if isinstance(error, StorageError):
        remedy = "Send the same request again with the same id; nothing was logged."
    return {"error": {"field": field, "reason": reason, "remedy": remedy or "See /docs."}}
