"""The flight model as an ONNX graph, written node by node.

By hand, because the graph takes the request's own columns (strings among them), has to give bit for bit the same file
for the same model, and because the converters at hand warn, lose float32 or write the machine's paths into the file.
Every input is one value per row, shape [n]: a batch's columns as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .calibration import Platt
from .encoding import CATEGORIES, NUMBERS, UNKNOWN, Encoding
from .spec import SPEC

if TYPE_CHECKING:
    import xgboost

ML = "ai.onnx.ml"


class Graph:
    """Nodes and constants, collected in the order in which they are computed."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(self, kind: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its only output."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, domain=domain, **attributes))
        return output

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """Add a constant and return its name."""
        self.constants[name] = numpy_helper.from_array(np.asarray(value, dtype=dtype), name)
        return name

    def matrix(self, columns: Sequence[str], output: str) -> str:
        """Put columns of shape [n] side by side, as [n, k].

        One long vector, folded and turned: three nodes, where unsqueezing each column would cost one per input and most
        of the time of a one-row call.
        """
        long = self.add("Concat", columns, f"{output}_long", axis=0)
        folded = self.add(
            "Reshape", [long, self.constant(f"{output}_shape", [len(columns), -1], np.int64)], f"{output}_folded"
        )
        return self.add("Transpose", [folded], output, perm=[1, 0])

    def probability(self, margin: str, platt: Platt) -> None:
        """Calibrate a margin of shape [n, 1] and call it the model's output, of shape [n]."""
        scaled = self.add("Mul", [margin, self.constant("slope", platt.slope)], "scaled")
        logit = self.add("Add", [scaled, self.constant("offset", platt.offset)], "logit")
        column = self.add("Sigmoid", [logit], "probability_column")
        self.add("Reshape", [column, self.constant("flat", [-1], np.int64)], "probability")

    def write(self, path: Path, name: str) -> None:
        """Check the graph and write it."""
        kinds = dict.fromkeys(CATEGORIES, TensorProto.STRING)
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), ["n"]) for n in SPEC.inputs],
            [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n"])],
            list(self.constants.values()),
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(ML, 3)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="trellis")
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString(deterministic=True))


def export_trees(path: Path, booster: xgboost.Booster, encoding: Encoding, platt: Platt) -> None:
    """Write XGBoost's trees: label encoders, one matrix, one ``TreeEnsembleRegressor``, the calibration."""
    graph = Graph()
    codes = []
    for name in CATEGORIES:
        known = encoding.codes[name]
        codes.append(
            graph.add(
                "LabelEncoder",
                [name],
                f"{name}_code",
                ML,
                keys_strings=list(known),
                values_floats=[float(code) for code in known.values()],
                default_float=float("nan"),
            )
        )
    matrix = graph.matrix([*codes, *NUMBERS], "features")
    graph.add("TreeEnsembleRegressor", [matrix], "margin", ML, **_tree_attributes(booster))
    graph.probability("margin", platt)
    graph.write(path, "flight_delay_xgboost")


def _tree_attributes(booster: xgboost.Booster) -> dict[str, Any]:
    """Return the trees as the parallel lists that ONNX wants.

    XGBoost goes left where ``x < threshold`` in float32, and where x is missing if the node says so; that is ONNX's
    BRANCH_LT with ``nodes_missing_value_tracks_true``.
    """
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    base = np.array(json.loads(learner["learner_model_param"]["base_score"]), dtype=np.float64).reshape(-1)[0]
    nodes: dict[str, list[Any]] = {
        key: [] for key in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids")
    }
    nodes |= {"falsenodeids": [], "missing_value_tracks_true": []}
    leaves: dict[str, list[Any]] = {key: [] for key in ("treeids", "nodeids", "ids", "weights")}
    for number, tree in enumerate(learner["gradient_booster"]["model"]["trees"]):
        for node, left in enumerate(tree["left_children"]):
            leaf = left == -1
            row = {
                "treeids": number,
                "nodeids": node,
                "featureids": 0 if leaf else tree["split_indices"][node],
                "values": 0.0 if leaf else tree["split_conditions"][node],
                "modes": "LEAF" if leaf else "BRANCH_LT",
                "truenodeids": 0 if leaf else left,
                "falsenodeids": 0 if leaf else tree["right_children"][node],
                "missing_value_tracks_true": 0 if leaf else int(tree["default_left"][node]),
            }
            for key, value in row.items():
                nodes[key].append(value)
            if leaf:
                for key, value in (
                    ("treeids", number),
                    ("nodeids", node),
                    ("ids", 0),
                    ("weights", tree["split_conditions"][node]),
                ):
                    leaves[key].append(value)
    return {
        "n_targets": 1,
        "aggregate_function": "SUM",
        "post_transform": "NONE",
        "base_values": [float(np.log(base / (1 - base)))],
        **{f"nodes_{key}": values for key, values in nodes.items()},
        **{f"target_{key}": values for key, values in leaves.items()},
    }


def export_network(
    path: Path,
    weights: Mapping[str, np.ndarray],
    encoding: Encoding,
    platt: Platt,
    *,
    blocks: int,
    clip: float,
) -> None:
    """Write the network of ``tabnet.Network``; ``weights`` are named as in its state."""
    graph = Graph()
    w = {name: graph.constant(name, value) for name, value in weights.items()}
    parts = []
    for i, name in enumerate(CATEGORIES):
        known = encoding.codes[name]
        code = graph.add(
            "LabelEncoder",
            [name],
            f"{name}_code",
            ML,
            keys_strings=list(known),
            values_int64s=list(known.values()),
            default_int64=UNKNOWN,
        )
        parts.append(graph.add("Gather", [w[f"embeddings.{i}.weight"], code], f"{name}_vector", axis=0))
    raw = graph.matrix(NUMBERS, "numbers")
    missing = graph.add("IsNaN", [raw], "missing")
    centred = graph.add("Sub", [raw, w["mean"]], "centred")
    zeroed = graph.add("Where", [missing, graph.constant("zero", 0.0), centred], "zeroed")
    scaled = graph.add("Div", [zeroed, w["scale"]], "standard")
    parts.append(graph.add("Clip", [scaled, graph.constant("low", -clip), graph.constant("high", clip)], "clipped"))
    parts.append(graph.add("Cast", [missing], "missing_float", to=TensorProto.FLOAT))
    x = graph.add("Concat", parts, "joined", axis=1)

    def dense(x: str, layer: str) -> str:
        return graph.add("Gemm", [x, w[f"{layer}.weight"], w[f"{layer}.bias"]], f"{layer}_out", transB=1)

    def relu(x: str) -> str:
        return graph.add("Relu", [x], f"{x}_relu")

    x = relu(dense(x, "first"))
    for i in range(blocks):
        inner = dense(relu(dense(x, f"blocks.{i}.0")), f"blocks.{i}.1")
        x = relu(graph.add("Add", [x, inner], f"blocks.{i}_sum"))
    graph.probability(dense(x, "last"), platt)
    graph.write(path, "flight_delay_tabnet")
