"""What a serving process holds: per model the plan it executes and the loaded versions; and what keeps them current."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from services.prediction.columns import batch, to_json
from services.prediction.errors import VersionError
from services.prediction.metrics import Metrics
from trellis.adapters.remote_artifacts import local_artifact
from trellis.adapters.signing import verify_artifact
from trellis.artifact import ONNX_MODEL
from trellis.contract import Batch, Field, ModelPlugin, ModelSpec, Predictor, row_count, select
from trellis.ensemble import load_artifact
from trellis.errors import ArtifactError, InvalidPlanError, StorageError, UnknownModelError, close_matches
from trellis.rollout.plan import RolloutPlan, Variant

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0
_ROUNDING = 1e-6


class Plans(Protocol):
    """Where the current plans are."""

    def models(self) -> list[str]:
        """Return the models that have a plan."""

    def current(self, model: str) -> RolloutPlan | None:
        """Return a model's plan."""


class Plugins(Protocol):
    """Where the plug-ins are."""

    def plugin(self, name: str) -> ModelPlugin:
        """Return a model's plug-in."""


@dataclass(frozen=True)
class LoadedVersion:
    """A version ready to score.

    Attributes:
        version, digest: As in the plan.
        predictor: What scores.
        engine: ``onnx`` or ``python``.
        seconds: How long one row took when it was warm.
    """

    version: str
    digest: str
    predictor: Predictor
    engine: str
    seconds: float = float("inf")


@dataclass(frozen=True)
class Active:
    """One plan with its loaded versions; replaced as a whole, so that a request sees one or the other.

    A canary that could not be loaded is not in ``versions``: the champion, which always is, answers in its place, and
    each such row counts as one that the canary failed on.
    ``previous`` is the champion before this one, kept warm for requests on which the champion breaks; after a rollback
    there is none, because a version that was rolled back is not to answer again. ``reads`` is the declaration by
    version for those that were released with another feature service than it names.
    """

    plan: RolloutPlan
    versions: Mapping[str, LoadedVersion]
    previous: LoadedVersion | None = None
    reads: Mapping[str, ModelSpec] = field(default_factory=dict)

    @property
    def champion(self) -> LoadedVersion:
        """The version that answers whatever no canary takes."""
        return self.versions[self.plan.champion.version]


@dataclass
class ModelRuntime:
    """One model in this process.

    Attributes:
        name: The model.
        plugin: Its plug-in.
        active: What answers; None until a champion is loaded.
        faults: Version (or ``plug-in``) to why it could not be loaded.
        sample: One row of the predictor's inputs and the request's fields, for warming up.
        example: A row in request form, for the API page.
        tried: The plan last tried, and ``retry_at`` when what failed of it is tried again (monotonic seconds).
    """

    name: str
    plugin: ModelPlugin
    sample: Batch
    active: Active | None = None
    faults: dict[str, str] = field(default_factory=dict)
    example: Mapping[str, Any] = field(default_factory=dict)
    tried: RolloutPlan | None = None
    retry_at: float = 0.0

    @property
    def spec(self) -> ModelSpec:
        """The model's declaration."""
        return self.plugin.spec

    @property
    def reads_alike(self) -> bool:
        """Whether every version reads the feature service that the declaration names; else each is fed its own."""
        return self.active is None or not self.active.reads

    @classmethod
    def of(cls, name: str, plugin: ModelPlugin) -> ModelRuntime:
        """Prepare a model from its plug-in, with one sample row."""
        spec = plugin.spec
        try:
            columns: Batch = plugin.sample(1).columns
            sample = {n: columns[n] for n in spec.fields if n in columns}
        except Exception as error:  # an author's code; serving can do without its sample
            logger.warning("the plug-in %r gave no sample: %s", name, error)
            sample = {}
        row = {n: to_json(sample[n][0]) if n in sample else spec.fields[n].example for n in spec.fields}
        declared = batch(spec.fields, [n for n in spec.inputs if n not in sample], [{}])
        example = {f.name: row[f.name] for f in spec.request}
        return cls(name, plugin, {**declared, **sample}, example=example)


