"""Verbs that use a model without a server: over a whole table, and as a directory that scores by itself."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trellis.catalog import Catalogue
from trellis.errors import RolloutError
from trellis.settings import settings

Name = Annotated[str, typer.Argument(help="The model's name; see: trellis models list")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def add_to(app: typer.Typer) -> None:
    """Add the verbs ``predict-batch`` and ``export``."""
    app.command("predict-batch")(predict_batch)
    app.command("export")(export)


def predict_batch(
    model: Name,
    source: Annotated[Path, typer.Option("--input", help="Parquet file with a column per request field.")],
    output: Annotated[Path, typer.Option(help="Parquet file to write: one row per input row, in its order.")],
    version: Annotated[
        str | None, typer.Option(help="Score with this version; without it the unfinished run's, or the champion.")
    ] = None,
    on_bad: Annotated[
        Literal["stop", "skip"],
        typer.Option(help="A bad row stops the run, or gets nulls and a line in OUTPUT.rejects.jsonl."),
    ] = "stop",
    keep: Annotated[list[str] | None, typer.Option(help="Carry this input column over; may be repeated.")] = None,
    part_rows: Annotated[int | None, typer.Option(min=1, help="Rows kept in memory and per finished part.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output or unfinished run.")] = False,
    as_json: AsJson = False,
) -> None:
    """Score a Parquet file; killed and started again, it goes on where it was."""
    from trellis.adapters.loading import load_predictor
    from trellis.patterns.batch import BatchModel, begun_version
    from trellis.patterns.batch import predict_batch as run

    plugin = Catalogue([settings().models]).plugin(model)
    chosen, location, digest = locate(model, version or (None if overwrite else begun_version(output)))
    predictor, engine = load_predictor(plugin, location, digest, settings().verify_key)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=as_json or not console.is_terminal) as bar:
        task = bar.add_task(f"{model} {chosen}", total=None)
        summary = run(
            BatchModel(plugin.spec, predictor, chosen, digest),
            source,
            output,
            features=_feature_store,
            on_bad=on_bad,
            keep=keep or (),
            part_rows=part_rows,
            overwrite=overwrite,
            progress=lambda done, rows: bar.update(task, completed=done, total=rows),
        )
    if as_json:
        typer.echo(json.dumps({**asdict(summary), "engine": engine}, indent=2))
        return
    earlier = summary.rows - summary.scored
    before = f", {earlier:,} of them by an earlier run" if earlier else ""
    console = Console()
    console.print(
        f"{summary.rows:,} rows{before} with version {chosen} ({engine}, {digest[:12]}), "
        f"{summary.rows_per_second:,.0f} rows/s: [bold]{escape(summary.output)}[/]",
        highlight=False,
        soft_wrap=True,
    )
    if summary.rejects:
        console.print(f"[yellow]{summary.rejected:,} rows were refused:[/] {escape(summary.rejects)}", soft_wrap=True)
    if summary.joined:
        console.print(f"{len(summary.joined)} features came from the feature store, as of each row's time.")
    if summary.unused:
        console.print(f"[dim]Not looked at: {escape(', '.join(summary.unused))}[/]")


def export(
    model: Name,
    directory: Annotated[Path, typer.Argument(help="A directory that is not there yet, or empty.")],
    version: Annotated[str | None, typer.Option(help="The version; without it the champion.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a version as a directory that scores by itself: ONNX graph, manifest, field declaration, runner."""
    from trellis.patterns.export import export_model

    spec = Catalogue([settings().models]).plugin(model).spec
    chosen, location, digest = locate(model, version)
    manifest = export_model(spec, location, directory, version=chosen, digest=digest, key=settings().verify_key)
    if as_json:
        made = {"model": model, "version": chosen, "digest": manifest.digest, "directory": str(directory)}
        typer.echo(json.dumps(made, indent=2))
        return
    typer.echo(f"Version {chosen} of {model}, {manifest.digest}\n  {directory}")
    for path in sorted(directory.iterdir()):
        typer.echo(f"    {path.name}  {path.stat().st_size:,} bytes")
    typer.echo(f"Score with onnxruntime and numpy alone: python {directory / 'score.py'} < rows.jsonl")


def locate(model: str, version: str | None) -> tuple[str, Path, str]:
    """Return a version's name, directory and digest: the champion by the plan, or the one named.

    Raises:
        RolloutError: The model has no plan.
        RegistryError: There is no such version.
    """
    from trellis.adapters.plan_store import PlanStore

    plans = PlanStore(settings().database_url)
    try:
        plan = plans.current(model)
        if version is None:
            if plan is None:
                remedy = f"Train it with: trellis flow train {model}, or give --version."
                raise RolloutError(f"{model!r} has no rollout plan, so no champion.", remedy=remedy)
            return _located(plan.champion)
        # A plan names the files of whatever it ever served, so those versions need no registry.
        for change in reversed(plans.history(model) if plan else []):
            for variant in change.plan.variants:
                if variant.version == version:
                    return _located(variant)
    finally:
        plans.close()
    from trellis.adapters.registry import ModelRegistry

    registry = ModelRegistry(settings().tracking_uri, settings().directory("mlflow", "artifacts"))
    return _located(registry.version(model, version))


def _located(found: Any) -> tuple[str, Path, str]:
    from trellis.adapters.remote_artifacts import local_artifact

    return found.version, local_artifact(found.location, found.digest, settings().directory()), found.digest


def _feature_store() -> Any:
    from trellis.adapters.feature_store import FeatureStore

    config = settings()
    return FeatureStore(config.feature_repo.resolve(), config.home.resolve(), config.online_store)
