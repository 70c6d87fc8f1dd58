"""The whole API against its own description: whatever is sent, no 500, and every answer has the form it promises."""

import json
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

# What a schema's string may be besides its own pattern or format.
TEXT = st.text(max_size=12) | st.sampled_from(
    ["", "s1", "red", "NaN", "\u0000", "é" * 3, "a" * 300, "2013-07-01T09:15:00Z"]
)
MOMENTS = st.just("2013-07-01T09:15:00Z") | st.sampled_from(
    ["2013-07-01T09:15:00Z", "1999-12-31T23:59:60Z", "2013-07-01T09:15:00+05:30", "2013-02-29T00:00:00Z"]
)
IDS = st.text(string.ascii_letters + string.digits + "._:@/+-", min_size=1, max_size=20)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


def values(schema, document, depth=0):
    """Return a strategy for a schema: mostly what it allows, sometimes its edges, now and then anything."""
    if "$ref" in schema:
        return values(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document, depth)
    if "enum" in schema:
        fitting = st.sampled_from(schema["enum"])
    elif "const" in schema:
        fitting = st.just(schema["const"])
    elif "anyOf" in schema:
        fitting = st.one_of([values(part, document, depth) for part in schema["anyOf"]])
    else:
        fitting = _typed(schema, document, depth)
    return st.integers(0, 24).flatmap(lambda dice: ANYTHING if dice == 0 and depth else fitting)


def _typed(schema, document, depth):
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            needed = set(schema.get("required", ()))
            parts = {name: values(part, document, depth + 1) for name, part in properties.items()}
            return st.fixed_dictionaries(
                {n: s for n, s in parts.items() if n in needed},
                optional={n: s for n, s in parts.items() if n not in needed},
            )
        case "array":
            inner = values(schema.get("items", {}), document, depth + 1)
            least = schema.get("minItems", 0)
            return st.lists(inner, min_size=least, max_size=min(schema.get("maxItems", least + 3), least + 3))
        case "string":
            if schema.get("format") == "date-time":
                return MOMENTS
            return (
                IDS | IDS.map("{}#0".format)
                if "pattern" in schema
                else st.sampled_from(["s1", "s2", "FP32", "FP64", "BYTES", "x", "image"]) | TEXT
            )
        case "integer":
            edges = [schema.get("minimum", -(2**63)), schema.get("maximum", 2**63 - 1)]
            return st.integers(*map(int, edges)) | st.sampled_from([*edges, 0, 1, 2])
        case "number":
            low, high = schema.get("minimum", -1e300), schema.get("maximum", 1e300)
            return st.floats(low, high) | st.sampled_from([low, high, 0, -0.0, 5e-324])
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case _:
            return ANYTHING


def routes(document):
    return [
        (path, method, operation)
        for path, methods in sorted(document["paths"].items())
        for method, operation in sorted(methods.items())
    ]


@pytest.fixture(scope="module")
def document(shared_world):
    return shared_world.get("/openapi.json").json()


def check(document, operation, answer):
    """Hold an answer against what the description promises for its status."""
    status = str(answer.status_code)
    assert answer.status_code < 500 or answer.status_code in (503, 504), answer.text
    promised = operation["responses"].get(status)
    assert promised is not None, f"{status} is not described: {answer.text}"
    content = promised.get("content", {})
    schema = content.get("application/json", {}).get("schema")
    if schema is not None:
        assert answer.headers["content-type"] == "application/json"
        Draft202012Validator({**schema, "components": document["components"]}).validate(json.loads(answer.text))


@settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_posts_answer_as_described_whatever_is_sent(shared_world, document, data):
    posts = [route for route in routes(document) if route[1] == "post"]
    path, _, operation = data.draw(st.sampled_from(posts))
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    body = data.draw(values(schema, document))
    version = data.draw(st.sampled_from(["toy_linear", "toy_tensor"]))
    headers = {"content-type": "application/json"} | data.draw(
        st.fixed_dictionaries({}, optional={"x-timeout-ms": st.sampled_from(["5000", "600000", "0", "x"])})
    )
    content = json.dumps(body).encode("utf-8", "replace")
    answer = shared_world.post(path.replace("{model}", version), content=content, headers=headers)
    check(document, operation, answer)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_gets_answer_as_described_whatever_is_named(shared_world, document, data):
    gets = [route for route in routes(document) if route[1] == "get"]
    path, _, operation = data.draw(st.sampled_from(gets))
    name = data.draw(st.sampled_from(["toy_linear", "toy_tensor"]) | st.text("abc_-.%~", min_size=1, max_size=8))
    check(document, operation, shared_world.get(path.replace("{model}", name)))


def test_what_is_fuzzed_is_the_whole_api_and_good_bodies_get_through(shared_world, document):
    paths = {(path, method) for path, method, _ in routes(document)}
    assert {
        ("/v1/models/toy_linear/predict", "post"),
        ("/v2/models/{model}/infer", "post"),
        ("/metrics", "get"),
    } <= paths
    counted = {}

    @settings(max_examples=400, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def some(data):
        operation = document["paths"]["/v1/models/toy_linear/predict"]["post"]
        body = data.draw(values(operation["requestBody"]["content"]["application/json"]["schema"], document))
        answer = shared_world.post(
            "/v1/models/toy_linear/predict",
            content=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        counted[answer.status_code] = counted.get(answer.status_code, 0) + 1

    some()
    assert counted.get(422, 0) > 5, counted
    assert counted.get(200, 0) > 5, counted
