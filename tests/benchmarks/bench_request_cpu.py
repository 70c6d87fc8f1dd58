"""Where the processor time of one request goes: the whole path, step by step, on real parts and within one process.

A flight's request with its key, on the way of ``bench_whole_path``: real Redis, real ONNX graph, real log. Microseconds
of the answering thread's processor time, so that a busy machine blurs the figures less than it blurs a clock; the best
of several turns. "HTTP" is what a worker under ``wrk`` takes beyond that, server and connections and its other threads.

Run it with ``python tests/benchmarks/bench_request_cpu.py``; needs ``wrk`` and ``redis-server`` on the path.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import bench_http
import bench_serving
import bench_whole_path as whole

CALLS, TURNS, TOGETHER = 1_000, 5, 16


def cheapest(calls: int, work: Callable[[int], object]) -> float:
    """Return microseconds of the thread's processor time per call: the best of some turns."""
    turns = []
    for _ in range(TURNS):
        began = time.thread_time()
        for i in range(calls // TURNS):
            work(i)
        turns.append((time.thread_time() - began) / (calls // TURNS))
    return min(turns) * 1e6


async def cheapest_together(calls: int, work: Callable[[int], Awaitable[object]]) -> float:
    """Return the same of a coroutine of which 16 run at a time."""

    async def caller(numbers) -> None:
        for i in numbers:
            await work(i)

    turns = []
    for _ in range(TURNS):
        numbers = iter(range(calls // TURNS))
        began = time.thread_time()
        await asyncio.gather(*(caller(numbers) for _ in range(TOGETHER)))
        turns.append((time.thread_time() - began) / (calls // TURNS))
    return min(turns) * 1e6


async def steps(service, key: str, bodies: list[bytes], calls: int) -> dict[str, float]:
    """Measure the whole, and its larger steps one by one."""
    from pydantic_core import to_json

    from services.prediction.schema import parse
    from services.prediction.versions import score

    app = service.app()
    path = f"/v1/models/{whole.MODEL}/predict"
    headers = [(b"content-type", b"application/json"), (b"authorization", f"Bearer {key}".encode())]

    async def request(i: int) -> bytes:
        body, sent = bodies[i % len(bodies)], []
        length = (b"content-length", str(len(body)).encode())
        scope = {"type": "http", "method": "POST", "path": path, "headers": [*headers, length], "query_string": b""}

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)
        assert sent[0]["status"] == 200, sent
        return sent[1]["body"]

    await cheapest_together(500, request)
    gc.collect()
    gc.freeze()
    found = {"within the process": await cheapest_together(calls, request)}
    model, schema = service._model({"path_params": {"model": whole.MODEL}})
    rows = [parse(schema.request, body).rows[0].__dict__ for body in bodies]
    one = service._one_rows._made[whole.MODEL]
    asked = [one.asks(row) for row in rows]
    stored = [one.reader.read(row) for row in asked]
    columns = [one.found(row, held, service.metrics) for row, held in zip(rows, stored, strict=True)]
    inputs = [service._answerer._inputs(model, [row], had) for row, had in zip(rows, columns, strict=True)]
    champion = model.active.champion
    scope = {"headers": headers}
    many = len(bodies)
    found["  key and rate limit"] = cheapest(calls, lambda _: service._guard.check(scope, "predict"))
    found["  body to typed row"] = cheapest(calls, lambda i: parse(schema.request, bodies[i % many]))
    found["  features: Redis and decoding"] = await cheapest_together(
        calls, lambda i: one.reader.fetch(one.asks(rows[i % many]))
    )
    found["  features: ages, gaps, columns"] = cheapest(
        calls, lambda i: one.found(rows[i % many], stored[i % many], service.metrics)
    )
    found["  score"] = cheapest(calls, lambda i: score(model.spec, champion, inputs[i % many]))
    log = service._logs.predictions(whole.MODEL)
    record = json.loads(next(log.directory.glob("*.jsonl")).read_text().splitlines()[0])
    found["  record to the log"] = cheapest(calls, lambda _: log.extend([record]))
    answer = json.loads(await request(0))
    found["  answer to JSON"] = cheapest(calls, lambda _: to_json(answer))
    rest = found["within the process"] - sum(spent for step, spent in found.items() if step.startswith("  "))
    return {**found, "  split, record, metrics, glue": rest}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=CALLS * TURNS)
    parser.add_argument("--seconds", type=int, default=4, help="of wrk")
    parser.add_argument("--home", type=Path, help="directory to keep the features in")
    chosen = parser.parse_args()
    for program in ("wrk", "redis-server"):
        if shutil.which(program) is None:
            print(f"bench_request_cpu is left out: it needs {program} on the path.")
            return
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        kept = (chosen.home or scratch / "kept").resolve()
        home = scratch / "home"
        for directory in (kept, home, scratch / "redis", scratch / "flight"):
            directory.mkdir(parents=True, exist_ok=True)
        whole.features(kept)
        bodies = [json.dumps({"rows": [row]}).encode() for row in whole.flights(kept)]
        _, predictor = bench_serving.trained(scratch)
        predictor.export_onnx(scratch / "flight" / "model.onnx")
        for table in ("raw", "features"):
            (home / table).symlink_to(kept / table)
        with whole.redis(scratch / "redis") as store:
            time.sleep(0.5)
            key = whole.deploy(home, scratch / "flight", store)
            environment = whole.QUIET | whole.settings(home, store, bench_http.free_port())
            os.environ.update(environment)
            url = f"http://127.0.0.1:{environment['TRELLIS_PORT']}/v1/models/{whole.MODEL}/predict"
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
            command = [sys.executable, "-m", "services.prediction"]
            with bench_http.process(command, environment, url, bodies[0], headers, scratch / "service.txt"):
                script = whole.lua(scratch / "ours.lua", bodies, headers)
                bench_http.wrk(url, script, TOGETHER, 2)
                before = whole.worker_seconds(home)
                got = bench_http.wrk(url, script, TOGETHER, chosen.seconds)
                served = (whole.worker_seconds(home) - before) / (got["rps"] * chosen.seconds) * 1e6
            from services.prediction.service import open_service
            from trellis.settings import load_settings

            service = open_service(load_settings())
            service.start()
            assert service.looked(60)
            assert service.ready, service.models.status()
            import uvloop

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                found = runner.run(steps(service, key, bodies, chosen.calls))
            service.stop()
    print(f"one flight's request, {TOGETHER} at a time: processor time in us")
    print(f"{'a worker under wrk, all threads':34}{served:8.0f}")
    print(f"{'  HTTP, and the other threads':34}{served - found['within the process']:8.0f}")
    for step, spent in found.items():
        print(f"{step:34}{spent:8.1f}")


if __name__ == "__main__":
    main()
