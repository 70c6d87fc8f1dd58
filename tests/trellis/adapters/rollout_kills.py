"""Play one rollout again and again, killed at random SQL statements until it gets through; prints what was seen.

Each rollout has a database of its own: a file below ``sqlite:///…``, or one that is made on a PostgreSQL server.
"""

import json
import random
import sys

import sqlalchemy as sa
from sql_kills import Kills

from trellis.adapters.rollout_controller import RolloutController
from trellis.contract import RolloutPolicy
from trellis.decision import Check, Verdict, dumps
from trellis.rollout.plan import Variant, first_plan

POLICY = RolloutPolicy(steps=(0.1, 0.25, 0.5), shadow_rate=0.2)
READY = Verdict("HOLD", "go on", (Check("ready_to_step", True, "ready"),))
STORY = (
    (None, 1), (None, 2), (READY, 3), (Verdict("HOLD", "wait"), 4), (READY, 5), (Verdict("PROMOTE", "as good"), 6),
)  # fmt: skip


def play(url):
    """Do what is left of the story: start it if it is not there, and take every look from the last move on again."""
    controller = RolloutController(url)
    if controller.plans.current("toy") is None:
        one = Variant("1", "champion", 1.0, "/1", "d1")
        controller.plans.save(first_plan("toy", one, salt="s"), expected_revision=0, who="platform", why="first")
    if controller.store.current("toy") is None:
        controller.start("toy", [Variant("2", "canary", 0.0, "/2", "d2")], POLICY, who="anna", why="try", gate="gate-1")
    for verdict, day in STORY:
        now = f"2013-07-{day:02d}T00:00:00+00:00"
        if now >= controller.store.current("toy").moved_at:
            controller.look("toy", verdict, POLICY, now, who="platform", decision=f"d-{day}")


def written(url):
    """Return all that the story left, but for the wall clock."""
    controller = RolloutController(url)
    plans = [(c.plan, c.who, c.why) for c in controller.plans.history("toy")]
    moves = [(t.state, t.who, t.why, t.decision, t.revision) for t in controller.store.history("toy")]
    with controller.store.lease("toy"):  # no lease is left behind
        pass
    return dumps([plans, moves, controller.plans.current("toy"), controller.store.current("toy")])


def fresh(place, name):
    if place.startswith("sqlite"):
        return f"{place}/{name}.db"
    admin = sa.create_engine(f"{place}/postgres", isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return f"{place}/{name}"


def main():
    """Kill until there were enough, and through to the end of the last rollout."""
    place, wanted = sys.argv[1], int(sys.argv[2])
    draw, kills = random.Random(20130701), Kills()
    undisturbed = fresh(place, "undisturbed")
    kills.undisturbed(undisturbed, play)
    rollouts, ends = 0, set()
    while kills.count < wanted:
        url = fresh(place, f"kills{rollouts}")
        rollouts += 1
        kills.through(url, play, lambda: draw.randrange(90))
        ends.add(written(url))
    told = {"kills": kills.count, "rollouts": rollouts, "places": kills.places, "ends": sorted(ends)}
    print(json.dumps(told | {"undisturbed": written(undisturbed)}))


if __name__ == "__main__":
    main()
