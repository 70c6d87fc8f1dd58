"""The game day's command line: ``trellis game-day MODEL``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipelines.gameday import SCENARIOS, Report, copy_home, drill
from trellis.errors import ConfigError, TrellisError


def use_copy(home: Path) -> Path:
    """Make a copy of the home the one of this process and its children, with the log as the only channel."""
    target = home / "game-day"
    copy_home(home, target)
    os.environ["TRELLIS_HOME"] = str(target)
    os.environ.pop("TRELLIS_ALERTS", None)
    return target


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
    from trellis.settings import settings, silence_telemetry

    silence_telemetry()
    try:
        if settings().store_url or settings().mlflow_uri:
            raise ConfigError(
                "A drill needs the embedded stores, which it copies.",
                where="TRELLIS_STORE_URL, TRELLIS_MLFLOW_URI",
                remedy="Unset them, and give a TRELLIS_HOME with a system of its own.",
            )
        use_copy(settings().directory())
        settings.cache_clear()
        return _told(chosen)
    except TrellisError as error:
        sys.stderr.write(f"trellis game-day: {error}\n")
        return 1


def _told(chosen: argparse.Namespace) -> int:
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
            on=chosen.all_days,
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
        console.print(f"{report.scenario} in {', '.join(report.columns) or 'the labels'}: {when}{where}.")
        console.print(f"Done: {'; '.join(report.done)}. False alarms before: {report.false_alarms}.")
    if chosen.scenario == "calm":
        return 3 if report.noticed_after_days is not None or report.false_alarms else 0
    return 3 if report.noticed_after_days is None else 0


if __name__ == "__main__":
    sys.exit(main())
