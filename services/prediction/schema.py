"""From a ``ModelSpec`` to typed requests and answers: one set of pydantic models per model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    create_model,
)
from pydantic import Field as Schema

from trellis.contract import Field, ModelSpec
from trellis.errors import RequestError, close_matches

# What a prediction id may look like; "#" parts a request's id from the row's number.
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,127}$"
PREDICTION_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,127}#[0-9]{1,6}$"

_RFC3339 = re.compile(r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)$")
_INT64 = 2**63


class _Strict(BaseModel):
    """No coercion, no unknown field, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


@dataclass(frozen=True)
class ModelSchema:
    """The typed mouth of one model.

    Attributes:
        request: Body of a prediction request.
        response: Its answer.
        labels: Body of a label request.
    """

    request: type[BaseModel]
    response: type[BaseModel]
    labels: type[BaseModel]


def model_schema(spec: ModelSpec, *, max_rows: int) -> ModelSchema:
    """Build the request and answer types of a model from its declaration."""
    title = "".join(part.capitalize() for part in spec.name.split("_"))
    columns: dict[str, Any] = {}
    for field in spec.request:
        columns[field.name] = (_annotation(field), None) if field.nullable else (_annotation(field), ...)
    for field in spec.features:
        # A feature comes from the store unless the caller sends it.
        columns[field.name] = (_annotation(field) | None, None)
    row = create_model(f"{title}Row", __base__=_Strict, __doc__=f"One row for {spec.name}.", **columns)
    rows = Annotated[list[row], Schema(min_length=1, max_length=max_rows, description="Rows to score.")]  # type: ignore[valid-type]
    identity = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
    request = create_model(
        f"{title}Request",
        __base__=_Strict,
        __doc__="Rows to score. With an `id`, sending the same body again answers the same and logs once.",
        rows=(rows, ...),
        id=(identity | None, Schema(None, description="The caller's id of this request.")),
    )
    return ModelSchema(request, _response(spec, title), _labels(spec, title, max_rows))


def parse(model: type[BaseModel], body: bytes) -> Any:
    """Validate a JSON body.

    Raises:
        RequestError: It is malformed (400), has too many rows (413) or does not fit (422); the first problem is named.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # A misspelt name also leaves a field missing: name the misspelling first.
        first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        raise _request_error(first, model, len(problems)) from None


def _request_error(problem: Any, model: type[BaseModel], count: int) -> RequestError:
    kind, place = problem["type"], ".".join(str(part) for part in problem["loc"])
    reason = problem["msg"].removeprefix("Value error, ")[:500]
    if kind == "json_invalid":
        return RequestError(
            "", f"the body is not JSON: {problem['ctx']['error']}", status=400, remedy="Send JSON, in UTF-8."
        )
    if kind == "extra_forbidden":
        known = model.model_fields if len(problem["loc"]) == 1 else _row_fields(model)
        return RequestError(place[:200], "is not a field", remedy=close_matches(str(problem["loc"][-1])[:100], known))
    if kind == "too_long" and len(problem["loc"]) == 1:
        most = problem["ctx"]["max_length"]
        return RequestError(
            place, f"has more than {most} entries", status=413, remedy=f"Send at most {most} at a time."
        )
    more = f" {count - 1} more problem{'s' * (count > 2)} follow{'s' * (count == 2)}." if count > 1 else ""
    return RequestError(place[:200], reason[0].lower() + reason[1:], remedy=f"See /docs for the declared form.{more}")


def _row_fields(model: type[BaseModel]) -> list[str]:
    for name in ("rows", "labels"):
        if name in model.model_fields:
            row: Any = model.model_fields[name].annotation
            return list(row.__args__[0].model_fields)
    return list(model.model_fields)


def _annotation(field: Field) -> Any:
    """Return the pydantic type of one field."""
    notes: dict[str, Any] = {"description": field.description or None}
    if field.example is not None:
        notes["examples"] = [field.example]
    bounds: dict[str, Any] = {"ge": field.minimum, "le": field.maximum}
    bounds = {key: bound for key, bound in bounds.items() if bound is not None}
    kind: Any
    match field.kind:
        case "float":
            kind = Annotated[float, Schema(**bounds, **notes)]
        case "int":
            kind = Annotated[
                int, Schema(**{"ge": -_INT64, "le": _INT64 - 1} | {k: int(v) for k, v in bounds.items()}, **notes)
            ]
        case "bool":
            kind = Annotated[bool, Schema(**notes)]
        case "timestamp":
            kind = Annotated[_Moment, Schema(**notes)]
        case "tensor":
            kind = Annotated[float, Schema(**bounds)]
            for size in reversed(field.shape):
                kind = Annotated[list[kind], Schema(min_length=size, max_length=size)]
            kind = Annotated[kind, Schema(**notes)]
        case _ if field.choices is not None:
            kind = Annotated[Literal[field.choices], Schema(**notes)]
        case _:
            kind = Annotated[str, Schema(min_length=0 if field.nullable else 1, max_length=field.max_length, **notes)]
    return kind | None if field.nullable else kind


def _no_truth_value(value: Any) -> Any:
    """Refuse true and false, which Python takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("a class is written as its index or name")
    return value


