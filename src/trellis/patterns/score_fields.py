"""What turns a JSON row into the graph's inputs, by the fields that ``schema.json`` declares: half of ``score.py``."""

from datetime import datetime
from typing import Any

import numpy as np

_DTYPES = {"string": "object", "float": "float32", "double": "float64"}  # where numpy has another name


def feed(fields: dict[str, dict[str, Any]], nodes: Any, row: Any) -> dict[str, Any]:
    """Return a row as the graph's inputs.

    Args:
        fields: The declared fields by name.
        nodes: The graph's inputs, as ``InferenceSession.get_inputs`` returns.
        row: The row, as ``json.loads`` returns.

    Raises:
        ValueError: A field is missing, unknown or not as declared; the name and what is wrong with it.
    """
    if not isinstance(row, dict):
        raise ValueError("", "the line is no JSON object")
    cells = {}
    for name in (*row, *fields):
        try:
            if name not in fields:
                raise ValueError("is not a field")
            if name not in row and fields[name]["required"]:
                raise ValueError("is missing")
            cells[name] = _cell(fields[name], row.get(name))
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(name, str(error)) from error
    made = {}
    for node in nodes:
        kind = node.type.removeprefix("tensor(").removesuffix(")")
        with np.errstate(over="ignore"):
            column = np.array([cells[node.name]]).astype(_DTYPES.get(kind, kind))
        made[node.name] = column[:, None] if len(node.shape) == 2 and column.ndim == 1 else column
    return made


def _cell(field: dict[str, Any], value: Any) -> Any:
    """Return a value as the graph takes it; an error says what is wrong with it."""
    kind, text = field["kind"], field["kind"] in ("category", "text")
    if value is None or value == "":
        if not field["nullable"]:
            raise ValueError("is missing")
        return "" if text else np.full(field["shape"], np.nan)
    if text:
        if not isinstance(value, str) or len(value) > field["max_length"] or value not in (field["choices"] or [value]):
            raise ValueError(f"should be {field['choices'] or 'a string'}, of at most {field['max_length']} characters")
        return value
    if kind == "timestamp":
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None or not 1900 <= moment.year < 2200:
            raise ValueError("should have an offset, and a year from 1900 to 2199")
        return moment.timestamp()
    array = np.asarray(value)
    if array.dtype.kind not in {"bool": "b", "int": "i"}.get(kind, "if") or list(array.shape) != field["shape"]:
        raise ValueError(f"should be of the kind {kind} and the shape {field['shape']}")
    low, high = (np.inf * sign if field[end] is None else field[end] for end, sign in (("minimum", -1), ("maximum", 1)))
    if not (np.isfinite(array) & (low <= array) & (array <= high)).all():
        raise ValueError(f"should be finite, from {low:g} to {high:g}")
    return array
