"""A finished step is never repeated, an unfinished one leaves nothing, and time is accounted for."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipelines.progress import StepProgress
from pipelines.steps import FlowRun, flow, nothing_to_do, reporting, run_key, step
from trellis.errors import StorageError


@dataclass(frozen=True)
class Made:
    """A result with a file."""

    path: str
    numbers: tuple[int, ...]


class Calls:
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bool]] = []

    def started(self, step: str) -> None:
        pass

    def finished(self, step: str, seconds: float, reused: bool) -> None:
        assert seconds >= 0
        self.told.append((step, reused))

    def ended(self, run: FlowRun) -> None:
        self.run = run


def _make(home: Path):
    runs: list[int] = []

    @step(intact=lambda made: Path(made.path).exists())
    def make(number: int, where: str) -> Made:
        runs.append(number)
        if number < 0:
            raise ValueError("negative")
        path = home / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(where)
        return Made(str(path), (number, number + 1))

    return make, runs


def test_a_kept_result_serves_again_until_its_arguments_or_its_files_change(home: Path):
    make, runs = _make(home)
    first = make(1, "a")
    assert make(1, where="a") == first
    assert runs == [1]
    make(2, "a")
    make(1, "b")
    assert runs == [1, 2, 1]
    Path(first.path).unlink()
    assert make(1, "a") == first
    assert runs == [1, 2, 1, 1]


def test_a_step_that_raises_keeps_nothing(home: Path):
    make, runs = _make(home)
    for _ in range(2):
        with pytest.raises(ValueError, match="negative"):
            make(-1, "a")
    assert runs == [-1, -1]


def test_a_flow_accounts_for_its_time_and_tells_what_it_reused(home: Path):
    make, _ = _make(home)

    @flow
    def both(number: int) -> list[Made]:
        return [make(number, "a"), make(number, "a")]

    calls = Calls()
    with reporting(calls):
        both(5)
    assert calls.told == [("make", False), ("make", True)]
    run = json.loads((home / "flows" / "runs.jsonl").read_text())
    assert run["flow"] == "both"
    assert run["reused"] == ["make"]
    assert (calls.run.name, calls.run.wall) == ("both", pytest.approx(run["wall_seconds"], abs=0.001))
    assert calls.run.work + calls.run.overhead == pytest.approx(calls.run.wall)
    assert run["overhead_seconds"] == pytest.approx(run["wall_seconds"] - sum(run["steps"].values()), abs=0.002)


def test_a_run_is_journalled_with_its_model_and_an_idle_one_only_if_it_failed(home: Path):
    @flow
    def turn(count: int, model: str) -> None:
        if count <= 0:
            nothing_to_do()
        if count < 0:
            raise ValueError("negative")

    turn(1, "a")
    turn(0, model="b")
    with pytest.raises(ValueError, match="negative"):
        turn(-1, model="c")
    runs = [json.loads(line) for line in (home / "flows" / "runs.jsonl").read_text().splitlines()]
    assert [(run["model"], run["error"]) for run in runs] == [("a", ""), ("c", "ValueError")]


def test_a_result_that_cannot_be_kept_is_an_error_with_a_remedy(home: Path):
    make, _ = _make(home)
    make(1, "a")
    steps = home / "flows" / "steps"
    for path in steps.iterdir():
        path.unlink()
    steps.rmdir()
    steps.write_text("in the way")
    with pytest.raises((StorageError, FileExistsError)):
        make(1, "a")


def test_a_flow_inside_a_flow_counts_for_the_outer_one_and_a_failed_flow_is_told_too(home: Path):
    make, _ = _make(home)

    @flow
    def inner(number: int) -> Made:
        return make(number, "a")

    @flow
    def outer(number: int) -> Made:
        return inner(number)

    calls = Calls()
    with reporting(calls):
        outer(1)
        with pytest.raises(ValueError, match="negative"):
            outer(-1)
    runs = [json.loads(line) for line in (home / "flows" / "runs.jsonl").read_text().splitlines()]
    assert [run["flow"] for run in runs] == ["outer", "outer"]
    assert [sorted(run["steps"]) for run in runs] == [["make"], []]


def test_the_progress_of_a_flow_ends_with_wall_work_and_overhead_in_one_line():
    out = io.StringIO()
    progress = StepProgress(console=Console(file=out, width=200))
    progress.ended(FlowRun("train-model", "toy", {"train": 1.5, "gate": 0.25}, ["gate"], wall=2.0))
    assert out.getvalue() == "2.0 s in all: 1.8 s work in 2 steps, 1 kept from before, 0.2 s overhead\n"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(json_values, json_values)
def test_keys_differ_exactly_where_values_do(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (run_key(one) == run_key(other)) == same


def test_a_kept_result_that_cannot_be_read_is_made_again(home: Path):
    make, runs = _make(home)
    first = make(1, "a")
    [kept] = (home / "flows" / "steps").iterdir()
    kept.write_text('{"path": 1')
    assert make(1, "a") == first
    assert runs == [1, 1]
