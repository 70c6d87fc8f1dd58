"""A canary that raises on one row in twenty, on a real service under load: the error guard takes it back."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chaos.load import Load
from chaos.service import TOYS, Service, wait_for


def failures(home: Path, *, broken: float = 0.05, seconds: float = 30.0) -> dict[str, Any]:
    """Return what the guard saw and did; the controller looks every second, as its flow does."""
    service = Service(home, workers=1)
    service.first(service.version("1"))
    os.environ |= {"TRELLIS_HOME": str(home), "TRELLIS_MODELS": str(TOYS), "TRELLIS_STORE_URL": service.store_url}
    from pipelines import rollout
    from trellis.contract import RolloutPolicy

    rollout.mirror = lambda model: None  # the registry is not what is tried here
    policy = RolloutPolicy(steps=(0.5,), min_labels=100)
    looks: list[str] = []
    with service, Load(service.port, pause=0.02) as load:
        rollout.controller().start(
            "plain", [service.version("2", broken=broken)], policy, who="bench", why="a candidate that raises"
        )
        begun = time.monotonic()
        wait_for(lambda: any(a.version == "2" for a in load.answers), "the canary's first answer")
        decision = None
        while time.monotonic() - begun < seconds:
            time.sleep(1.0)
            decision = rollout.advance_rollout("plain", datetime.now(UTC).isoformat())
            looks.append(decision.verdict.outcome if decision else "none")
            if service.plans.current("plain").canary is None:
                break
        took = time.monotonic() - begun
        moment = time.monotonic()
        wait_for(lambda: load.answers[-1].sent > moment + 1.0, "a second of answers afterwards")
        after = [a.version for a in load.answers if a.sent > moment + 1.0]
    plan, last = service.plans.current("plain"), service.plans.history("plain")[-1]
    return {
        "looks": looks,
        "outcome": decision.verdict.outcome if decision else "none",
        "check": decision.verdict.checks[0].name if decision else "",
        "reason": decision.verdict.reason if decision else "",
        "seconds_to_rollback": round(took, 1),
        "champion": plan.champion.version,
        "canary": plan.canary.version if plan.canary else None,
        "why": last.why,
        "answers": len(load.answers),
        "stood_in": sum(a.fallback for a in load.answers),
        "not_200": len(load.failed),
        "broken_connections": sum(load.broken.values()),
        "canary_answers_a_second_later": after.count("2"),
    }
