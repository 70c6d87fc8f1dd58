"""What a shadow beside a service costs its answers, sound and hung, on one process in turns.

Two processes of one program differ by several percent at p99 before anything is changed, and a busy machine by more. So
there is one service, on the whole way of a flight's prediction (``bench_whole_path``), whose rollout plan takes the
shadow in and out between short rounds of load; and of every three rounds two are without it, which tells how far two
equal things seem to lie apart. What is told is the ratio of the rounds' median p99, with a 90 % interval from a
bootstrap over the blocks of three rounds (Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, ch. 13).

The load is saturation, where the shadow has only the processor time that the worker, Redis and ``wrk`` leave on the
same cores; or an open loop at a share of it, whose p99 varies several times as much from round to round.

Run it with ``python tests/benchmarks/bench_shadow.py``; it needs ``wrk`` and ``redis-server`` on the path.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import bench_http
import bench_serving
import bench_whole_path as whole
from open_loop import offer, post

_TAKEN_UP = 0.4  # seconds after which the service follows a new plan; it looks four times as often
_BOOTSTRAPS = 1000
_CONNECTIONS = 8
WITHOUT, AGAIN, WITH = "without", "without again", "with"


def added(rounds: dict[str, list[float]], arm: str, beside: list[str]) -> tuple[float, float, float]:
    """Return by which share an arm's median p99 lies above others', and the bounds of its 90 % interval."""
    chance = random.Random(0)
    number = len(rounds[arm])

    def ratio(blocks: list[int]) -> float:
        base = statistics.median(rounds[other][i] for other in beside for i in blocks)
        return statistics.median(rounds[arm][i] for i in blocks) / base - 1

    drawn = sorted(ratio(chance.choices(range(number), k=number)) for _ in range(_BOOTSTRAPS))
    return ratio(list(range(number))), drawn[int(0.05 * _BOOTSTRAPS)], drawn[int(0.95 * _BOOTSTRAPS)]


def hang(home: Path) -> None:
    """Stop every shadow process of a service, so that it never answers."""
    for pid in whole.shadow_hosts(home):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=1, help="of each round")
    parser.add_argument("--blocks", type=int, default=80, help="of three rounds each: without, without, with")
    parser.add_argument("--share", type=float, default=0.35, help="of saturation, at which requests are offered")
    parser.add_argument("--sampled", type=float, default=0.1, help="share of the answers that the shadow scores")
    parser.add_argument("--load", choices=["both", "saturation", "open loop"], default="saturation")
    parser.add_argument("--home", type=Path, help="directory to keep the features in")
    chosen = parser.parse_args()
    for program in ("wrk", "redis-server"):
        if shutil.which(program) is None:
            print(f"bench_shadow is left out: it needs {program} on the path (Debian: apt-get install {program}).")
            return
    from trellis.adapters.plan_store import PlanStore

    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        scratch = Path(name)
        kept = (chosen.home or scratch / "kept").resolve()
        kept.mkdir(parents=True, exist_ok=True)
        whole.features(kept)
        bodies = [json.dumps({"rows": [row]}).encode() for row in whole.flights(kept)]
        _, predictor = bench_serving.trained(scratch)
        (scratch / "flight").mkdir()
        predictor.export_onnx(scratch / "flight" / "model.onnx")
        home = scratch / "home"
        home.mkdir()
        for part in ("raw", "features"):
            (home / part).symlink_to(kept / part)
        (scratch / "redis").mkdir()
        store = stack.enter_context(whole.redis(scratch / "redis"))
        headers = {"Authorization": f"Bearer {whole.deploy(home, scratch / 'flight', store, shadow=True)}"}
        port = bench_http.free_port()
        url = f"http://127.0.0.1:{port}/v1/models/{whole.MODEL}/predict"
        typed = {"Content-Type": "application/json", **headers}
        environment = whole.QUIET | whole.settings(home, store, port) | {"TRELLIS_PLAN_POLL_SECONDS": "0.1"}
        command = [sys.executable, "-m", "services.prediction", "--workers", "1"]
        stack.enter_context(bench_http.process(command, environment, url, bodies[0], typed, scratch / "log.txt"))
        plans = PlanStore(f"sqlite:///{home}/trellis.db")
        stack.callback(plans.close)
        first = plans.current(whole.MODEL)
        shadow = dataclasses.replace(first.shadows[0], sample_rate=chosen.sampled)
        asked = [post(f"/v1/models/{whole.MODEL}/predict", body, typed) for body in bodies]

        def turn(shadows: tuple) -> None:
            # A new revision before every round, whether or not it changes anything: taking one up is work, too.
            now = plans.current(whole.MODEL)
            changed = dataclasses.replace(now, shadows=shadows)
            plans.save(changed, expected_revision=now.revision, who="bench", why="bench")
            time.sleep(_TAKEN_UP)

        turn(())
        script = whole.lua(scratch / "wrk.lua", bodies, typed)
        bench_http.wrk(url, script, 16, 2)
        top = sorted(bench_http.wrk(url, script, 16, 3)["rps"] for _ in range(3))[1]
        rate = chosen.share * top

        def open_loop(seed: int) -> float:
            load = offer("127.0.0.1", port, asked, rate, chosen.seconds, seed=seed)
            assert not load.bad, load.bad
            return load.quantile(0.99)

        def saturation(_: int) -> float:
            got = bench_http.wrk(url, script, _CONNECTIONS, chosen.seconds)
            assert not got["bad"], got
            return got["p99"]

        def measure(what: str, p99: Callable[[int], float], *, hung: bool = False) -> None:
            arms = [WITHOUT, AGAIN, WITH]
            found: dict[str, list[float]] = {arm: [] for arm in arms}
            for i in range(chosen.blocks):
                for arm in random.Random(i).sample(arms, 3):
                    turn((shadow,) if arm == WITH else ())
                    if hung:
                        hang(home)  # and the one that was started since
                    found[arm].append(p99(i))
            print(f"\n{what}: median p99 of {chosen.blocks} rounds each")
            print(f"{WITHOUT:16}{statistics.median(found[WITHOUT] + found[AGAIN]):8.2f} ms")
            print(f"{WITH:16}{statistics.median(found[WITH]):8.2f} ms", end="")
            print("{:+8.1%}  (90 % interval {:+.1%} to {:+.1%})".format(*added(found, WITH, [WITHOUT, AGAIN])))
            print(
                "one half without beside the other: {:+.1%} ({:+.1%} to {:+.1%})".format(
                    *added(found, AGAIN, [WITHOUT])
                )
            )
            sys.stdout.flush()

        print(f"{chosen.share:.0%} of saturation are {rate:.0f} requests/s; the shadow scores {chosen.sampled:.0%}")
        turn((shadow,))
        offer("127.0.0.1", port, asked, rate, 5.0)  # starts the shadows' process and loads the version
        for state in ("sound", "hung"):
            for load, p99 in (("saturation", saturation), ("open loop", open_loop)):
                if chosen.load in (load, "both"):
                    measure(f"{state}, {load}", p99, hung=state == "hung")
        for pid in whole.shadow_hosts(home):
            os.kill(pid, signal.SIGCONT)


if __name__ == "__main__":
    main()
