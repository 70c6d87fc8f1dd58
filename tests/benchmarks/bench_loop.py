"""The loop killed anywhere: how many kills it takes without a stuck, doubled or lost step, and where they struck.

Run: ``python tests/benchmarks/bench_loop.py [--kills 500]``. A quarter of a loop with rejections, rollbacks
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

SCRIPT = Path(__file__).parents[1] / "trellis" / "adapters" / "loop_kills.py"


def main() -> int:
    """Print what was seen; exit code 1 where any step was stuck, doubled or lost."""
    parser = argparse.ArgumentParser(description="Kill the loop at random SQL statements.")
    parser.add_argument("--kills", type=int, default=500)
    wanted = parser.parse_args().kills
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
    return 1 if told["differ"] or told["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
