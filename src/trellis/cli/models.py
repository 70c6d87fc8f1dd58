"""Verbs about models: list, show, check and make plug-ins."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trellis.artifact import SIGNATURE, verify
from trellis.catalog import Catalogue
from trellis.decision import to_json_value
from trellis.errors import ConfigError, StorageError, TrellisError
from trellis.settings import settings, silence_telemetry

if TYPE_CHECKING:
    from trellis.checks import Report, Result

app = typer.Typer(help="Models: list them, look at one, check one, start a new one.", no_args_is_help=True)

P = ParamSpec("P")
R = TypeVar("R")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Name = Annotated[str, typer.Argument(help="The model's name; see: trellis models list")]
_COLOUR = {"passed": "green", "failed": "red", "skipped": "yellow"}


def _friendly(function: Callable[P, R]) -> Callable[P, R]:
    """Print an error that Trellis raises on purpose in one line on stderr, and leave with code 1."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        silence_telemetry()
        try:
            return function(*args, **kwargs)
        except TrellisError as error:
            sys.stderr.write(f"trellis: {error}\n")
            raise typer.Exit(1) from None

    return call


def _catalogue() -> Catalogue:
    return Catalogue([settings().models])


@app.command("list")
@_friendly
def list_models(as_json: AsJson = False) -> None:
    """List every plug-in with its origin; a broken one with its cause."""
    lines = _catalogue().survey()
    if as_json:
        rows = [
            {
                "name": line.name,
                "origin": line.origin,
                "version": line.spec.version if line.spec else None,
                "task": line.spec.task if line.spec else None,
                "owner": line.spec.owner if line.spec else None,
                "problem": line.problem,
            }
            for line in lines
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    if not lines:
        typer.echo("No model yet. Start one with: trellis models new NAME")
        return
    table = Table("name", "task", "version", "owner", "origin", "problem")
    for line in lines:
        spec = line.spec
        known = (spec.task, spec.version, spec.owner) if spec else ("", "", "")
        problem = f"[red]{escape(line.problem)}[/]" if line.problem else ""
        table.add_row(line.name, *known, escape(_short(line.origin)), problem)
    Console().print(table)


def _short(origin: str) -> str:
    """Return a path below the working directory relative to it."""
    here = str(Path.cwd()) + os.sep
    return origin.removeprefix(here)


@app.command("show")
@_friendly
def show(name: Name, as_json: AsJson = False) -> None:
    """Show a model's declaration: fields, target, metric and policies."""
    catalogue = _catalogue()
    spec = catalogue.plugin(name).spec
    if as_json:
        typer.echo(json.dumps({**to_json_value(spec), "origin": catalogue.origin(name)}, indent=2, default=str))
        return
    console = Console()
    console.print(f"[bold]{spec.name}[/] {escape(spec.version)} · {spec.task} · {escape(spec.owner)}")
    console.print(f"{escape(spec.description)}\n[dim]{escape(_short(catalogue.origin(name)))}[/]")
    console.print(f"Target [bold]{escape(spec.target.name)}[/]: {escape(spec.target.description)}")
    if spec.target.classes:
        console.print(f"Classes: {escape(', '.join(spec.target.classes))}")
    console.print(
        f"Metric: {spec.metric.name}, no worse than {spec.metric.floor:g}. Recipes: {', '.join(spec.recipes)}."
    )
    table = Table("field", "part", "kind", "range", "missing", "description")
    parts = [("request", f) for f in spec.request] + [(f"feature of {spec.feature_service}", f) for f in spec.features]
    for part, field in [*parts, *(("output", f) for f in spec.outputs)]:
        table.add_row(
            field.name, part, field.kind, _range(field), "may be" if field.nullable else "", escape(field.description)
        )
    console.print(table)
    for policy in ("gates", "rollout", "drift", "retrain"):
        values = ", ".join(f"{key}={value}" for key, value in to_json_value(getattr(spec, policy)).items())
        console.print(f"[bold]{policy}[/] {escape(values)}", highlight=False)


def _range(field: Any) -> str:
    if field.choices is not None:
        return escape(", ".join(field.choices[:6]) + (" …" if len(field.choices) > 6 else ""))
    shape = f"{field.shape} " if field.shape else ""
    if field.minimum is None and field.maximum is None:
        return shape
    low = "" if field.minimum is None else f"{field.minimum:g}"
    high = "" if field.maximum is None else f"{field.maximum:g}"
    return f"{shape}{low}–{high}"


@app.command("check")
@_friendly
def check(
    name: Name,
    as_json: AsJson = False,
    report: Annotated[Path | None, typer.Option(help="Also write the JSON report to this file.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Train by this recipe; the spec's first if not given.")] = None,
    rows: Annotated[int, typer.Option(min=50, help="Rows of the plug-in's sample to train and check on.")] = 3_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training.")] = 20130101,
    only: Annotated[list[str] | None, typer.Option(help="Run only this check; may be given several times.")] = None,
) -> None:
    """Run the conformance kit over a plug-in; exit code 1 if a check fails."""
    from trellis.checks import run_checks

    console = Console(stderr=True)
    with console.status("") as status:

        def progress(check_name: str, index: int, total: int, result: Result | None) -> None:
            if result is None:
                status.update(f"{name}: {index + 1} of {total}, {check_name} …")
            elif console.is_terminal and not as_json:
                console.print(f"[{_COLOUR[result.outcome]}]{result.outcome:>7}[/] {check_name} {result.seconds:.1f} s")

        found = run_checks(
            name, folders=[settings().models], recipe=recipe, seed=seed, rows=rows, only=only, progress=progress
        )
    if report is not None:
        _write(report, found.to_json())
    if as_json:
        typer.echo(found.to_json(), nl=False)
    else:
        _print(found)
    raise typer.Exit(0 if found.passed else 1)


def _print(found: Report) -> None:
    console = Console()
    table = Table()
    for heading in ("check", "outcome", "seconds", "peak MB", "detail"):
        table.add_column(heading, no_wrap=heading != "detail")
    for result in found.checks:
        outcome = f"[{_COLOUR[result.outcome]}]{result.outcome}[/]"
        table.add_row(
            result.name, outcome, f"{result.seconds:.2f}", f"{result.peak_memory_mb:.0f}", escape(result.detail)
        )
    console.print(table)
    colour = "green" if found.passed else "red"
    console.print(f"[bold {colour}]{escape(found.summary)}[/], artifact {(found.artifact or 'none')[:12]}")


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text)
        os.replace(partial, path)
    except OSError as error:
        raise StorageError(
            f"The report cannot be written: {error}.", where=path, remedy="Give another file."
        ) from error


