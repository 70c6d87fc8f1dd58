"""Telling people: compare what is going on with what was told, send what is due, keep what was not taken."""

from __future__ import annotations

import json
import logging
import secrets
import sys
import time
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from monitoring.channel_config import read_channels
from monitoring.channels import send
from trellis.adapters.alert_files import read_alerts
from trellis.adapters.alert_outbox import AlertOutbox
from trellis.alerts import (
    KINDS,
    Alert,
    Channel,
    Message,
    Silence,
    delivered,
    due,
    first_seen,
    hushed,
    refused,
    state_of,
)
from trellis.catalog import Catalogue
from trellis.errors import ConfigError, LeaseHeldError, TrellisError, close_matches
from trellis.settings import Settings

logger = logging.getLogger(__name__)
_MOST_HOURS = 8_760


@dataclass(frozen=True)
class Told:
    """What one round of telling did: messages taken, and the errors of those that were not, by channel."""

    sent: int
    errors: dict[str, str]


def tell(home: Path, outbox: AlertOutbox, channels: list[Channel], now: float | None = None) -> Told:
    """Send what is due; a message is marked as told only after its channel has taken it.

    A process that is killed between the two sends the message again, under the same key. Two processes do not send at
    the same time: one that finds another sending leaves it to that one.

    Args:
        home: Trellis's home.
        outbox: What was told.
        channels: Where to.
        now: Wall clock, Unix seconds.

    Raises:
        StorageError: The outbox does not work.
    """
    moment = time.time() if now is None else now
    try:
        with outbox.lease():
            alerts = read_alerts(home / "alerts")
            outbox.keep(first_seen(alerts, outbox.deliveries(), channels))
            outbox.keep(hushed(alerts, outbox.deliveries(), outbox.silences(), moment))
            sent, errors = 0, {}
            for message in due(alerts, outbox.deliveries(), channels, outbox.silences(), moment):
                try:
                    send(message)
                except TrellisError as error:
                    errors[message.channel.name] = str(error)
                    outbox.keep(refused(message, str(error), moment))
                    logger.warning("%s", error)
                else:
                    outbox.keep(delivered(message, moment))
                    sent += 1
            return Told(sent, errors)
    except LeaseHeldError:
        return Told(0, {})


