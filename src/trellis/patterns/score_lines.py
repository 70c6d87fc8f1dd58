"""Score JSON lines with the model beside this file: ``python score.py < rows.jsonl > answers.jsonl``.

Needs onnxruntime and numpy, nothing else. One answer per line, in order; a bad row's answer is its error and the exit
code is then 1. ``--digest`` refuses any other model than that one. The fields are declared in ``schema.json``.
"""

import argparse
import hashlib
import json
import math
import os
import sys
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

DTYPES = {"float": "f4", "double": "f8", "float16": "f2", "bool": "?", "uint8": "u1"}
DTYPES |= {f"int{bits}": f"i{bits // 8}" for bits in (8, 16, 32, 64)}


def load(here: Path, promised: str | None) -> tuple[dict[str, Any], Any]:
    """Check that model and manifest are what was sealed; return the declaration and a session."""
    schema, manifest = (json.loads((here / name).read_text()) for name in ("schema.json", "manifest.json"))
    digest, graph = manifest.pop("digest"), (here / "model.onnx").read_bytes()
    sealed = hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    if hashlib.sha256(graph).hexdigest() != manifest["files"]["model.onnx"]["sha256"] or sealed != digest:
        sys.exit(f"score: the model in {here} is not what was exported; export it again.")
    if digest != schema["digest"] or (promised and promised != digest):
        sys.exit(f"score: the model is {digest}, not {promised or schema['digest']}.")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return schema, ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def cell(field: dict[str, Any], value: Any) -> Any:
    """Return a value as the graph wants it; ValueError says what is wrong with it."""
    kind, shape = field["kind"], field["shape"]
    if value is None or (value == "" and field["nullable"]):
        if not field["nullable"]:
            raise ValueError("is missing")
        return "" if kind in ("category", "text") else np.full(shape, math.nan)
    if kind in ("category", "text"):
        if not isinstance(value, str) or not (value in field["choices"] if field["choices"] else value):
            raise ValueError(f"should be one of {field['choices']}" if field["choices"] else "should be a string")
        if len(value) > field["max_length"]:
            raise ValueError(f"should have at most {field['max_length']} characters")
        return value
    if kind == "timestamp":
        moment = datetime.fromisoformat(value) if isinstance(value, str) else datetime.min
        if moment.tzinfo is None or not 1900 <= moment.year < 2200:
            raise ValueError("should be RFC 3339 with an offset, between the years 1900 and 2200")
        return moment.timestamp()
    wanted: Any = {"bool": bool, "int": int}.get(kind, (int, float))
    flat: Any = [value]
    for size in shape:
        if not all(isinstance(part, list) and len(part) == size for part in flat):
            raise ValueError(f"should be nested as {shape}")
        flat = [inner for part in flat for inner in part]
    low = -math.inf if field["minimum"] is None else field["minimum"]
    high = math.inf if field["maximum"] is None else field["maximum"]
    if any(not isinstance(x, wanted) or (isinstance(x, bool) and kind != "bool") or not math.isfinite(x) for x in flat):
        raise ValueError("should be a finite number" if kind != "bool" else "should be true or false")
    if any(not low <= x <= high or (kind == "int" and not -(2**63) <= x < 2**63) for x in flat):
        raise ValueError(f"should lie in {low:g} to {high:g}")
    return value


def parse(fields: dict[str, dict[str, Any]], line: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return a row's cells, and what is wrong with it."""
    name = ""
    try:
        row = json.loads(line)
        if not isinstance(row, dict) or (unknown := sorted(set(row) - set(fields))):
            name = unknown[0] if isinstance(row, dict) else ""
            raise ValueError("is not a field" if name else "the line is no JSON object")
        cells = {}
        for name, field in fields.items():
            if name not in row and field["required"]:
                raise ValueError("is missing")
            cells[name] = cell(field, row.get(name))
        return cells, None
    except (ValueError, OverflowError, RecursionError) as error:
        return {}, {"error": {"field": name, "reason": str(error)}}


def main() -> int:
    """Read lines, write answers."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--digest", help="the digest that the model must have")
    schema, session = load(Path(__file__).resolve().parent, arguments.parse_args().digest)
    fields, bad = {field["name"]: field for field in schema["fields"]}, 0
    while lines := list(islice(sys.stdin, 256)):
        rows = [parse(fields, line) for line in lines]
        good = [row for row, error in rows if error is None]
        feed = {}
        for node in session.get_inputs():
            text = node.type == "tensor(string)"
            column = np.array([row[node.name] for row in good], object if text else None)
            with np.errstate(over="ignore"):
                column = column if text else column.astype(DTYPES[node.type[7:-1]])
            feed[node.name] = column[:, None] if len(node.shape) == 2 and column.ndim == 1 else column
        names = [output["name"] for output in schema["outputs"]]
        columns = session.run(names, feed) if good else [np.empty(0)] * len(names)
        shaped = [c.reshape(-1, *o["shape"]).tolist() for c, o in zip(columns, schema["outputs"], strict=True)]
        answers = (dict(zip(names, cells, strict=True)) for cells in zip(*shaped, strict=True))
        for _, error in rows:
            sys.stdout.write(json.dumps(error or next(answers)) + "\n")
        sys.stdout.flush()
        bad += len(rows) - len(good)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
