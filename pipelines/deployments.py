"""The flows as Prefect deployments, for a server: ``trellis flow deploy``; every model's loop with its schedule.

A deployment's entrypoint is an attribute of this module, ``pipelines.deployments.train_model`` say: the process that
Prefect starts for a run imports it and finds the Prefect flow, made only then.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from pipelines import batch, data, loop, rollout, stack_loop, training
from pipelines.plugins import catalogue
from pipelines.steps import Flow
from trellis.errors import ConfigError
from trellis.settings import settings

NAME = "trellis"
_BEGIN = datetime(2013, 1, 1, tzinfo=UTC)
FLOWS: dict[str, Flow[Any, Any]] = {
    flow.function.__name__: flow
    for flow in (
        data.prepare_data,
        training.train_model,
        rollout.advance_rollout,
        loop.turn_loop,
        stack_loop.watch_model,
        stack_loop.retrain_model,
        batch.predict_table,
    )
}


def __getattr__(name: str) -> Any:
    """Return the Prefect flow of that name."""
    if name not in FLOWS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return FLOWS[name].prefect


def serve_deployments() -> None:
    """Offer every flow to the Prefect server; run what it schedules until interrupted, unless a work pool does.

    Raises:
        ConfigError: The settings or the environment name no server.
    """
    if settings().orchestrator != "prefect" or not os.environ.get("PREFECT_API_URL"):
        raise ConfigError(
            "Deployments need a Prefect server.",
            where="TRELLIS_ORCHESTRATOR, PREFECT_API_URL",
            remedy="Start one with: prefect server start. Then set TRELLIS_ORCHESTRATOR=prefect and PREFECT_API_URL.",
        )
    if pool := settings().work_pool:
        for name, flow in FLOWS.items():
            _deployment(name, flow).apply(work_pool_name=pool)
        return
    from prefect import serve

    # One run at a time: flows of one model must not race for its plan, and SQLite takes one writer.
    serve(*(_deployment(name, flow) for name, flow in FLOWS.items()), limit=1)


def _deployment(name: str, flow: Flow[Any, Any]) -> Any:
    from prefect.types.entrypoint import EntrypointType

    # Applied anew, a deployment's automations are replaced: doing it twice leaves one.
    triggers = [stack_loop.retraining_trigger()] if name == "retrain_model" else []
    made = flow.prefect.to_deployment(
        name=NAME,
        entrypoint_type=EntrypointType.MODULE_PATH,
        triggers=triggers,
        schedules=_turns() if name == "watch_model" else [],
    )
    made.entrypoint = f"{__name__}.{name}"
    return made


def _turns() -> list[Any]:
    """Return when each model's loop takes a turn, one after the other within the period.

    The period begins at a fixed moment, so that deploying again postpones nothing. Schedules go without a slug: applied
    anew they replace those that were there, also where models are gone or the setting is 0.
    """
    from prefect.schedules import Interval

    minutes, models = settings().loop_minutes, catalogue().names()
    if not minutes:
        return []
    return [
        Interval(
            timedelta(minutes=minutes),
            anchor_date=_BEGIN + timedelta(minutes=minutes * place / len(models)),
            parameters={"model": model, "paced": True},
        )
        for place, model in enumerate(models)
    ]
