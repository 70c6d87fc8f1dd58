"""The Open Inference Protocol as its common client speaks it: no content type, tensors in binary behind the JSON."""

import contextlib
import json
import struct
import threading
import time

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

IMAGES = np.random.default_rng(2).random((3, 2, 2)).astype(np.float32)
INFER = "/v2/models/toy_tensor/infer"


def tensor(name, array, datatype):
    """Return a binary tensor's head and its bytes, as the extension has them."""
    if datatype == "BYTES":
        data = b"".join(struct.pack("<I", len(v.encode())) + v.encode() for v in array)
    else:
        data = np.ascontiguousarray(array).tobytes()
    head = {"name": name, "shape": list(np.shape(array)), "datatype": datatype}
    return {**head, "parameters": {"binary_data_size": len(data)}}, data


def send(world, tensors, path=INFER, headers=None, tail=b"", **more):
    body = json.dumps({"inputs": [head for head, _ in tensors], **more}).encode()
    content = body + b"".join(data for _, data in tensors) + tail
    given = {"inference-header-content-length": str(len(body)), "content-length": str(len(content)), **(headers or {})}
    return world.post(path, content=content, headers=given)


def read(answer):
    """Return an answer's tensors, binary ones decoded, and which were binary."""
    length = answer.headers.get("inference-header-content-length")
    head = json.loads(answer.content[: int(length)] if length else answer.content)
    rest, values, binary = answer.content[int(length) :] if length else b"", {}, set()
    for output in head["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            values[output["name"]] = output["data"]
            continue
        assert "data" not in output
        part, rest = rest[:size], rest[size:]
        if output["datatype"] == "BYTES":
            texts = []
            while part:
                end = 4 + struct.unpack("<I", part[:4])[0]
                texts.append(part[4:end].decode())
                part = part[end:]
            values[output["name"]] = texts
        else:
            assert output["datatype"] == "FP32"
            values[output["name"]] = np.frombuffer(part, "<f4").reshape(output["shape"])
        binary.add(output["name"])
    assert rest == b""
    return values, binary


def plain(world):
    inputs = [{"name": "image", "shape": [3, 2, 2], "datatype": "FP32", "data": IMAGES.ravel().tolist()}]
    return world.post(INFER, {"inputs": inputs}).json()["outputs"][0]["data"]


@pytest.mark.parametrize(
    ("more", "binary"),
    [
        ({}, set()),
        ({"parameters": {"binary_data_output": True}}, {"probabilities"}),
        ({"outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}]}, {"probabilities"}),
        ({"outputs": [{"name": "probabilities", "parameters": {"binary_data": False}}]}, set()),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "probabilities", "parameters": {"binary_data": False}}],
            },
            set(),
        ),
    ],
)
def test_binary_in_and_what_was_asked_out(shared_world, more, binary):
    answer = send(shared_world, [tensor("image", IMAGES, "FP32")], **more)
    assert answer.status_code == 200, answer.text
    values, found = read(answer)
    assert found - {"prediction_id"} == binary
    np.testing.assert_allclose(np.ravel(values["probabilities"]), plain(shared_world), rtol=1e-6)
    assert [name.rpartition("#")[2] for name in values["prediction_id"]] == ["0", "1", "2"]


def test_no_content_type_means_json_here_and_nowhere_else(shared_world):
    body = {"inputs": [{"name": "image", "shape": [3, 2, 2], "datatype": "FP32", "data": IMAGES.ravel().tolist()}]}
    content = json.dumps(body).encode()
    assert shared_world.post(INFER, content=content).status_code == 200
    assert shared_world.post("/v1/models/toy_tensor/predict", content=b'{"rows": []}').status_code == 415
    for kind in ("application/octet-stream", "application/vnd.bentoml+pickle", "text/plain"):
        assert shared_world.post(INFER, content=content, headers={"content-type": kind}).status_code == 415
    pickled = send(
        shared_world, [tensor("image", IMAGES, "FP32")], headers={"content-type": "application/vnd.bentoml+pickle"}
    )
    assert pickled.status_code == 415