class Models:
    """All models of this process, and the only place that changes them.

    Args:
        plans: The plan store.
        plugins: The catalogue.
        metrics: The counters.
        home: Trellis's home, where artifacts of an object store are kept.
        prepare: Called once with every model before its first version is loaded, for whatever is slow the first time.
        verify_key: The public key that every version must be signed for; None takes unsigned ones.
    """

    def __init__(
        self,
        plans: Plans,
        plugins: Plugins,
        metrics: Metrics,
        home: Path,
        prepare: Callable[[ModelRuntime], None] = lambda _model: None,
        verify_key: Path | None = None,
    ) -> None:
        self._home = home
        self._plans = plans
        self._plugins = plugins
        self._metrics = metrics
        self._prepare_model = prepare
        self._verify_key = verify_key
        self._models: dict[str, ModelRuntime] = {}
        self._broken: dict[str, str] = {}
        self._unreadable: dict[str, str] = {}
        self._retry_at: dict[str, float] = {}
        self._store_fault: str | None = None
        self._polled = False
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Return the models that are answered, sorted."""
        return sorted(name for name, model in self._models.items() if model.active is not None)

    def __contains__(self, name: object) -> bool:
        return name in self._models

    def get(self, name: str) -> ModelRuntime:
        """Return a model.

        Raises:
            UnknownModelError: It is not served here; the message has close matches.
        """
        model = self._models.get(name)
        if model is None or model.active is None:
            known = self.names()
            if name in self._broken or model is not None:
                why = self._broken.get(name) or "; ".join(model.faults.values() if model else ())
                raise ArtifactError(f"The model {name!r} has a plan but could not be loaded: {why}")
            raise UnknownModelError(f"No model {name[:100]!r} is served here.", remedy=close_matches(name[:100], known))
        return model

    @property
    def ready(self) -> bool:
        """Whether every model that has a plan can be answered, and there is one."""
        return self._polled and not self._broken and bool(self._models) and len(self.names()) == len(self._models)

    def status(self) -> dict[str, Any]:
        """Say what is served, and everything that is wrong, for people and for the readiness page."""
        return {
            "ready": self.ready,
            "models": {
                name: {
                    "revision": model.active.plan.revision if model.active else None,
                    "versions": {v.version: v.engine for v in model.active.versions.values()} if model.active else {},
                    "faults": dict(model.faults),
                }
                for name, model in sorted(self._models.items())
            },
            "broken": self._broken | self._unreadable,
            "plan_store": self._store_fault or ("answers" if self._polled else "not read yet"),
        }

    def poll(self) -> None:
        """Read the plans once and load what is new; never raises, and what is held goes on answering."""
        with self._lock:
            try:
                plans = {name: self._plan(name) for name in self._plans.models()}
            except StorageError as error:
                self._metrics.store_failures.labels("plans").inc()
                if self._store_fault is None:
                    logger.error("%s Serving goes on with the plans it holds.", error)
                self._store_fault = str(error)
                return
            self._store_fault = None
            for name, plan in plans.items():
                if plan is not None:
                    self._follow(name, plan)
            self._polled = True

    def _plan(self, name: str) -> RolloutPlan | None:
        """Return a model's plan; one that cannot be read holds nobody else's up."""
        try:
            plan = self._plans.current(name)
        except InvalidPlanError as error:
            self._unreadable[name] = self._failed(name, "plan", error, name in self._unreadable)
            return None
        self._unreadable.pop(name, None)
        return plan

    def _follow(self, name: str, plan: RolloutPlan) -> None:
        model = self._models.get(name) or self._prepare(name)
        if model is None:
            return
        now = time.monotonic()
        if model.tried == plan and (not model.faults or now < model.retry_at):
            return
        active = model.active
        versions: dict[str, LoadedVersion] = {}
        faults: dict[str, str] = {}
        for variant in plan.variants:
            held = active.versions.get(variant.version) if active is not None else None
            if held is not None and held.digest == variant.digest:
                versions[variant.version] = held
                continue
            try:
                versions[variant.version] = load(model, variant, self._home, self._verify_key)
            except Exception as error:  # an author's code may raise anything
                faults[variant.version] = self._failed(name, f"version {variant.version}", error, model.tried == plan)
        repeated, model.tried = model.tried == plan, plan
        model.faults, model.retry_at = faults, now + _RETRY_SECONDS
        if plan.champion.version in versions:
            # One assignment: requests under way keep the old one, and the last of them releases it.
            model.active = Active(plan, versions, _previous(active, plan), _reads(model.spec, plan, versions))
            self._metrics.revision.labels(name).set(plan.revision)
            self._metrics.expect(name, versions)
            if not repeated:
                shares = ", ".join(f"{v.version} ({v.role}) {v.weight:g}" for v in plan.variants)
                logger.info("%s follows revision %d: %s", name, plan.revision, shares)

    def _prepare(self, name: str) -> ModelRuntime | None:
        """Get a model's plug-in; one that is broken is tried again now and then."""
        now = time.monotonic()
        if name in self._broken and now < self._retry_at.get(name, 0.0):
            return None
        try:
            model = ModelRuntime.of(name, self._plugins.plugin(name))
            self._prepare_model(model)
        except Exception as error:  # an author's code may raise anything
            self._broken[name] = self._failed(name, "plug-in", error, name in self._broken)
            self._retry_at[name] = now + _RETRY_SECONDS
            return None
        self._broken.pop(name, None)
        self._models[name] = model
        return model

    def _failed(self, name: str, what: str, error: Exception, known: bool) -> str:
        self._metrics.load_failures.labels(name).inc()
        if not known:
            logger.error("%s %s cannot be loaded, what is held goes on answering: %s", name, what, error)
        return f"{type(error).__name__}: {error}"


