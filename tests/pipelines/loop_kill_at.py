"""One real cycle of the loop (the toy model, the real flows, registry, stores and watch job), killed while it works.

``cycle(home, kills, seed)`` trains a champion, writes traffic in which the world turns round, and lets one turn of the
loop find it, train, gate, register and plan, in processes that get SIGKILL at random moments. It is played ``kills``
times from the same start; each time what is left is held against an undisturbed play. Every process is forked off one
that has imported the vendors, leads a group of its own, and is killed with all of the group.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL = "toy_binary"


@dataclass(frozen=True)
class Killed:
    """One play.

    Attributes:
        places: Stage of the loop and number of registered versions at each kill.
        same: Whether what is left is what an undisturbed play leaves.
        wrong: What is stuck, doubled, lost or half made, in sentences.
    """

    places: tuple[str, ...]
    same: bool
    wrong: tuple[str, ...]


def cycle(home: Path, kills: int, seed: int) -> Iterator[Killed]:
    """Play the cycle undisturbed once, then ``kills`` times with one or two kills in each."""
    from tests.pipelines.test_loop_flow import serve, text

    rng = random.Random(seed)
    now, kept = text(38), home.with_name("kept")
    run(lambda: prepare(home, serve, text))
    shutil.copytree(home, kept, symlinks=True)
    begun = time.monotonic()
    assert run(lambda: one_turn(now)) == 0
    spent = time.monotonic() - begun
    expected, problems = looked_into(home)
    assert not problems, problems
    for _ in range(kills):
        shutil.rmtree(home)
        shutil.copytree(kept, home, symlinks=True)
        places: list[str] = []
        for _ in range(rng.choice((1, 1, 2))):
            if run(lambda: one_turn(now), after=rng.uniform(0.05, 1.0) * spent) == -signal.SIGKILL:
                left, _ = looked_into(home)
                places.append(f"{left['stage']}, {len(left['versions'])} versions")
        ended = run(lambda: one_turn(now))
        found, problems = looked_into(home)
        wrong = [*problems, *([f"the turn ended with {ended}"] if ended else [])]
        wrong += [f"{name}: {found[name]} instead of {was}" for name, was in expected.items() if found[name] != was]
        yield Killed(tuple(places), found == expected, tuple(wrong))


def prepare(home: Path, serve: Any, text: Any) -> None:
    """Train version 1 until the launch; then a month of traffic, the world turned round for the last three weeks."""
    from pipelines.training import Recipe, train_model

    assert train_model(MODEL, Recipe("linear"), until=text(0)).verdict == "PROMOTE"
    serve(home, 10, 7)
    serve(home, 17, 21, law=0.1)


def one_turn(now: str) -> None:
    """Take one turn of the loop."""
    from pipelines.loop import turn_loop

    turn_loop(MODEL, now, report=False)


def looked_into(home: Path) -> tuple[dict[str, Any], list[str]]:
    """Do what ``inspect`` does in a process of its own: MLflow's connections must not be there at the next fork."""
    told = home.with_name("told.json")
    assert run(lambda: told.write_text(json.dumps(inspect(home)))) == 0
    left, wrong = json.loads(told.read_text())
    return left, wrong


def inspect(home: Path) -> tuple[dict[str, Any], list[str]]:
    """Return what is left in a home, without times, and what is half made in it."""
    import sqlite3

    from trellis.adapters.database import engine
    from trellis.adapters.decision_store import DecisionStore
    from trellis.adapters.loop_store import LoopStore
    from trellis.adapters.plan_store import PlanStore
    from trellis.adapters.registry import ModelRegistry
    from trellis.adapters.signing import verify_artifact
    from trellis.settings import settings

    registry = ModelRegistry(settings().tracking_uri, home / "mlflow" / "artifacts")
    url = settings().database_url
    loop, plans, taken = LoopStore(url), PlanStore(url), DecisionStore(engine(url))
    versions, wrong = registry.versions(MODEL), []
    for version in versions:
        try:
            verify_artifact(Path(version.location), version.digest, None)
            registry.document(version, "release.json")
        except Exception as error:
            wrong.append(f"version {version.version} is half made: {error}")
    state = loop.current(MODEL)
    numbers = [t.state.number for t in loop.history(MODEL)]
    if numbers != sorted(set(numbers)):
        wrong.append(f"the loop's transitions are numbered {numbers}")
    with sqlite3.connect(home / "mlflow" / "mlflow.db") as database:
        runs = database.execute("SELECT status, COUNT(*) FROM runs WHERE lifecycle_stage = 'active' GROUP BY 1")
        runs_by_status = dict(runs.fetchall())
    database.close()
    left = {
        "stage": state.stage,
        "cycle": (state.cycle.decision, state.cycle.version, state.cycle.outcome) if state.cycle else None,
        "cycles": state.cycles,
        "versions": [(v.version, v.digest, v.stage) for v in versions],
        "runs": runs_by_status,
        "plan": [tuple((v.version, v.role, v.weight) for v in c.plan.variants) for c in plans.history(MODEL)],
        "decisions": sorted(map(without_latency, taken.list(MODEL))),
        "candidates": sorted(p.name for p in (home / "candidates").iterdir() if not p.name.startswith(".")),
    }
    plans.close()
    return left, wrong


def without_latency(decision: Any) -> str:
    """Tell a decision by its evidence but for the latency, which a training begun anew measures anew."""
    evidence = dict(decision.inputs["inputs"])
    evidence.pop("latency_p95_ms", None)
    content = json.dumps([decision.subject, evidence, decision.verdict.outcome], sort_keys=True)
    return f"{decision.kind}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def run(work: Any, *, after: float | None = None) -> int:
    """Run work in a process of its own, killed with its group ``after`` so many seconds; return how it ended."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = None if after is None else time.monotonic() + after
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() >= deadline:
            os.killpg(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.005)


def main() -> None:
    """Play ``sys.argv[2]`` kills in the home ``sys.argv[1]`` with the seed ``sys.argv[3]``; one line of JSON each."""
    from dataclasses import asdict

    root = Path(__file__).parents[2]
    os.environ |= {
        "TRELLIS_HOME": sys.argv[1],
        "TRELLIS_MODELS": str(Path(__file__).parent / "toys"),
        "PYTHONPATH": str(root),
    }
    sys.path.insert(0, str(root))
    import great_expectations  # noqa: F401
    import mlflow  # noqa: F401

    import trellis.adapters.validation  # noqa: F401

    for killed in cycle(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])):
        print(json.dumps(asdict(killed)), flush=True)


if __name__ == "__main__":
    main()
