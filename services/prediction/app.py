"""The routes: native API, Open Inference Protocol, description, metrics. No vendor but Starlette."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pydantic import SecretStr
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

import trellis
from services.prediction import openapi, v2
from services.prediction.answer import Answerer
from services.prediction.auth import Guard, Headers, Keys
from services.prediction.cache import AnswerCache
from services.prediction.columns import rfc3339
from services.prediction.errors import DeadlineError
from services.prediction.failures import Attempt, timed_out
from services.prediction.features import Found, OnlineFeatures, open_store
from services.prediction.identity import RandomIds, UnitHash, given_name
from services.prediction.logs import Logs
from services.prediction.metrics import Metrics
from services.prediction.one_row import OneRows
from services.prediction.repeats import Repeats
from services.prediction.runtime import ModelRuntime, Models, Plans, Plugins
from services.prediction.schema import ModelSchema, model_schema, parse
from services.prediction.shadows import Shadows
from services.prediction.v2_binary import BinaryTensors
from services.prediction.watcher import PlanWatcher
from services.prediction.web import JsonEndpoint, answered, http_error, json_response, shortcut
from services.prediction.workers import Deadline, Workers, within
from trellis.decision import to_json_value
from trellis.errors import RequestError

_FEW_ROWS = 8
_QUICK_SECONDS = 0.0005
_LONGEST_READ = 3.0  # seconds; a read of the online store gives up after one


class Limits(Protocol):
    """The settings that the service reads."""

    plan_poll_seconds: float
    flush_seconds: float
    max_rows: int
    max_body_bytes: int
    request_seconds: float
    max_waiting: int
    cache_seconds: float
    verify_key: Path | None
    unit_secret: SecretStr | None


class PredictionService:
    """One serving process: models kept current, requests answered, answers logged.

    Args:
        home: Trellis's home, where the logs go.
        limits: The settings.
        plans: The plan store.
        plugins: The catalogue.
        features: The online store; None where no model needs one.
        metrics: The counters.
        shadows: Scores samples for the plans' shadows.
        keys: The API keys; None lets everybody do everything.
        processes: How many of these answer together and share a key's limit.
    """

    def __init__(
        self,
        home: Path,
        limits: Limits,
        plans: Plans,
        plugins: Plugins,
        features: OnlineFeatures | None = None,
        metrics: Metrics | None = None,
        shadows: Shadows | None = None,
        keys: Keys | None = None,
        processes: int = 1,
    ) -> None:
        self._limits = limits
        self.metrics = metrics or Metrics()
        self._features = features
        self.models = Models(plans, plugins, self.metrics, home, self._open_features, limits.verify_key)
        self._logs = Logs(home, limits.flush_seconds)
        self._shadows = shadows
        self._guard = Guard(keys, self.metrics, processes)
        cache = AnswerCache(limits.cache_seconds)
        secret = limits.unit_secret
        hide = UnitHash(home, secret.get_secret_value() if secret else None)
        logs = self._logs
        self._answerer = Answerer(features, logs.predictions, logs.failures, self.metrics, shadows, cache, hide)
        self._repeats = Repeats()
        self._one_rows = OneRows(features)
        self._ids = RandomIds()
        self._schemas: dict[str, tuple[ModelRuntime, ModelSchema]] = {}
        self._watcher = PlanWatcher(self.models, limits.plan_poll_seconds, self._guard.refresh, self._look)
        self.workers = Workers(limits.max_waiting)

    def start(self) -> None:
        """Begin to load and to follow the plans; returns at once, ``ready`` tells when it is done."""
        self._watcher.start()

    def looked(self, seconds: float) -> bool:
        """Wait until the plans were looked at once and loaded as far as they can be; False where the time was over."""
        return self._watcher.looked.wait(seconds)

    def stop(self) -> None:
        """Stop following, and write what is still to be logged.

        Raises:
            StorageError: The disk refuses the last records.
        """
        self._watcher.stop()
        self.workers.close()
        if self._shadows is not None:
            self._shadows.close()
        self._logs.close()

    @property
    def ready(self) -> bool:
        """Whether requests are to be sent here."""
        return self.models.ready

    def app(self) -> ASGIApp:
        """Return the ASGI application."""
        most, seconds = self._limits.max_body_bytes, self._limits.request_seconds

        def endpoint(handler: Callable[[Scope, bytes], Awaitable[bytes]], scope: str = "predict") -> JsonEndpoint:
            return JsonEndpoint(handler, most, seconds, self.metrics, self.models.__contains__, self._allow(scope))

        predict, infer = endpoint(self._predict), BinaryTensors(endpoint, self._v2_infer)

        def route(path: str, handler: Any, scope: str | None = "read") -> Route:
            allow = self._allow(scope)
            return Route(path, answered(handler, self.metrics, self.models.__contains__, allow), methods=["GET"])

        app = Starlette(
            routes=[
                route("/", self._index, None),
                route("/v1/models", self._list),
                route("/v1/models/{model}", self._show),
                Route("/v1/models/{model}/predict", predict, methods=["POST"]),
                Route("/v1/models/{model}/labels", endpoint(self._take_labels, scope="label"), methods=["POST"]),
                *(route(path, self._v2_live, None) for path in ("/livez", "/healthz", "/v2/health/live")),
                *(route(path, self._v2_ready, None) for path in ("/readyz", "/v2/health/ready")),
                route("/v2", self._v2_server, None),
                route("/v2/models/{model}", self._v2_model),
                route("/v2/models/{model}/ready", self._v2_model_ready),
                Route("/v2/models/{model}/infer", infer, methods=["POST"]),
                route("/v2/models/{model}/versions/{version}", self._v2_model),
                route("/v2/models/{model}/versions/{version}/ready", self._v2_model_ready),
                Route("/v2/models/{model}/versions/{version}/infer", infer, methods=["POST"]),
                route("/openapi.json", self._openapi, None),
                route("/docs", self._docs, None),
                route("/docs/{asset}", self._asset, None),
                route("/metrics", self._metrics),
            ],
            exception_handlers={HTTPException: http_error},
        )
        return shortcut(app, "/v1/models/", "/predict", predict)

    # --- native API

    async def _index(self, _request: Request) -> Response:
        return RedirectResponse("/docs")

    async def _list(self, _request: Request) -> Response:
        return json_response({"models": [_summary(self.models.get(name)) for name in self.models.names()]})

    async def _show(self, request: Request) -> Response:
        model, _ = self._model(request.scope)
        assert model.active is not None
        plan = to_json_value(asdict(model.active.plan))
        for version in (*plan["variants"], *plan["shadows"]):
            del version["location"]  # where the files are on this machine is nobody's business
        engines = {v.version: v.engine for v in model.active.versions.values()}
        return json_response(
            {**_summary(model), "plan": plan, "loaded": engines, "faults": model.faults, "spec": asdict(model.spec)}
        )

    async def _predict(self, scope: Scope, body: bytes) -> bytes:
        model, schema = self._model(scope)
        return await self._answer(scope, model, schema, body)

    async def _take_labels(self, scope: Scope, body: bytes) -> bytes:
        model, schema = self._model(scope)
        labels = parse(schema.labels, body).labels
        received = rfc3339(datetime.now(UTC))
        classes = {name: index for index, name in enumerate(model.spec.target.classes)}
        records = [
            {
                "id": label.id,
                "value": classes[label.value] if isinstance(label.value, str) else label.value,
                "observed_at": rfc3339(label.observed_at),
                "received_at": received,
            }
            for label in labels
        ]
        deadline = Deadline.of(scope["headers"], self._limits.request_seconds)
        await within(deadline, self.workers.run(lambda: self._logs.labels(model.name).extend(records), deadline))
        self.metrics.labels.labels(model.name).inc(len(records))
        return to_json({"accepted": len(records)})

    # --- Open Inference Protocol

    async def _v2_server(self, _request: Request) -> Response:
        return json_response({"name": "trellis", "version": trellis.__version__, "extensions": ["binary_tensor_data"]})

    async def _v2_live(self, _request: Request) -> Response:
        return json_response({"live": True})

    async def _v2_ready(self, _request: Request) -> Response:
        # Where keys are needed, what is wrong and where is told only in the log.
        told = {"ready": self.ready} if self._guard.is_on else self.models.status()
        return json_response(told, 200 if self.ready else 503)

    async def _v2_model(self, request: Request) -> Response:
        model, _ = self._model(request.scope)
        return json_response(v2.metadata(model.spec, self._versions(model, request.scope)))

    async def _v2_model_ready(self, request: Request) -> Response:
        model, _ = self._model(request.scope)
        self._versions(model, request.scope)
        return json_response({"name": model.name, "ready": True})

    async def _v2_infer(self, scope: Scope, raw: bytes) -> bytes:
        model, schema = self._model(scope)
        self._versions(model, scope)
        wanted = parse(v2.InferRequest, raw)
        body = v2.native_body(model.spec, wanted, max_rows=self._limits.max_rows)
        names = [output.name for output in wanted.outputs]
        version = scope["path_params"].get("version")
        return await self._answer(
            scope, model, schema, body, version, lambda a: v2.infer_response(model.spec, a, names)
        )

    # --- description and metrics

    async def _openapi(self, _request: Request) -> Response:
        models = {name: self._schema(self.models.get(name)) for name in self.models.names()}
        return json_response(openapi.document(models, trellis.__version__))

    async def _docs(self, _request: Request) -> Response:
        return HTMLResponse(openapi.PAGE)

    async def _asset(self, request: Request) -> Response:
        name = request.path_params["asset"]
        path = openapi.asset(name)
        if path is None:
            raise RequestError("path", f"{name[:100]} is not here", status=404, remedy="See /openapi.json.")
        return FileResponse(path, media_type=openapi.ASSETS[name])

    async def _metrics(self, _request: Request) -> Response:
        self._observe()
        return Response(self.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    # --- inside

    async def _answer(
        self,
        scope: Scope,
        model: ModelRuntime,
        schema: ModelSchema,
        body: bytes,
        version: str | None = None,
        shape: Callable[[dict[str, Any]], Any] = lambda answer: answer,
    ) -> bytes:
        started = time.perf_counter()
        parsed = parse(schema.request, body)
        rows = parsed.rows
        request_id = parsed.id or given_name(scope["headers"]) or self._ids()
        attempt = Attempt()
        deadline = Deadline.of(scope["headers"], self._limits.request_seconds)  # one that is none is refused, always

        def work(found: Found | Exception | None = None) -> bytes:
            answer = self._answerer.answer(
                model, rows, request_id, version=version, attempt=attempt, found=found, started=started
            )
            return to_json(shape(answer))

        quick = self._is_quick(model, rows)
        if quick and all(f.name in row.model_fields_set for f in model.spec.features for row in rows):
            self.workers.admit(deadline)
            if parsed.id is None:
                return work()
            return await self._once(model, parsed.id, body, version, _done(work))
        read = self._one_rows.read(model.spec, rows, work, self.metrics) if model.reads_alike else None
        make: Callable[[], Awaitable[bytes]]
        if quick and read is not None and read.is_for_loops:
            make = partial(self.workers.here, read.fetch, read.finish, deadline)
            if parsed.id is None and deadline.left > _LONGEST_READ:
                return await make()  # the read is given up before the request would be
        else:
            blocking = work if read is None else read.wait
            make = partial(self.workers.run, blocking, deadline)
        try:
            if parsed.id is None:
                return await within(deadline, make())
            return await within(deadline, self._once(model, parsed.id, body, version, make))
        except DeadlineError:
            self._answerer.keep_failures(model, timed_out(attempt))
            raise

    async def _once(
        self,
        model: ModelRuntime,
        request_id: str,
        body: bytes,
        version: str | None,
        make: Callable[[], Awaitable[bytes]],
    ) -> bytes:
        answer, repeated = await self._repeats.once(model.name, request_id, body + (version or "").encode(), make)
        if repeated:
            self.metrics.repeats.labels(model.name).inc()
        return answer

    def _is_quick(self, model: ModelRuntime, rows: Sequence[Any]) -> bool:
        """Tell whether an answer takes less than handing it to another thread and back: then it is made here.

        Nothing in it may wait: not for the disk and not for a slow model. Features are read without waiting, or sent.
        """
        assert model.active is not None
        return len(rows) <= _FEW_ROWS and self._limits.flush_seconds > 0 and model.active.seconds < _QUICK_SECONDS

    def _open_features(self, model: ModelRuntime) -> None:
        _, schema = self._schema(model)
        row = parse(schema.request, to_json({"rows": [model.example]})).rows[0]
        open_store(model.spec, self._features, row.__dict__)
        self._one_rows.prepare([model.spec])

    def _model(self, scope: Scope) -> tuple[ModelRuntime, ModelSchema]:
        return self._schema(self.models.get(scope["path_params"]["model"]))

    def _schema(self, model: ModelRuntime) -> tuple[ModelRuntime, ModelSchema]:
        known = self._schemas.get(model.name)
        if known is None or known[0] is not model:
            known = self._schemas[model.name] = (model, model_schema(model.spec, max_rows=self._limits.max_rows))
        return known

    def _versions(self, model: ModelRuntime, scope: Scope) -> list[str]:
        """Return the loaded versions, or the one that the path names."""
        assert model.active is not None
        loaded = list(model.active.versions)
        wanted = scope["path_params"].get("version")
        if wanted is None:
            return loaded
        if wanted not in loaded:
            remedy = f"Loaded: {', '.join(loaded)}."
            raise RequestError("version", f"{wanted[:60]!r} is not loaded", status=404, remedy=remedy)
        return [wanted]

    def _allow(self, scope: str | None) -> Callable[[Scope], Headers]:
        """Return what lets a request for ``scope`` pass; None needs no key."""
        return (lambda _request: ()) if scope is None else partial(self._guard.check, needed=scope)

    def _look(self) -> None:
        self._one_rows.prepare(self.models.get(name).spec for name in self.models.names())
        self._observe()

    def _observe(self) -> None:
        self.metrics.flush()
        self.metrics.log_pending.set(self._logs.pending)
        self.metrics.in_flight.set(self.workers.waiting)


def _done(work: Callable[[], bytes]) -> Callable[[], Awaitable[bytes]]:
    async def make() -> bytes:
        return work()

    return make


def _summary(model: ModelRuntime) -> Mapping[str, Any]:
    assert model.active is not None
    plan, spec = model.active.plan, model.spec
    return {
        "name": model.name,
        "task": spec.task,
        "description": spec.description,
        "owner": spec.owner,
        "version": plan.champion.version,
        "revision": plan.revision,
        "variants": [{"version": v.version, "role": v.role, "weight": v.weight} for v in plan.variants],
    }
