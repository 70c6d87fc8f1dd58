"""False verdicts where nothing differs: splits by caller, counted by caller and by row, and A/B/n experiments.

Run ``python tests/benchmarks/bench_verdicts_split.py [--full]``. All versions are the same; a verdict other than that
the canary may stay (PROMOTE of a canary, HOLD, or the end of the time) is wrong, and of an experiment PROMOTE as well.
Traffic is 900 rows a day for 30 days, looked at every day; callers have Zipf volumes and losses of their own.

And the guards of splits by caller, for which the losses say promote from the first day on: what is promoted, rolled
back or held to the end, of equal canaries, and of some that fail or are slow late or over and over.
"""

import argparse
from collections import Counter

import numpy as np

from trellis.contract import RolloutPolicy
from trellis.rollout import CanaryInputs, LossStream, exposures_of, next_share, ready_to_step
from trellis.rollout.compare import AbInputs, Arm, decide_ab
from trellis.rollout.draws import unit_exposures
from trellis.rollout.pairs import Pairs
from trellis.rollout.units import count_units
from trellis.rollout.verdict import decide

PER_DAY, DAYS = 900, 30
# Name, callers, their Zipf exponent, kind of event, its rate under the champion and under the canary, the day from
# which the latter holds and the one of the first look, whether each caller has a rate of its own, and whether there is
# a blip: all requests of half the first day fail.
GUARDED = (
    ("equal failures, 1 %", 300, 1.0, "failed", 0.01, 0.01, 1, 1, False, False),
    ("equal failures, 1 %, first look late", 300, 1.0, "failed", 0.01, 0.01, 1, 15, False, False),
    ("equal failures, 1 %, callers' own, first look late", 300, 1.0, "failed", 0.01, 0.01, 1, 15, True, False),
    ("equal failures, 1 %, first look late", 5_000, 0.5, "failed", 0.01, 0.01, 1, 15, False, False),
    ("equal failures, 1 %, after a blip", 300, 1.0, "failed", 0.01, 0.01, 1, 3, False, True),
    ("equally slow, 3 %, first look late", 300, 1.0, "slow", 0.03, 0.03, 1, 15, False, False),
    ("failures 1 % -> 10 %", 300, 1.0, "failed", 0.01, 0.10, 1, 1, False, False),
    ("failures 5 % -> 15 % from day 20 on, first look on day 25", 300, 0.5, "failed", 0.05, 0.15, 20, 25, False, False),
    ("failures 0.1 % -> 100 % after a blip", 300, 1.0, "failed", 0.001, 1.0, 3, 3, False, True),
    ("all answers slow", 300, 1.0, "slow", 0.03, 1.0, 1, 1, False, False),
)


def losses(rng, effect):
    """Brier losses of flights, moved by each caller's own effect."""
    p = 1 / (1 + np.exp(-(-1.9 + 0.9 * rng.normal(size=effect.shape) + 3 * effect)))
    return np.clip((p - (rng.uniform(size=effect.shape) < p)) ** 2 + effect, 0, 1)


def by_caller(rng, callers, zipf, counted):
    """Return how a rollout of an equal canary that splits by caller ends; ``counted`` says whether units are."""
    policy, share, log = RolloutPolicy(), 0.1, []
    volume = 1 / np.arange(1, callers + 1) ** zipf
    position, effect = rng.uniform(size=callers), 0.1 * rng.normal(size=callers)
    for day in range(1, DAYS + 1):
        who = rng.choice(callers, size=PER_DAY, p=volume / volume.sum())
        log.append((who.astype(str), position[who] < share, losses(rng, effect[who]), np.full(PER_DAY, share)))
        unit, arm, loss, shares = (np.concatenate(part) for part in zip(*log, strict=True))
        if counted:
            stream = LossStream().update(arm, loss, shares, unit=unit)
            exposures = unit_exposures(unit, shares, arm, np.zeros(len(arm), dtype=bool), None)
        else:
            stream, exposures = LossStream().update(arm, loss, shares), exposures_of(shares, arm)
        inputs = CanaryInputs(stream, exposures, share, float(day))
        verdict = decide(inputs, policy)
        if verdict.outcome != "HOLD":
            break
        if ready_to_step(inputs, policy).passed:
            share = next_share(policy, share) or share
    return f"{verdict.outcome} {verdict.checks[0].name}"