def test_strings_numbers_and_missing_values(world, row):
    world.deploy(world.artifact("1"))
    columns = {
        "x": (np.array([0.25, 0.5], np.float32), "FP32"),
        "colour": (["red", "red"], "BYTES"),
        "shop": (["s1", "s1"], "BYTES"),
        "at": (["2013-07-01T09:15:00Z"] * 2, "BYTES"),
        "rate": (np.array([0.5, np.nan]), "FP64"),
        "size": (np.array([1.0, 2.0]), "FP64"),
    }
    answer = send(world, [tensor(n, a, d) for n, (a, d) in columns.items()], path="/v2/models/toy_linear/infer")
    assert answer.status_code == 200, answer.text
    frame = world.logged().sort_values("id")
    assert frame["request.x"].tolist() == [0.25, 0.5]
    assert frame["features.rate"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"headers": {"inference-header-content-length": "999999"}}, 400, "inference-header-content-length"),
        ({"headers": {"inference-header-content-length": "-1"}}, 400, "inference-header-content-length"),
        ({"headers": {"inference-header-content-length": "0" * 4301}}, 400, "inference-header-content-length"),
        ({"headers": {"inference-header-content-length": "0" * 20 + "9"}}, 400, "inference-header-content-length"),
        ({"headers": {"inference-header-content-length": "3"}}, 400, ""),
        ({"tail": b"xx"}, 400, "inputs"),
        ({"size": 10**9}, 400, "inputs.0.parameters.binary_data_size"),
        ({"size": True}, 400, "inputs.0.parameters.binary_data_size"),
        ({"size": 47}, 400, "inputs.0.data"),
        ({"data": [1.0]}, 400, "inputs.0.parameters.binary_data_size"),
        ({"datatype": "FP99"}, 422, "inputs.0.datatype"),
        ({"datatype": "BYTES"}, 400, "inputs.0.data"),
        ({"tail": b"x" * 30_000}, 413, ""),
    ],
)
def test_what_does_not_agree_is_named(shared_world, change, status, field):
    head, data = tensor("image", IMAGES, "FP32")
    if "size" in change:
        head["parameters"]["binary_data_size"] = change["size"]
    head |= {k: v for k, v in change.items() if k in ("data", "datatype")}
    answer = send(shared_world, [(head, data)], headers=change.get("headers"), tail=change.get("tail", b""))
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]["field"] == field


def test_infinity_is_refused_with_its_place(shared_world):
    images = IMAGES.copy()
    images[1, 0, 0] = np.inf
    answer = send(shared_world, [tensor("image", images, "FP32")])
    assert answer.status_code == 422
    assert "rows.1.image" in answer.json()["detail"]["field"]


def test_a_binary_body_up_to_the_limit_is_taken(world):
    """Written out as JSON the same numbers are longer than the limit of a body."""
    world.limits.max_rows = world.limits.max_body_bytes
    world.service = world.make(registry=CollectorRegistry())
    world.app = world.service.app()
    world.deploy(world.artifact("1", model="toy_tensor", onnx=True), model="toy_tensor")
    images = np.random.default_rng(3).random((1_000, 2, 2)).astype(np.float32)
    answer = send(world, [tensor("image", images, "FP32")], parameters={"binary_data_output": True})
    assert answer.status_code == 200, answer.text
    values, _ = read(answer)
    assert values["probabilities"].shape == (1_000, 3)


def test_with_the_common_client(shared_world):
    """The real client, where it is installed: pip install 'tritonclient[http]' (it is in no extra of ours)."""
    client_module = pytest.importorskip(
        "tritonclient.http", reason="NO TRITON CLIENT: pip install 'tritonclient[http]'"
    )
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(shared_world.app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 10
    while not server.started and time.monotonic() < end:
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    with contextlib.closing(client_module.InferenceServerClient(f"{host}:{port}")) as client:
        assert client.is_server_live()
        assert client.is_model_ready("toy_tensor", "1")
        given = client_module.InferInput("image", [3, 2, 2], "FP32")
        given.set_data_from_numpy(IMAGES)
        found = client.infer("toy_tensor", [given]).as_numpy("probabilities")
    np.testing.assert_allclose(found.ravel(), plain(shared_world), rtol=1e-6)
    server.should_exit = True
    thread.join(10)
