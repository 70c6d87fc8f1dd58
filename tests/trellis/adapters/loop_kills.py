"""Play a quarter of a loop again and again, killed at random SQL statements until it is through; prints what it saw.

The world around the loop (candidates, versions, rollouts, decisions) is kept in
the same database, in tables that count how often an act was asked for and hold its effect once, as the real ones do.
"""

import hashlib
import json
import random
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import sqlalchemy as sa
from sql_kills import Kills
from sqlalchemy.dialects import sqlite

from trellis.adapters.database import Database, engine
from trellis.adapters.decision_store import DecisionStore
from trellis.adapters.loop_store import LoopStore
from trellis.contract import RetrainPolicy
from trellis.decision import decision_of, dumps
from trellis.loop import (
    Followed,
    Gated,
    RetrainInputs,
    Returned,
    Signal,
    Trained,
    Verified,
    Weighed,
    decide_retrain,
    turn,
)

MODEL, DAYS = "toy", 90
POLICY = RetrainPolicy(
    cooldown_days=6, budget_per_month=4, min_new_labels=1, max_attempts=1_000_000, max_failures=3, breaker_days=20
)
_METADATA = sa.MetaData()
_ACTS = sa.Table(
    "acts", _METADATA, sa.Column("act", sa.String(200), primary_key=True), sa.Column("effect", sa.Text, nullable=False)
)


def day(number):
    return (datetime(2013, 1, 1, tzinfo=UTC) + timedelta(days=number)).isoformat()


def chance(*parts):
    """A number in [0, 1) that is always the same for the same parts."""
    return int(hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:8], 16) / 2**32


class World:
    """What the loop acts on; every act is kept under its cycle and done once however often it is asked for."""

    def __init__(self, url, seed):
        self.engine, self.seed = Database(engine(url), _METADATA, "world").engine, seed
        self.decisions = DecisionStore(self.engine)

    def act(self, name, effect):
        with self.engine.begin() as connection:
            connection.execute(sqlite.insert(_ACTS).values(act=name, effect=effect).on_conflict_do_nothing())
            return connection.execute(sa.select(_ACTS.c.effect).where(_ACTS.c.act == name)).scalar_one()

    def weigh(self, state, now):
        taken = [d for d in self.decisions.list(MODEL, "retrain") if d.at == now and d.verdict.outcome == "RETRAIN"]
        if not taken:
            loud = chance(self.seed, "drift", now[:8]) if chance(self.seed, now[:7]) < 0.7 else 0.0
            inputs = RetrainInputs(
                MODEL, now, (Signal("drift", loud > 0.2, loud, 0.2, "so far"),), "", state.starts, 9, None,
                state.open.id if state.open else "", state.stage, state.failures, state.broken_since, state.paused,
            )  # fmt: skip
            verdict = decide_retrain(inputs, POLICY)
            made = decision_of(
                "retrain", model=MODEL, subject="", at=now, inputs=inputs, policy=POLICY, verdict=verdict
            )
            if verdict.outcome == "RETRAIN":
                self.decisions.record(made)
            taken = [made]
        found = taken[0]
        return Weighed(found.id, found.verdict.outcome, found.verdict.reason, "drift", "1")

    def train(self, cycle):
        return Trained({"candidate": self.act(f"{cycle.id} candidate", f"of {cycle.decision}")})

    def gate(self, cycle):
        luck = chance(self.seed, "gate", cycle.id)
        outcome = "REJECT" if luck < 0.2 else "HOLD" if luck < 0.3 else "PROMOTE"
        version = self.act(f"{cycle.id} version", f"v-{cycle.id}")
        if outcome == "PROMOTE":
            self.act(f"{cycle.id} rollout", version)
        return Gated(version, outcome, outcome, {"version": version}, outcome == "PROMOTE")

    def follow(self, cycle, now):
        days = (datetime.fromisoformat(now) - datetime.fromisoformat(cycle.at)).days
        if days < 3:
            return Followed("open", "on trial")
        if chance(self.seed, "back", cycle.id) < 0.3:
            return Followed("rolled_back", self.act(f"{cycle.id} ended", "rolled back"))
        return Followed("champion", self.act(f"{cycle.id} ended", "took over"))

    def verify(self, cycle, now):
        days = (datetime.fromisoformat(now) - datetime.fromisoformat(cycle.at)).days
        outcome = "HOLD" if days < 5 else "REGRESSED" if chance(self.seed, "bad", cycle.id) < 0.3 else "CONFIRMED"
        return Verified(outcome, outcome, f"verify-{cycle.id}")

    def give_back(self, cycle):
        return Returned(self.act(f"{cycle.id} given back", "back"))


