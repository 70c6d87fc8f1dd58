"""The ways to tell people: log, webhook, Slack, e-mail, Alertmanager. Secrets come from the environment or a file."""

from __future__ import annotations

import http.client
import json
import logging
import os
import smtplib
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from trellis.alerts import Alert, Message
from trellis.errors import ConfigError, UnavailableError

logger = logging.getLogger("trellis.alerts")
SECONDS = 10.0


def send(message: Message) -> None:
    """Hand a message to its channel; it returns when the channel has taken it.

    Raises:
        UnavailableError: It has not.
        ConfigError: A secret is not there.
    """
    options, kind = message.channel.options, message.channel.kind
    try:
        if kind == "log":
            level = logging.INFO if message.status == "closed" else logging.WARNING
            for alert in message.alerts:
                logger.log(level, "ALERT %s %s", alert.status, _line(alert))
        elif kind == "webhook":
            body = {"key": message.key, "status": message.status, "model": message.model}
            _post(options, {**body, "alerts": [_told(a) for a in message.alerts]})
        elif kind == "slack":
            _post(options, {"text": f"*{_subject(message)}*\n" + "\n".join(_text(a) for a in message.alerts)})
        elif kind == "alertmanager":
            _post(options, _labelled(message), "/api/v2/alerts")
        else:
            _mail(message)
    except (OSError, smtplib.SMTPException, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise UnavailableError(
            f"The channel {message.channel.name!r} does not take alerts: {_cause(error)}.",
            remedy="It is tried again; see: trellis alerts list.",
        ) from error


def _secret(options: Mapping[str, object], name: str) -> str | None:
    """Return a setting that may be a secret: from the environment, a file, or, where allowed, as it stands."""
    if (variable := options.get(f"{name}_env")) is not None:
        value = os.environ.get(str(variable))
        if not value:
            raise ConfigError(f"{variable} is not set.", where="environment", remedy="Set it to the channel's secret.")
        return value
    if (path := options.get(f"{name}_file")) is not None:
        try:
            return Path(str(path)).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(f"A channel's secret cannot be read: {error.strerror}.", where=path) from error
    plain = options.get(name)
    return None if plain is None else str(plain)


def _post(options: Mapping[str, object], body: Any, path: str = "") -> None:
    url = (_secret(options, "url") or "").rstrip("/") + path
    if not url.startswith(("http://", "https://")):
        raise ConfigError("A channel's url is no http(s) address.", remedy="Mend the configuration or the secret.")
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    if token := _secret(options, "token"):
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310 (the scheme was checked)
        answer.read()


def _mail(message: Message) -> None:
    options = message.channel.options
    mail = EmailMessage()
    mail["Subject"], mail["From"] = _subject(message), str(options["from"])
    to = options["to"]
    mail["To"] = ", ".join(to) if isinstance(to, list) else str(to)
    mail["Message-ID"] = f"<{message.key}@trellis>"
    mail.set_content("\n\n".join(_text(a) for a in message.alerts))
    port = options.get("port", 587)
    assert isinstance(port, int)
    with smtplib.SMTP(str(options["host"]), port, timeout=SECONDS) as server:
        if options.get("tls", True):
            server.starttls(context=ssl.create_default_context())
        if user := options.get("user"):
            server.login(str(user), _secret(options, "password") or "")
        server.send_message(mail)


def _subject(message: Message) -> str:
    worst = message.alerts[0]
    state = "resolved" if message.status == "closed" else worst.severity
    more = f" and {len(message.alerts) - 1} more" if len(message.alerts) > 1 else ""
    return f"[{state}] {message.model}: {worst.kind.replace('_', ' ')}{more}"


def _line(alert: Alert) -> str:
    return f"{alert.id} [{alert.severity}] {alert.model}: {alert.reason} ({alert.explained_by})"


def _text(alert: Alert) -> str:
    lines = [f"{alert.severity.upper()} {alert.model}: {alert.reason}", f"Since: {alert.since}"]
    if alert.closed_at:
        lines.append(f"Over: {alert.closed_at}")
    if alert.columns:
        lines.append(f"Columns: {', '.join(alert.columns)}")
    lines += [f"Do: {alert.action}"] if alert.action else []
    return "\n".join([*lines, f"Why: {alert.explained_by}", f"Runbook: {alert.runbook}"])


def _told(alert: Alert) -> dict[str, Any]:
    told = {name: getattr(alert, name) for name in Alert.__dataclass_fields__}
    return {**told, "explained_by": alert.explained_by, "runbook": alert.runbook}


def _labelled(message: Message) -> list[dict[str, Any]]:
    """Return alerts as Alertmanager's API v2 takes them; what is open is told again before it would end.

    Labels are an alert's identity there. Of what may change only the severity is one, because routes go by it; where it
    has changed, the alert that was told under the former is ended.
    """
    now = datetime.now(UTC)
    lasts = timedelta(hours=2 * (message.channel.repeat_hours or 24 * 30))
    told = {d.alert: d.told.removeprefix("open ") for d in message.deliveries if d.told.startswith("open ")}
    result = []
    for alert in message.alerts:
        ends = now if alert.status == "closed" else now + lasts
        result.append(_as_labelled(alert, alert.severity, now, ends))
        if (former := told.get(alert.id, alert.severity)) != alert.severity:
            result.append(_as_labelled(alert, former, now, now))
    return result


def _as_labelled(alert: Alert, severity: str, now: datetime, ends: datetime) -> dict[str, Any]:
    begun = min(datetime.fromisoformat(alert.opened_at).astimezone(UTC), now)
    return {
        "labels": {
            "alertname": "Trellis" + "".join(part.capitalize() for part in alert.outcome.split("_")),
            "model": alert.model,
            "severity": severity,
            "episode": alert.id,
        },
        "annotations": {
            "summary": alert.reason,
            "kind": alert.kind,
            "since": alert.since,
            "action": alert.action,
            "explained_by": alert.explained_by,
            "runbook": alert.runbook,
        },
        "startsAt": begun.isoformat(),
        "endsAt": ends.isoformat(),
    }


def _cause(error: BaseException) -> str:
    """Say what went wrong without the address, which may be the secret."""
    if isinstance(error, urllib.error.HTTPError):
        return f"it answered {error.code}"
    if isinstance(error, ValueError | http.client.InvalidURL):  # its text shows what could not be read: the address
        return f"{type(error).__name__}: its address, or what it is told, is malformed"
    reason = getattr(error, "reason", error)
    return f"{type(reason).__name__}: {getattr(reason, 'strerror', None) or reason}"