def _reads(spec: ModelSpec, plan: RolloutPlan, versions: Mapping[str, LoadedVersion]) -> dict[str, ModelSpec]:
    """Return the declaration by version where a version reads another feature service than it names.

    Where a version could not be loaded the champion answers, and from the champion's features.
    """
    reads: dict[str, ModelSpec] = {}
    for variant in plan.variants:
        answers = variant if variant.version in versions else plan.champion
        service = answers.release.feature_service if answers.release is not None else ""
        if service and service != spec.feature_service:
            reads[variant.version] = replace(spec, feature_service=service)
    return reads


def _previous(active: Active | None, plan: RolloutPlan) -> LoadedVersion | None:
    """Return the version that stands behind the new plan's champion."""
    if active is None:
        return None
    champion = plan.champion
    if active.champion.digest == champion.digest:
        return active.previous
    if active.previous is not None and active.previous.digest == champion.digest:
        return None
    return active.champion


def load(model: ModelRuntime, variant: Variant, home: Path, verify_key: Path | None = None) -> LoadedVersion:
    """Verify, load and warm one version, apart from anything that is serving; from ``home`` where it was fetched.

    Raises:
        TrellisError: The files are not what the plan promises, cannot be loaded, or do not score.
    """
    directory = local_artifact(variant.location, variant.digest, home)
    manifest = verify_artifact(directory, variant.digest, verify_key)
    if manifest.model != model.name:
        raise ArtifactError(f"The artifact is of {manifest.model!r}, not {model.name!r}.", where=directory)
    predictor: Predictor
    if (directory / ONNX_MODEL).exists():
        from trellis.adapters.onnx_predictor import OnnxPredictor

        predictor, engine = OnnxPredictor(directory / ONNX_MODEL), "onnx"
    else:
        predictor, engine = load_artifact(model.plugin, directory), "python"
    version = LoadedVersion(variant.version, variant.digest, predictor, engine)
    inputs = select(model.sample, model.spec.inputs)
    fastest = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        score(model.spec, version, inputs)
        fastest = min(fastest, time.perf_counter() - started)
    return replace(version, seconds=fastest)


def score(spec: ModelSpec, version: LoadedVersion, inputs: Batch) -> dict[str, NDArray[Any]]:
    """Call a predictor and hold it to the contract.

    Raises:
        VersionError: It raised, or its answer lacks an output, has other rows, is not finite or outside its range.
    """
    rows = row_count(inputs)
    where = f"{spec.name} {version.version}"
    try:
        answer = version.predictor.predict(inputs)
        outputs = {f.name: np.asarray(answer[f.name]) for f in spec.outputs}
    except Exception as error:  # an author's code may raise anything
        raise VersionError(f"The predictor raised {type(error).__name__}: {error}.", "raised", where=where) from error
    for declared in spec.outputs:
        values = outputs[declared.name]
        if values.ndim == 2 and not declared.shape and values.shape[1] == 1:
            outputs[declared.name] = values = values[:, 0]
        if values.shape != (rows, *declared.shape):
            what = f"The output {declared.name!r} has shape {values.shape} for {rows} rows."
            raise VersionError(what, "malformed", where=where)
        if values.dtype.kind in "fiu" and (wrong := _out_of_range(declared, values)):
            raise VersionError(f"The output {declared.name!r} {wrong}.", "out_of_range", where=where)
    return outputs


def _out_of_range(declared: Field, values: NDArray[Any]) -> str:
    """Say what is wrong with numbers; empty if nothing is. A bound may be passed by what rounding to 32 bits costs."""
    if values.size == 1:
        least = most = values.item()  # a tenth of what two reductions cost
    else:
        least, most = values.min(), values.max()
    if not (math.isfinite(least) and math.isfinite(most)):
        return "is not finite"
    low, high = declared.minimum, declared.maximum
    if low is not None and least < low - _ROUNDING * max(1.0, abs(low)):
        return f"is {least:.6g}, below the declared minimum {low:g}"
    if high is not None and most > high + _ROUNDING * max(1.0, abs(high)):
        return f"is {most:.6g}, above the declared maximum {high:g}"
    return ""
