"""Moments as text: RFC 3339 in, UTC out, and an error that names what is no moment."""

from __future__ import annotations

from datetime import UTC, datetime

from trellis.errors import ConfigError


def moment(text: str) -> datetime:
    """Read a moment; one without a zone is UTC.

    Raises:
        ConfigError: The text is none.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no moment.", remedy="Write it so: 2013-07-01T04:00:00Z.") from error
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def utc(text: str) -> str:
    """Return a moment's text in UTC, always the same for the same moment; nothing for nothing."""
    return moment(text).isoformat().replace("+00:00", "Z") if text else ""
