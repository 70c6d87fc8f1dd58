"""Whatever is sent, the answer is a 4xx that names field, reason and remedy; never a 500, nothing logged twice."""

import json
import pickle
import string

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_core import from_json

from trellis.adapters.database import engine

PATH = "/v1/models/toy_linear/predict"
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"x": "0.5"}, "rows.0.x", "valid number"),
        ({"x": True}, "rows.0.x", "valid number"),
        ({"x": None}, "rows.0.x", "valid number"),
        ({"x": [1]}, "rows.0.x", "valid number"),
        ({"x": 10.01}, "rows.0.x", "less than or equal to 10"),
        ({"x": ...}, "rows.0.x", "field required"),
        ({"colour": "blue"}, "rows.0.colour", "'red' or 'green'"),
        ({"colour": None}, "rows.0.colour", "'red' or 'green'"),
        ({"colr": "red"}, "rows.0.colr", "is not a field"),
        ({"shop": ""}, "rows.0.shop", "at least 1 character"),
        ({"shop": "s" * 21}, "rows.0.shop", "at most 20 characters"),
        ({"shop": 7}, "rows.0.shop", "valid string"),
        ({"note": "x" * 10_000}, "rows.0.note", "at most 50 characters"),
        ({"amount": 1.5}, "rows.0.amount", "valid integer"),
        ({"amount": -1}, "rows.0.amount", "greater than or equal to 0"),
        ({"amount": 10**30}, "rows.0.amount", ""),
        ({"member": 1}, "rows.0.member", "valid boolean"),
        ({"at": "2013-07-01"}, "rows.0.at", "RFC 3339"),
        ({"at": "2013-07-01T09:15:00"}, "rows.0.at", "RFC 3339"),
        ({"at": "2013-13-01T09:15:00Z"}, "rows.0.at", "month must be in"),
        ({"at": "2013-07-01T09:15:00+99:00"}, "rows.0.at", "offset"),
        ({"at": "0001-01-01T00:00:00+23:59"}, "rows.0.at", "1900"),
        ({"at": "2200-01-01T00:00:00Z"}, "rows.0.at", "1900"),
        ({"at": 1372670100}, "rows.0.at", "RFC 3339"),
        ({"rate": 1.5}, "rows.0.rate", "less than or equal to 1"),
        ({"size": -1}, "rows.0.size", "greater than or equal to 0"),
    ],
)
def test_a_bad_field_is_named(shared_world, row, changes, field, reason):
    answer = shared_world.predict(row(**changes))
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["field"] == field
    assert reason in error["reason"]
    assert error["remedy"]


def test_a_misspelt_field_gets_its_close_match(shared_world, row):
    assert "'colour'" in shared_world.predict(row(colur="red", colour=...)).json()["error"]["remedy"]


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b'{"rows": [}', 400, "not JSON"),
        (b"\xff\xfe\x00", 400, "not JSON"),
        (b"[" * 10_000, 400, "not JSON"),
        (b"null", 422, "object"),
        (b"[]", 422, "object"),
        (b'"rows"', 422, "object"),
        (b"{}", 422, "required"),
        (b'{"rows": []}', 422, "at least 1 item"),
        (b'{"rows": {}}', 422, "valid array"),
        (b'{"rows": [null]}', 422, "object"),
        (b'{"rows": [[]]}', 422, "object"),
        (b'{"rows": [' + b"{}," * 20 + b"{}]}", 413, "more than 20"),
        (b'{"rows": "' + b"x" * 30_000 + b'"}', 413, "larger than 20000 bytes"),
    ],
)
def test_a_bad_body_is_named(shared_world, body, status, reason):
    answer = shared_world.post(PATH, content=body, headers=JSON)
    assert answer.status_code == status, answer.text
    assert reason in answer.json()["error"]["reason"]


@pytest.mark.parametrize(
    "token", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400, "01", "+1", "0x1"]
)
def test_numbers_that_are_none_are_refused(shared_world, row, token):
    body = json.dumps({"rows": [row(x="TOKEN")]}).replace('"TOKEN"', token)
    answer = shared_world.post(PATH, content=body, headers=JSON)
    assert answer.status_code in {400, 422}
    assert answer.json()["error"]["reason"]


