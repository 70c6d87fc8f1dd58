"""An ensemble as one ONNX graph: its members' graphs side by side on the same inputs, and their weighted mean."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trellis.contract import ExportsOnnx, Predictor
from trellis.ensemble import EnsemblePredictor
from trellis.errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence

_FLOATS = ("FLOAT", "DOUBLE", "FLOAT16")


class ExportableEnsemble(EnsemblePredictor):
    """An ensemble whose members export ONNX."""

    def export_onnx(self, path: Path) -> None:
        """Write one graph; see ``merge_graphs``."""
        with tempfile.TemporaryDirectory() as made:
            graphs = []
            for number, (predictor, weight) in enumerate(self.heard):
                assert isinstance(predictor, ExportsOnnx)
                file = Path(made, f"{number}.onnx")
                predictor.export_onnx(file)
                graphs.append((file, weight))
            merge_graphs(graphs, [f.name for f in self.spec.outputs], path)


def exportable(ensemble: EnsemblePredictor) -> Predictor:
    """Return the ensemble as one that exports ONNX, where every member it hears does."""
    if all(isinstance(predictor, ExportsOnnx) for predictor, _ in ensemble.heard):
        return ExportableEnsemble(ensemble.spec, ensemble.members)
    return ensemble


def merge_graphs(graphs: Sequence[tuple[Path, float]], outputs: Sequence[str], path: Path) -> None:
    """Write the weighted mean of graphs with the same inputs and outputs as one graph.

    Args:
        graphs: Each graph's file, and its weight; the weights sum to 1.
        outputs: Names of the outputs to take the mean of.
        path: Where to write it.

    Raises:
        ContractError: The graphs differ in their inputs or operator sets, or an output is no float.
    """
    import onnx
    from onnx import TensorProto, compose, helper

    nodes: list[Any] = []
    initializers: list[Any] = []
    functions: list[Any] = []
    sparse: list[Any] = []
    infos: list[Any] = []
    opsets: dict[str, int] = {}
    inputs: dict[str, Any] = {}
    declared: dict[str, Any] = {}
    for number, (file, _) in enumerate(graphs):
        model = onnx.load(file)
        for one in model.opset_import:
            if opsets.setdefault(one.domain, one.version) != one.version:
                raise _differ(file, f"the version of the operators {one.domain or 'ai.onnx'!r}")
        for put in model.graph.input:
            if inputs.setdefault(put.name, put).type.tensor_type.elem_type != put.type.tensor_type.elem_type:
                raise _differ(file, f"the type of the input {put.name!r}")
        for out in model.graph.output:
            declared.setdefault(out.name, out)
        made = compose.add_prefix(model, f"m{number}/", rename_inputs=False)
        nodes += made.graph.node
        initializers += made.graph.initializer
        sparse += made.graph.sparse_initializer
        infos += made.graph.value_info
        functions += made.functions
    for name in outputs:
        if name not in declared:
            raise ContractError(f"A member's graph has no output {name!r}.", remedy="Export the spec's outputs.")
        kind = TensorProto.DataType.Name(declared[name].type.tensor_type.elem_type)
        if kind not in _FLOATS:
            raise ContractError(f"The output {name!r} of a member's graph is {kind}, of which there is no mean.")
        parts = []
        for number, (_, weight) in enumerate(graphs):
            part, factor = f"mean/{name}/{number}", f"weight/{name}/{number}"
            initializers.append(helper.make_tensor(factor, declared[name].type.tensor_type.elem_type, [], [weight]))
            nodes.append(helper.make_node("Mul", [f"m{number}/{name}", factor], [part], name=part))
            parts.append(part)
        nodes.append(helper.make_node("Sum", parts, [name], name=f"mean/{name}"))
    graph = helper.make_graph(
        nodes, "ensemble", list(inputs.values()), [declared[name] for name in outputs], initializers,
        value_info=infos, sparse_initializer=sparse,
    )  # fmt: skip
    merged = helper.make_model(
        graph, functions=functions, opset_imports=[helper.make_opsetid(d, v) for d, v in opsets.items()]
    )
    merged.ir_version = max(onnx.load(file, load_external_data=False).ir_version for file, _ in graphs)
    onnx.checker.check_model(merged)
    path.write_bytes(merged.SerializeToString(deterministic=True))


def _differ(file: Path, what: str) -> ContractError:
    return ContractError(
        f"The members of an ensemble differ in {what}, so they do not fit into one graph.",
        where=file,
        remedy="Retrain once by the method full or window; the ensemble begins anew from there.",
    )