def tell_after_look(settings: Settings) -> None:
    """Send what is due, to all channels that can be told; what is wrong with the others breaks no look.

    Args:
        settings: Of this process.
    """
    channels, wrong = read_channels(settings.alerts)
    for error in wrong:
        logger.error("%s", error)
    try:
        tell(settings.home.resolve(), AlertOutbox(settings.database_url), channels)
    except TrellisError as error:
        logger.error("%s", error)


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the verbs of ``trellis alerts``."""
    verbs = parser.add_subparsers(dest="verb", required=True)
    listed = verbs.add_parser("list", help="what is going on, and what each channel was told of it")
    listed.add_argument("--all", action="store_true", help="alerts that are over, too")
    listed.add_argument("--json", action="store_true")
    quiet = verbs.add_parser("silence", help="hold some alerts back for a while")
    quiet.add_argument("--model", default="", help="whose; every model's if not given")
    quiet.add_argument("--kind", default="", help="which kind, or a family such as DRIFT; every one if not given")
    quiet.add_argument("--hours", type=float, default=4.0, help="for how long, at most a year")
    quiet.add_argument("--who", default="operator")
    quiet.add_argument("--why", required=True, help="the reason, which is kept")
    lifted = verbs.add_parser("lift", help="end a silence now; what it held back and still lasts is told")
    lifted.add_argument("silence", help="its id, which silence and list print")
    test = verbs.add_parser("test", help="send a test message to every channel, or one; exit code 1 if one fails")
    test.add_argument("channel", nargs="?")
    sends = verbs.add_parser("deliver", help="send what is due now; exit code 3 if a channel does not take it")
    sends.add_argument("--every", type=float, help="again and again, every so many seconds, until interrupted")


def run(chosen: Namespace, settings: Settings) -> int:
    """Do a verb of ``trellis alerts`` and return its exit code."""
    outbox, (channels, wrong) = AlertOutbox(settings.database_url), read_channels(settings.alerts)
    home = settings.home.resolve()
    for error in wrong:
        sys.stderr.write(f"error: {error}\n")
    if chosen.verb == "list":
        return _list(outbox, channels, read_alerts(home / "alerts"), everything=chosen.all, as_json=chosen.json)
    if chosen.verb == "silence":
        return _silence(outbox, chosen, read_alerts(home / "alerts"), Catalogue([settings.models]).names())
    if chosen.verb == "lift":
        return _lift(outbox, chosen.silence)
    if chosen.verb == "test":
        return 1 if _test(channels, chosen.channel) or wrong else 0
    while True:
        told = tell(home, outbox, channels)
        sys.stdout.write(f"{told.sent} messages taken, {len(told.errors)} channels down\n")
        sys.stdout.flush()
        if chosen.every is None:
            return 3 if told.errors or wrong else 0
        time.sleep(chosen.every)


def _list(outbox: AlertOutbox, channels: list[Channel], alerts: list[Alert], *, everything: bool, as_json: bool) -> int:
    now = time.time()
    rows = {(d.alert, d.channel): d for d in outbox.deliveries()}
    silences = [s for s in outbox.silences() if now < s.until]
    shown = [a for a in alerts if everything or a.status == "open"]
    if as_json:
        told: dict[str, Any] = {
            "alerts": [asdict(a) for a in shown],
            "deliveries": [asdict(d) for d in rows.values()],
            "silences": [asdict(s) for s in silences],
        }
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
        return 0
    table = Table(title="Alerts" if shown else "No alert is open", expand=True)
    for name in ("since", "severity", "model", "what", "told", "why"):
        table.add_column(name, overflow="fold", ratio=3 if name == "what" else 1)
    for a in shown:
        words = [_word(rows.get((a.id, c.name)), c, state_of(a)) for c in channels if c.wants(a)]
        held = [f"silenced by {s.who}: {s.why} ({s.id})" for s in silences if s.covers(a, now)]
        table.add_row(a.since[:16], a.severity, a.model, a.reason, "; ".join([*words, *held]), a.explained_by)
    Console().print(table)
    for s in silences:
        ends = datetime.fromtimestamp(s.until, UTC).isoformat(timespec="minutes")
        sys.stdout.write(f"Silence {s.id}: {_whose(s)}, until {ends}, by {s.who}: {s.why}\n")
    return 0


def _word(row: Any, channel: Channel, state: str) -> str:
    if row is not None and row.error:
        return f"{channel.name}: DOWN, {row.attempts} attempts: {row.error}"
    return f"{channel.name}: {'told' if row is not None and row.told == state else 'not yet'}"


def _silence(outbox: AlertOutbox, chosen: Namespace, alerts: list[Alert], models: list[str]) -> int:
    if not chosen.why.strip() or not 0 < chosen.hours <= _MOST_HOURS:  # not a number is neither
        raise ConfigError(
            f"A silence needs a reason and hours above zero, at most {_MOST_HOURS:,}.",
            remedy='Give --why "…" and --hours.',
        )
    kinds = {*KINDS, *(kind for of in KINDS.values() for kind in of), *(a.kind for a in alerts)}
    kind = chosen.kind if chosen.kind in kinds else chosen.kind.upper()
    for what, name, known in (("model", chosen.model, {*models, *(a.model for a in alerts)}), ("kind", kind, kinds)):
        if name and name not in known:
            asked = getattr(chosen, what)
            remedy = f"{close_matches(asked, known)} This would have silenced nothing."
            raise ConfigError(f"There is no {what} {asked!r} of alerts.", remedy=remedy)
    silence = Silence(
        secrets.token_hex(6), chosen.model, kind, time.time() + chosen.hours * 3_600, chosen.who, chosen.why
    )
    outbox.silence(silence)
    told = f"Silenced for {chosen.hours:g} hours: {_whose(silence)}."
    sys.stdout.write(f"{told} End it sooner with: trellis alerts lift {silence.id}\n")
    return 0


def _lift(outbox: AlertOutbox, name: str) -> int:
    now = time.time()
    lasting = {s.id: s for s in outbox.silences() if now < s.until}
    if name not in lasting:
        raise ConfigError(f"No silence {name!r} is in force.", remedy=close_matches(name, lasting))
    outbox.silence(replace(lasting[name], until=now))
    sys.stdout.write(f"Lifted: {_whose(lasting[name])} ({name}). What it held back is told with the next delivery.\n")
    return 0


def _whose(silence: Silence) -> str:
    return " of ".join(part for part in (silence.kind or "every alert", silence.model) if part)


def _test(channels: list[Channel], name: str | None) -> int:
    chosen = [c for c in channels if name in (None, c.name)]
    if not chosen:
        raise ConfigError(f"There is no channel {name!r}.", remedy=f"There is {', '.join(c.name for c in channels)}.")
    failed = 0
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for channel in chosen:
        alert = Alert(
            f"test-{secrets.token_hex(4)}", "test", "info", "closed", "TEST", "test",
            "A test message; nothing is wrong.", moment, moment, moment,
        )  # fmt: skip
        try:
            send(Message(channel, "test", "closed", (alert,), ()))
        except TrellisError as error:
            failed += 1
            sys.stdout.write(f"{channel.name}: {error}\n")
        else:
            sys.stdout.write(f"{channel.name}: taken\n")
    return 1 if failed else 0
