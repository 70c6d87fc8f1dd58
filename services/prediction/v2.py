"""The Open Inference Protocol (version 2, REST) as another mouth over the same path.

Source: the protocol's specification, ``inference_rest.md`` of the Open Inference Protocol project. Tensors are named as
the model's request fields; a feature may be sent as a tensor too, which overrides the store. Scalars have the shape
``[n]`` (or ``[n, 1]``), tensors ``[n, …]``. Data come flat in row-major order or nested; ``BYTES`` are UTF-8 strings.
Numbers are checked by the same types as the native API, so both refuse the same values. The binary tensor data
extension is turned into this form before it comes here, see ``v2_binary``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic import Field as Schema
from pydantic_core import to_json

from trellis.contract import Field, ModelSpec
from trellis.errors import RequestError, close_matches

_DATATYPES = {
    "float": "FP64",
    "int": "INT64",
    "bool": "BOOL",
    "category": "BYTES",
    "text": "BYTES",
    "timestamp": "BYTES",
    "tensor": "FP32",
}
_INTEGERS = {f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)}
_FLOATS = {"FP16", "FP32", "FP64"}
_ACCEPTED = {
    "float": _FLOATS | _INTEGERS,
    "int": _INTEGERS,
    "bool": {"BOOL"},
    "category": {"BYTES"},
    "text": {"BYTES"},
    "timestamp": {"BYTES"},
    "tensor": _FLOATS,
}
_MOST_VALUES = 10_000_000


class InputTensor(BaseModel):
    """One named input."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    name: str = Schema(max_length=200)
    shape: list[int] = Schema(min_length=1, max_length=8)
    datatype: str = Schema(max_length=20)
    parameters: dict[str, Any] = {}
    data: list[Any]


class OutputTensor(BaseModel):
    """One wanted output."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Schema(max_length=200)
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """An inference request."""

    model_config = ConfigDict(extra="forbid", strict=True)
    id: str | None = Schema(None, max_length=128)
    parameters: dict[str, Any] = {}
    inputs: list[InputTensor] = Schema(min_length=1, max_length=1_000)
    outputs: list[OutputTensor] = []


def metadata(spec: ModelSpec, versions: Sequence[str]) -> dict[str, Any]:
    """Return a model's metadata; features are inputs that may be left out."""
    return {
        "name": spec.name,
        "versions": list(versions),
        "platform": "trellis",
        "inputs": [_tensor(f, optional=False) for f in spec.request]
        + [_tensor(f, optional=True) for f in spec.features],
        "outputs": [_tensor(f) for f in spec.outputs],
    }


