"""Training: train → check → evaluate → gate → register → plan."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pipelines.card import model_card
from pipelines.data import Tables, TrainingSet, load, model_code, prepare_data
from pipelines.fitting import Start, fit
from pipelines.plugins import plugin_named
from pipelines.rollout import begin_rollout, mirror
from pipelines.scoring import latency_p95_ms, loss_model_of, reference_of, score
from pipelines.splits import split
from pipelines.steps import flow, run_key, step
from pipelines.stores import decisions, plans, registry
from pipelines.trained import Candidate, Evaluation, Outcome, Recipe, Rival
from trellis.adapters.lineage import environment, git_state
from trellis.adapters.loading import load_predictor
from trellis.adapters.plan_store import Change
from trellis.adapters.registry import RunRecord
from trellis.adapters.releases import FILE as RELEASE
from trellis.adapters.releases import registered_release
from trellis.adapters.remote_artifacts import local_artifact
from trellis.adapters.signing import sign_artifact
from trellis.artifact import ONNX_MODEL, read_manifest, seal, verify
from trellis.checks import run_checks
from trellis.contract import ExportsOnnx, ModelPlugin, TrainingData, TrainingRun, select
from trellis.decision import Decision, decision_of, dumps
from trellis.ensemble import ENSEMBLE
from trellis.errors import ArtifactError, BrokenPluginError, StorageError, TrellisError
from trellis.gates import decide as decide_gate
from trellis.gates import gate_inputs
from trellis.metrics import blocks_of, intervals
from trellis.patterns import patterns_agree
from trellis.rollout import Variant, first_plan, release_of
from trellis.settings import settings

REFERENCE = "reference.json"
_PARITY_ROWS = 200
LOSS_MODEL = "performance.json"


def _intact(candidate: Candidate) -> bool:
    try:
        verify(Path(candidate.path), candidate.digest)
    except ArtifactError:
        return False
    return True


@step(intact=_intact)
def train(
    model: str,
    code: str,  # noqa: ARG001 (part of the key)
    training_set: TrainingSet,
    recipe: Recipe,
    start: Start | None = None,
) -> Candidate:
    """Fit the recipe, or let ``start`` learn, and seal the artifact with the drift reference of its training rows."""
    plugin = plugin_named(model)
    parts = split(load(training_set), gap_hours=plugin.spec.target.delay_hours)
    root = settings().directory("candidates")
    with tempfile.TemporaryDirectory(prefix=".training-", dir=root) as work:
        scratch, artifact = Path(work, "scratch"), Path(work, "artifact")
        scratch.mkdir()
        artifact.mkdir()
        run = TrainingRun(recipe.seed, recipe.name, scratch, dict(recipe.params))
        try:
            predictor = fit(plugin, TrainingData(parts.train, parts.validation), run, start)
            predictor.save(artifact)
            if isinstance(predictor, ExportsOnnx):
                predictor.export_onnx(artifact / ONNX_MODEL)
        except TrellisError:
            raise
        except OSError as error:
            raise StorageError(
                f"The artifact of {model!r} could not be written: {error.strerror or error}.",
                where=root,
                remedy="Free disk space and run the flow again.",
            ) from error
        except Exception as error:
            raise BrokenPluginError(
                f"Training {model!r} by recipe {recipe.name!r} raised {type(error).__name__}: {error}.",
                where=type(plugin).__module__,
                remedy=f"Try: trellis models check {model}",
            ) from error
        (artifact / REFERENCE).write_text(reference_of(plugin, predictor, parts.train, parts.test))
        expected = loss_model_of(plugin, predictor, parts.test)
        if expected is not None:
            (artifact / LOSS_MODEL).write_text(expected)
        manifest = seal(
            artifact,
            model=model,
            plugin_version=plugin.spec.version,
            recipe=recipe.name,
            seed=recipe.seed,
            inputs=plugin.spec.inputs,
            outputs=tuple(f.name for f in plugin.spec.outputs),
        )
        path = root / f"{model}-{manifest.digest[:16]}"
        shutil.rmtree(path, ignore_errors=True)  # a broken one of the same content, or the very same
        artifact.replace(path)
    return Candidate(model, recipe, str(path), manifest.digest, training_set, start.version if start else "")


@step()
def conformance(candidate: Candidate, code: str) -> str:  # noqa: ARG001 (part of the key)
    """Run the conformance kit over a candidate's recipe and artifact, and return its report as JSON.

    Raises:
        BrokenPluginError: A check fails.
    """
    model = candidate.model
    report = run_checks(model, folders=[settings().models], recipe=candidate.recipe.name, artifact=Path(candidate.path))
    if not report.passed:
        failed = "; ".join(f"{r.name}: {r.detail}" for r in report.failures)
        raise BrokenPluginError(
            f"{model!r} does not pass the conformance kit: {failed}.", remedy=f"Look with: trellis models check {model}"
        )
    return dumps(report)


@step()
def evaluate(candidate: Candidate, rival: Rival | None) -> Evaluation:
    """Score the unseen rows with the candidate and the champion, as both would be served."""
    plugin = plugin_named(candidate.model)
    spec = plugin.spec
    test = split(load(candidate.training_set), gap_hours=spec.target.delay_hours).test
    predictor, _ = load_predictor(plugin, Path(candidate.path), candidate.digest)
    scores = score(plugin, predictor, test)
    theirs = None
    if rival is not None:
        place = local_artifact(rival.path, rival.digest, settings().directory())
        theirs = score(plugin, load_predictor(plugin, place, rival.digest, settings().verify_key)[0], test)
    found = intervals(
        spec.task, test.target, scores, blocks_of(test.time, test.row_id), seed=candidate.recipe.seed, replicates=500
    )
    ways, disagreements = _parity(plugin, candidate)
    evidence = gate_inputs(
        spec.task,
        test.target,
        scores,
        theirs,
        metric=spec.metric,
        row_id=test.row_id,
        time=test.time,
        segments=select(test.columns, spec.segments),
        latency_p95_ms=latency_p95_ms(plugin, predictor, test),
        artifact_bytes=read_manifest(Path(candidate.path)).size,
        seed=candidate.recipe.seed,
        confidence=spec.gates.confidence,
        parity=ways,
        disagreements=disagreements,
    )
    metrics = {name: (i.lo, i.point, i.hi) for name, i in found.items()}
    return Evaluation(metrics, evidence, rival.version if rival else "")


def _parity(plugin: ModelPlugin, candidate: Candidate) -> tuple[Mapping[str, float], Mapping[str, str]]:
    """Score sample rows in every way the candidate may be served; a way that does not work at all disagrees."""
    rows = plugin.sample(_PARITY_ROWS)
    try:
        found = patterns_agree(plugin, Path(candidate.path), rows, digest=candidate.digest)
    except TrellisError as error:
        return {}, {"a way that does not work": str(error)[:500]}
    return found.worst, found.problems


@step()
def gate(candidate: Candidate, evaluation: Evaluation, at: str) -> Decision:
    """Decide whether the candidate may take traffic; ``at`` is now where it is empty, and kept with the decision."""
    policy = plugin_named(candidate.model).spec.gates
    verdict = decide_gate(evaluation.evidence, policy)
    subject = f"{candidate.recipe.name} {candidate.digest[:8]}" + (
        f" vs v{evaluation.rival}" if evaluation.rival else ""
    )
    return decision_of(
        "gate",
        model=candidate.model,
        subject=subject,
        at=at or _now(),
        inputs=evaluation.evidence,
        policy=policy,
        verdict=verdict,
    )


@step(keep=False)
def register(candidate: Candidate, evaluation: Evaluation, decision: Decision, report: str) -> Rival:
    """Keep the version with its lineage, metrics, evidence and card; the same candidate is one version."""
    plugin = plugin_named(candidate.model)
    root = Path.cwd()
    data = candidate.training_set
    lineage = {
        **git_state(root),
        **environment(root),
        "dataset_digest": data.digest,
        "snapshot_digest": data.snapshot,
        "feature_service": plugin.spec.feature_service or "none",
        "feature_version": data.features or "none",
        "feature_definition": data.definition or "none",
        "plugin_version": plugin.spec.version,
        "recipe": candidate.recipe.name,
        "start": candidate.start or "none",
        "seed": str(candidate.recipe.seed),
        "rows": str(data.rows),
        "since": data.since,
        "until": data.until,
        "gate": decision.verdict.outcome,
        "decision": decision.id,
    }
    numbers = {name: value[1] for name, value in evaluation.metrics.items()}
    numbers |= {f"{name}.lower": value[0] for name, value in evaluation.metrics.items()}
    numbers |= {f"{name}.upper": value[2] for name, value in evaluation.metrics.items()}
    baseline = hashlib.sha256(Path(candidate.path, REFERENCE).read_bytes()).hexdigest()
    record = RunRecord(
        key=run_key(candidate.model, candidate.digest, data.digest),
        params={"recipe": candidate.recipe.name, "seed": candidate.recipe.seed, **candidate.recipe.params},
        metrics=numbers,
        tags=lineage,
        dataset={"name": candidate.model, "digest": data.digest, "source": data.snapshot},
        documents={
            "card.md": model_card(plugin.spec, lineage, evaluation.metrics, decision),
            "conformance.json": report,
            RELEASE: dumps(release_of(plugin.spec, features=data.definition, baseline=baseline)),
        },
    )
    if (members := Path(candidate.path, ENSEMBLE)).exists():
        record = replace(record, documents={**record.documents, ENSEMBLE: members.read_text()})
    if settings().signing_key is not None:
        secret = settings().signing_password
        sign_artifact(Path(candidate.path), settings().signing_key, secret.get_secret_value() if secret else None)
    version = registry().register(Path(candidate.path), read_manifest(Path(candidate.path)), record)
    registry().attach(version, f"evidence/{decision.id}.json", json.dumps(json.loads(dumps(decision)), indent=1))
    decisions().record(decision)
    return Rival(version.version, version.location, version.digest)


@step(keep=False)
def plan_rollout(model: str, version: Rival, decision: Decision) -> int:
    """Give a promoted candidate its first share of the traffic, or all of it where it is the first version.

    Returns:
        The revision of the plan that names the version; 0 where the gate did not promote it.
    """
    stage = {"PROMOTE": "candidate", "HOLD": "held"}.get(decision.verdict.outcome, "rejected")
    plan = plans().current(model)
    named = plan is not None and version.version in {v.version for v in (*plan.variants, *plan.shadows)}
    if named:
        mirror(model)  # a kill may have come between the plan and the registry
        return plan.revision if plan is not None else 0
    if stage != "candidate":
        registry().set_stage(model, version.version, stage)
        return 0
    policy = plugin_named(model).spec.rollout
    release = registered_release(registry(), model, version.version)
    variant = Variant(version.version, "champion", 1.0, version.path, version.digest, release)
    if plan is None:
        first = first_plan(model, variant, salt=f"{model}-{version.version}", unit=policy.unit)
        why = f"{decision.id}: {decision.verdict.reason}"
        revision = plans().save(first, expected_revision=0, who="platform", why=why).revision
    else:
        revision = begin_rollout(model, variant, decision)
    mirror(model)
    return revision


@flow
def train_model(
    model: str,
    recipe: Recipe | None = None,
    since: str = "",
    until: str = "",
    tables: Tables | None = None,
    training_set: TrainingSet | None = None,
    at: str = "",
) -> Outcome:
    """From raw data to a version with a place in the rollout plan, or with the reason why it has none.

    Args:
        model: What to train.
        recipe: How; the spec's first recipe if not given.
        since: Start of the rows' period, RFC 3339; empty for everything.
        until: Its end, by which the truth was known.
        tables: Raw tables to use instead of a fresh ingest.
        training_set: A training set to use instead of building one.
        at: Event time of the decision, RFC 3339; the end of the period if not given, or now.
    """
    chosen = recipe or Recipe(plugin_named(model).spec.recipes[0])
    code = model_code(model)
    data = training_set or prepare_data(model, since, until, tables)
    return admit(train(model, code, data, chosen), at or data.until)


def admit(candidate: Candidate, at: str) -> Outcome:
    """Do the rest of ``train_model`` for a candidate; ``at`` is the event time of the decision, now if empty."""
    model = candidate.model
    report = conformance(candidate, model_code(model))
    evaluation = evaluate(candidate, rival_of(plans().history(model), candidate.digest))
    decision = gate(candidate, evaluation, at=at)
    version = register(candidate, evaluation, decision, report)
    revision = plan_rollout(model, version, decision)
    verdict = decision.verdict
    return Outcome(version.version, decision.id, verdict.outcome, verdict.reason, evaluation.metrics, revision)


def rival_of(history: Sequence[Change], digest: str) -> Rival | None:
    """Return the champion that a candidate has to be compared with, or None where it has no rival.

    That is the current one. But where the plan has the candidate already, because its flow was killed after planning or
    is run again, it is the champion of the time when it came in: a candidate is never compared with itself.

    Args:
        history: Every change of the model's plan, oldest first.
        digest: Of the candidate's artifact.
    """
    for change in reversed(history):
        if all(variant.digest != digest for variant in change.plan.variants):
            champion = change.plan.champion
            return Rival(champion.version, champion.location, champion.digest)
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
