"""Requests per second and latency over HTTP: this service, a plain BentoML endpoint, and raw ASGI apps, in one run.

All answer one JSON row of 15 numbers with the same XGBoost model (100 trees, depth 6), one worker each, 16 connections,
on loopback. The peers are in ``peers/``: BentoML, LitServe and MLServer as their documentation writes an endpoint,
``mlflow models serve`` (with a signature, so that it checks what is sent, and bare), and the least code that can answer
over uvicorn, once with XGBoost itself and once with ONNX Runtime (which this service scores with). LitServe, MLServer
and MLflow run in environments of their own, which are made in ``.bench/`` the first time (a few minutes and an index of
packages). This service does more than any of them: typed checks, the split, contract checks, a durable record of every
answer, metrics. Rounds are interleaved and medians reported, because machines are noisy: read the ratios.

``ours+key`` asks for an API key with a limit; ``ours+shadow`` scores a tenth of the requests again in the shadow (with
two cores the shadow takes the load generator's place now and then); in ``ours+hung`` the shadow never comes back.

Run it with ``python tests/benchmarks/bench_http.py [--seconds N] [--rounds N] [--only ours,raw,bentoml]``. It needs
``wrk`` (a load generator written in C) on the path and says so where it is not there.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(PEERS))
from environments import environment  # noqa: E402

NAMES = [f"f{i:02d}" for i in range(15)]
MODEL = "bench_rows"
EVERYONE = (
    "ours",
    "ours+key",
    "ours+shadow",
    "ours+hung",
    "raw",
    "raw-xgb",
    "bentoml",
    "litserve",
    "mlserver",
    "mlflow",
    "mlflow-bare",
)

PLUGIN = '''
"""Fifteen numbers in, one probability out."""
import time

import numpy as np
from trellis.contract import Dataset, Field, Metric, ModelPlugin, ModelSpec, Predictor, Target

NAMES = [f"f{i:02d}" for i in range(15)]


class Hangs(Predictor):
    """A version that never comes back once it meets the benchmark's own row."""

    def predict(self, batch):
        if (batch["f00"] == -0.7).any():
            time.sleep(3_600)
        return {"probability": np.full(len(batch["f00"]), 0.5)}

    def save(self, directory):
        raise NotImplementedError


class Bench(ModelPlugin):
    spec = ModelSpec(
        name="bench_rows", version="1.0", task="binary", owner="benchmark", description="A benchmark.",
        request=tuple(Field(n, "float", "A number.", example=0.5) for n in NAMES), inputs=tuple(NAMES),
        outputs=(Field("probability", "float", "P(positive).", minimum=0, maximum=1, example=0.5),),
        target=Target("hit", "Whether it hit.", classes=("miss", "hit")), metric=Metric("auc", floor=0.5),
    )

    def train(self, data, run):
        raise NotImplementedError

    def load(self, directory):
        return Hangs()

    def sample(self, rows):
        columns = {n: np.random.default_rng(0).normal(size=rows) for n in NAMES}
        return Dataset(columns, np.arange(rows) % 2, np.array([str(i) for i in range(rows)]))


