"""The Open Inference Protocol says the same as the native API, and the API's description is true."""

import re

import numpy as np
import pytest


def tensor(name, datatype, data, shape=None):
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}


def scalars(rows):
    return [
        tensor("x", "FP64", [r["x"] for r in rows]),
        tensor("colour", "BYTES", [r["colour"] for r in rows]),
        tensor("shop", "BYTES", [r["shop"] for r in rows]),
        tensor("at", "BYTES", [r["at"] for r in rows]),
    ]


def test_infer_says_what_predict_says(shared_world, row):
    rows = [row(), row(x=-2.0, colour="green", shop="s2")]
    native = shared_world.predict(*rows).json()
    answer = shared_world.post(
        "/v2/models/toy_linear/infer", {"id": "v2-1", "inputs": scalars(rows), "outputs": [{"name": "probability"}]}
    )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("toy_linear", "1", "v2-1")
    assert body["parameters"] == {"revision": 1, "variant": "champion"}
    probability, ids = body["outputs"]
    assert probability["name"] == "probability"
    assert (probability["datatype"], probability["shape"]) == ("FP64", [2])
    assert probability["data"] == [p["probability"] for p in native["predictions"]]
    assert ids["data"] == ["v2-1#0", "v2-1#1"]
    logged = shared_world.logged().set_index("id")
    assert logged.loc["v2-1#1", "request.colour"] == "green"


@pytest.mark.parametrize("form", ["flat", "nested"])
def test_tensors_come_flat_or_nested(shared_world, form):
    images = np.random.default_rng(0).random((3, 2, 2)).astype(np.float32).round(3)
    data = images.ravel().tolist() if form == "flat" else images.tolist()
    answer = shared_world.post(
        "/v2/models/toy_tensor/infer", {"inputs": [tensor("image", "FP32", data, [3, 2, 2])]}
    ).json()
    native = shared_world.predict(*({"image": i} for i in images.tolist()), model="toy_tensor").json()
    assert answer["outputs"][0]["shape"] == [3, 3]
    assert answer["outputs"][0]["data"] == [v for p in native["predictions"] for v in p["probabilities"]]


def test_a_feature_can_be_sent_as_a_tensor(shared_world, row):
    sent = [*scalars([row()]), tensor("rate", "FP32", [[0.5]], [1, 1])]
    answer = shared_world.post("/v2/models/toy_linear/infer", {"inputs": sent}).json()
    assert answer["outputs"][0]["data"][0] == pytest.approx(1 / (1 + np.exp(-1.0)))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"shape": [2]}, "inputs.0.data"),
        ({"shape": [1, 2]}, "inputs.0.shape"),
        ({"shape": []}, "inputs.0.shape"),
        ({"shape": [-1]}, "inputs.0.shape"),
        ({"shape": [21], "data": [0.0] * 21}, "inputs.0.shape"),
        ({"datatype": "BYTES"}, "inputs.0.datatype"),
        ({"name": "y"}, "inputs.0.name"),
        ({"data": ["a"]}, "rows.0.x"),
        ({"data": [11.0]}, "rows.0.x"),
        ({"extra": 1}, "inputs.0.extra"),
    ],
)
def test_bad_tensors_are_named(shared_world, row, change, field):
    sent = scalars([row()])
    sent[0] = sent[0] | change
    answer = shared_world.post("/v2/models/toy_linear/infer", {"inputs": sent})
    assert answer.status_code in {413, 422}, answer.text
    body = answer.json()
    assert body["detail"]["field"] == field
    assert body["error"].startswith(field), "the protocol wants a string there"


