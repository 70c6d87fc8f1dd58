"""The room's command line: ``python -m monitoring watch MODEL`` and ``python -m monitoring exporter``."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from monitoring.notify import add_arguments, run, tell_after_look
from trellis.errors import ConfigError, TrellisError, close_matches
from trellis.settings import settings, silence_telemetry

LATEST = datetime.max.replace(tzinfo=UTC)
EXIT_CODES = {"STABLE": 0, "DRIFT": 3, "UPSTREAM_FAULT": 4, "INSUFFICIENT": 5}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m monitoring", description="Watch served models.")
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser(
        "watch",
        help="look at a model once and judge its last window",
        epilog="exit codes: 0 stable, 1 error, 2 usage, 3 drift, 4 upstream fault, 5 too few rows",
    )
    look.add_argument("model")
    look.add_argument(
        "--until",
        type=_moment,
        help="end of the window, RFC 3339; default latest, the newest request's event time",
    )
    look.add_argument("--window-days", type=float, default=None, help="default: the baseline's period")
    look.add_argument("--windows", type=int, default=6, help="windows of history, the judged one included")
    look.add_argument("--no-report", action="store_true", help="write no Evidently report")
    look.add_argument(
        "--paced",
        action="store_true",
        help="judge only when the next of the policy's looks_per_month is due, in event time; in between tell the "
        "figures anew, and a certain upstream fault",
    )
    look.add_argument(
        "--skew", action="store_true", help="recompute the features and compare them with the served ones"
    )
    look.add_argument("--json", action="store_true", help="print the whole result as JSON")
    stand = commands.add_parser("performance", help="show how a model stands: estimated, corrected, realised")
    stand.add_argument("model")
    stand.add_argument("--as-of", type=_moment, help="labels observed later do not count, RFC 3339; default all")
    stand.add_argument("--received-by", type=_moment, help="nor what reached the log later, RFC 3339; default all")
    stand.add_argument("--window-days", type=float, default=None, help="default: the baseline's period")
    stand.add_argument("--windows", type=int, default=6, help="most windows shown")
    stand.add_argument("--segment", help="show the windows by this segment column")
    stand.add_argument("--json", action="store_true", help="print everything as JSON")
    skew = commands.add_parser(
        "skew",
        help="recompute served features point-in-time and compare them",
        epilog="exit codes: 0 within the SLO, 1 error, 2 usage, 3 past the SLO, 5 no prediction to replay",
    )
    skew.add_argument("model")
    skew.add_argument("--since", type=_moment, help="earliest event time, RFC 3339; default a week before --until")
    skew.add_argument("--until", type=_moment, help="latest event time, RFC 3339; default the newest request's")
    skew.add_argument("--rows", type=int, default=2_000, help="most predictions replayed, evenly spaced in time")
    skew.add_argument("--json", action="store_true", help="print the whole result as JSON")
    tells = commands.add_parser("alerts", help="list alerts, silence some, test the channels, deliver what is due")
    add_arguments(tells)
    serve = commands.add_parser("exporter", help="serve looks, rollouts, decisions, flows and features to Prometheus")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=9108)
    serve.add_argument("--watch-every", type=float, default=0, help="seconds between paced looks; 0 for none")
    serve.add_argument("--no-report", action="store_true", help="let the looks write no Evidently report")
    commands.add_parser("rules", help="print the Prometheus rules of the service level objectives")
    boards = commands.add_parser("boards", help="write the Grafana dashboards")
    boards.add_argument("directory", type=Path, nargs="?", default=Path("monitoring/grafana/dashboards"))
    chosen = parser.parse_args(arguments)
    logging.basicConfig(
        level=settings().log_level.upper(), stream=sys.stderr, format="%(levelname)s %(name)s %(message)s"
    )
    silence_telemetry()
    try:
        if chosen.command == "exporter":
            return _serve(chosen)
        if chosen.command == "alerts":
            return run(chosen, settings())
        if chosen.command == "performance":
            return _stand(chosen)
        if chosen.command == "skew":
            return _replay(chosen)
        if chosen.command == "rules":
            from monitoring.slo import dumps

            sys.stdout.write(dumps())
            return 0
        if chosen.command == "boards":
            from monitoring.boards import boards as all_boards
            from monitoring.grafana_json import write_all

            for path in write_all(all_boards(), chosen.directory):
                sys.stdout.write(f"{path}\n")
            return 0
        return _look(chosen)
    except TrellisError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1


def _look(chosen: argparse.Namespace) -> int:
    from monitoring.pace import alone
    from monitoring.skew import offline_store, skew_text
    from monitoring.subject import subject_of
    from monitoring.watch import watch
    from trellis.adapters.database import engine
    from trellis.adapters.decision_store import DecisionStore
    from trellis.decision import dumps

    subject = subject_of(chosen.model, settings())
    home = settings().home.resolve()
    with alone(home):
        until = chosen.until if chosen.until not in (None, LATEST) else _after_the_last(chosen.model)
        result = watch(
            subject,
            home,
            until,
            window_days=chosen.window_days or subject.reference.period_days,
            windows=chosen.windows,
            report=not chosen.no_report,
            store=offline_store(subject.spec) if chosen.skew else None,
            paced=chosen.paced,
        )
    # By hand, by the exporter or by the loop: every look can be explained later. One taken again is the same decision.
    if result.evidence is not None:
        DecisionStore(engine(settings().database_url)).record(result.decision)
    tell_after_look(settings())
    verdict = result.decision.verdict
    if chosen.json:
        body = json.loads(dumps({k: v for k, v in asdict(result).items() if k not in ("evidence", "report", "alert")}))
        paths = {k: None if (p := getattr(result, k)) is None else str(p) for k in ("evidence", "report", "alert")}
        sys.stdout.write(json.dumps({**body, **paths}, sort_keys=True) + "\n")
    else:
        kept = not result.judged and result.evidence is not None
        since = f" (as of {result.decision.at}; the next look is not due)" if kept else ""
        sys.stdout.write(f"{verdict.outcome}: {verdict.reason}{since}\n")
        for check in verdict.checks[1:]:
            if check.passed is not True:
                sys.stdout.write(f"  {check.name}: {check.text}\n")
        for point in result.series[-3:]:
            numbers = ", ".join(f"{k} {v:.3f}" for k, v in point.metrics.items())
            best = point.best
            loss = f"loss {best.value:.4f} ({best.low:.4f}-{best.high:.4f}) {point.stage}, " if best else ""
            told = f"{loss}{point.labels}/{point.predictions} labels {numbers}{' '.join(('', *point.flags))}"
            sys.stdout.write(f"  {point.end} v{point.version}: {told}\n")
        for item in result.quality:
            sys.stdout.write(f"  {item.kind}: {item.text}\n")
        if result.skew is not None and result.skew.mismatched:
            sys.stdout.write(f"  skew: {skew_text(result.skew)}\n")
        if result.evidence is not None:
            sys.stdout.write(f"  evidence {result.evidence}\n  trellis explain {result.decision.id}\n")
    return EXIT_CODES[verdict.outcome]


def _stand(chosen: argparse.Namespace) -> int:
    from rich.console import Console

    from monitoring.performance import performance_of, table_of
    from monitoring.subject import subject_of
    from trellis.decision import dumps

    subject = subject_of(chosen.model, settings())
    if chosen.segment and chosen.segment not in subject.spec.segments:
        hint = close_matches(chosen.segment, subject.spec.segments)
        raise ConfigError(f"{chosen.model!r} is not broken down by {chosen.segment!r}.", remedy=hint)
    standing = performance_of(
        subject,
        settings().home.resolve(),
        chosen.as_of if chosen.as_of not in (None, LATEST) else _after_the_last_truth(chosen.model),
        received_by=chosen.received_by,
        window_days=chosen.window_days or subject.reference.period_days,
        windows=chosen.windows,
    )
    if chosen.json:
        sys.stdout.write(dumps(standing) + "\n")
    else:
        Console().print(table_of(standing, subject, chosen.segment))
        if not standing.series.points:
            sys.stdout.write(f"No prediction of {chosen.model} lies in these windows yet.\n")
    return 0


def _replay(chosen: argparse.Namespace) -> int:
    from rich.console import Console

    from monitoring.skew import offline_store, replay, skew_table
    from monitoring.subject import subject_of
    from trellis.adapters.prediction_log import read_predictions
    from trellis.decision import dumps

    subject = subject_of(chosen.model, settings())
    until = chosen.until if chosen.until not in (None, LATEST) else _after_the_last(chosen.model)
    since = chosen.since or until - timedelta(days=7)
    frame = read_predictions(settings().home.resolve(), chosen.model, since=since, until=until)
    store = offline_store(subject.spec)
    report = (
        None
        if store is None
        else replay(subject.read_alike(frame), subject.spec, dict(subject.views), store, most=chosen.rows)
    )
    if report is None:
        raise ConfigError(f"{chosen.model!r} joins no features.", remedy="There is nothing to recompute.")
    if chosen.json:
        sys.stdout.write(dumps(report) + "\n")
    else:
        Console().print(skew_table(report, chosen.model))
    return {True: 0, False: 3, None: 5}[report.passed]


def _after_the_last(model: str) -> datetime:
    """Return the end of the newest request's second: event time is the data's, and a replay is not now."""
    from trellis.adapters.failure_log import newest_request

    last = newest_request(settings().home.resolve(), model)
    return datetime.now(UTC) if last is None else last.to_pydatetime() + timedelta(seconds=1)


def _after_the_last_truth(model: str) -> datetime:
    """Return the end of the newest second in which something was predicted or observed: truths come after the last row.

    By the wall clock every row of a replay would be past its delay, and those of its truths that come late overdue.
    """
    from trellis.adapters.prediction_log import read_labels
    from trellis.quality import newest_time

    told = newest_time(read_labels(settings().home.resolve(), model).rename(columns={"observed_at": "time"}))
    last = _after_the_last(model)
    return last if told is None else max(last, told.to_pydatetime() + timedelta(seconds=1))


def _serve(chosen: argparse.Namespace) -> int:
    from prometheus_client import CollectorRegistry, start_http_server

    from monitoring.metrics import LookMetrics
    from monitoring.receiver import with_alerts
    from monitoring.state_metrics import FeatureMarks, FlowRuns, StoreState

    home = Path(settings().home).resolve()
    registry = CollectorRegistry()
    for collector in (
        LookMetrics(home / "metrics"),
        StoreState(settings().database_url),
        FlowRuns(home / "flows" / "runs.jsonl"),
        FeatureMarks(home / "feast" / "watermarks.json"),
    ):
        registry.register(collector)
    stop = threading.Event()
    follower = threading.Thread(target=_follow, args=(home, chosen, stop))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server, thread = start_http_server(chosen.port, addr=chosen.host, registry=registry)
    server.set_app(with_alerts(server.get_app()))
    sys.stdout.write(f"metrics on http://{chosen.host}:{server.server_port}/metrics\n")
    sys.stdout.flush()
    follower.start()
    stop.wait()
    follower.join()
    server.shutdown()
    server.server_close()
    thread.join()
    return 0


def _follow(home: Path, chosen: argparse.Namespace, stop: threading.Event) -> None:
    if not chosen.watch_every:
        return
    from monitoring.follow import follow
    from trellis.adapters.plan_store import PlanStore

    def models() -> list[str]:
        return PlanStore(settings().database_url).models()

    follow(models, home, chosen.watch_every, stop, report=not chosen.no_report)


def _moment(text: str) -> datetime:
    if text == "latest":
        return LATEST
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no RFC 3339 time") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


if __name__ == "__main__":
    raise SystemExit(main())
