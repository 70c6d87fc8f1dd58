"""The least that can answer over uvicorn: the body parsed, the model run, the number written. No checks, no log."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime
import orjson

NAMES = [f"f{i:02d}" for i in range(15)]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.log_severity_level = 3
session = onnxruntime.InferenceSession(os.environ["PEER_GRAPH"], options, providers=["CPUExecutionProvider"])

booster = None
if "PEER_MODEL" in os.environ:
    import xgboost

    booster = xgboost.Booster({"nthread": 1}, model_file=os.environ["PEER_MODEL"])


def score(row: dict[str, float]) -> float:
    """Score one row with XGBoost where its file was given, else with ONNX Runtime."""
    if booster is not None:
        x = np.array([[row[name] for name in NAMES]], np.float32)
        return float(booster.inplace_predict(x, validate_features=False)[0])
    return float(session.run(None, {name: np.array([row[name]], np.float32) for name in NAMES})[0][0])


async def app(scope, receive, send):
    if scope["type"] != "http":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    answer = orjson.dumps({"probability": score(orjson.loads(body)["rows"][0])})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
