"""The loop killed anywhere: how many kills it takes without a stuck, doubled or lost step, and where they struck; and
a year in which drift comes and goes, and what becomes of the budget of retrainings.

Run: ``python tests/benchmarks/bench_loop.py [--kills 500]``, or with ``--real 25`` one real cycle of the toy model
(its flows, registry, stores and watch job), played so many times with SIGKILL at one or two random moments of each;
about half a minute of CPU a play. A quarter of a loop with rejections, rollbacks
and regressions is played on a real SQLite file by processes that end without warning at random SQL statements; what is
left is compared with an undisturbed quarter.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
SCRIPT = Path(__file__).parents[1] / "trellis" / "adapters" / "loop_kills.py"
REAL = Path(__file__).parents[1] / "pipelines" / "loop_kill_at.py"


def main() -> int:
    """Print what was seen; exit code 1 where any step was stuck, doubled or lost."""
    parser = argparse.ArgumentParser(description="Kill the loop at random SQL statements.")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--real", type=int, default=0, help="play the real cycle so many times instead")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    if chosen.real:
        return real(chosen.real, chosen.seed)
    wanted = chosen.kills
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run([sys.executable, SCRIPT, home, str(wanted)], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    print(f"{told['kills']} kills over {told['quarters']} quarters in {time.monotonic() - begun:.0f} s")
    print(f"  quarters that ended otherwise than undisturbed: {told['differ']}")
    print(f"  stuck, doubled or lost steps: {len(told['wrong'])} {told['wrong'][:3]}")
    print(f"  retrainings by outcome: {told['ends']}")
    for place, count in sorted(told["places"].items(), key=lambda item: -item[1]):
        print(f"  {count:5d}  {place}")
    return 1 if oscillations() or told["differ"] or told["wrong"] else 0


def oscillations() -> bool:
    """Print what a year of oscillating drift costs in retrainings; return whether a budget was passed."""
    from tests.trellis.adapters.oscillating import most_in_a_month, year
    from trellis.adapters.loop_store import LoopStore
    from trellis.contract import RetrainPolicy

    print(
        "\na year whose drift comes and goes: days on and off, days it spoke, retrainings, most in any 30 days (budget)"
    )
    passed = False
    for half, budget, cooldown in ((1, 2, 0), (3, 4, 3), (9, 1, 3), (30, 2, 7)):
        policy = RetrainPolicy(cooldown_days=cooldown, budget_per_month=budget, min_new_labels=1)
        with tempfile.TemporaryDirectory() as home:
            loud, starts = year(LoopStore(f"sqlite:///{home}/trellis.db"), policy, half)
        most = most_in_a_month(starts)
        passed |= most > budget
        print(f"  {half:4} {loud:10} {len(starts):8} {most:8} ({budget})", flush=True)
    return passed


def real(plays: int, seed: int) -> int:
    """Print every play of the real cycle as it ends; exit code 1 where one left something else than undisturbed."""
    kills = bad = done = 0
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, REAL, str(Path(directory, "home")), str(plays), str(seed)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REAL.parents[2]) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if not line.startswith("{"):
                    continue
                told = json.loads(line)
                done, kills = done + 1, kills + len(told["places"])
                bad += not told["same"] or bool(told["wrong"])
                end = "as undisturbed" if told["same"] else told["wrong"]
                print(f"play {done:3d}: {end}; killed at {told['places']}", flush=True)
    print(f"{kills} kills in {done} of {plays} plays; {bad} left something stuck, doubled, lost or half made")
    return 1 if bad or done < plays else 0


if __name__ == "__main__":
    sys.exit(main())
