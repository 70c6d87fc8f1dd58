"""Score JSON lines with the model beside this file: ``python score.py < rows.jsonl > answers.jsonl``.

Needs onnxruntime and numpy, nothing else. One answer per line, in order; a bad row's answer is its error, and the exit
code is then 1. The fields are declared in ``schema.json``, and ``score_fields.py`` holds a row to them.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from score_fields import feed  # type: ignore[import-not-found]  # which is exported beside this file

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort


def load(here: Path, promised: str | None) -> tuple[dict[str, Any], Any]:
    """Return the declaration and a session, once model and manifest are known to be what was sealed."""
    schema, manifest = (json.loads((here / name).read_text()) for name in ("schema.json", "manifest.json"))
    graph, digest = (here / "model.onnx").read_bytes(), manifest.pop("digest")
    sealed = hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    if hashlib.sha256(graph).hexdigest() != manifest["files"]["model.onnx"]["sha256"] or sealed != digest:
        sys.exit(f"score: the model in {here} is not what was exported; export it again.")
    if digest != schema["digest"] or promised not in (None, digest):
        sys.exit(f"score: the model is {digest}, not {promised or schema['digest']}.")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return schema, ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def answer(schema: dict[str, Any], session: Any, line: str) -> dict[str, Any]:
    """Return a line's outputs, or what is wrong with it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {"error": {"field": "", "reason": f"the line is no JSON: {error}"}}
    try:
        inputs = feed({field["name"]: field for field in schema["fields"]}, session.get_inputs(), row)
    except ValueError as error:
        return {"error": {"field": error.args[0], "reason": error.args[1]}}
    found = session.run([output["name"] for output in schema["outputs"]], inputs)
    return {o["name"]: c.reshape(o["shape"]).tolist() for o, c in zip(schema["outputs"], found, strict=True)}


def main() -> int:
    """Read lines, write answers."""
    arguments = argparse.ArgumentParser(description="Score JSON lines from standard input.")
    arguments.add_argument("--digest", help="refuse any model but the one with this digest")
    schema, session = load(Path(__file__).resolve().parent, arguments.parse_args().digest)
    bad = False
    for line in sys.stdin:
        said = answer(schema, session, line)
        bad |= "error" in said
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
