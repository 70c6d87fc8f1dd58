"""The whole way of a flight's prediction against a plain BentoML endpoint that does none of it, in one run.

The service gets a flight's eight own fields and does everything: API key, rate limit, six views from Redis in one round
trip, the on-demand view, split between champion and canary, ONNX scoring, checks, durable record, metrics. The peer is
BentoML as its documentation writes an endpoint, with 15 numbers in the request and XGBoost behind it.

First saturation (``wrk``, 16 connections), then latency at shares of the *service's own* saturation by an open loop
(``open_loop``), the last of which is more than it can take. ``--workers`` compares one and two workers. Two cores that
carry Redis and ``wrk``, too, have none free for each of two workers; so these are also compared with each held to half
a core. Medians of interleaved rounds; read the ratios. What a shadow costs is told by ``bench_shadow``.

Run it with ``python tests/benchmarks/bench_whole_path.py``; it needs ``wrk`` and ``redis-server`` on the path and says
so where they are missing. ``--home`` keeps the features (about a minute of work) for the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import bench_http
import bench_serving
from open_loop import offer, post

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(ROOT))
MODEL = "flight_delay"
NOW = datetime(2013, 7, 1, 12, tzinfo=UTC)
_SHARE = 0.5
QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}


@contextmanager
def redis(directory: Path) -> Iterator[str]:
    """Run a Redis of our own; give its URL."""
    port = bench_http.free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""]
    server = subprocess.Popen([*command, "--daemonize", "no"], stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(10)


def features(home: Path) -> None:
    """Write the feature tables of 2013 below ``home``, unless they are there."""
    from trellis.catalog import Catalogue

    if (home / "ready").exists():
        return
    plugin = Catalogue([ROOT / "models"], entry_points=False).plugin(MODEL)
    plugin.ingest(home / "raw")
    plugin.build_features(home / "raw", home / "features")
    (home / "ready").touch()


def flights(home: Path) -> list[dict]:
    """Return the requests: the flights of the three hours from ``NOW`` on."""
    import numpy as np

    from services.prediction.columns import to_json
    from trellis.catalog import Catalogue
    from trellis.contract import select, take

    plugin = Catalogue([ROOT / "models"], entry_points=False).plugin(MODEL)
    data = plugin.examples(home / "raw")
    soon = (data.time >= np.datetime64("2013-07-01T12")) & (data.time < np.datetime64("2013-07-01T15"))
    columns = take(select(data.columns, [f.name for f in plugin.spec.request]), np.flatnonzero(soon))
    return [
        {name: to_json(value) for name, value in zip(columns, row, strict=True)}
        for row in zip(*columns.values(), strict=True)
    ]


def deploy(home: Path, files: Path, store: str, *, shadow: bool = False) -> str:
    """Seal an artifact, plan a champion and a canary, bring Redis up to ``NOW``; return an API key."""
    from trellis.adapters.feature_store import FeatureStore
    from trellis.adapters.plan_store import PlanStore
    from trellis.artifact import seal
    from trellis.catalog import Catalogue
    from trellis.rollout.plan import RolloutPlan, Shadow, Variant

    spec = Catalogue([ROOT / "models"], entry_points=False).plugin(MODEL).spec
    placed = {}
    for name in ("champion", "canary", "shadow"):
        directory = home / name
        directory.mkdir()
        shutil.copy(files / "model.onnx", directory / "model.onnx")
        manifest = seal(
            directory,
            model=MODEL,
            plugin_version=spec.version,
            recipe="xgboost",
            seed=0,
            inputs=spec.inputs,
            outputs=tuple(f.name for f in spec.outputs),
        )
        placed[name] = (str(directory), manifest.digest)
    variants = (Variant("1", "champion", 0.9, *placed["champion"]), Variant("2", "canary", 0.1, *placed["canary"]))
    shadows = (Shadow("3", 0.1, *placed["shadow"]),) if shadow else ()
    plan = RolloutPlan(MODEL, 0, "bench", variants, shadows)
    plans = PlanStore(f"sqlite:///{home}/trellis.db")
    plans.save(plan, expected_revision=0, who="bench", why="bench")
    plans.close()
    online = FeatureStore(ROOT / "feature_repo", home, store)
    online.apply()
    online.materialize(NOW)
    return bench_http.key(home)


def lua(path: Path, bodies: list[bytes], headers: dict[str, str]) -> Path:
    """Write a script for wrk that sends the bodies in turn."""
    lines = ['wrk.method = "POST"', *(f'wrk.headers["{n}"] = "{v}"' for n, v in headers.items()), "local bodies = {"]
    lines += [f"[==[{body.decode()}]==]," for body in bodies]
    lines += ["}", "local i = 0", "function request()", "  i = i % #bodies + 1"]
    path.write_text("\n".join([*lines, "  return wrk.format(nil, nil, nil, bodies[i])", "end"]))
    return path


def settings(home: Path, store: str, port: int) -> dict[str, str]:
    """Return the environment of a service in ``home``."""
    return {
        "TRELLIS_HOME": str(home),
        "TRELLIS_MODELS": str(ROOT / "models"),
        "TRELLIS_FEATURE_REPO": str(ROOT / "feature_repo"),
        "TRELLIS_STORE_URL": f"sqlite:///{home}/trellis.db",
        "TRELLIS_ONLINE_STORE": store,
        "TRELLIS_PORT": str(port),
        "TRELLIS_LOG_LEVEL": "warning",
        "TRELLIS_AUTH": "on",
    }


def processes(home: Path, word: bytes) -> list[int]:
    """Return the pids of the processes of the service in ``home`` that have a word on their command line."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes()
        except OSError:
            continue
        if word in words and f"TRELLIS_HOME={home}\0".encode() in (place / "environ").read_bytes() + b"\0":
            found.append(int(place.name))
    return found


