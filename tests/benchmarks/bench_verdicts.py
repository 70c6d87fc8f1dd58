"""How often a rollout's verdict is wrong, and how long it takes, beside a fixed threshold and a z-test looked at daily.

Run ``python tests/benchmarks/bench_verdicts.py [runs | --full] [part …]``; --full is 10,000 runs, the parts are the
functions that ``main`` calls. Flights are simulated: 900 a day, about 18 % late, days that share their weather, a Brier
loss near 0.14; the canary has 10 % of them and takes 50 % as soon as it may. One request in a hundred fails and
latencies are log-normal, the same for both unless said. All rules see the same rows and are looked at every day for at
most 30 days.

The fixed threshold cries when the canary's mean loss, rate of failures or 95th percentile of latency is above the
champion's by the margin, one point, or a tenth, with 200 labels there. The z-test cries at the one-sided 5 % for the
loss. Both see the split alone. In pairs, the canary also scores a sampled share of what the champion answers.
"""

import sys
import time
from dataclasses import replace

import numpy as np

from trellis.contract import RolloutPolicy
from trellis.metrics import row_loss
from trellis.rollout import CanaryInputs, Exposure, LossStream, next_share, ready_to_step
from trellis.rollout.latency import Latencies
from trellis.rollout.pairs import Pairs
from trellis.rollout.verdict import decide

PER_DAY = 900
POLICY = RolloutPolicy(max_slowdown=0.1)
BINS = np.arange(-60, 200)


def flights(rng, days, noise, per_day=PER_DAY, champions=0.0):
    """Return, by day, the losses both versions would have; ``noise`` blurs the canary's probabilities."""
    logit = -1.9 + 0.6 * rng.normal(size=(days, 1)) + 0.9 * rng.normal(size=(days, per_day))
    truth = 1 / (1 + np.exp(-logit))
    late = (rng.uniform(size=truth.shape) < truth).astype(float).ravel()
    canary = np.clip(truth + noise * rng.normal(size=truth.shape), 0, 1).ravel()
    champion = np.clip(truth + champions * rng.normal(size=truth.shape), 0, 1).ravel() if champions else truth.ravel()
    losses = (row_loss("binary", late, p).reshape(truth.shape) for p in (canary, champion))
    return next(losses), next(losses)


def rollout(rng, noise, policy=POLICY, stepping=True, failing=0.01, slower=1.0, per_day=PER_DAY, champions=0.0):
    """Look every day until a verdict; return it, its day, and the days on which the other rules would have cried."""
    challenger, champion = flights(rng, int(policy.max_days), noise, per_day, champions)
    pairs = Pairs(0, 0.0, 0.0) if policy.shadow_rate else None
    stream, counts, share = LossStream(), {}, policy.steps[0]
    sums, z_day, fixed_day = np.zeros((2, 4)), None, None
    spread = np.zeros((2, len(BINS)), dtype=int)
    result = None
    for day in range(1, int(policy.max_days) + 1):
        arm = rng.uniform(size=per_day) < share
        loss = np.where(arm, challenger[day - 1], champion[day - 1])
        failed = rng.uniform(size=per_day) < np.where(arm, failing, 0.01)
        spent = 10 * np.exp(0.5 * rng.normal(size=per_day)) * np.where(arm, slower, 1.0)
        index = np.ceil(16 * np.log2(spent)).astype(int) - BINS[0]
        for i, side in enumerate((arm, ~arm)):
            sums[i] += side.sum(), loss[side].sum(), (loss[side] ** 2).sum(), failed[side].sum()
            spread[i] += np.bincount(index[side], minlength=len(BINS))
        cries_z, cries_fixed = other_rules(sums, spread, policy)
        z_day = day if z_day is None and cries_z else z_day
        fixed_day = day if fixed_day is None and cries_fixed else fixed_day
        if result is not None:
            continue
        stream = stream.update(arm, loss, share)
        if pairs is not None:
            both = ~arm & (rng.uniform(size=per_day) < policy.shadow_rate)
            gap = challenger[day - 1][both] - champion[day - 1][both]
            pairs = Pairs(pairs.rows + len(gap), pairs.difference + gap.sum(), pairs.square + gap @ gap)
        old = counts.get(share, np.zeros(6, dtype=int))
        late = spent > 50
        parts = (np.ones_like(arm), failed, late)
        counts[share] = old + [int((side & part).sum()) for part in parts for side in (arm, ~arm)]
        exposures = tuple(Exposure(s, *map(int, row)) for s, row in counts.items())
        latencies = Latencies(tuple(BINS.tolist()), *(tuple(row.tolist()) for row in spread))
        inputs = CanaryInputs(stream, exposures, share, float(day), latencies=latencies, pairs=pairs)
        verdict = decide(inputs, policy)
        if verdict.outcome != "HOLD":
            result = verdict.outcome, day
        elif stepping and ready_to_step(inputs, policy).passed:
            share = next_share(policy, share) or share
    return (*result, z_day, fixed_day)


