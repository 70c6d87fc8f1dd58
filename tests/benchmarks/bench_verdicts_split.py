"""False verdicts where nothing differs: splits by caller, counted by caller and by row, and A/B/n experiments.

Run ``python tests/benchmarks/bench_verdicts_split.py [--full]``. All versions are the same; a verdict other than that
the canary may stay (PROMOTE of a canary, HOLD, or the end of the time) is wrong, and of an experiment PROMOTE as well.
Traffic is 900 rows a day for 30 days, looked at every day; callers have Zipf volumes and losses of their own.
"""

import argparse
from collections import Counter

import numpy as np

from trellis.contract import RolloutPolicy
from trellis.rollout import CanaryInputs, LossStream, exposures_of, next_share, ready_to_step
from trellis.rollout.compare import AbInputs, Arm, decide_ab
from trellis.rollout.draws import unit_exposures
from trellis.rollout.verdict import decide

PER_DAY, DAYS = 900, 30


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
    for arms in (1, 3):
        found = Counter(experiment(np.random.default_rng(i), arms) for i in range(runs[1]))
        wrong = sum(n for end, n in found.items() if end.startswith(("ROLL_BACK", "PROMOTE")))
        worst = max(worst, wrong / runs[1])
        print(f"{runs[1]} experiments of {arms} equal arms: {wrong / runs[1]:.2%} wrong; {dict(found)}")
    # Three Monte Carlo errors above alpha is more than chance.
    return int(worst > 0.05 + 3 * np.sqrt(0.05 * 0.95 / min(runs)))


if __name__ == "__main__":
    raise SystemExit(main())