def example(spec: ModelSpec, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return an inference request for one row given in native form; what it lacks is left out."""
    inputs = []
    for field in spec.request:
        value = row.get(field.name)
        if value is None or (value == "" and field.nullable):
            continue
        data = _flat([value], len(field.shape))
        inputs.append({**_tensor(field), "shape": [1, *field.shape], "data": data})
    return {"inputs": inputs}


def native_body(spec: ModelSpec, request: InferRequest, *, max_rows: int) -> bytes:
    """Turn an inference request into the body of a native one, to be validated as such.

    Raises:
        RequestError: A tensor is unknown, comes twice, or its shape, datatype and data do not agree.
    """
    fields = spec.fields
    columns: dict[str, list[Any]] = {}
    for i, tensor in enumerate(request.inputs):
        place = f"inputs.{i}"
        field = fields.get(tensor.name)
        if field is None:
            raise RequestError(
                f"{place}.name", f"{tensor.name!r} is no input", remedy=close_matches(tensor.name, fields)
            )
        if tensor.name in columns:
            raise RequestError(f"{place}.name", f"{tensor.name!r} comes twice", remedy="Send each input once.")
        columns[tensor.name] = _rows(field, tensor, place, max_rows)
    counts = {name: len(values) for name, values in columns.items()}
    rows = next(iter(counts.values()))
    odd = next((name for name, count in counts.items() if count != rows), None)
    if odd is not None:
        first = next(iter(counts))
        raise RequestError(
            "inputs", f"{odd!r} has {counts[odd]} rows and {first!r} has {rows}", remedy="Send equal rows."
        )
    wanted = [output.name for output in request.outputs]
    unknown = [name for name in wanted if name not in {f.name for f in spec.outputs}]
    if unknown:
        known = [f.name for f in spec.outputs]
        raise RequestError("outputs", f"{unknown[0]!r} is no output", remedy=close_matches(unknown[0], known))
    body: dict[str, Any] = {"rows": [{name: values[i] for name, values in columns.items()} for i in range(rows)]}
    if request.id:
        body["id"] = request.id
    # NaN stays the bare token, which the native types refuse with the field's name.
    return to_json(body, inf_nan_mode="constants")


def infer_response(spec: ModelSpec, answer: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """Turn a native answer into the protocol's."""
    predictions = answer["predictions"]
    outputs = []
    for field in spec.outputs:
        if wanted and field.name not in wanted:
            continue
        values = [p[field.name] for p in predictions]
        tensor = _tensor(field)
        outputs.append(
            {
                "name": field.name,
                "datatype": tensor["datatype"],
                "shape": [len(values), *field.shape],
                "data": _flat(values, len(field.shape)),
            }
        )
    outputs.append(_strings("prediction_id", [p["id"] for p in predictions]))
    parameters = {"revision": answer["revision"]}
    if answer["variant"] is not None:
        parameters["variant"] = answer["variant"]
    degraded = sorted({view for p in predictions for view in p.get("degraded", ())})
    if degraded:
        parameters["degraded"] = ",".join(degraded)
    stale = sorted({view for p in predictions for view in p.get("stale", ())})
    if stale:
        parameters["stale"] = ",".join(stale)
    if "fallback" in answer:
        parameters["fallback"] = ",".join(part["link"] for part in answer["fallback"])
    result = {"model_name": answer["model"], "id": answer["request_id"], "parameters": parameters, "outputs": outputs}
    if answer["version"] is not None:
        result["model_version"] = answer["version"]
    return result


def _rows(field: Field, tensor: InputTensor, place: str, max_rows: int) -> list[Any]:
    if tensor.datatype not in _ACCEPTED[field.kind]:
        accepted = ", ".join(sorted(_ACCEPTED[field.kind]))
        raise RequestError(
            f"{place}.datatype", f"{tensor.name!r} cannot be {tensor.datatype!r}", remedy=f"Send {accepted}."
        )
    shape = tensor.shape
    if any(size < 0 for size in shape) or shape[0] < 1:
        raise RequestError(f"{place}.shape", f"{shape} has a size that cannot be", remedy="Send at least one row.")
    if shape[0] > max_rows:
        raise RequestError(
            f"{place}.shape", f"has more than {max_rows} rows", status=413, remedy=f"Send at most {max_rows}."
        )
    inner = tuple(shape[1:])
    if inner != field.shape and not (inner == (1,) and not field.shape):
        want = "[n" + "".join(f", {size}" for size in field.shape) + "]"
        raise RequestError(f"{place}.shape", f"{tensor.name!r} has the shape {shape}", remedy=f"Send {want}.")
    size = math.prod(shape)
    values = _flatten(tensor.data, size, place)
    if len(values) != size:
        raise RequestError(f"{place}.data", f"has {len(values)} values for the shape {shape}", remedy=f"Send {size}.")
    per_row = math.prod(field.shape)
    if not field.shape:
        return values
    return [_nest(values[i * per_row : (i + 1) * per_row], field.shape) for i in range(shape[0])]


def _flatten(data: list[Any], size: int, place: str) -> list[Any]:
    """Flatten nested lists, without recursion and never beyond what the shape asks for."""
    while data and isinstance(data[0], list):
        flat: list[Any] = []
        for part in data:
            if not isinstance(part, list):
                raise RequestError(f"{place}.data", "is nested unevenly", remedy="Send it flat, in row-major order.")
            flat.extend(part)
            if len(flat) > _MOST_VALUES:
                raise RequestError(f"{place}.data", "has too many values", status=413, remedy=f"Send {size}.")
        data = flat
    return data


def _nest(values: list[Any], shape: Sequence[int]) -> list[Any]:
    for size in reversed(shape[1:]):
        values = [values[i : i + size] for i in range(0, len(values), size)]
    return values


def _flat(values: list[Any], depth: int) -> list[Any]:
    for _ in range(depth):
        values = [inner for value in values for inner in value]
    return values


def _strings(name: str, values: list[str]) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [len(values)], "data": values}


def _tensor(field: Field, *, optional: bool | None = None) -> dict[str, Any]:
    kind = "tensor" if field.shape and field.kind == "float" else field.kind
    tensor: dict[str, Any] = {"name": field.name, "datatype": _DATATYPES[kind], "shape": [-1, *field.shape]}
    if optional is not None:
        tensor["parameters"] = {"optional": optional or field.nullable}
    return tensor
