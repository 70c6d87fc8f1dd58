"""Alertmanager's webhook, taken into the log: where alerts go on a stack on which nobody has named a chat or pager."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

logger = logging.getLogger(__name__)

PATH = "/alerts"
_MOST_BYTES = 1_000_000
_LEVELS = {"page": logging.ERROR, "critical": logging.ERROR}

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def with_alerts(metrics: App) -> App:
    """Return a WSGI application that logs what is posted to ``/alerts`` and hands everything else to another.

    Args:
        metrics: What answers all other requests.
    """

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != PATH or environ.get("REQUEST_METHOD") != "POST":
            return metrics(environ, start_response)
        status, told = _take(environ)
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [told.encode()]

    return app


def lines(body: Any) -> Iterator[tuple[int, str]]:
    """Yield a log level and a line for each alert of a webhook's body (Alertmanager's format, version 4).

    Raises:
        TypeError, KeyError, AttributeError: The body has another form.
    """
    for alert in body["alerts"]:
        labels, notes = alert["labels"], alert.get("annotations", {})
        firing = alert["status"] == "firing"
        level = _LEVELS.get(labels.get("severity", ""), logging.WARNING) if firing else logging.INFO
        about = " ".join(f"{name}={labels[name]}" for name in ("severity", "model") if name in labels)
        told = notes.get("summary") or notes.get("description") or ""
        words = [f"alert {alert['status']}:", labels["alertname"], about and f"({about})", told]
        if firing:
            words += ["--", notes["action"]] if notes.get("action") else []
            where = "; ".join(notes[name] for name in ("explained_by", "runbook") if notes.get(name))
            words += [f"({where})"] if where else []
        yield level, " ".join(" ".join(word for word in words if word).split())


def _take(environ: dict[str, Any]) -> tuple[str, str]:
    try:
        length = int(environ.get("CONTENT_LENGTH") or 0)
    except ValueError:
        length = 0
    if not 0 < length <= _MOST_BYTES:
        return "413 Content Too Large", f"A body of 1 to {_MOST_BYTES} bytes is taken.\n"
    try:
        found = list(lines(json.loads(environ["wsgi.input"].read(length))))
    except (ValueError, TypeError, KeyError, AttributeError):
        return "400 Bad Request", "This is no webhook of Alertmanager's (version 4).\n"
    for level, line in found:
        logger.log(level, "%s", line)
    return "200 OK", f"{len(found)} taken\n"
