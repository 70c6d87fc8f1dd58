"""The flows as Prefect deployments, for a server: ``trellis flow deploy``."""

from __future__ import annotations

import os

from pipelines.data import prepare_data
from pipelines.loop import turn_loop
from pipelines.rollout import advance_rollout
from pipelines.training import train_model
from trellis.errors import ConfigError
from trellis.settings import settings

FLOWS = (prepare_data, train_model, advance_rollout, turn_loop)


def serve_deployments() -> None:
    """Offer every flow to the Prefect server and run what it schedules, until interrupted.

    Raises:
        ConfigError: The settings or the environment name no server.
    """
    if settings().orchestrator != "prefect" or not os.environ.get("PREFECT_API_URL"):
        raise ConfigError(
            "Deployments need a Prefect server.",
            where="TRELLIS_ORCHESTRATOR, PREFECT_API_URL",
            remedy="Start one with: prefect server start. Then set TRELLIS_ORCHESTRATOR=prefect and PREFECT_API_URL.",
        )
    from prefect import serve

    serve(*(flow.prefect.to_deployment(name="trellis") for flow in FLOWS), limit=1)