def other_rules(sums, spread, policy):
    """Tell whether the z-test and the fixed threshold cry."""
    mean = sums[:, 1] / sums[:, 0]
    error = np.sqrt(((sums[:, 2] / sums[:, 0] - mean**2) / sums[:, 0]).sum())
    rate = sums[:, 3] / sums[:, 0]
    p95 = [2 ** (BINS[np.searchsorted(np.cumsum(row), 0.95 * row.sum())] / 16) for row in spread]
    enough = sums[0, 0] >= policy.min_labels
    over = mean[0] - mean[1] > policy.margin or rate[0] - rate[1] > 0.01 or p95[0] > 1.1 * p95[1]
    return mean[0] - mean[1] > 1.645 * error, enough and over


def days_text(days, runs):
    """Return the share of runs that cried, and their median day."""
    seen = [d for d in days if d is not None]
    return f"{len(seen) / runs:>7.2%} {np.median(seen) if seen else float('nan'):>5.0f}"


def faults(runs):
    """Print what becomes of each fault, for every rule."""
    print(f"\nfaults; {runs} runs each; share of runs that cry within 30 days, median day")
    print(f"fault                         {HEAD}")
    margin = "3 points of Brier"
    for name, given in (
        ("none (A/A)", {}),
        (f"{margin} worse", {"noise": 0.2}),
        ("errors 1 % -> 2 %", {"failing": 0.02}),
        ("errors 1 % -> 5 %", {"failing": 0.05}),
        ("p95 +20 %", {"slower": 1.2}),
        ("p95 +50 %", {"slower": 1.5}),
        ("errors 1 % -> 2 %, 9,000 a day", {"failing": 0.02, "per_day": 9_000}),
        ("p95 +20 %, 9,000 a day", {"slower": 1.2, "per_day": 9_000}),
    ):
        rng = np.random.default_rng(13)
        found = [rollout(rng, **{"noise": 0.0, **given}) for _ in range(runs)]
        print(f"{name:<30} {outcomes(found)}", flush=True)


def auc(score, late):
    """Return the area under the ROC curve by ranks."""
    order = np.argsort(score)
    ranks = np.empty(len(score))
    ranks[order] = np.arange(1, len(score) + 1)
    ones = late.sum()
    return (ranks[late].sum() - ones * (ones + 1) / 2) / (ones * (len(late) - ones))


def noise_for_one_point(rng):
    """Return the blur that costs one point of AUC, and what it costs in Brier; prints both."""
    truth = 1 / (1 + np.exp(1.9 - np.sqrt(0.36 + 0.81) * rng.normal(size=400_000)))
    late, blur = rng.uniform(size=truth.shape) < truth, rng.normal(size=truth.shape)
    best = auc(truth, late)
    noise = least_noise(lambda s: best - auc(np.clip(truth + s * blur, 0, 1) + 1e-9 * blur, late), 0.01)
    brier = ((np.clip(truth + noise * blur, 0, 1) - truth) ** 2).mean()
    print(f"\none point of AUC ({best:.3f} at best) costs {brier:.4f} of Brier here")
    return noise, brier


def noise_for_brier(rng, wanted):
    """Return the blur that costs so much of Brier: the mean of (p - truth)², as the truth is calibrated."""
    truth = 1 / (1 + np.exp(1.9 - np.sqrt(0.36 + 0.81) * rng.normal(size=2_000_000)))
    blur = rng.normal(size=truth.shape)
    return least_noise(lambda s: ((np.clip(truth + s * blur, 0, 1) - truth) ** 2).mean(), wanted)


