"""Verbs about rollouts: start one, see where it stands and why, overrule it with a reason, plan its length."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trellis.cli.sizing import finite, plan, spec_of
from trellis.contract import RolloutPolicy, Strategy
from trellis.decision import dumps
from trellis.errors import ConfigError, PluginError, RolloutError
from trellis.settings import settings

app = typer.Typer(
    help="Rollouts: who answers which share of the traffic, what comes next, and why.", no_args_is_help=True
)
Model = Annotated[str, typer.Argument(help="The model's name.")]
Why = Annotated[str, typer.Option(help="The reason, which is kept.")]
Who = Annotated[str, typer.Option(help="Who does it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
_STRATEGIES = ("canary", "blue_green", "ab", "bandit")


@app.command("start")
def start(
    model: Model,
    versions: Annotated[list[str], typer.Argument(help="The version to try; several for ab and bandit.")],
    why: Why,
    who: Who = "operator",
    strategy: Annotated[str, typer.Option(help=f"One of {', '.join(_STRATEGIES)}; the model's own if not given.")] = "",
    supersede: Annotated[bool, typer.Option(help="End a rollout that is going on.")] = False,
    as_json: AsJson = False,
) -> None:
    """Begin a rollout of registered versions; their files are checked first."""
    from dataclasses import replace

    policy = _policy(model)
    if strategy:
        if strategy not in _STRATEGIES:
            raise ConfigError(
                f"{strategy!r} is no strategy.", where="--strategy", remedy=f"Use {', '.join(_STRATEGIES)}."
            )
        chosen: Strategy = strategy  # type: ignore[assignment]
        policy = replace(policy, strategy=chosen)
    if not why.strip():
        raise RolloutError("A rollout by hand needs a reason.", remedy='Give one with --why "…"; it is kept.')
    controller = _controller()
    candidates = [_variant(controller, model, version) for version in versions]
    controller.start(model, candidates, policy, who=who, why=why, supersede=supersede)
    _tell(controller, model, as_json)


@app.command("show")
def show(model: Model, as_json: AsJson = False) -> None:
    """Show a model's plan, how it came about, and where its rollout stands."""
    controller = _controller()
    history = controller.plans.history(model)
    if not history:
        raise RolloutError(f"{model!r} has no rollout plan.", remedy=f"Train it with: trellis flow train {model}")
    if as_json:
        _tell(controller, model, as_json)
        return
    table = Table(title=f"Rollout of {model}", expand=True)
    for name in ("revision", "when", "traffic", "who", "why"):
        table.add_column(name, overflow="fold")
    for change in history:
        table.add_row(str(change.plan.revision), str(change.at)[:19], traffic(change.plan), change.who, change.why)
    Console().print(table)
    _tell(controller, model, as_json)


@app.command("explain")
def explain(model: Model, as_json: AsJson = False) -> None:
    """Tell every transition of a model's rollouts: when, by whom, why, and on which decision."""
    controller = _controller()
    found = controller.store.history(model)
    if as_json:
        typer.echo(json.dumps(json.loads(dumps(found)), indent=2))
        return
    if not found:
        typer.echo(f"{model} never had a rollout. Begin one with: trellis rollout start {model} VERSION --why …")
        return
    table = Table(title=f"Transitions of {model}", expand=True)
    for name in ("rollout", "when", "to", "plan", "who", "why", "decision"):
        table.add_column(name, overflow="fold")
    for t in found:
        event = t.state.moved_at or t.state.entered_at
        table.add_row(
            t.state.id, (event or t.at)[:16], place(t.state), str(t.revision), t.who, t.why, t.decision or "–"
        )
    Console().print(table)
    _print_reigns(controller.plans.history(model))
    last = next((t.decision for t in reversed(found) if t.decision), "")
    if last:
        typer.echo(f"The arithmetic of the last decision: trellis explain {last}")


@app.command("shadow")
def shadow(
    model: Model,
    version: Annotated[str, typer.Option(help="The shadow; the one that scored last if not given.")] = "",
    as_json: AsJson = False,
) -> None:
    """Compare a shadow with what was answered on the same rows: overall, by segment, latency and memory."""
    from trellis.adapters.prediction_log import read_predictions, read_shadows
    from trellis.cli.shadow import interval_text, shadow_report

    home, spec = settings().directory(), spec_of(model)
    found = shadow_report(spec, read_shadows(home, model), read_predictions(home, model), version)
    if as_json:
        typer.echo(json.dumps(finite(found), indent=2))
        return
    title = f"{model}: version {found['version']} in the shadow of {found['primary']}, {found['rows']} rows"
    table = Table(title=title, expand=True)
    for name in ("rows of", "rows", "decided otherwise", "shadow less primary"):
        table.add_column(name, overflow="fold")
    for one in found["comparisons"]:
        other, less = one["disagreement"], one["difference"]
        where = one["segment"] or "all"
        table.add_row(where, str(other["rows"]), interval_text(other, ".2%"), interval_text(less, "+.4f"))
    Console().print(table)
    for name, spent in found["latency_ms"].items():
        if spent is not None:
            typer.echo(f"{name.replace('_', ' ')}: " + ", ".join(f"{k} {v:g} ms" for k, v in spent.items()))
    if found["memory_mb"] is not None:
        typer.echo(f"memory that loading it took: {found['memory_mb']:g} MB")
    if found["failed"]:
        typer.echo(f"{found['failed']} rows could not be scored")