def play(url, seed):
    """Take every turn that a scheduler has not seen the end of."""
    store, world = LoopStore(url), World(url, seed)
    clock = Path(url.removeprefix("sqlite:///")).with_suffix(".day")
    for number in range(int(clock.read_text()) if clock.exists() else 0, DAYS):
        turn(store, world, POLICY, MODEL, day(number))
        clock.write_text(str(number + 1))


def written(url):
    """Return all that a quarter left, but for the wall clock and how often a piece of work was begun."""
    store = LoopStore(url)
    moves = []
    for t in store.history(MODEL):
        cycle = replace(t.state.cycle, attempts=0, why="")
        told = dumps([replace(t.state, number=0, cycle=cycle), t.who, t.decision])
        if not moves or moves[-1] != told:
            moves.append(told)
    with store.lease(MODEL):  # no lease is left behind
        pass
    with engine(url).connect() as connection:
        acts = [tuple(row) for row in connection.execute(sa.select(_ACTS).order_by(_ACTS.c.act))]
    decisions = sorted(d.id for d in DecisionStore(engine(url)).list(MODEL))
    return moves, acts, decisions


def audit(moves):
    """Return what is wrong with a loop's way: a step that is stuck, doubled or lost."""
    wrong, ways = [], {}
    for text in moves:
        state = json.loads(text)[0]
        ways.setdefault(state["cycle"]["id"], []).append((state["stage"], state["cycle"]["outcome"]))
    order = ["training", "gating", "rollout", "verifying", "returning"]
    ways = {cycle: [k for i, k in enumerate(way) if not i or k != way[i - 1]] for cycle, way in ways.items()}
    for number, (cycle, way) in enumerate(ways.items()):
        if cycle != f"{MODEL}-cycle-{number + 1}":
            wrong.append(f"{cycle} is the {number + 1}th")
        stages = [stage for stage, _ in way]
        last = number == len(ways) - 1
        if stages[-1] != "watching" and not last:
            wrong.append(f"{cycle} never ended: {stages}")
        working = stages[:-1] if stages[-1] == "watching" else stages
        if working != order[: len(working)]:
            wrong.append(f"{cycle} went {stages}")
        if stages[-1] == "watching" and not way[-1][1]:
            wrong.append(f"{cycle} ended without an outcome")
    return wrong


def main():
    """Kill until there were enough, and through to the end of the last quarter."""
    home, wanted, seeds = sys.argv[1], int(sys.argv[2]), 0
    draw, kills = random.Random(20130701), Kills()
    wrong, differ, ends = [], 0, Counter()
    while kills.count < wanted:
        url, calm = f"sqlite:///{home}/{seeds}.db", f"sqlite:///{home}/calm-{seeds}.db"
        quarter = partial(play, seed=seeds)
        kills.undisturbed(calm, quarter, synced=False)
        # Most kills come early, some late: every stage of every cycle has its turn.
        kills.through(url, quarter, lambda: draw.randrange(40 if draw.random() < 0.5 else 600), synced=False)
        left, undisturbed = written(url), written(calm)
        differ += left != undisturbed
        wrong += audit(left[0])
        ends.update(json.loads(m)[0]["cycle"]["outcome"] for m in left[0] if json.loads(m)[0]["stage"] == "watching")
        seeds += 1
    told = {"kills": kills.count, "quarters": seeds, "differ": differ, "wrong": wrong, "places": kills.places}
    print(json.dumps(told | {"ends": ends}))


if __name__ == "__main__":
    main()