def shadow_hosts(home: Path) -> list[int]:
    """Return the pids of the shadow processes of the service in ``home``."""
    return processes(home, b"services.prediction.shadow_host")


def worker_seconds(home: Path) -> float:
    """Return the processor time that the workers of the service in ``home`` have taken, all threads, user and system.

    Unlike requests per second it tells a change of the program from a busy machine, if the machine is not too busy.
    """
    ticks = 0
    for pid in processes(home, b"_bentoml_impl.worker"):
        parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(parts[11]) + int(parts[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def held_to(share: float, pids: list[int]) -> Iterator[bool]:
    """Give each process a share of a core at most, by control groups of the first or second kind; False if we may not.

    So there is processor time to spare for every one of them, whatever else the machine's cores carry.
    """
    root, period = Path("/sys/fs/cgroup"), 5_000
    first_kind = (root / "cpu").is_dir()
    groups: list[Path] = []
    try:
        try:
            for pid in pids:
                group = root / ("cpu" if first_kind else "") / f"bench-{pid}"
                group.mkdir()
                groups.append(group)
                if first_kind:
                    (group / "cpu.cfs_period_us").write_text(str(period))
                    (group / "cpu.cfs_quota_us").write_text(str(int(share * period)))
                else:
                    (group / "cpu.max").write_text(f"{int(share * period)} {period}")
                (group / "cgroup.procs").write_text(str(pid))
        except OSError:
            yield False
            return
        yield True
    finally:
        for group in groups:
            for pid in (group / "cgroup.procs").read_text().split():
                with suppress(OSError):
                    (group.parent / "cgroup.procs").write_text(pid)
            group.rmdir()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--workers", action="store_true", help="compare one worker with two")
    parser.add_argument("--home", type=Path, help="directory to keep the features in")
    chosen = parser.parse_args()
    for program, package in (("wrk", "wrk"), ("redis-server", "redis-server")):
        if shutil.which(program) is None:
            print(f"bench_whole_path is left out: it needs {program} on the path (Debian: apt-get install {package}).")
            return
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        scratch = Path(name)
        kept = (chosen.home or scratch / "kept").resolve()
        kept.mkdir(parents=True, exist_ok=True)
        features(kept)
        bodies = [json.dumps({"rows": [row]}).encode() for row in flights(kept)]
        _, predictor = bench_serving.trained(scratch)
        for directory in ("flight", "rows"):
            (scratch / directory).mkdir()
        predictor.export_onnx(scratch / "flight" / "model.onnx")
        bench_http.model_files(scratch / "rows")

        def service(who: str, *, workers: int = 1) -> tuple[str, int, dict[str, str], Path]:
            home = scratch / who
            home.mkdir()
            (home / "raw").symlink_to(kept / "raw")
            (home / "features").symlink_to(kept / "features")
            (scratch / f"{who}.redis").mkdir()
            store = stack.enter_context(redis(scratch / f"{who}.redis"))
            headers = {"Authorization": f"Bearer {deploy(home, scratch / 'flight', store)}"}
            port = bench_http.free_port()
            environment = QUIET | settings(home, store, port)
            url = f"http://127.0.0.1:{port}/v1/models/{MODEL}/predict"
            command = [sys.executable, "-m", "services.prediction", "--workers", str(workers)]
            typed = {"Content-Type": "application/json", **headers}
            answer = stack.enter_context(
                bench_http.process(command, environment, url, bodies[0], typed, scratch / f"{who}.txt")
            )
            assert "degraded" not in answer["predictions"][0], answer
            return url, port, typed, home

        def saturate(url: str, script: Path) -> dict[str, float]:
            before = worker_seconds(our_home) if url == ours else 0.0
            got = bench_http.wrk(url, script, chosen.connections, chosen.seconds)
            assert not got["bad"], (url, got)
            if url == ours:
                got["cpu"] = (worker_seconds(our_home) - before) / (got["rps"] * chosen.seconds) * 1e6
            return got

        def at(port: int, headers: dict[str, str], rate: float) -> tuple[float, float, int]:
            asked = [post(f"/v1/models/{MODEL}/predict", body, headers) for body in bodies]
            load = offer("127.0.0.1", port, asked, rate, chosen.seconds)
            return load.quantile(0.95), load.quantile(0.99), load.bad

        def middle(values: list[float]) -> float:
            return statistics.median(values)

        ours, port, headers, our_home = service("ours")
        script = lua(scratch / "ours.lua", bodies, headers)
        plain_port = bench_http.free_port()
        row = {f"f{i:02d}": round(0.1 * i - 0.7, 3) for i in range(15)}
        plain_body, typed = json.dumps({"row": row}).encode(), {"Content-Type": "application/json"}
        plain = f"http://127.0.0.1:{plain_port}/predict"
        command = [sys.executable, "-m", "bentoml", "serve", "plain_bentoml:Plain", "--working-dir", str(PEERS)]
        environment = QUIET | {
            "PEER_MODEL": str(scratch / "rows" / "model.ubj"),
            "BENTOML_HOME": str(scratch / "bentoml"),
            "BENTOML_CONFIG_OPTIONS": "api_server.logging.access.enabled=false",
            "BENTOML_DO_NOT_TRACK": "True",
        }
        with bench_http.process(
            [*command, "--host", "127.0.0.1", "--port", str(plain_port)],
            environment,
            plain,
            plain_body,
            typed,
            scratch / "plain.txt",
        ):
            targets = {"whole path": (ours, script), "plain": (plain, lua(scratch / "p.lua", [plain_body], typed))}
            for url, sends in targets.values():
                bench_http.wrk(url, sends, chosen.connections, 2)
            rounds = [{w: saturate(*t) for w, t in targets.items()} for _ in range(chosen.rounds)]
        rate = {w: middle([r[w]["rps"] for r in rounds]) for w in targets}
        late = {w: middle([r[w]["p99"] for r in rounds]) for w in targets}
        print(
            f"{len(bodies)} flights in turn, {chosen.connections} connections, one worker; medians of {chosen.rounds}"
        )
        print(f"{'':24}{'req/s':>9}{'p99 ms':>9}")
        for who in targets:
            print(f"{who:24}{rate[who]:9.0f}{late[who]:9.1f}")
        print(f"whole path / plain BentoML endpoint: {rate['whole path'] / rate['plain']:.2f}x requests per second")
        spent = middle([r["whole path"]["cpu"] for r in rounds])
        print(f"processor time of the worker, all its threads: {spent:.0f} us per request (the whole path)")
        top = rate["whole path"]
        print(f"\nopen loop, share of its own {top:.0f} requests/s{'p95 ms':>14}{'p99 ms':>9}{'not 200':>9}")
        for share in (0.5, 0.7, 0.95, 1.2):
            got = [at(port, headers, share * top) for _ in range(chosen.rounds)]
            p95, p99 = middle([g[0] for g in got]), middle([g[1] for g in got])
            print(f"{share:>10.0%}{p95:49.1f}{p99:9.1f}{sum(g[2] for g in got):9.0f}")
        if chosen.workers:
            two, _, more, two_home = service("two", workers=2)
            sends = lua(scratch / "two.lua", bodies, more)
            bench_http.wrk(two, sends, chosen.connections, 3)
            both = [(saturate(ours, script)["rps"], saturate(two, sends)["rps"]) for _ in range(chosen.rounds)]
            one, pair = middle([b[0] for b in both]), middle([b[1] for b in both])
            rates = f"{pair:.0f} against {one:.0f} requests/s"
            print(f"\ntwo workers / one: {pair / one:.2f}x ({rates}); {os.cpu_count()} cores carry the workers, Redis")
            print("and wrk together, so that no core is free for each")
            word = b"_bentoml_impl.worker"
            workers = [*processes(our_home, word), *processes(two_home, word)]
            with held_to(_SHARE, workers) as is_held:
                if is_held:
                    held = [(saturate(ours, script)["rps"], saturate(two, sends)["rps"]) for _ in range(chosen.rounds)]
                    one, pair = middle([b[0] for b in held]), middle([b[1] for b in held])
                    print(f"each held to {_SHARE:.0%} of a core: {pair / one:.2f}x ({pair:.0f} against {one:.0f})")
                else:
                    print("each held to a share of a core: left out, for only root may make control groups")


if __name__ == "__main__":
    main()
