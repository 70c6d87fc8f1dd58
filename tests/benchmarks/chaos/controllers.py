"""Rollout controllers to be killed: each a process of its own, forked off this one, which has imported everything.

``python controllers.py URL MODEL VERSIONS``: every line on stdin starts one more; its process id is printed. It starts
rollouts of the version that is not the champion, moves them step by step, and ends them well or badly in turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from datetime import UTC, datetime

from trellis.adapters.rollout_controller import RolloutController
from trellis.contract import RolloutPolicy
from trellis.decision import Check, Verdict
from trellis.errors import LeaseHeldError, StaleRevisionError
from trellis.rollout.plan import Variant

POLICY = RolloutPolicy(steps=(0.1, 0.3, 0.5))
READY = Verdict("HOLD", "go on", (Check("ready_to_step", True, "ready"),))


def move(controller: RolloutController, model: str, versions: list[Variant]) -> None:
    """Take one step of the rollout that is going on, or begin the next one."""
    now = datetime.now(UTC).isoformat()
    state = controller.current(model, POLICY)
    if state is None or state.final:
        champion = controller.plans.current(model).champion.version
        other = next(v for v in versions if v.version != champion)
        controller.start(model, [other], POLICY, who="bench", why="try the other one")
        return
    ends = [Verdict("PROMOTE", "as good"), Verdict("ROLL_BACK", "worse")]
    done = {t.state.id for t in controller.store.history(model)}
    verdict = READY if state.step < len(POLICY.steps) - 1 else ends[len(done) % 2]
    controller.look(model, verdict, POLICY, now, who="platform", decision=f"d-{state.number}")


def play(url: str, model: str, versions: list[Variant], *, until_final: bool = False) -> None:
    """Move on and on; with ``until_final`` to the end of one rollout."""
    controller = RolloutController(url)
    while True:
        with contextlib.suppress(LeaseHeldError, StaleRevisionError):
            move(controller, model, versions)
        state = controller.store.current(model)
        if until_final and state is not None and state.final:
            controller.close()
            return
        time.sleep(0.01)


def main() -> None:
    """Start controllers as asked."""
    url, model = sys.argv[1:3]
    versions = [Variant(**fields) for fields in json.loads(sys.argv[3])]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the killed
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                play(url, model, versions)
            finally:
                os._exit(1)
        print(child, flush=True)


if __name__ == "__main__":
    main()
