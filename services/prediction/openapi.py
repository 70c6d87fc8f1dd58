"""The API's description (OpenAPI 3.1), every model with its own types and an example that can be sent, and its page."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from services.prediction import v2
from services.prediction.runtime import ModelRuntime
from services.prediction.schema import ModelSchema

_ERRORS = {
    "400": "The body is not JSON.",
    "401": "A key is needed, or this one is not valid (any longer).",
    "403": "The key has not the scope that this needs.",
    "404": "No such model; close matches are named.",
    "408": "The body did not come within the service's own limit for a request.",
    "409": "The request id was used for another body.",
    "413": "Too many rows, or too large a body.",
    "415": "The content type is not application/json.",
    "422": "A field is unknown, missing, of the wrong type or out of range.",
    "429": "The key's limit is used up; `Retry-After` says for how long.",
    "503": "Not ready, overloaded, or the answer could not be logged; send it again after `Retry-After` seconds.",
    "504": "The answer took longer than `X-Timeout-Ms` or the service's own limit; the same `id` fetches it.",
}
_TIMEOUT = {
    "name": "X-Timeout-Ms",
    "in": "header",
    "required": False,
    "description": "Milliseconds after which the answer is of no use; a request that cannot make it is refused early.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 600000},
}
_ERROR: dict[str, Any] = {
    "type": "object",
    "description": "What is wrong, where, and what to do.",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "field": {"type": "string", "description": "Dotted path of the field; empty for the body as a whole."},
                "reason": {"type": "string"},
                "remedy": {"type": "string"},
            },
            "required": ["field", "reason", "remedy"],
        }
    },
    "examples": [{"error": {"field": "rows.0.distance", "reason": "field required", "remedy": "See /docs."}}],
}
# The protocol wants its error to be a string; the parts stand beside it.
_PROTOCOL_ERROR: dict[str, Any] = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "detail": _ERROR["properties"]["error"]},
    "required": ["error", "detail"],
}


def document(models: Mapping[str, tuple[ModelRuntime, ModelSchema]], version: str) -> dict[str, Any]:
    """Describe the whole API for the models being served."""
    types: list[type[BaseModel]] = [v2.InferRequest]
    for _, schema in models.values():
        types += [schema.request, schema.response, schema.labels]
    references, definitions = models_json_schema(
        [(model, "validation") for model in types], ref_template="#/components/schemas/{model}"
    )
    refs = {model: reference for (model, _), reference in references.items()}
    paths: dict[str, Any] = {}
    for name, (model, schema) in models.items():
        spec = model.spec
        outputs = {f.name: f.example for f in spec.outputs}
        example = {"rows": [dict(model.example)]}
        truth = spec.target.classes[-1] if spec.target.classes else spec.score.example
        answered = {
            "model": name,
            "version": "1",
            "variant": "champion",
            "revision": 1,
            "request_id": "3f2a",
            "predictions": [{"id": "3f2a#0", **outputs, "version": "1", "variant": "champion"}],
        }
        paths[f"/v1/models/{name}/predict"] = {
            "post": _operation(
                name,
                f"predict_{name}",
                f"Predict: {spec.target.name}",
                f"{spec.description} Owner: {spec.owner}.",
                refs[schema.request],
                refs[schema.response],
                example,
                answered,
            )
        }
        paths[f"/v1/models/{name}/labels"] = {
            "post": _operation(
                name,
                f"label_{name}",
                "Send labels",
                f"{spec.target.description} Once answered, the labels are on the disk; sending them again is harmless.",
                refs[schema.labels],
                {"type": "object", "properties": {"accepted": {"type": "integer"}}},
                {"labels": [{"id": "3f2a#0", "value": truth, "observed_at": "2013-07-01T15:00:00Z"}]},
                {"accepted": 1},
            )
        }
    first = next(iter(models.values()), None)
    paths |= _common(refs[v2.InferRequest], v2.example(first[0].spec, first[0].example) if first else None)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Trellis prediction service",
            "version": version,
            "description": "Every model answers under its own typed path. A prediction's `id` is what its label refers "
            "to later. The rollout plan decides which version answers; each answer says which one did.",
        },
        "tags": [{"name": n, "description": m.spec.description} for n, (m, _) in models.items()]
        + [
            {"name": "models", "description": "What is being served."},
            {"name": "open inference protocol", "description": "The same models through the V2 protocol."},
            {"name": "operations", "description": "Health and metrics."},
        ],
        "paths": paths,
        # The empty alternative: whether a key is needed is the operator's choice.
        "security": [{}, {"key": []}],
        "components": {
            "schemas": {**definitions["$defs"], "Error": _ERROR, "ProtocolError": _PROTOCOL_ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key."}},
        },
    }


def _operation(
    tag: str,
    name: str,
    summary: str,
    text: str,
    body: Mapping[str, Any],
    answer: Mapping[str, Any],
    example: Any,
    answered: Any,
    error: str = "Error",
) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": body}
    if example is not None:
        content["example"] = example
    return {
        "tags": [tag],
        "operationId": name,
        "summary": summary,
        "description": text,
        "parameters": [_TIMEOUT],
        "requestBody": {"required": True, "content": {"application/json": content}},
        "responses": {
            "200": {
                "description": "The answer.",
                "content": {"application/json": {"schema": answer, "example": answered}},
            },
            **_errors(error, _ERRORS),
        },
    }


def _errors(schema: str, codes: Iterable[str]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {code: {"description": _ERRORS[code], "content": content} for code in codes}


def _common(infer: Mapping[str, Any], example: Any) -> dict[str, Any]:
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    protocol = "open inference protocol"

    def get(
        tag: str, summary: str, *, named: bool = False, guarded: bool = True, media: str = "application/json"
    ) -> dict[str, Any]:
        answers = {"200": {"description": "The answer.", "content": {media: {"schema": {}}}}}
        codes = [*(["401", "403", "429", "503"] if guarded else []), *(["404"] if named else [])]
        answers |= _errors("ProtocolError" if tag == protocol else "Error", codes)
        return {
            "get": {"tags": [tag], "summary": summary, "responses": answers}
            | ({"parameters": [model]} if named else {})
        }

    inference = _operation(
        protocol,
        "infer",
        "Infer",
        "Named tensors in, named tensors out. The example is of the first model listed.",
        infer,
        {"type": "object"},
        example,
        {"model_name": "…", "outputs": []},
        "ProtocolError",
    )
    ready = get(
        protocol, "Whether requests are taken: 503 until the models were loaded, as far as they can be", guarded=False
    )
    ready["get"]["responses"]["503"] = {"description": "Not yet.", "content": {"application/json": {"schema": {}}}}
    return {
        "/v1/models": get("models", "List the models being served"),
        "/v1/models/{model}": get("models", "Show a model: its plan, versions and declaration", named=True),
        "/v2": get(protocol, "Server metadata", guarded=False),
        "/v2/health/live": get(protocol, "Whether the process runs", guarded=False),
        "/v2/health/ready": ready,
        "/v2/models/{model}": get(protocol, "Model metadata", named=True),
        "/v2/models/{model}/ready": get(protocol, "Whether a model is loaded", named=True),
        "/v2/models/{model}/infer": {"post": inference | {"parameters": [model, _TIMEOUT]}},
        "/metrics": get("operations", "Prometheus metrics", media="text/plain"),
    }


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Trellis prediction service</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
<style>
body { margin: 0 }
.swagger-ui .info { margin: 24px 0 8px }
.swagger-ui .scheme-container { display: none }
</style>
</head>
<body>
<div id="page">Loading the API's description …</div>
<noscript>This page needs JavaScript; the description itself is at <a href="/openapi.json">/openapi.json</a>.</noscript>
<script src="/docs/swagger-ui-bundle.js" charset="utf-8"></script>
<script>
SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#page", deepLinking: true, validatorUrl: null,
  defaultModelsExpandDepth: 0, tryItOutEnabled: true, presets: [SwaggerUIBundle.presets.apis],
});
</script>
</body>
</html>
"""

ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}


def asset(name: str) -> Path | None:
    """Return the file of a Swagger UI asset; BentoML brings them, so the page needs no network."""
    found = importlib.util.find_spec("bentoml")
    if name not in ASSETS or found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "_internal" / "server" / "static_content" / name
    return path if path.is_file() else None
