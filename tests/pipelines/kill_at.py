"""Run the training flow again and again, each time killed at the next place, at last to its end; prints how each ended.

Every run is a process of its own, forked off one that has imported the vendors already, so that a kill costs no seconds
of importing. The kill is SIGKILL to itself: nothing is flushed, no ``finally`` runs.
"""

import functools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

STEPS = (
    "ingest",
    "validate",
    "build_features",
    "materialize",
    "build_training_set",
    "train",
    "conformance",
    "evaluate",
    "gate",
    "register",
    "plan_rollout",
)
# These are done anew in every run and have to be harmless when repeated.
ACTS = ("ingest", "materialize", "register", "plan_rollout")


def die() -> None:
    """End this process as the kernel would for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def after(owner: Any, name: str) -> None:
    """Make a method the last thing this process does."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)
        die()

    setattr(owner, name, call)


def before_journal(step: str) -> None:
    """Die when a step's work is done and nothing tells so yet."""
    from pipelines import data, training

    after(getattr(data, step, None) or getattr(training, step), "function")


def after_step(step: str) -> None:
    """Die when a step's result is kept and the next step has not begun."""
    from pipelines import steps

    run = steps.Step._run

    def and_die(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = run(self, *args, **kwargs)
        if self.name == step:
            die()
        return result

    steps.Step._run = and_die


def places() -> list[tuple[str, Callable[[], None]]]:
    """Return where to kill, in the order in which a flow comes there."""
    from mlflow import MlflowClient

    from trellis.adapters.decision_store import DecisionStore
    from trellis.adapters.plan_store import PlanStore
    from trellis.adapters.registry import ModelRegistry

    inside = {
        "register": [
            ("run made", lambda: after(MlflowClient, "create_run")),
            ("files logged", lambda: after(MlflowClient, "log_artifacts")),
            ("version made", lambda: after(MlflowClient, "create_model_version")),
            ("evidence attached", lambda: after(ModelRegistry, "attach")),
            ("decision kept", lambda: after(DecisionStore, "record")),
        ],
        "plan_rollout": [
            ("plan saved", lambda: after(PlanStore, "save")),
            ("stage set", lambda: after(ModelRegistry, "set_stage")),
            ("alias set", lambda: after(ModelRegistry, "set_alias")),
        ],
    }
    found: list[tuple[str, Callable[[], None]]] = []
    for step in STEPS:
        found += inside.get(step, [])
        if step not in ACTS:
            found.append((f"{step} done, not kept", functools.partial(before_journal, step)))
        found.append((f"{step} kept", functools.partial(after_step, step)))
    return found


def run(arrange: Callable[[], None], arguments: dict[str, Any]) -> int:
    """Run the flow in a process of its own and return how that ended, as ``waitpid`` tells."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            arrange()
            from pipelines.training import Recipe, train_model

            train_model("toy_binary", Recipe("linear"), **arguments)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """Kill at every place in turn, then finish."""
    import great_expectations  # noqa: F401

    import trellis.adapters.validation  # noqa: F401
    from pipelines import training  # noqa: F401

    arguments = json.loads(sys.argv[1])
    ends = {name: run(arrange, arguments) for name, arrange in places()}
    ends["to the end"] = run(lambda: None, arguments)
    ends["and again"] = run(lambda: None, arguments)
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
