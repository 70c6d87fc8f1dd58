"""One of several processes that want the same writes; prints what it won, as JSON.

``plans URL NAME UNTIL``: write every revision that it can be the first for, up to UNTIL.
``looks URL``: take the looks of a story, each again until it is taken.
"""

import json
import sys
import time

from trellis.adapters.plan_store import PlanStore
from trellis.adapters.rollout_controller import RolloutController
from trellis.contract import RolloutPolicy
from trellis.decision import Check, Verdict
from trellis.errors import ClockError, LeaseHeldError, StaleRevisionError
from trellis.rollout.plan import Variant, first_plan

POLICY = RolloutPolicy(steps=(0.1, 0.5), shadow_rate=0.2)
READY = Verdict("HOLD", "go on", (Check("ready_to_step", True, "ready"),))
STORY = [(None, 1), (None, 2), (READY, 3), (Verdict("PROMOTE", "as good"), 4)]


def plans(url, name, until):
    store, won = PlanStore(url), []
    while True:
        now = store.current("toy")
        revision = now.revision if now else 0
        if revision >= int(until):
            return won
        plan = first_plan("toy", Variant(f"{name}-{revision}", "champion", 1.0, "/a", "d"), salt="s")
        try:
            won.append(store.save(plan, expected_revision=revision, who=name, why="race").revision)
        except StaleRevisionError:
            continue


def looks(url):
    controller, refused = RolloutController(url), 0
    for verdict, day in STORY:
        while True:
            try:
                controller.look("toy", verdict, POLICY, f"2013-07-{day:02d}T00:00:00+00:00", who="platform")
                break
            except (LeaseHeldError, StaleRevisionError):
                refused += 1
                time.sleep(0.005)
            except ClockError:  # the other process is past this day
                refused += 1
                break
    return refused


if __name__ == "__main__":
    print(json.dumps({"plans": plans, "looks": looks}[sys.argv[1]](*sys.argv[2:])))
