"""How often a canary's verdict is wrong, and how long it takes, beside a z-test that is looked at every day.

Run ``python tests/benchmarks/bench_verdicts.py [runs]``. Flights are simulated: 900 a day, about 18 % late, days that
share their weather, a Brier loss near 0.14; the canary has 10 % of them and takes 50 % as soon as it may. All verdicts
are looked at every day.
"""

import sys
import time

import numpy as np

from trellis.contract import RolloutPolicy
from trellis.metrics import row_loss
from trellis.rollout import CanaryInputs, LossStream, exposures_of, next_share, ready_to_step
from trellis.rollout.verdict import decide

PER_DAY = 900
POLICY = RolloutPolicy()


def flights(rng, days, noise):
    """Return, by day, the losses both versions would have; ``noise`` blurs the canary's probabilities."""
    logit = -1.9 + 0.6 * rng.normal(size=(days, 1)) + 0.9 * rng.normal(size=(days, PER_DAY))
    truth = 1 / (1 + np.exp(-logit))
    late = (rng.uniform(size=truth.shape) < truth).astype(float).ravel()
    canary = np.clip(truth + noise * rng.normal(size=truth.shape), 0, 1).ravel()
    losses = (row_loss("binary", late, p).reshape(truth.shape) for p in (canary, truth.ravel()))
    return next(losses), next(losses)


def rollout(rng, noise, policy=POLICY, stepping=True):
    """Look every day until a verdict; return it, its day, and the day on which a z-test would first have cried."""
    challenger, champion = flights(rng, int(policy.max_days), noise)
    stream, exposures, share = LossStream(), (), policy.steps[0]
    sums, z_day = np.zeros((2, 3)), None
    verdict, day = None, 0
    for day in range(1, int(policy.max_days) + 1):
        arm = rng.uniform(size=PER_DAY) < share
        loss = np.where(arm, challenger[day - 1], champion[day - 1])
        stream = stream.update(arm, loss, share)
        exposures = (*exposures, *exposures_of(share, arm))
        for i, side in enumerate((arm, ~arm)):
            sums[i] += side.sum(), loss[side].sum(), (loss[side] ** 2).sum()
        mean = sums[:, 1] / sums[:, 0]
        error = np.sqrt(((sums[:, 2] / sums[:, 0] - mean**2) / sums[:, 0]).sum())
        if z_day is None and mean[0] - mean[1] > 1.645 * error:
            z_day = day
        inputs = CanaryInputs(stream, exposures, share, float(day))
        verdict = decide(inputs, policy)
        if verdict.outcome != "HOLD":
            break
        if stepping and ready_to_step(inputs, policy).passed:
            share = next_share(policy, share) or share
    return verdict.outcome, day, z_day


def table(runs, stepping):
    """Print one line per true difference."""
    print(f"\nshare {'10 % then 50 %' if stepping else '10 % throughout'}; {runs} runs each")
    print("difference  PROMOTE ROLL_BACK INCONCL. median day  90 % by   z-test")
    for noise in (0.0, 0.1, 0.15, 0.2, 0.25, 0.35):
        rng = np.random.default_rng(11)
        a, b = flights(rng, 1_000, noise)
        count = runs if noise == 0 else max(runs // 10, 100)
        found = [rollout(rng, noise, stepping=stepping) for _ in range(count)]
        names = ("PROMOTE", "ROLL_BACK", "INCONCLUSIVE")
        promoted, back, open_ = (sum(o == name for o, _, _ in found) / count for name in names)
        z_test = np.mean([z is not None for _, _, z in found])
        days = np.array([d for _, d, _ in found])
        print(
            f"{(a - b).mean():>+10.4f} {promoted:>8.2%} {back:>9.2%} {open_:>8.2%} "
            f"{np.median(days):>10.0f} {np.quantile(days, 0.9):>8.0f} {z_test:>8.2%}"
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
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    never_stopping(runs)
    table(runs, stepping=True)
    table(max(runs // 4, 100), stepping=False)


if __name__ == "__main__":
    main()