@app.command("new")
@_friendly
def new(
    name: Annotated[str, typer.Argument(help="Lower snake case, for example bike_demand.")],
    task: Annotated[Literal["binary", "multiclass", "regression"], typer.Option(help="What it predicts.")] = "binary",
    into: Annotated[
        Path | None, typer.Option(help="Directory of plug-in folders; TRELLIS_MODELS if not given.")
    ] = None,
) -> None:
    """Start a new plug-in: a small one that passes every check, to be changed piece by piece."""
    from trellis.scaffold import scaffold

    root = into if into is not None else settings().models
    folder = scaffold(name, task, root, taken=Catalogue([root]))
    typer.echo(f"Made {folder}")
    for path in sorted(folder.rglob("*")):
        typer.echo(f"  {path.relative_to(folder)}")
    typer.echo(f"It passes as it is: trellis models check {name}\nThen follow {folder / 'README.md'}")


@app.command("sign")
@_friendly
def sign(
    name: Name,
    version: Annotated[str, typer.Argument(help="The version.")],
    why: Annotated[str, typer.Option(help="The reason, which is kept.")],
    who: Annotated[str, typer.Option(help="Who does it.")] = "operator",
) -> None:
    """Sign a version that is registered already, with TRELLIS_SIGNING_KEY; `trellis audit` lists it."""
    from trellis.adapters.audit_trail import AuditTrail
    from trellis.adapters.signing import sign_artifact
    from trellis.cli.batch import locate

    key, secret = settings().signing_key, settings().signing_password
    if key is None:
        raise ConfigError("There is no key to sign with.", where="TRELLIS_SIGNING_KEY", remedy="Name its PEM file.")
    chosen, location, digest = locate(name, version)
    verify(location, digest)
    if location == settings().directory() / "artifacts" / digest:
        raise ConfigError(
            f"Version {chosen} of {name} is in an object store, and this is a copy.",
            where=location,
            remedy="Train it again with TRELLIS_SIGNING_KEY set; a version is signed when it is registered.",
        )
    AuditTrail(settings().database_url).record("artifact sign", f"{name} v{chosen} {digest[:12]}", who=who, why=why)
    sign_artifact(location, key, secret.get_secret_value() if secret else None)
    typer.echo(f"Version {chosen} of {name} is signed: {location / SIGNATURE}")
