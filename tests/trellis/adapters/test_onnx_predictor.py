"""ONNX Runtime as a predictor: columns are fed as the graph declares them."""

import os
import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from trellis.adapters.onnx_predictor import OnnxPredictor
from trellis.errors import ArtifactError, ContractError


def write(path, inputs, nodes, outputs):
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def identity(path, kind, shape):
    return write(path, [("x", kind, shape)], [helper.make_node("Identity", ["x"], ["y"])], [("y", kind, shape)])


@pytest.mark.parametrize(
    ("kind", "shape", "column", "expected"),
    [
        (TensorProto.FLOAT, ["n"], np.array([0.1, np.nan]), np.array([0.1, np.nan], np.float32)),
        (TensorProto.FLOAT, ["n", 1], np.array([1, 2]), np.array([[1], [2]], np.float32)),
        (TensorProto.DOUBLE, ["n"], np.array([0.1]), np.array([0.1])),
        (TensorProto.INT64, ["n", 1], np.array([3]), np.array([[3]])),
        (TensorProto.BOOL, ["n"], np.array([True, False]), np.array([True, False])),
        (TensorProto.STRING, ["n"], np.array(["a", None, np.nan, ""], object), np.array(["a", "", "", ""], object)),
        (TensorProto.STRING, ["n", 1], np.array(["a", "bé"]), np.array([["a"], ["bé"]], object)),
        (TensorProto.FLOAT, ["n", 2, 2], np.ones((3, 2, 2)), np.ones((3, 2, 2), np.float32)),
        (
            TensorProto.DOUBLE,
            ["n"],
            np.array(["1970-01-01T00:00:01.5", "NaT"], "datetime64[us]"),
            np.array([1.5, np.nan]),
        ),
    ],
)
def test_columns_are_fed_as_declared_and_left_alone(tmp_path, kind, shape, column, expected):
    predictor = OnnxPredictor(identity(tmp_path / "model.onnx", kind, shape))
    before = column.copy()
    answer = predictor.predict({"x": column, "unused": np.zeros(len(column))})["y"]
    assert answer.dtype == expected.dtype
    np.testing.assert_array_equal(answer, expected)
    assert repr(column) == repr(before)


@pytest.mark.parametrize(
    ("kind", "shape", "column"),
    [
        (TensorProto.FLOAT, ["n", 2, 3], np.empty((0, 2, 3))),
        (TensorProto.INT64, ["n", 1], np.empty(0, np.int64)),
        (TensorProto.STRING, ["n"], np.empty(0, object)),
        (TensorProto.STRING, ["n", 1], np.empty(0, np.str_)),
        (TensorProto.DOUBLE, ["n"], np.empty(0, "datetime64[us]")),
    ],
)
def test_no_rows_in_no_rows_out(tmp_path, kind, shape, column):
    """ONNX Runtime aborts the process on some graphs without rows, so none ever reaches it."""
    predictor = OnnxPredictor(identity(tmp_path / "model.onnx", kind, shape))
    fed = []
    run = predictor._run

    def spy(names, feed, options):
        fed.append({name: len(tensor) for name, tensor in feed.items()})
        return run(names, feed, options)

    predictor._run = spy
    full = predictor.predict({"x": np.zeros((2, *column.shape[1:]), column.dtype)})["y"]
    none = predictor.predict({"x": column})["y"]
    assert (none.shape, none.dtype) == ((0, *full.shape[1:]), full.dtype)
    assert fed == [{"x": 2}, {"x": 1}]


def test_a_graph_that_vectorises_its_inputs_takes_an_empty_batch(tmp_path):
    node = helper.make_node("FeatureVectorizer", ["a", "b"], ["y"], domain="ai.onnx.ml", inputdimensions=[1, 1])
    shape = [(name, TensorProto.FLOAT, ["n", 1]) for name in ("a", "b")]
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info(*s) for s in shape],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    predictor = OnnxPredictor(tmp_path / "m.onnx")
    assert predictor.predict({"a": np.empty(0), "b": np.empty(0)})["y"].shape == (0, 2)


def test_it_saves_what_it_loaded(tmp_path):
    source = identity(tmp_path / "m.onnx", TensorProto.FLOAT, ["n"])
    (tmp_path / "copy").mkdir()
    OnnxPredictor(source).save(tmp_path / "copy")
    again = OnnxPredictor(tmp_path / "copy" / "model.onnx")
    assert again.predict({"x": np.array([2.0])})["y"].tolist() == [2.0]


def test_a_missing_or_unfitting_column_is_named(tmp_path):
    predictor = OnnxPredictor(identity(tmp_path / "model.onnx", TensorProto.FLOAT, ["n"]))
    with pytest.raises(ContractError, match="'x' is not in the batch"):
        predictor.predict({"z": np.zeros(1)})
    with pytest.raises(ContractError, match="'x' does not fit"):
        predictor.predict({"x": np.array(["a"], object)})


def test_a_file_that_is_no_graph_is_named(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ArtifactError, match="cannot load the graph"):
        OnnxPredictor(tmp_path / "model.onnx")
    with pytest.raises(ArtifactError):
        OnnxPredictor(tmp_path / "none.onnx")


def test_loading_leaves_nothing_in_the_home(tmp_path):
    """ONNX Runtime's own telemetry would make a device id there."""
    model, home = identity(tmp_path / "model.onnx", TensorProto.FLOAT, ["n"]), tmp_path / "user"
    home.mkdir()
    code = f"from trellis.adapters.onnx_predictor import OnnxPredictor; OnnxPredictor({str(model)!r})"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    places = {"HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home)}
    subprocess.run([sys.executable, "-c", code], env=environment | places, check=True)
    assert list(home.iterdir()) == []


def test_the_short_way_into_the_session_gives_what_the_public_one_gives(tmp_path):
    predictor = OnnxPredictor(identity(tmp_path / "model.onnx", TensorProto.FLOAT, ["n"]))
    column = np.array([1.5, np.nan], np.float32)
    np.testing.assert_array_equal(predictor.predict({"x": column})["y"], predictor._session.run(None, {"x": column})[0])
    assert predictor._run != predictor._session.run, "this release has no short way: take its costs out of the notes"


def test_one_session_serves_many_threads(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    predictor = OnnxPredictor(identity(tmp_path / "model.onnx", TensorProto.FLOAT, ["n"]))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: predictor.predict({"x": np.array([i])})["y"][0], range(200)))
    assert answers == list(range(200))
