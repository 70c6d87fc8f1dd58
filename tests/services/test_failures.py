"""What fails is kept: whose, why, which row, nothing of what the request said; an answer is given all the same."""

import pytest

from trellis.adapters.failure_log import FailureLog, read_assigned, read_failures
from trellis.errors import StorageError


@pytest.fixture
def failures(world):
    def read():
        for log in world.service._logs._open.values():
            log.flush()
        return read_failures(world.home, "toy_linear")

    return read


def canary(world, share=1.0, **weights):
    world.deploy(world.artifact("1"), world.artifact("2", **weights), share=share)


@pytest.mark.parametrize(
    ("weights", "cause"),
    [
        ({"raises": True}, "raised"),
        ({"strays": 1.5}, "out_of_range"),
        ({"strays": -1e-3}, "out_of_range"),
        ({"strays": float("nan")}, "out_of_range"),
        ({"strays": float("inf")}, "out_of_range"),
    ],
)
def test_a_canary_that_fails_on_a_row_is_kept_and_the_champion_answers(world, row, failures, weights, cause):
    canary(world, **weights)
    assert world.predict(row(x=1.0), id="fine").json()["variant"] == "canary"
    assert world.predict(row(x=9.5), id="bad").json()["variant"] == "champion"
    [told] = failures().to_dict("records")
    assert {k: told[k] for k in ("id", "model", "version", "variant", "assigned", "revision", "unit", "cause")} == {
        "id": "bad#0",
        "model": "toy_linear",
        "version": "2",
        "variant": "canary",
        "assigned": "2",
        "revision": 1,
        "unit": "bad#0",
        "cause": cause,
    }
    moments = {"time", "received_at"}
    assert set(told) == {"id", "model", "version", "variant", "assigned", "revision", "unit", "cause"} | moments
    rows = read_assigned(world.home, "toy_linear").set_index("id")
    assert rows.loc["bad#0", ["assigned", "version", "failed", "answered"]].tolist() == ["2", "1", True, True]
    assert rows.loc["fine#0", ["assigned", "version", "failed", "answered"]].tolist() == ["2", "2", False, True]


def test_rounding_to_32_bits_is_no_failure(world, row, failures):
    canary(world, strays=1.0000001)
    assert world.predict(row(x=9.5)).json()["variant"] == "canary"
    assert len(failures()) == 0


def test_a_canary_that_cannot_be_loaded_fails_on_every_row_it_was_drawn_for(world, row, failures):
    variant = world.artifact("2")
    (world.home / "artifacts/toy_linear/2/weights.json").unlink()
    world.deploy(world.artifact("1"), variant, share=1.0)
    body = world.predict(row(), id="a").json()
    assert (body["version"], body["fallback"][0]["link"]) == ("1", "champion")
    assert failures()["cause"].tolist() == ["not_loaded"]


def test_where_nobody_answers_every_row_of_the_request_is_told(world, row, failures):
    world.deploy(world.artifact("1", raises=True), world.artifact("2", c=3.0), share=0.5)
    rows = [row(x=9.5)] * 10
    assert world.predict(*rows, id="all").status_code == 503
    told = failures().set_index("id")
    drawn = {f"all#{i}": world.plans.current("toy_linear").assign(f"all#{i}").version for i in range(10)}
    assert set(drawn.values()) == {"1", "2"}, "both arms have rows"
    assert told["assigned"].to_dict() == drawn
    assert told["cause"].to_dict() == {key: "raised" if v == "1" else "lost" for key, v in drawn.items()}
    seen = read_assigned(world.home, "toy_linear").set_index("id")
    assert not seen["answered"].any()
    assert seen["failed"].to_dict() == {key: v == "1" for key, v in drawn.items()}


def test_a_canary_that_is_too_slow_for_the_deadline_has_failed_even_if_it_answers_at_last(world, row, failures):
    canary(world, sleeps=0.3)
    answer = world.post(
        "/v1/models/toy_linear/predict", {"rows": [row(x=9.5)], "id": "slow"}, headers={"x-timeout-ms": "50"}
    )
    assert answer.status_code == 504
    world.service.workers.close()  # the answer comes, too late
    assert failures()[["id", "version", "cause"]].to_numpy().tolist() == [["slow#0", "2", "timeout"]]
    rows = read_assigned(world.home, "toy_linear")
    assert rows[["id", "assigned", "answered", "failed"]].to_numpy().tolist() == [["slow#0", "2", True, True]]


def test_a_version_that_the_caller_named_is_no_evidence(world, row, failures):
    canary(world, share=0.0, raises=True)
    tensor = [{"name": n, "shape": [1, 1], "datatype": "FP64", "data": [v]} for n, v in (("x", 1.0),)]
    body = {"id": "named", "inputs": tensor}
    body["inputs"] += [
        {"name": n, "shape": [1, 1], "datatype": "BYTES", "data": [row()[n]]} for n in ("colour", "shop", "at")
    ]
    answer = world.post("/v2/models/toy_linear/versions/2/infer", body)
    assert answer.status_code == 200, answer.text
    assert world.logged()["pinned"].tolist() == [True]
    assert len(read_assigned(world.home, "toy_linear")) == 0
    body["inputs"][0]["data"] = [9.5]
    assert world.post("/v2/models/toy_linear/versions/2/infer", body | {"id": "again"}).status_code == 200
    assert len(failures()) == 0


def test_an_answer_is_given_also_where_its_failure_cannot_be_kept(world, row, monkeypatch):
    canary(world, raises=True)

    def full(self, records):
        raise StorageError("The disk is full.")

    monkeypatch.setattr(FailureLog, "extend", full)
    assert world.predict(row(x=9.5)).status_code == 200
    assert world.metric("trellis_log_failures_total", model="toy_linear") == 1
