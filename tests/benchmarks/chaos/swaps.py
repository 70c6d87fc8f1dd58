"""The champion swapped for another and back again, under load: no request fails, and the old one is soon silent."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from chaos.load import Answer, Load
from chaos.service import Service

from trellis.adapters.rollout_controller import RolloutController
from trellis.contract import RolloutPolicy


def swaps(home: Path, *, swaps: int = 20, workers: int = 2, callers: int = 16) -> dict[str, Any]:
    """Return how long after each decision the old version still answered, in milliseconds, and what failed.

    Every swap is a rollback as an operator commands it, to the other of two champions each time.
    """
    service = Service(home, workers=workers)
    one, two = service.version("1"), service.version("2", slope=0.5)
    first = service.first(one)
    second = replace(first, variants=(two,))
    service.plans.save(second, expected_revision=1, who="bench", why="another champion")
    controller = RolloutController(service.store_url)
    decided: list[tuple[float, str]] = []
    with service, Load(service.port, callers=callers, pause=0.005, per_connection=100) as load:
        time.sleep(1.0)
        for number in range(swaps):
            moment = time.monotonic()
            to = "12"[number % 2]
            plan = controller.rollback("plain", RolloutPolicy(), who="bench", why=f"swap {number}", to=to)
            decided.append((moment, plan.champion.version))
            time.sleep(1.2)
        spread = service.spread()
    late = sorted(_old_for(load.answers, decided))
    reached = [v for v, (_, wanted) in zip(_last_versions(load.answers, decided), decided, strict=True) if v == wanted]
    return {
        "swaps": len(decided),
        "reached": len(reached),
        "old_version_for_p50_ms": round(statistics.median(late)),
        "old_version_for_p99_ms": round(late[min(len(late) - 1, int(0.99 * len(late)))]),
        "old_version_for_max_ms": round(late[-1]),
        "answers": len(load.answers),
        "failed_requests": len(load.failed),
        "broken_connections": sum(load.broken.values()),
        "connections_by_worker": spread,
    }


def _old_for(answers: list[Answer], decided: list[tuple[float, str]]) -> list[float]:
    """Return for each swap the milliseconds from the decision to the last answer of another version."""
    ends = [moment for moment, _ in decided[1:]] + [float("inf")]
    found = []
    for (moment, wanted), end in zip(decided, ends, strict=True):
        old = [a.received for a in answers if moment <= a.received < end and a.status == 200 and a.version != wanted]
        found.append((max(old, default=moment) - moment) * 1000)
    return found


def _last_versions(answers: list[Answer], decided: list[tuple[float, str]]) -> list[str]:
    ends = [moment for moment, _ in decided[1:]] + [float("inf")]
    told = [a for a in answers if a.status == 200]
    return [max((a for a in told if a.received < end), key=lambda a: a.received).version for end in ends]
