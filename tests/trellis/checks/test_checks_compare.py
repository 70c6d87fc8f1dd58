"""What the kit calls equal, declared and transportable."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trellis.checks.compare import ATOL, RTOL, answer_problem, difference, identical
from trellis.checks.exchange import read_batch, read_dataset, write_batch, write_dataset
from trellis.contract import Dataset, Field, Metric, ModelSpec, Target

TEXT = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=8))


def spec(task: str, *outputs: Field) -> ModelSpec:
    classes = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c"), "regression": ()}[task]
    metric = "mae" if task == "regression" else "accuracy"
    return ModelSpec(
        name="m", version="1", task=task, owner="o", description="d", request=(Field("x", "float"),), inputs=("x",),
        outputs=outputs, target=Target("t", "t", classes), metric=Metric(metric, 0.5),
    )  # fmt: skip


THREE = spec("multiclass", Field("probabilities", "tensor", shape=(3,)))
CHANCE = spec("binary", Field("probability", "float"))
VALUE = spec("regression", Field("value", "float", minimum=0, maximum=9), Field("label", "text", nullable=True))


@pytest.mark.parametrize(
    ("declared", "answer", "problem"),
    [
        (THREE, {"probabilities": np.full((2, 3), 1 / 3, np.float32)}, None),
        (THREE, {"probabilities": np.full((2, 3), 0.3, np.float32)}, "add up to 1"),
        (THREE, {"probabilities": np.full((2, 4), 0.25, np.float32)}, "shape (2, 4)"),
        (THREE, {"probabilities": np.array([[1.2, -0.2, 0.0]] * 2)}, "leave 0–1"),
        (CHANCE, {"probability": np.array([0.1, 0.9])}, None),
        (CHANCE, {"probability": np.array([0.1, 1.1])}, "leave 0–1"),
        (CHANCE, {"probability": np.array([0.1, np.nan])}, "1 values are not finite"),
        (CHANCE, {"probability": np.array([0, 1])}, "dtype int64"),
        (CHANCE, {"probability": np.array([0.1])}, "shape (1,)"),
        (CHANCE, {"p": np.array([0.1, 0.2])}, "returns the columns ['p']"),
        (CHANCE, [0.1, 0.2], "a list is no batch"),
        (VALUE, {"value": np.array([0.0, 9.0]), "label": np.array(["a", None], dtype=object)}, None),
        (VALUE, {"value": np.array([0.0, 9.5]), "label": np.array(["a", "b"])}, "above the declared maximum 9"),
        (VALUE, {"value": np.array([-1.0, 9.0]), "label": np.array(["a", "b"])}, "below the declared minimum 0"),
    ],
)
def test_an_answer_is_judged_by_the_declaration(declared: ModelSpec, answer: object, problem: str | None) -> None:
    found = answer_problem(declared, answer, 2)
    assert (found is None) if problem is None else (problem in str(found))


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20),
    st.floats(-3, 3),
    st.data(),
)
def test_difference_is_numpys_allclose_by_column(values: list[float], factor: float, data: st.DataObject) -> None:
    b = np.array(values)
    a = b.copy()
    row = data.draw(st.integers(0, len(b) - 1))
    a[row] += factor * (ATOL + RTOL * abs(b[row]))
    problem, worst = difference({"c": a}, {"c": b})
    assert (problem is None) == bool(np.allclose(a, b, rtol=RTOL, atol=ATOL))
    assert worst == pytest.approx(float(np.abs(a - b).max()))


def test_not_a_number_equals_only_itself() -> None:
    nan = np.array([np.nan, 1.0])
    assert difference({"c": nan}, {"c": nan.copy()})[0] is None
    assert difference({"c": nan}, {"c": np.array([0.0, 1.0])})[0] is not None
    assert difference({"c": np.array([0.0, 1.0])}, {"c": nan})[0] is not None


@given(st.lists(TEXT, max_size=6))
def test_identical_looks_at_every_value(values: list[str | None]) -> None:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    assert identical(column, column.copy())
    for row in range(len(values)):
        other = column.copy()
        other[row] = "something else, longer than drawn"
        assert not identical(column, other)


@given(
    texts=st.lists(TEXT, min_size=1, max_size=6),
    numbers=st.lists(st.floats(width=32), min_size=1, max_size=6),
    instants=st.lists(st.integers(-(2**60), 2**60), min_size=1, max_size=6),
)
def test_batches_travel_between_processes_unchanged(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str | None], numbers: list[float], instants: list[int]
) -> None:
    rows = min(len(texts), len(numbers), len(instants))
    words = np.empty(rows, dtype=object)
    words[:] = texts[:rows]
    batch = {
        "when": np.array(instants[:rows]).astype("datetime64[us]"),
        "words": words,
        "numbers": np.array(numbers[:rows], dtype=np.float32),
        "image": np.zeros((rows, 1, 2, 2), dtype=np.float32),
        "fixed": np.array(["é"] * rows),
    }
    path = tmp_path_factory.mktemp("exchange") / "batch"
    write_batch(path, batch)
    again = read_batch(path)
    assert list(again) == list(batch)
    assert all(identical(again[name], batch[name]) for name in batch)


def test_datasets_travel_with_their_truth(tmp_path: Path) -> None:
    time = np.array(["2024-01-01", "NaT"], dtype="datetime64[us]")
    data = Dataset({"x": np.array([1.0, np.nan])}, np.array([0, 1]), np.array(["a", "b"]), time=time)
    write_dataset(tmp_path / "data", data)
    again = read_dataset(tmp_path / "data")
    assert again.known is None
    assert all(identical(getattr(again, part), getattr(data, part)) for part in ("target", "row_id", "time"))
    assert identical(again.columns["x"], data.columns["x"])