def test_metadata_health_and_versions(shared_world):
    server = {"name": "trellis", "version": "0.1.0", "extensions": ["binary_tensor_data"]}
    assert shared_world.get("/v2").json() == server
    meta = shared_world.get("/v2/models/toy_linear").json()
    assert (meta["name"], meta["versions"]) == ("toy_linear", ["1"])
    inputs = {i["name"]: i for i in meta["inputs"]}
    assert (inputs["x"]["datatype"], inputs["x"]["shape"]) == ("FP64", [-1])
    assert inputs["rate"]["parameters"] == {"optional": True}
    assert inputs["at"]["datatype"] == "BYTES"
    image = shared_world.get("/v2/models/toy_tensor").json()
    assert image["inputs"][0]["shape"] == [-1, 2, 2]
    assert image["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}]
    assert shared_world.get("/v2/models/toy_linear/ready").json() == {"name": "toy_linear", "ready": True}
    assert shared_world.get("/v2/models/toy_linear/versions/1/ready").status_code == 200
    assert shared_world.get("/v2/models/toy_linear/versions/9/ready").status_code == 404
    assert shared_world.get("/v2/models/nope/ready").status_code == 404


def test_a_version_named_in_the_path_answers_whatever_the_split_says(world, row):
    world.deploy(world.artifact("1"), world.artifact("2", c=1.0), share=0.5)
    for version in ("1", "2"):
        answer = world.post(f"/v2/models/toy_linear/versions/{version}/infer", {"inputs": scalars([row()])})
        assert answer.json()["model_version"] == version


# --- description


def references(node):
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_example_of_the_description_can_be_sent(shared_world):
    document = shared_world.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    sent = 0
    for path, methods in document["paths"].items():
        body = methods.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        if path.endswith("/predict"):
            answer = shared_world.post(path, body["example"])
            assert answer.status_code == 200, answer.text
            told = methods["post"]["responses"]["200"]["content"]["application/json"]["example"]
            assert set(answer.json()) == set(told)
            sent += 1
        elif path.endswith("/labels"):
            label = body["example"]["labels"][0]
            assert {*label} == {"id", "value", "observed_at"}
        elif path.endswith("/infer"):
            answer = shared_world.post("/v2/models/toy_linear/infer", body["example"])
            assert answer.status_code == 200, answer.text
            sent += 1
    assert sent == 3
    schemas = document["components"]["schemas"]
    assert {r.removeprefix("#/components/schemas/") for r in references(document)} <= set(schemas)
    fields = schemas["ToyLinearRow"]["properties"]
    assert (fields["x"]["minimum"], fields["x"]["maximum"]) == (-10, 10)
    assert fields["colour"]["enum"] == ["red", "green"]
    assert schemas["ToyLinearRow"]["additionalProperties"] is False
    assert set(schemas["ToyLinearRow"]["required"]) == {"x", "colour", "shop", "at"}


def test_the_docs_page_needs_no_network(shared_world):
    page = shared_world.get("/docs").text
    assert not re.findall(r"(?:https?:)?//", page)
    for path in re.findall(r'(?:href|src)="(/docs/[^"]+)"', page):
        asset = shared_world.get(path)
        assert asset.status_code == 200
        assert len(asset.content) > 10_000
    assert shared_world.get("/docs/passwd").status_code == 404
    assert shared_world.get("/docs/..%2f..%2fapp.py").status_code == 404
    assert shared_world.get("/").headers["location"] == "/docs"


def test_models_are_listed_and_shown_without_server_paths(shared_world):
    [linear, image] = shared_world.get("/v1/models").json()["models"]
    assert (linear["name"], linear["version"], image["name"]) == ("toy_linear", "1", "toy_tensor")
    shown = shared_world.get("/v1/models/toy_linear")
    assert shown.json()["spec"]["inputs"] == ["x", "rate", "size"]
    assert shown.json()["loaded"] == {"1": "python"}
    assert str(shared_world.home) not in shown.text


def test_metrics_count_what_happened(world, row):
    world.deploy(world.artifact("1"))
    world.predict(row(), row())
    world.predict(row(x=99))
    page = world.get("/metrics").text
    assert 'trellis_requests_total{code="200",model="toy_linear"} 1.0' in page
    assert 'trellis_requests_total{code="422",model="toy_linear"} 1.0' in page
    assert 'trellis_predictions_total{model="toy_linear",variant="champion",version="1"} 2.0' in page
    assert 'trellis_plan_revision{model="toy_linear"} 1.0' in page
    assert 'trellis_score_seconds_count{model="toy_linear",version="1"} ' in page
    assert "trellis_log_pending 0.0" in page