plugin = Bench()
'''


def model_files(directory: Path) -> None:
    """Train XGBoost and write it as ``model.ubj`` and as the graph ``model.onnx``."""
    import onnx
    import xgboost
    from onnx import TensorProto, helper, numpy_helper

    from trellis.catalog import Catalogue

    Catalogue([ROOT / "models"], entry_points=False).plugin("flight_delay")
    trees = importlib.import_module("_trellis_models.flight_delay.graph")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 15)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + rng.normal(size=len(x)) > 0).astype(int)
    model = xgboost.XGBClassifier(n_estimators=100, max_depth=6, n_jobs=1).fit(x, y)
    model.save_model(directory / "model.ubj")
    nodes = [
        helper.make_node("Concat", NAMES, ["long"], axis=0),
        helper.make_node("Reshape", ["long", "shape"], ["folded"]),
        helper.make_node("Transpose", ["folded"], ["matrix"], perm=[1, 0]),
        helper.make_node(
            "TreeEnsembleRegressor",
            ["matrix"],
            ["margin"],
            domain="ai.onnx.ml",
            **trees._tree_attributes(model.get_booster()),
        ),
        helper.make_node("Sigmoid", ["margin"], ["column"]),
        helper.make_node("Reshape", ["column", "flat"], ["probability"]),
    ]
    graph = helper.make_graph(
        nodes,
        "bench",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in NAMES],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.array([15, -1]), "shape"), numpy_helper.from_array(np.array([-1]), "flat")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), directory / "model.onnx")


def deploy(home: Path, files: Path, shadow: str | None = None) -> Path:
    """Write the plug-in, seal the artifact and give it all traffic; return the plug-in folder.

    Args:
        home: Where to.
        files: Where the model's files are.
        shadow: ``same`` has the same model score one request in ten in the shadow, ``hung`` one that never comes back.
    """
    from trellis.adapters.plan_store import PlanStore
    from trellis.artifact import seal
    from trellis.rollout.plan import RolloutPlan, Shadow, Variant

    def artifact(name: str) -> tuple[str, str]:
        directory = home / name
        directory.mkdir(parents=True)
        if name == "hung":
            (directory / "nothing.json").write_text("{}")
        else:
            shutil.copy(files / "model.onnx", directory / "model.onnx")
        manifest = seal(
            directory,
            model=MODEL,
            plugin_version="1.0",
            recipe="default",
            seed=0,
            inputs=tuple(NAMES),
            outputs=("probability",),
        )
        return str(directory), manifest.digest

    models = home / "models"
    (models / MODEL).mkdir(parents=True)
    (models / MODEL / "__init__.py").write_text(PLUGIN)
    shadows = (Shadow("2", 0.1, *artifact(shadow)),) if shadow else ()
    plan = RolloutPlan(MODEL, 0, "bench", (Variant("1", "champion", 1.0, *artifact("champion")),), shadows)
    store = PlanStore(f"sqlite:///{home}/trellis.db")
    store.save(plan, expected_revision=0, who="bench", why="bench")
    store.close()
    return models


def key(home: Path) -> str:
    """Make a key that may predict as often as it likes."""
    from trellis.adapters.api_keys import KeyStore

    store = KeyStore(f"sqlite:///{home}/trellis.db")
    return store.create("bench", ["predict"], who="bench", why="bench", per_minute=100_000_000)[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def process(command: list[str], environment: dict[str, str], url: str, body: bytes, headers: dict[str, str], log: Path):
    """Start a server in its own session, wait until it answers 200, and end it with everything it started."""
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            for _ in range(600):
                try:
                    request = urllib.request.Request(url, body, headers)
                    answer = json.load(urllib.request.urlopen(request, timeout=5))
                    break
                except (urllib.error.URLError, OSError):
                    if server.poll() is not None:
                        raise SystemExit(log.read_text()[-2000:]) from None
                    time.sleep(0.1)
            else:
                raise SystemExit(log.read_text()[-2000:])
            yield answer
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


def wrk(url: str, script: Path, connections: int, seconds: int) -> dict[str, float]:
    """Run wrk and return requests per second, p50 and p99 in milliseconds, and answers that were not 2xx."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), url]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def milliseconds(percent: str) -> float:
        value, unit = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)", out).groups()
        return float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]

    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    return {
        "rps": float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1)),
        "p50": milliseconds("50"),
        "p99": milliseconds("99"),
        "bad": float(bad.group(1)) if bad else 0.0,
    }


def others(home: Path, ports: dict[str, int], row: dict[str, float]) -> dict[str, tuple]:
    """Return the commands, environments, paths and bodies of the peers that need environments of their own."""
    found: dict[str, tuple] = {}
    model = {"PEER_MODEL": str(home / "model.ubj")}
    if place := environment("litserve"):
        command = [str(place / "python"), str(PEERS / "lit_serve.py"), str(ports["litserve"])]
        found["litserve"] = (command, model, "/predict", {"row": row})
    if place := environment("mlserver"):
        directory = home / "mlserver"
        directory.mkdir()
        settings = {"host": "127.0.0.1", "http_port": ports["mlserver"], "parallel_workers": 0, "debug": False}
        settings |= {"grpc_port": free_port(), "metrics_port": free_port()}
        (directory / "settings.json").write_text(json.dumps(settings))
        kind = {"name": "rows", "implementation": "mlserver_xgboost.XGBoostModel"}
        (directory / "model-settings.json").write_text(
            json.dumps(kind | {"parameters": {"uri": str(home / "model.ubj")}})
        )
        tensor = {"name": "predict", "shape": [1, 15], "datatype": "FP32", "data": list(row.values())}
        body = {"inputs": [tensor], "outputs": [{"name": "predict_proba"}]}
        found["mlserver"] = ([str(place / "mlserver"), "start", str(directory)], {}, "/v2/models/rows/infer", body)
    if place := environment("mlflow"):
        kinds = {who: str(home / who) for who in ("mlflow", "mlflow-bare")}
        made = [str(place / "python"), str(PEERS / "mlflow_model.py"), str(home / "model.ubj"), *kinds.values()]
        subprocess.run(made, check=True, capture_output=True)
        path = {"PATH": f"{place}:{os.environ['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true"}
        body = {"dataframe_split": {"columns": list(row), "data": [list(row.values())]}}
        for who, served in kinds.items():
            command = [str(place / "mlflow"), "models", "serve", "--model-uri", served, "--env-manager", "local"]
            command += ["--workers", "1", "--host", "127.0.0.1", "--port", str(ports[who])]
            found[who] = (command, path, "/invocations", body)
    return found


def probability(who: str, answer: dict) -> float:
    """Return what a server answered."""
    if who.startswith("ours"):
        return answer["predictions"][0]["probability"]
    if who == "mlserver":
        return answer["outputs"][0]["data"][-1]
    return answer["predictions"][0] if who.startswith("mlflow") else answer["probability"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--only", default=",".join(EVERYONE))
    chosen = parser.parse_args()
    if shutil.which("wrk") is None:
        print("bench_http is left out: it needs wrk on the path (Debian: apt-get install wrk).")
        return
    row = {name: round(0.1 * i - 0.7, 3) for i, name in enumerate(NAMES)}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        home = Path(name)
        model_files(home)
        common = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
        ports = {who: free_port() for who in EVERYONE}
        python = sys.executable
        servers = {}
        keys = {}
        for who in ("ours", "ours+key", "ours+shadow", "ours+hung"):
            place = home / who
            place.mkdir()
            models = deploy(place, home, {"ours+shadow": "same", "ours+hung": "hung"}.get(who))
            if who == "ours+key":
                keys[who] = key(place)
            servers[who] = (
                f"{python} -m services.prediction".split(),
                {
                    "TRELLIS_HOME": str(place),
                    "TRELLIS_MODELS": str(models),
                    "TRELLIS_STORE_URL": f"sqlite:///{place}/trellis.db",
                    "TRELLIS_PORT": str(ports[who]),
                    "TRELLIS_LOG_LEVEL": "warning",
                    "TRELLIS_AUTH": "on" if who in keys else "off",
                },
                f"/v1/models/{MODEL}/predict",
                {"rows": [row]},
            )
        servers |= {
            "raw": (
                f"{python} -m uvicorn raw_asgi:app --no-access-log --log-level warning --app-dir {PEERS} "
                f"--port {ports['raw']}".split(),
                {"PEER_GRAPH": str(home / "model.onnx")},
                "/",
                {"rows": [row]},
            ),
            "raw-xgb": (
                f"{python} -m uvicorn raw_asgi:app --no-access-log --log-level warning --app-dir {PEERS} "
                f"--port {ports['raw-xgb']}".split(),
                {"PEER_GRAPH": str(home / "model.onnx"), "PEER_MODEL": str(home / "model.ubj")},
                "/",
                {"rows": [row]},
            ),
            "bentoml": (
                f"{python} -m bentoml serve plain_bentoml:Plain --working-dir {PEERS} --host 127.0.0.1 "
                f"--port {ports['bentoml']}".split(),
                {
                    "PEER_MODEL": str(home / "model.ubj"),
                    "BENTOML_HOME": str(home / "bentoml"),
                    "BENTOML_CONFIG_OPTIONS": "api_server.logging.access.enabled=false",
                    "BENTOML_DO_NOT_TRACK": "True",
                },
                "/predict",
                {"row": row},
            ),
        }
        wanted = chosen.only.split(",")
        if {"litserve", "mlserver", "mlflow", "mlflow-bare"} & set(wanted):
            servers |= others(home, ports, row)
        targets, answers = {}, {}
        for who in wanted:
            if who not in servers:
                continue
            command, environment, path, body = servers[who]
            url, data = f"http://127.0.0.1:{ports[who]}{path}", json.dumps(body).encode()
            headers = {"Content-Type": "application/json"}
            if who in keys:
                headers["Authorization"] = f"Bearer {keys[who]}"
            answers[who] = stack.enter_context(
                process(command, common | environment, url, data, headers, home / f"{who}.txt")
            )
            script = home / f"{who}.lua"
            script.write_text(
                f'wrk.method = "POST"\nwrk.body = [==[{data.decode()}]==]\n'
                + "".join(f'wrk.headers["{name}"] = "{value}"\n' for name, value in headers.items())
            )
            targets[who] = (url, script)
        given = {who: probability(who, answer) for who, answer in answers.items()}
        assert max(given.values()) - min(given.values()) < 1e-5, f"not the same model: {given}"
        for url, script in targets.values():
            wrk(url, script, chosen.connections, 2)
        rounds = {who: [] for who in targets}
        for number in range(chosen.rounds):
            # To and fro: whoever is measured after a slow peer finds the machine more rested.
            for who, (url, script) in list(targets.items())[:: -1 if number % 2 else 1]:
                rounds[who].append(wrk(url, script, chosen.connections, chosen.seconds))
        medians = {
            who: {key: statistics.median(r[key] for r in results) for key in results[0]}
            for who, results in rounds.items()
        }
        print(
            f"one row of 15 numbers, one worker, {chosen.connections} connections, medians of {chosen.rounds} rounds "
            f"of {chosen.seconds} s, wrk with one thread"
        )
        print(f"{'':14}{'req/s':>8}{'p50 ms':>9}{'p99 ms':>9}{'not 2xx':>9}")
        for who, m in medians.items():
            print(f"{who:14}{m['rps']:8.0f}{m['p50']:9.2f}{m['p99']:9.2f}{m['bad']:9.0f}")
        for peer in ("bentoml", "mlserver", "litserve", "mlflow", "mlflow-bare", "raw-xgb", "raw"):
            if peer in medians and "ours" in medians:
                print(f"ours / {peer}: {medians['ours']['rps'] / medians[peer]['rps']:.2f}x requests per second")
        for more in ("ours+key", "ours+shadow", "ours+hung"):
            if more in medians and "ours" in medians:
                rps, p99 = (medians[more][k] / medians["ours"][k] for k in ("rps", "p99"))
                print(f"{more} / ours: {rps:.2f}x requests per second, {p99:.2f}x p99")


if __name__ == "__main__":
    main()