def _print_reigns(history: Any) -> None:
    """Print who was the champion from which revision, and what came with it."""
    table = Table(title="Who answered, and what came with each: a rollback brings back all of a row", expand=True)
    for name in ("from revision", "version", "model", "features", "thresholds", "drift baseline", "who"):
        table.add_column(name, overflow="fold")
    before = None
    for change in history:
        champion = change.plan.champion
        now, release = (champion.version, champion.release), champion.release
        if now == before:
            continue
        before = now
        cells = ("unknown",) * 3
        if release is not None:
            digest = release.features.removeprefix("sha256:")[:8]
            features = f"{release.feature_service} {digest}" if release.feature_service else "none"
            cells = (features, release.thresholds[:8], release.baseline[:8])
        table.add_row(str(change.plan.revision), f"v{champion.version}", champion.digest[:8], *cells, change.who)
    Console().print(table)


@app.command("pause")
def pause(model: Model, why: Why, who: Who = "operator", as_json: AsJson = False) -> None:
    """Keep the split as it is until somebody resumes; time goes on."""
    _override(model, "pause", why, who, as_json)


@app.command("resume")
def resume(
    model: Model,
    why: Why,
    who: Who = "operator",
    now: Annotated[str, typer.Option(help="Event time, RFC 3339; decides whether it is past its deadline.")] = "",
    as_json: AsJson = False,
) -> None:
    """Let a paused rollout go on."""
    _override(model, "resume", why, who, as_json, now=now)


@app.command("abort")
def abort(model: Model, why: Why, who: Who = "operator", as_json: AsJson = False) -> None:
    """End a rollout; the champion answers everything again."""
    _override(model, "abort", why, who, as_json)


@app.command("promote")
def promote(
    model: Model,
    why: Why,
    version: Annotated[str, typer.Option(help="Which candidate; the only one if not given.")] = "",
    who: Who = "operator",
    as_json: AsJson = False,
) -> None:
    """Make a candidate the champion, whatever the evidence says."""
    _override(model, "promote", why, who, as_json, version=version)


app.command("plan")(plan)


@app.command("rollback")
def rollback(
    model: Model,
    why: Why,
    to: Annotated[str, typer.Option(help="A version that was champion once; the one before if not given.")] = "",
    who: Who = "operator",
    as_json: AsJson = False,
) -> None:
    """Take a rollout off the traffic, or without one go back to the champion before; one transaction."""
    controller = _controller()
    saved = controller.rollback(model, _policy(model, needed=False), who=who, why=why, to=to)
    if as_json:
        _tell(controller, model, as_json)
        return
    at = datetime.now(UTC).isoformat(timespec="seconds")
    typer.echo(f"{model}: version {saved.champion.version} answers everything again (revision {saved.revision}, {at}).")


def _override(model: str, verb: Any, why: str, who: str, as_json: bool, *, version: str = "", now: str = "") -> None:
    controller = _controller()
    needed = verb in ("resume", "promote")
    controller.override(model, verb, _policy(model, needed=needed), who=who, why=why, version=version, now=now)
    _tell(controller, model, as_json)


def _tell(controller: Any, model: str, as_json: bool) -> None:
    plan, state = controller.plans.current(model), controller.store.current(model)
    if as_json:
        told = {"plan": plan, "rollout": state, "history": controller.plans.history(model)}
        typer.echo(json.dumps(json.loads(dumps(told)), indent=2))
        return
    typer.echo(f"{model}: {traffic(plan)} (revision {plan.revision}).")
    if state is not None:
        typer.echo(f"Rollout {state.id} ({state.strategy}): {place(state)}.")


def traffic(plan: Any) -> str:
    """Say who answers which share."""
    shares = [f"v{v.version} {v.weight:.0%} ({v.role})" for v in plan.variants]
    return ", ".join([*shares, *(f"v{s.version} shadows {s.sample_rate:.0%}" for s in plan.shadows)])


def place(state: Any) -> str:
    """Say where a rollout stands."""
    text: str = state.stage.replace("_", " ")
    if state.stage == "trial" and state.strategy == "canary":
        text += f", step {state.step + 1}"
    if state.winner:
        text += f", version {state.winner}"
    return text + (", paused" if state.paused else "")


def _variant(controller: Any, model: str, version: str) -> Any:
    """Return a version with its files' place and digest, checked; from the plan's history, or else the registry."""
    from trellis.adapters.remote_artifacts import local_artifact
    from trellis.adapters.signing import verify_artifact
    from trellis.rollout import Variant

    known = [v for c in controller.plans.history(model) for v in c.plan.variants if v.version == version]
    if known:
        location, digest, release = known[-1].location, known[-1].digest, known[-1].release
    else:
        from trellis.adapters.registry import ModelRegistry
        from trellis.adapters.releases import registered_release

        registry = ModelRegistry(settings().tracking_uri, settings().directory("mlflow", "artifacts"))
        found = registry.version(model, version)
        location, digest = str(found.location), found.digest
        release = registered_release(registry, model, version)
    verify_artifact(local_artifact(location, digest, settings().directory()), digest, settings().verify_key)
    return Variant(version, "canary", 0.0, location, digest, release)


def _controller() -> Any:
    from functools import partial

    from trellis.adapters.releases import served_definition
    from trellis.adapters.rollout_controller import RolloutController

    now = settings()
    served = partial(served_definition, now.feature_repo, now.directory(), now.online_store)
    return RolloutController(now.database_url, served=served)


def _policy(model: str, *, needed: bool = True) -> RolloutPolicy:
    """Return a model's rollout policy; a way back must not hang on the plug-in's code."""
    try:
        return spec_of(model).rollout
    except PluginError:
        if needed:
            raise
        return RolloutPolicy()