def least_noise(cost, wanted):
    """Return the noise at which a growing cost reaches what is wanted, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(24):
        noise = (low + high) / 2
        low, high = (noise, high) if cost(noise) < wanted else (low, noise)
    return noise


def outcomes(found):
    """Return the shares of promotions, rollbacks with their median day, and undecided ends, and of the other rules."""
    runs = len(found)
    promoted, open_ = (sum(f[0] == o for f in found) / runs for o in ("PROMOTE", "INCONCLUSIVE"))
    back = days_text([f[1] if f[0] == "ROLL_BACK" else None for f in found], runs)
    z, fixed = (days_text([f[i] for f in found], runs) for i in (2, 3))
    return f"{promoted:>8.2%}   {back} {open_:>9.2%} {z}  {fixed}"


HEAD = "  PROMOTE  ROLL_BACK    day  INCONCL.  z-test   day   fixed    day"


def one_point_of_auc(runs):
    """Print how long it takes to find a loss of one point of AUC, with a margin of half of what it costs in Brier."""
    rng = np.random.default_rng(17)
    noise, brier = noise_for_one_point(rng)
    print(f"rows a day   margin  in pairs{HEAD}; {runs} runs each")
    half = brier / 2
    for per_day, margin, rate in (
        (PER_DAY, POLICY.margin, 0.0),
        (PER_DAY, half, 0.0),
        (20_000, half, 0.0),
        (100_000, half, 0.0),
        (PER_DAY, half, 0.2),
        (PER_DAY, half, 1.0),
        (20_000, half, 0.2),
    ):
        policy = replace(POLICY, margin=margin, shadow_rate=rate)
        found = [rollout(rng, noise, policy=policy, per_day=per_day) for _ in range(runs)]
        print(f"{per_day:>10,} {margin:>8.4f} {rate:>9.0%} {outcomes(found)}", flush=True)


def in_pairs(runs):
    """Print what pairs do to the false alarms of a canary that is as good, and to one that is worse by the margin."""
    rng = np.random.default_rng(19)
    _, brier = noise_for_one_point(rng)
    print(f"rows a day   margin  in pairs  truth                  runs{HEAD}")
    for margin in (POLICY.margin, brier / 2):
        noise, twice = (noise_for_brier(rng, by * margin) for by in (1, 2))
        for rate in (0.2, 1.0):
            policy = replace(POLICY, margin=margin, shadow_rate=rate)
            for name, count, given in (
                ("as good, other errors", runs, {"noise": noise, "champions": noise}),
                ("worse by the margin", max(runs // 10, 100), {"noise": noise}),
                ("worse by twice that", max(runs // 10, 100), {"noise": twice}),
            ):
                found = [rollout(rng, policy=policy, **given) for _ in range(count)]
                head = f"{PER_DAY:>10,} {margin:>8.4f} {rate:>9.0%}  {name:<22}{count:>5}"
                print(f"{head} {outcomes(found)}", flush=True)


def table(runs, stepping):
    """Print one line per true difference."""
    print(f"\nshare {'10 % then 50 %' if stepping else '10 % throughout'}; {runs} runs each")
    print("difference  PROMOTE ROLL_BACK INCONCL. median day  90 % by   z-test    fixed")
    for noise in (0.0, 0.1, 0.15, 0.2, 0.25, 0.35):
        rng = np.random.default_rng(11)
        a, b = flights(rng, 1_000, noise)
        count = runs if noise == 0 else max(runs // 10, 100)
        found = [rollout(rng, noise, stepping=stepping) for _ in range(count)]
        names = ("PROMOTE", "ROLL_BACK", "INCONCLUSIVE")
        promoted, back, open_ = (sum(f[0] == name for f in found) / count for name in names)
        z_test, fixed = (np.mean([f[i] is not None for f in found]) for i in (2, 3))
        days = np.array([f[1] for f in found])
        print(
            f"{(a - b).mean():>+10.4f} {promoted:>8.2%} {back:>9.2%} {open_:>8.2%} "
            f"{np.median(days):>10.0f} {np.quantile(days, 0.9):>8.0f} {z_test:>8.2%} {fixed:>8.2%}"
        )


def never_stopping(runs, looks_per_day=4):
    """Print how often the bounds ever miss the truth in 30 days of looks, at two shares, beside a z-test."""
    alpha = POLICY.alpha
    print(f"\nA/A, never stopping, {runs} runs, {looks_per_day} looks a day: ever wrong (nominal {alpha:.0%} a side)")
    for share in (0.1, 0.5):
        rng, low, high, z_wrong, spent = np.random.default_rng(5), 0, 0, 0, 0.0
        for _ in range(runs):
            loss, _ = flights(rng, 30, 0.0)
            loss = loss.ravel()
            arm = rng.uniform(size=loss.size) < share
            begin = time.perf_counter()
            stream, wrong_low, wrong_high, wrong_z = LossStream(), False, False, False
            for cut in np.split(np.arange(loss.size), 30 * looks_per_day):
                stream = stream.update(arm[cut], loss[cut], share)
                if stream.canary_rows < POLICY.min_labels:
                    continue
                lower, upper = stream.bounds(alpha)
                wrong_low |= lower > 0
                wrong_high |= upper < 0
                wrong_z |= stream.score > 1.645 * np.sqrt(stream.square)
            spent += time.perf_counter() - begin
            low, high, z_wrong = low + wrong_low, high + wrong_high, z_wrong + wrong_z
        rows = runs * loss.size
        print(
            f"share {share:.0%}: lower {low / runs:.2%}, upper {high / runs:.2%}, peeking z-test {z_wrong / runs:.2%} "
            f"({z_wrong / max(low, 1):.0f} times as often); {1e9 * spent / rows:.0f} ns per row"
        )


def main():
    """Print all tables."""
    given = sys.argv[1] if len(sys.argv) > 1 else "1000"
    runs = 10_000 if given == "--full" else int(given)
    print(f"{runs:,} runs{'' if runs >= 10_000 else '; the goal is told by --full'}")
    parts = {
        "never_stopping": lambda: never_stopping(runs),
        "table": lambda: (table(runs, stepping=True), table(max(runs // 4, 100), stepping=False)),
        "faults": lambda: faults(max(runs // 20, 100)),
        "one_point_of_auc": lambda: one_point_of_auc(max(runs // 200, 10)),
        "in_pairs": lambda: in_pairs(runs),
    }
    for name in sys.argv[2:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()
