"""``trellis rollout plan``: how many labelled rows and days a rollout will need."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trellis.contract import ModelSpec, RolloutPolicy
from trellis.decision import dumps
from trellis.errors import InvalidPlanError
from trellis.settings import settings


def plan(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    per_day: Annotated[float | None, typer.Option(help="Labelled rows a day; from the prediction log else.")] = None,
    variance: Annotated[
        float | None, typer.Option(help="Variance of a row's loss; from labelled predictions or the gate else.")
    ] = None,
    margin: Annotated[float | None, typer.Option(help="Non-inferiority margin; the model's own else.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Chance of a wrong verdict; the model's own else.")] = None,
    power: Annotated[float, typer.Option(help="Chance of the decision in the planned time.")] = 0.8,
    share: Annotated[float | None, typer.Option(help="One share throughout; the model's steps else.")] = None,
    harm: Annotated[float | None, typer.Option(help="Increase of the mean loss to be found; 1.5 margins else.")] = None,
    paired_variance: Annotated[
        float | None, typer.Option(help="Variance of the loss difference on the same row; plans in pairs as well.")
    ] = None,
    shadow_rate: Annotated[float | None, typer.Option(help="Share compared in pairs; the model's own else.")] = None,
    strategy: Annotated[str | None, typer.Option(help="canary or ab; the model's own else.")] = None,
    arms: Annotated[int, typer.Option(help="Versions beside the champion, of an A/B experiment.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Say how many labelled rows and days a rollout will need; exit code 3 if that is more than the policy allows."""
    from trellis.rollout.planner import plan_experiment, plan_pairs, plan_trial

    spec = spec_of(model)
    policy, delay = spec.rollout, spec.target.delay_hours / 24
    steps = None if share is None else (share,)
    given = {"margin": margin, "alpha": alpha, "steps": steps, "shadow_rate": shadow_rate, "strategy": strategy}
    policy = replace(policy, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    if policy.strategy not in ("canary", "ab"):
        raise InvalidPlanError(
            f"A {policy.strategy} rollout of {model!r} has no size to plan: "
            + ("time decides it." if policy.strategy == "blue_green" else "it ends when little is left to gain."),
            remedy="Plan another with --strategy canary or ab.",
        )
    if per_day is None or variance is None:
        from trellis.cli.traffic import loss_of_traffic

        found = loss_of_traffic(spec, settings(), variance_needed=variance is None, traffic_needed=per_day is None)
        per_day = found.per_day if per_day is None else per_day
        variance = found.variance if variance is None else variance
        source = found.source
    else:
        source = "as given"
    if policy.strategy == "ab":
        experiment = plan_experiment(policy, variance=variance, per_day=per_day, arms=arms, delay_days=delay)
        _print_experiment(model, policy, experiment, variance, per_day, source, as_json)
        raise typer.Exit(0 if experiment.in_time else 3)
    made = plan_trial(
        policy,
        variance=variance,
        per_day=per_day,
        power=power,
        harm=harm,
        delay_days=delay,
    )
    paired = None
    if paired_variance is not None:
        paired = plan_pairs(policy, variance=paired_variance, per_day=per_day, power=power, harm=harm, delay_days=delay)
    if as_json:
        told = {"variance": variance, "per_day": per_day, "source": source, "power": power, "policy": policy}
        pairs = {} if paired is None else {"paired_variance": paired_variance, "paired": asdict(paired)}
        numbers = json.loads(dumps(finite({**told, **asdict(made), **pairs})))
        typer.echo(json.dumps(numbers, indent=2))
    else:
        _print_plan(model, policy, made, variance, per_day, power, source)
        if paired is not None:
            typer.echo(
                f"On the same rows ({policy.shadow_rate:.0%} of the champion's): PROMOTE after "
                f"{_told(paired.promote_rows)} pairs, {paired.promote_days:.1f} days; ROLL_BACK after "
                f"{_told(paired.roll_back_rows)}, {paired.roll_back_days:.1f} days."
            )
    in_time = made.in_time or (paired is not None and paired.promote_days < policy.max_days)
    raise typer.Exit(0 if in_time else 3)


def _print_plan(
    model: str, policy: RolloutPolicy, made: Any, variance: float, per_day: float, power: float, source: str
) -> None:
    steps = ", ".join(f"{s:.0%}" for s in policy.steps)
    typer.echo(
        f"{model}: shares {steps}; margin {policy.margin:g}, alpha {policy.alpha:g}, power {power:g}; loss variance "
        f"{variance:.4g}, {per_day:,.0f} labelled rows a day ({source})."
    )
    table = Table()
    for name in ("true difference", "decision", "labelled rows", "of the canary", "days", "if looked at once"):
        table.add_column(name, justify="right")
    for need, decision in ((made.promote, "PROMOTE"), (made.roll_back, "ROLL_BACK")):
        cells = [_told(n) for n in (need.rows, need.canary_rows)]
        days = f"{need.days:.1f}" if math.isfinite(need.days) else "never"
        table.add_row(f"{need.difference:+.4f}", decision, *cells, days, _told(need.single_look_rows))
    Console().print(table)
    limit = f"the {policy.max_days:g} days of the policy"
    typer.echo(f"A sound version is promoted within {limit}." if made.in_time else f"That is longer than {limit}.")


def _print_experiment(
    model: str, policy: RolloutPolicy, need: Any, variance: float, per_day: float, source: str, as_json: bool
) -> None:
    if as_json:
        told = {"variance": variance, "per_day": per_day, "source": source, "policy": policy, **asdict(need)}
        typer.echo(json.dumps(json.loads(dumps(finite(told))), indent=2))
        return
    typer.echo(
        f"{model}: {need.arms} of {need.share:.1%} each against the champion; an improvement of {policy.margin:g}, "
        f"alpha {policy.alpha:g}, power 0.8; loss variance {variance:.4g}, {per_day:,.0f} labelled rows a day "
        f"({source}).\nAt most {_told(need.rows)} labelled rows of an arm and the champion, {need.days:.1f} days"
        f"{'' if need.in_time else f': longer than the {policy.max_days:g} days of the policy'}."
    )


def _told(rows: int) -> str:
    """Return a number of rows for a person; -1 means that none is enough."""
    return f"{rows:,}" if rows >= 0 else "never enough"


def spec_of(model: str) -> ModelSpec:
    """Return a model's declaration."""
    from trellis.catalog import Catalogue

    return Catalogue([settings().models]).plugin(model).spec


def finite(value: Any) -> Any:
    """Turn infinities into null: JSON has none."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
