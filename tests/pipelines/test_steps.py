"""A finished step is never repeated, an unfinished one leaves nothing, and time is accounted for."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.steps import flow, reporting, run_key, step
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
    assert run["overhead_seconds"] == pytest.approx(run["wall_seconds"] - sum(run["steps"].values()), abs=0.002)


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


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(json_values, json_values)
def test_keys_differ_exactly_where_values_do(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (run_key(one) == run_key(other)) == same
