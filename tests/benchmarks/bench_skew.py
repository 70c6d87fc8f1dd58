"""Ten bugs seeded between training and serving: what a replay of the served features says of each, and of a clean run.

Run it with ``python tests/benchmarks/bench_skew.py``; half a minute. Exit code 1 where a bug was missed or misnamed, or
the clean run has a finding.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def main() -> int:
    """Print a line per bug."""
    from tests.monitoring.seeded_skew import BUGS, Clean, named

    right = 0
    with tempfile.TemporaryDirectory() as name:
        clean = Clean.run(Path(name) / "clean")
        calm = clean.served()
        print(f"{'seeded':32}{'rows':>6}{'differ':>8}  first feature   found")
        print(f"{'nothing':32}{calm.rows:6}{calm.mismatched:8}  {calm.first_feature or '-':14}  {len(calm.findings)}")
        begun = time.perf_counter()
        for number, bug in enumerate(BUGS):
            report = bug.seed(clean, Path(name) / str(number))
            found = named(report)
            right += found == bug.named
            told = "; ".join(f"{cause} in {view} ({', '.join(features)})" for cause, view, features in sorted(found))
            line = f"{bug.name:32}{report.rows:6}{report.mismatched:8}  {report.first_feature or '-':14}  {told}"
            print(line, flush=True)
        spent = time.perf_counter() - begun
    print(f"{right} of {len(BUGS)} found and named, and nothing else, in {spent:.0f} s with the serving of two of them")
    return 0 if right == len(BUGS) and not calm.findings else 1


if __name__ == "__main__":
    sys.exit(main())
