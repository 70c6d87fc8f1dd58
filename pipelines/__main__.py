"""The room's command line: ``trellis flow VERB``."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from pipelines.moments import utc
from pipelines.progress import StepProgress
from pipelines.steps import reporting
from trellis.decision import dumps
from trellis.errors import ConfigError, TrellisError
from trellis.settings import silence_telemetry

app = typer.Typer(
    name="trellis flow", help="Run a flow.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


def _known(model: str) -> str:
    """Refuse a slip of the pen before a run begins: as a failure of that model's flow it would stand for ever."""
    from pipelines.plugins import catalogue

    if model not in catalogue().names():
        catalogue().plugin(model)  # raises, and names what is alike
    return model


Model = Annotated[str, typer.Argument(callback=_known, help="The model's name; see: trellis models list")]
Since = Annotated[str, typer.Option(callback=utc, help="First moment of the rows, RFC 3339; everything if not given.")]
Until = Annotated[
    str, typer.Option(callback=utc, help="Moment by which the truth was known, RFC 3339; everything if not given.")
]
Now = Annotated[str, typer.Option(callback=utc, help="Event time of the decision, RFC 3339; now if not given.")]
RecipeName = Annotated[str | None, typer.Option(help="One of the model's recipes; the first if not given.")]
Seed = Annotated[int, typer.Option(help="Seeds every source of randomness.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.command()
def prepare(model: Model, since: Since = "", until: Until = "", as_json: AsJson = False) -> None:
    """From raw data to a training set: ingest, snapshot, validate, features, point-in-time join."""
    from pipelines.data import prepare_data

    with reporting(StepProgress(quiet=as_json)):
        made = prepare_data(model, since, until)
    _say(made, f"{made.rows:,} rows in {made.path}", as_json)


@app.command()
def train(
    model: Model,
    recipe: RecipeName = None,
    seed: Seed = 2013,
    param: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, overrides a hyper-parameter; repeatable.")
    ] = None,
    since: Since = "",
    until: Until = "",
    as_json: AsJson = False,
) -> None:
    """Train, check, evaluate, gate, register, and plan the rollout; exit code 3 if the gate does not promote."""
    from pipelines.plugins import plugin_named
    from pipelines.training import Recipe, train_model

    recipes = plugin_named(model).spec.recipes
    if recipe is not None and recipe not in recipes:
        raise ConfigError(f"{model!r} has no recipe {recipe!r}.", remedy=f"It has {', '.join(recipes)}.")
    chosen = Recipe(recipe or recipes[0], seed, dict(_param(text) for text in param or []))
    with reporting(StepProgress(quiet=as_json)):
        outcome = train_model(model, chosen, since, until)
    text = f"{model} v{outcome.version}: {outcome.verdict}. {outcome.reason}\nWhy: trellis explain {outcome.decision}"
    _say(outcome, text, as_json)
    raise typer.Exit(0 if outcome.verdict == "PROMOTE" else 3)


@app.command()
def advance(model: Model, now: Now = "", as_json: AsJson = False) -> None:
    """Look at the canary once and follow the verdict."""
    from pipelines.rollout import advance_rollout

    with reporting(StepProgress(quiet=as_json)):
        decision = advance_rollout(model, now or _now())
    if decision is None:
        _say(None, f"{model} has no canary on trial.", as_json)
    else:
        _say(
            decision,
            f"{decision.verdict.outcome}. {decision.verdict.reason}\nWhy: trellis explain {decision.id}",
            as_json,
        )


@app.command()
def loop(
    model: Model,
    now: Now = "",
    since: Since = "",
    paced: Annotated[
        bool,
        typer.Option(help="For schedules: at the newest request's time; judge drift only when a look is due."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """One turn of the loop: look, decide, and train again if the decision says so."""
    from pipelines.loop import turn_loop

    with reporting(StepProgress(quiet=as_json)):
        turn = turn_loop(model, now or ("latest" if paced else _now()), since=since, paced=paced)
    if turn is None:
        _say(None, f"Another turn of the loop of {model} is under way; this one is left to it.", as_json)
        return
    taken = (turn.look.decision, turn.retrain, *([turn.rollout] if turn.rollout else []))
    lines = [f"{d.verdict.outcome}. {d.verdict.reason} ({d.id})" for d in taken]
    if turn.outcome:
        lines.append(
            f"v{turn.outcome.version}: {turn.outcome.verdict}. {turn.outcome.reason} ({turn.outcome.decision})"
        )
    _say(turn, "\n".join(lines), as_json)


@app.command()
def replay(model: Model, as_json: AsJson = False) -> None:
    """Hold the quarantined rows of a model's snapshots against its suites as they are now."""
    from pipelines.quarantine import replay_quarantine

    found = replay_quarantine(model)
    lines = [f"{r.table} of {r.snapshot}: {r.released} of {r.rows} quarantined rows would pass now" for r in found]
    _say(found, "\n".join(lines) or f"No row of {model} is quarantined.", as_json)


@app.command("predict-batch")
def predict_batch(
    model: Model,
    source: Annotated[str, typer.Option("--input", help="Parquet file with a column per request field.")],
    output: Annotated[str, typer.Option(help="Parquet file to write: one row per input row, in its order.")],
    version: Annotated[str, typer.Option(help="Score with this version; the champion if not given.")] = "",
    on_bad: Annotated[str, typer.Option(help="stop at a bad row, or skip it with nulls and a reason.")] = "stop",
    keep: Annotated[list[str] | None, typer.Option(help="Carry this input column over; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a table as a flow; the same as `trellis predict-batch`, and a deployment for schedules."""
    from pipelines.batch import predict_table

    if on_bad not in ("stop", "skip"):
        raise ConfigError(f"{on_bad!r} is no way to treat bad rows.", where="--on-bad", remedy="Use stop or skip.")
    with reporting(StepProgress(quiet=as_json)):
        made = predict_table(model, source, output, version, "skip" if on_bad == "skip" else "stop", keep)
    text = f"{made.rows:,} rows with version {made.version}, {made.rejected:,} of them refused: {made.output}"
    _say(made, text, as_json)


@app.command()
def deploy() -> None:
    """Serve the flows as deployments of the Prefect server at PREFECT_API_URL, until interrupted."""
    from pipelines.deployments import serve_deployments

    serve_deployments()


def _param(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r} is no NAME=VALUE.", where="--param", remedy="For example --param max_depth=4.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _say(result: Any, text: str, as_json: bool) -> None:
    typer.echo(json.dumps(json.loads(dumps(result)), indent=2) if as_json else text)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def main() -> None:
    """Run the command line; an error that Trellis raises on purpose is one line, not a traceback."""
    silence_telemetry()
    try:
        app()
    except TrellisError as error:
        sys.stderr.write(f"trellis: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