def _moment(value: Any) -> datetime:
    """Read RFC 3339; numbers and moments without an offset are refused rather than guessed."""
    if not isinstance(value, str) or not _RFC3339.match(value):
        raise ValueError("a moment is written as RFC 3339 with its offset, for example 2013-07-01T09:15:00Z")
    moment = datetime.fromisoformat(value.upper())
    if not 1900 <= moment.year < 2200:  # on the clock that it is written for
        raise ValueError("a moment lies between the years 1900 and 2200")
    return moment


# The form and the years again, for the description; both are held.
_Moment = Annotated[
    AwareDatetime,
    BeforeValidator(_moment),
    WithJsonSchema(
        {
            "type": "string",
            "format": "date-time",
            "pattern": r"^(19|20|21)\d\d-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)$",
        }
    ),
]


def _response(spec: ModelSpec, title: str) -> type[BaseModel]:
    outputs: dict[str, Any] = {}
    for field in spec.outputs:
        kind: Any = float if field.kind == "float" else Any
        for _ in field.shape:
            kind = list[kind]
        outputs[field.name] = (kind, Schema(description=field.description))
    prediction = create_model(
        f"{title}Prediction",
        __doc__="One row's answer.",
        id=(str, Schema(description="Id of the prediction, by which a label refers to it.")),
        **outputs,
        version=(str, Schema(description="The version that answered this row.")),
        variant=(
            str,
            Schema(
                description="Its role: champion, canary, previous where it stands in, or default where "
                "nothing could be scored."
            ),
        ),
        degraded=(
            list[str],
            Schema(
                [],
                description="Feature views without data fresh enough to use, so that features went in as missing; left "
                "out if none.",
            ),
        ),
        stale=(
            dict[str, Literal["served", "imputed", "fell_back"]],
            Schema(
                {},
                description="Feature views past their freshness SLA and what was done: the value was served all the "
                "same, taken as missing, or the row was answered by the declared default; left out if none.",
            ),
        ),
    )
    return create_model(
        f"{title}Response",
        __doc__="The answer, rows in the order they were sent.",
        model=(str, ...),
        version=(str | None, Schema(description="The version that answered; null where rows went to several.")),
        variant=(str | None, Schema(description="Its role; null where rows went to several.")),
        revision=(int, Schema(description="Revision of the rollout plan.")),
        request_id=(str, ...),
        predictions=(list[prediction], ...),
        fallback=(
            list[dict[str, str]],
            Schema(
                [],
                description="Where not the assigned version scored: which link answered (cache, champion for a canary, "
                "previous version, declared default) and why; left out if none.",
            ),
        ),
    )


def _labels(spec: ModelSpec, title: str, most: int) -> type[BaseModel]:
    value: Any
    if spec.task == "regression":
        value = float
    else:
        indices, names = tuple(range(len(spec.target.classes))), spec.target.classes
        value = Annotated[
            Literal[(*indices, *names)],
            BeforeValidator(_no_truth_value),
            Schema(description=f"Index or name of the class: {', '.join(names[:20])}.", examples=[indices[-1]]),
        ]
    label = create_model(
        f"{title}Label",
        __base__=_Strict,
        __doc__=f"The truth about one prediction: {spec.target.description}",
        id=(
            Annotated[str, StringConstraints(pattern=PREDICTION_ID_PATTERN)],
            Schema(description="The prediction's id.", examples=["3f2a#0"]),
        ),
        value=(value, ...),
        observed_at=(
            _Moment,
            Schema(description="When the truth became known, RFC 3339.", examples=["2013-07-01T15:00:00Z"]),
        ),
    )
    return create_model(
        f"{title}Labels",
        __base__=_Strict,
        __doc__="Truths about earlier predictions; the same one twice is harmless.",
        labels=(Annotated[list[label], Schema(min_length=1, max_length=most)], ...),
    )
