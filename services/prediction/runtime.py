"""What a serving process holds: per model the plan it executes and the loaded versions; and what keeps them current."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from services.prediction.background import Background, Job, Key, under_way
from services.prediction.columns import batch, to_json
from services.prediction.errors import UnavailableError
from services.prediction.feature_versions import declarations
from services.prediction.metrics import Metrics
from services.prediction.versions import LoadedVersion, load
from trellis.adapters.plan_store import Change
from trellis.contract import Batch, ModelPlugin, ModelSpec
from trellis.errors import ArtifactError, InvalidPlanError, StorageError, TrellisError, UnknownModelError, close_matches
from trellis.rollout.plan import RolloutPlan, Variant, line_of_champions

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0


class Plans(Protocol):
    """Where the current plans are."""

    def models(self) -> list[str]:
        """Return the models that have a plan."""

    def current(self, model: str) -> RolloutPlan | None:
        """Return a model's plan."""

    def history(self, model: str) -> Sequence[Change]:
        """Return every change of a model's plan, oldest first."""


class Plugins(Protocol):
    """Where the plug-ins are."""

    def plugin(self, name: str) -> ModelPlugin:
        """Return a model's plug-in."""


@dataclass(frozen=True)
class Active:
    """One plan with its loaded versions; replaced as a whole, so that a request sees one or the other.

    A canary that could not be loaded is not in ``versions``: the champion, which always is, answers in its place, and
    each such row counts as one that the canary failed on.
    ``previous`` is the version that the champion took over from, kept warm for requests on which the champion breaks.
    One that was rolled back is none: it is not to answer again. ``reads`` is the declaration by
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

    @cached_property
    def seconds(self) -> float:
        """How long one row takes the slowest that may have to answer, ``previous`` included."""
        held = [*self.versions.values(), *([self.previous] if self.previous is not None else [])]
        return max(version.seconds for version in held)


@dataclass
class ModelRuntime:
    """One model in this process.

    Attributes:
        name: The model.
        plugin: Its plug-in.
        active: What answers; None until a champion is loaded.
        faults: Version to why it could not be loaded, and ``plan`` to what of the plan cannot be kept to.
        sample: One row of the predictor's inputs and the request's fields, for warming up.
        example: A row in request form, for the API page.
        tried: The plan last tried, and ``retry_at`` when what failed of it is tried again (monotonic seconds); never,
            where nothing failed.
    """

    name: str
    plugin: ModelPlugin
    sample: Batch
    active: Active | None = None
    faults: dict[str, str] = field(default_factory=dict)
    example: Mapping[str, Any] = field(default_factory=dict)
    tried: RolloutPlan | None = None
    retry_at: float = float("inf")

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

    What an author wrote, and what comes over a network, runs in threads of its own: a version that hangs while it is
    loaded holds up the plans that name it and nothing else.

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
        self._background = Background()
        self._loading: dict[str, dict[str, Job]] = {}
        self._unreadable: dict[str, str] = {}
        self._retry_at: dict[str, float] = {}
        self._store_fault: str | None = None
        self._polled = False
        self._patient = True
        self._ready = False
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
            ArtifactError: It cannot be loaded, or not yet.
            UnavailableError: Which models there are is not known yet.
        """
        model = self._models.get(name)
        if model is None or model.active is None:
            if not self._polled:
                raise UnavailableError("The plans have not been read yet.", remedy="Try again in a second.")
            known = self.names()
            if name in self._broken or (model is not None and model.faults):
                why = self._broken.get(name) or "; ".join(model.faults.values() if model else ())
                raise ArtifactError(f"The model {name!r} has a plan but could not be loaded: {why}")
            if name in self._loading:
                raise ArtifactError(f"The model {name!r} is being loaded.", remedy="Try again in a second.")
            raise UnknownModelError(f"No model {name[:100]!r} is served here.", remedy=close_matches(name[:100], known))
        return model

    @property
    def ready(self) -> bool:
        """Whether requests are to be sent here; once they are, one bad model does not end it for all others."""
        return self._ready

    def hurry(self) -> None:
        """Be ready as soon as any model is answered, whatever else is still being loaded."""
        self._patient = False
        self._settle()

    def _settle(self) -> None:
        self._ready = self._ready or (bool(self.names()) and not (self._patient and self._loading))

    @property
    def loading(self) -> bool:
        """Whether the plans are still to be read, or one waits for something that is being loaded."""
        return not self._polled or bool(self._loading)

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
            "loading": {name: sorted(jobs) for name, jobs in sorted(self._loading.items())},
            "broken": self._broken | self._unreadable,
            "plan_store": self._store_fault or ("answers" if self._polled else "not read yet"),
        }

    def poll(self, patience: float = 60.0) -> None:
        """Read the plans and load what is new; never raises, and what is held goes on answering.

        Args:
            patience: How long to wait for what is being loaded, in seconds; what takes longer goes on, and a later call
                follows it up.
        """
        end = time.monotonic() + patience
        with self._lock:
            self._look()
            while self._loading and self._background.news.wait(max(0.0, end - time.monotonic())):
                self._look()

    def wait(self, seconds: float) -> None:
        """Wait so long, or until something was loaded or somebody wakes whoever waits."""
        self._background.news.wait(seconds)

    def wake(self) -> None:
        """Let ``wait`` return."""
        self._background.news.set()

    def _look(self) -> None:
        self._background.news.clear()  # before the jobs are looked at: one that ends meanwhile is news again
        try:
            plans = {name: self._plan(name) for name in self._plans.models()}
        except StorageError as error:
            self._metrics.store_failures.labels("plans").inc()
            if self._store_fault is None:
                logger.error("%s Serving goes on with the plans it holds.", error)
            self._store_fault = str(error)
            return
        self._store_fault = None
        loading = {name: self._follow(name, plan) for name, plan in plans.items() if plan is not None}
        self._loading = {name: jobs for name, jobs in loading.items() if jobs}
        for name in plans:
            self._metrics.revision.labels(name)  # 0 until one is executed, which is how a model not answered is seen
        self._polled = True
        self._settle()

    def _plan(self, name: str) -> RolloutPlan | None:
        """Return a model's plan; one that cannot be read holds nobody else's up."""
        try:
            plan = self._plans.current(name)
        except InvalidPlanError as error:
            self._unreadable[name] = self._failed(name, "plan", error, name in self._unreadable)
            return None
        self._unreadable.pop(name, None)
        return plan

    def _follow(self, name: str, plan: RolloutPlan) -> dict[str, Job]:
        """Switch a model to its newest plan once each of the plan's versions is held or has failed.

        What an older plan waits for is not waited for: a rollback, whose versions are held, takes effect at once.

        Returns:
            What the plan waits for.
        """
        model = self._models.get(name)
        if model is None:
            model, waits = self._prepare(name)
            if model is None:
                return waits
        now = time.monotonic()
        if model.tried == plan and now < model.retry_at:
            self._background.forget(name)
            return {}
        active = model.active
        held = {v.version: version for v in plan.variants if (version := _held(active, v)) is not None}
        jobs: dict[Key, Job] = {}
        for v in plan.variants:
            if v.version not in held:
                key = (name, v.version, v.digest, v.location)
                work = partial(load, model.plugin, model.sample, v, self._home, self._verify_key)
                jobs[key] = self._background.job(key, work)
        self._background.forget(name, but=jobs)
        waits = under_way(name, {f"version {key[1]}": job for key, job in jobs.items()})
        if waits:
            return waits
        repeated, model.tried = model.tried == plan, plan
        faults: dict[str, str] = {}
        for (_, version, *_), job in jobs.items():
            if job.error is None:
                held[version] = job.result
            else:
                faults[version] = self._failed(name, f"version {version}", job.error, repeated)
        self._background.forget(name)
        model.retry_at = now + _RETRY_SECONDS if faults else float("inf")
        done = plan
        if plan.unit is not None and plan.unit not in {f.name for f in model.spec.request}:
            # A later plug-in has dropped the field, or made it a feature, which callers need not send. Then each row is
            # drawn by its own id, which is also what the log has as its unit; so whoever counts by unit counts what was
            # drawn.
            done = replace(plan, unit=None)
            faults["plan"] = (
                f"Its unit {plan.unit!r} is no request field of the plug-in; every row is assigned by itself."
            )
            if not repeated:
                logger.warning("%s revision %d: %s", name, plan.revision, faults["plan"])
        model.faults = faults
        if plan.champion.version in held:
            # One assignment: requests under way keep the old one, and the last of them releases it.
            model.active = Active(done, held, self._behind(active, plan, held), declarations(model.spec, plan, held))
            self._metrics.revision.labels(name).set(plan.revision)
            self._metrics.expect(name, held)
            if not repeated:
                shares = ", ".join(f"{v.version} ({v.role}) {v.weight:g}" for v in plan.variants)
                logger.info("%s follows revision %d: %s", name, plan.revision, shares)
        return {}

    def _prepare(self, name: str) -> tuple[ModelRuntime | None, dict[str, Job]]:
        """Get a model's plug-in, or what is waited for; one that is broken is tried again now and then."""
        now = time.monotonic()
        if name in self._broken and now < self._retry_at.get(name, 0.0):
            return None, {}
        job = self._background.job((name, "plug-in"), partial(self._prepared, name))
        waits = under_way(name, {"plug-in": job})
        if waits:
            return None, waits
        self._background.forget(name)
        if job.error is not None:
            self._broken[name] = self._failed(name, "plug-in", job.error, name in self._broken)
            self._retry_at[name] = now + _RETRY_SECONDS
            return None, {}
        self._broken.pop(name, None)
        self._models[name] = job.result
        return job.result, {}

    def _prepared(self, name: str) -> ModelRuntime:
        model = ModelRuntime.of(name, self._plugins.plugin(name))
        self._prepare_model(model)
        return model

    def _behind(
        self, active: Active | None, plan: RolloutPlan, held: Mapping[str, LoadedVersion]
    ) -> LoadedVersion | None:
        """Return the version that the plan's champion took over from, where it is in memory."""
        now = plan.champion
        if active is not None and (active.champion.version, active.champion.digest) == (now.version, now.digest):
            return active.previous
        try:
            history = [change.plan for change in self._plans.history(plan.model)]
        except TrellisError as error:
            logger.warning("%s has no version to fall back to, as its plans cannot be read: %s", plan.model, error)
            return None
        line = line_of_champions([p for p in history if p.revision <= plan.revision])
        before = line[-2].champion if len(line) > 1 else None
        return None if before is None else held.get(before.version) or _held(active, before)

    def _failed(self, name: str, what: str, error: BaseException, known: bool) -> str:
        self._metrics.load_failures.labels(name).inc()
        if not known:
            logger.error("%s %s cannot be loaded, what is held goes on answering: %s", name, what, error)
        return f"{type(error).__name__}: {error}"


def _held(active: Active | None, variant: Variant) -> LoadedVersion | None:
    """Return a plan's version where it is in memory, be it as the champion before this one."""
    if active is None:
        return None
    for version in (active.versions.get(variant.version), active.previous):
        if version is not None and (version.version, version.digest) == (variant.version, variant.digest):
            return version
    return None
