"""The game day's command line: ``trellis game-day MODEL``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from pipelines.gameday import SCENARIOS, Report, copy_home, drill
from trellis.adapters.database import copy_tables, engine
from trellis.errors import ConfigError, TrellisError
from trellis.settings import Settings, settings, silence_telemetry


def use_copy(config: Settings) -> None:
    """Make a copy of the home and the database the ones of this process and its children, with the log as channel.

    Of the servers the drill asks only the registry and the object store, for the versions that answer, and writes to
    none: plans and decisions are copied into an SQLite file, features come with the recorded requests, and flows run in
    this process.
    """
    target = config.directory() / "game-day"
    copy_home(config.directory(), target)
    if config.store_url:
        (target / "store").mkdir(exist_ok=True)
        copy = target / "store" / "trellis.db"
        copy.touch()
        copy_tables(engine(config.store_url), engine(f"sqlite:///{copy}"))
    for name in ("ALERTS", "STORE_URL", "ONLINE_STORE", "ORCHESTRATOR", "WORK_POOL"):
        for variable in (f"TRELLIS_{name}", f"TRELLIS_{name}_FILE"):
            os.environ.pop(variable, None)
    os.environ["TRELLIS_HOME"] = str(target)
    settings.cache_clear()


def main(arguments: Sequence[str] | None = None) -> int:
    """Play a game day and return its exit code: 0 noticed, 3 not noticed (calm: a false alarm), 1 an error."""
    parser = argparse.ArgumentParser(
        prog="trellis game-day",
        description="Put a known change into a copy of the system's traffic, and see what it notices, when, and does.",
        epilog="exit codes: 0 noticed (calm: no alarm), 1 error, 2 usage, 3 not noticed (calm: a false alarm)",
    )
    parser.add_argument("model")
    parser.add_argument("--scenario", choices=SCENARIOS, default="unit")
    parser.add_argument("--column", action="append", default=[], help="where; chosen by the scenario if not given")
    parser.add_argument("--quiet-days", type=int, default=2, help="days before the change")
    parser.add_argument("--days", type=int, default=7, help="most days with it; the drill ends when it is noticed")
    parser.add_argument("--all-days", action="store_true", help="go on after it is noticed")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    chosen = parser.parse_args(arguments)
    silence_telemetry()
    try:
        if chosen.quiet_days < 0 or chosen.days < 1:
            raise ConfigError(
                f"A game day of {chosen.quiet_days} quiet days and {chosen.days} with the change shows nothing.",
                where=f"{parser.prog} {chosen.model}",
                remedy="Give --quiet-days of 0 or more and --days of 1 or more.",
            )
        config = settings()
        use_copy(config)
        return _told(chosen, trains=config.mlflow_uri is None)
    except TrellisError as error:
        sys.stderr.write(f"trellis game-day: {error}\n")
        return 1


def _told(chosen: argparse.Namespace, trains: bool) -> int:
    console = Console(stderr=chosen.json)
    if not console.is_terminal:
        console = Console(stderr=chosen.json, width=160)
    table = Table(title=f"Game day: {chosen.scenario} in {chosen.model}", expand=True)
    for name in ("until", "rows", "refused", "injected", "look", "names", "since", "alert", "retrain", "loop"):
        table.add_column(name, overflow="fold")
    report: Report | None = None
    with console.status("") as status:
        for found in drill(
            chosen.model, chosen.scenario, quiet=chosen.quiet_days, days=chosen.days, columns=chosen.column,
            on=chosen.all_days, trains=trains,
        ):  # fmt: skip
            if isinstance(found, Report):
                report = found
                continue
            status.update(f"{found.until[:10]}: {found.outcome}")
            table.add_row(
                found.until[:16], str(found.sent), str(found.refused), "yes" if found.injected else "", found.outcome,
                ", ".join(found.columns[:4]), found.since[:10], found.alert, found.retrain, found.stage,
            )  # fmt: skip
    assert report is not None
    if chosen.json:
        sys.stdout.write(json.dumps(asdict(report), indent=2) + "\n")
    else:
        console.print(table)
        after = report.noticed_after_days
        looks = f"{report.noticed_after_looks} look{'s' if report.noticed_after_looks != 1 else ''}"
        when = "was not noticed" if after is None else f"noticed at {looks}, {after:g} days after {report.start[:16]}"
        where = "" if report.named is None else f", {'rightly' if report.named else 'NOT'} named"
        if report.days[-1].refused:
            where = ", refused at the door"
        console.print(f"{report.scenario} in {', '.join(report.columns) or 'the labels'}: {when}{where}.")
        console.print(f"Done: {'; '.join(report.done)}. False alarms before: {report.false_alarms}.")
    if chosen.scenario == "calm":
        return 3 if report.noticed_after_days is not None or report.false_alarms else 0
    return 3 if report.noticed_after_days is None else 0


if __name__ == "__main__":
    sys.exit(main())