def test_a_body_without_a_length_is_cut_off_at_the_limit(shared_world):
    async def endless():
        for _ in range(1_000):
            yield b"x" * 1_000

    answer = shared_world.post(PATH, content=endless(), headers=JSON)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/vnd.bentoml+pickle", "application/octet-stream", "application/jsonp", "*/*"],
)
def test_only_json_is_read(shared_world, content_type):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    headers = {"content-type": content_type} if content_type else {}
    answer = shared_world.post(PATH, content=pickle.dumps(Trap()), headers=headers)
    assert answer.status_code == 415
    zipped = shared_world.post(PATH, content=b"x", headers=JSON | {"content-encoding": "gzip"})
    assert zipped.status_code == 415


@pytest.mark.parametrize("identity", ["", "a#0", "a b", "x" * 129, "../x", 7])
def test_a_bad_request_id_is_refused(shared_world, row, identity):
    answer = shared_world.predict(row(), id=identity)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "id")


def test_unknown_models_paths_and_methods(shared_world, row):
    misspelt = shared_world.predict(row(), model="toy_liner")
    assert misspelt.status_code == 404
    assert "'toy_linear'" in misspelt.json()["error"]["remedy"]
    huge = shared_world.predict(row(), model="x" * 5_000)
    assert huge.status_code == 404
    assert len(huge.text) < 1_000
    assert shared_world.get("/v1/model").status_code == 404
    wrong = shared_world.get(PATH)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert "POST" in wrong.json()["error"]["remedy"]
    assert "toy_liner" not in shared_world.service.metrics.exposition().decode()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from(["s1", "s2", "red", "2013-07-01T09:15:00Z"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(["x", "colour", "shop", "note", "amount", "member", "at", "rate", "size"])


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(FIELDS | st.text(max_size=8), VALUES, max_size=3),
    more=st.dictionaries(st.sampled_from(["id", "rows", "other"]), VALUES, max_size=1),
    number=st.integers(0, 10**9),
)
def test_no_json_value_gives_a_500_and_what_is_answered_is_logged_once(shared_world, row, changes, more, number):
    before = len(shared_world.logged())
    body = json.dumps({"rows": [row(**changes)], "id": f"fuzz{number}"} | more)
    answers = [shared_world.post(PATH, content=body.encode("utf-8", "replace"), headers=JSON) for _ in range(2)]
    check(answers[0])
    rows = len(answers[0].json()["predictions"]) if answers[0].status_code == 200 else 0
    repeated = f'"{answers[0].json()["request_id"]}"' in body if rows else False
    assert len(shared_world.logged()) - before <= rows * (1 if repeated else 2)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.text(alphabet=string.printable, max_size=200).map(str.encode))
def test_no_bytes_give_a_500(shared_world, body):
    for path in (PATH, "/v1/models/toy_linear/labels", "/v2/models/toy_linear/infer"):
        answer = shared_world.post(path, content=body, headers=JSON)
        assert 400 <= answer.status_code < 500


TENSOR = st.fixed_dictionaries(
    {
        "name": FIELDS | st.just("image") | st.text(max_size=5),
        "shape": st.lists(st.integers(-1, 5) | st.just(10**18), max_size=4),
        "datatype": st.sampled_from(["FP64", "FP32", "INT64", "BOOL", "BYTES", "UINT8", "X"]),
        "data": st.lists(VALUES, max_size=5) | st.just([[[0.5, 0.5], [0.5, 0.5]]]),
    }
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(inputs=st.lists(TENSOR, max_size=3), model=st.sampled_from(["toy_linear", "toy_tensor"]))
def test_no_tensor_gives_a_500(shared_world, inputs, model):
    answer = shared_world.post(f"/v2/models/{model}/infer", content=json.dumps({"inputs": inputs}), headers=JSON)
    check(answer)


def check(answer):
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
    body = from_json(answer.content, allow_inf_nan=False)
    if answer.status_code != 200:
        error = body.get("detail", body["error"])
        assert error["reason"]
        assert error["remedy"]


def test_a_stored_plan_that_is_none_stops_neither_its_model_nor_the_others(world, row):
    """The plan that is held goes on answering; the next good one is followed."""
    world.deploy(world.artifact("1"))
    tensor = world.artifact("1", model="toy_tensor")
    with engine(f"sqlite:///{world.home}/trellis.db").begin() as raw:
        raw.execute(sa.text("UPDATE rollout_plans SET document = replace(document, '1.0', '0.5')"))
    world.deploy(tensor, model="toy_tensor")
    assert world.service.models.names() == ["toy_linear", "toy_tensor"]
    assert world.predict(row()).json()["version"] == "1"
    assert "sum to 0.5" in world.service.models.status()["broken"]["toy_linear"]
    assert world.metric("trellis_load_failures_total", model="toy_linear") >= 1
    with engine(f"sqlite:///{world.home}/trellis.db").begin() as raw:
        raw.execute(sa.text("UPDATE rollout_plans SET document = replace(document, '0.5', '1.0')"))
    world.service.models.poll()
    assert world.service.models.status()["broken"] == {}


@pytest.mark.parametrize("unit", ["tail_number", "rate"])
def test_a_plan_whose_unit_a_later_plug_in_has_dropped_is_executed_row_by_row(world, row, caplog, unit):
    """A field that it has made a feature is dropped too: callers need not send it, and would all be one unit."""
    one, two = world.artifact("1"), world.artifact("2")
    plan = world.deploy(one, two, share=0.5, unit=unit)
    body = world.predict(*[row(x=i / 20) for i in range(20)])
    assert body.status_code == 200, body.text
    for prediction in body.json()["predictions"]:
        assert prediction["version"] == plan.assign(prediction["id"]).version
    assert {p["version"] for p in body.json()["predictions"]} == {"1", "2"}
    frame = world.logged()
    assert frame["unit"].tolist() == frame["id"].tolist(), "what was drawn is what is counted"
    status = world.service.models.status()
    assert f"{unit!r} is no request field" in status["models"]["toy_linear"]["faults"]["plan"]
    assert status["ready"]
    for _ in range(3):
        world.service.models.poll()
    assert caplog.text.count(f"{unit!r} is no request field") == 1
    world.deploy(one, two, share=0.5, unit="note")
    assert world.service.models.status()["models"]["toy_linear"]["faults"] == {}