def guarded(rng, clusters, callers, zipf, kind, rate, harmed, since, first, own, blip):
    """Return how, and when, a rollout ends that only its guards hold; ``clusters`` says whether requests count."""
    policy, log = RolloutPolicy(shadow_rate=1.0), []
    volume = 1 / np.arange(1, callers + 1) ** zipf
    position = rng.uniform(size=callers)
    usual = rng.beta(0.1, 0.1 * (1 - rate) / rate, size=callers) if own else np.full(callers, rate)
    for day in range(1, DAYS + 1):
        share = 0.1 if day <= 3 else 0.5
        who = rng.choice(callers, size=PER_DAY, p=volume / volume.sum())
        arm = position[who] < share
        chance = usual[who] + (harmed - rate) * (arm & (day >= since))
        if blip and day == 1:
            chance[PER_DAY // 2 :] = 1.0
        event = rng.uniform(size=PER_DAY) < chance
        log.append((who.astype(str), arm, losses(rng, np.zeros(PER_DAY)), np.full(PER_DAY, share), event))
        if day < first:
            continue
        unit, arms, loss, shares, events = (np.concatenate(part) for part in zip(*log, strict=True))
        nothing = np.zeros(len(arms), dtype=bool)
        told = (unit, shares, arms, *((events, nothing) if kind == "failed" else (nothing, events)))
        units = count_units(*told) if clusters else None
        stream, pairs = LossStream().update(arms, loss, shares, unit=unit), Pairs(5_000, 0.0, 2.0)
        inputs = CanaryInputs(stream, unit_exposures(*told), share, float(day), pairs=pairs, units=units)
        verdict = decide(inputs, policy)
        if verdict.outcome != "HOLD":
            break
    return "HELD" if verdict.checks[0].name == "time" else verdict.outcome, day


def experiment(rng, arms):
    """Return how an experiment of equal versions ends."""
    policy = RolloutPolicy(strategy="ab", steps=(0.5,), margin=0.01)
    share = 0.5 / arms
    ours = share / (share + 0.5)
    streams = [LossStream()] * arms
    for day in range(1, DAYS + 1):
        drawn = rng.choice(arms + 1, size=PER_DAY, p=[0.5, *[share] * arms])
        loss = losses(rng, np.zeros(PER_DAY))
        for i in range(arms):
            pair = (drawn == 0) | (drawn == i + 1)
            streams[i] = streams[i].update(drawn[pair] == i + 1, loss[pair], ours)
        made = [Arm(str(i + 2), CanaryInputs(s, (), ours, float(day))) for i, s in enumerate(streams)]
        verdict = decide_ab(AbInputs(tuple(made)), policy)
        if verdict.outcome != "HOLD":
            break
    return f"{verdict.outcome} {verdict.checks[0].name.partition('/')[0]}"


def main():
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="10,000 experiments and 500 splits by caller of each kind")
    full = parser.parse_args().full
    runs, worst = (500, 10_000) if full else (30, 500), 0.0
    print(f"{runs[0]} equal canaries split by caller; alpha 5 %")
    for callers, zipf in ((300, 1.0), (5_000, 0.5)):
        for counted in (False, True):
            found = Counter(by_caller(np.random.default_rng(i), callers, zipf, counted) for i in range(runs[0]))
            wrong = sum(n for end, n in found.items() if end.startswith("ROLL_BACK") or end.endswith("_split"))
            wrong += sum(n for end, n in found.items() if end.endswith("sample_ratio"))
            worst = max(worst, wrong / runs[0] if counted else 0.0)
            name = "by caller" if counted else "by row"
            print(f"  {callers} callers, Zipf {zipf:g}, counted {name}: {wrong / runs[0]:.1%} wrong; {dict(found)}")
    print(f"{runs[0]} canaries that only guards can hold, by callers alone; and by requests too: ends, mean last day")
    for name, *how in GUARDED:
        told, bad = [], "ROLL_BACK" if how[3] == how[4] else "PROMOTE"
        for clusters in (False, True):
            ends = [guarded(np.random.default_rng(i), clusters, *how) for i in range(runs[0])]
            found = {end: f"{n / runs[0]:.1%}" for end, n in sorted(Counter(end for end, _ in ends).items())}
            told.append(f"{found}, day {np.mean([day for _, day in ends]):.1f}")
        worst = max(worst, sum(end == bad for end, _ in ends) / runs[0])
        print(f"  {name}, {how[0]} callers: {'; '.join(told)}; {bad} is wrong")
    for arms in (1, 3):
        found = Counter(experiment(np.random.default_rng(i), arms) for i in range(runs[1]))
        wrong = sum(n for end, n in found.items() if end.startswith(("ROLL_BACK", "PROMOTE")))
        worst = max(worst, wrong / runs[1])
        print(f"{runs[1]} experiments of {arms} equal arms: {wrong / runs[1]:.2%} wrong; {dict(found)}")
    # Three Monte Carlo errors above alpha is more than chance.
    return int(worst > 0.05 + 3 * np.sqrt(0.05 * 0.95 / min(runs)))


if __name__ == "__main__":
    raise SystemExit(main())
