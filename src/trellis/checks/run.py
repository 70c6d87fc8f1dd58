"""Running the suite: all at once into a report, or check by check from a test."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trellis
from trellis.checks import behaviour, declaration, lifecycle
from trellis.checks.memory import peak_memory_mb, reset_peak
from trellis.checks.report import Report, Result
from trellis.checks.subject import Subject
from trellis.checks.suite import SUITE, CheckFailed, CheckSkipped, cause_of, proves
from trellis.errors import ConfigError, DuplicateModelError, UnknownModelError, close_matches

# Importing a module fills the suite; what a reader wants to know first runs first.
_ORDER = [
    name
    for module in (declaration, behaviour, lifecycle)
    for name, f in SUITE.items()
    if f.__module__ == module.__name__
]

Progress = Callable[[str, int, int, Result | None], None]


def _silent(_name: str, _index: int, _total: int, _result: Result | None) -> None:
    """Report progress to nobody."""


def check_names() -> list[str]:
    """Return the names of all checks, in the order in which they run."""
    return list(_ORDER)


def run_checks(
    name: str,
    *,
    folders: Sequence[Path | str] = (),
    entry_points: bool = True,
    recipe: str | None = None,
    seed: int = 20130101,
    rows: int = 3_000,
    artifact: Path | None = None,
    only: Sequence[str] | None = None,
    progress: Progress = _silent,
) -> Report:
    """Run the kit over one plug-in.

    Args:
        name: The model's name in the catalogue.
        folders: Directories of plug-in folders.
        entry_points: Whether installed packages count too.
        recipe: How to train it; None takes the spec's first recipe.
        seed: Seed of the training.
        rows: Size of the sample that the kit trains on.
        artifact: A sealed artifact to look at; None looks at the one trained on the sample.
        only: Names of the checks to run; None runs all.
        progress: Called before a check with its name, index, count and None, and after it with its result.

    Returns:
        The report; a plug-in that raises, exits or answers nonsense makes its checks fail and never raises here.

    Raises:
        UnknownModelError: There is no model of that name.
        DuplicateModelError: Two places offer it.
        ConfigError: There is no check of a name in ``only``.
    """
    chosen = list(_ORDER) if only is None else list(only)
    for wanted in chosen:
        if wanted not in SUITE:
            raise ConfigError(f"No check is called {wanted!r}.", remedy=close_matches(wanted, SUITE))
    begin = time.perf_counter()
    subject = Subject(name, folders, entry_points, recipe, seed, rows, artifact)
    try:
        origin = subject.catalogue.origin(name)
        results = []
        for index, wanted in enumerate(chosen):
            progress(wanted, index, len(chosen), None)
            results.append(_run_one(wanted, subject))
            progress(wanted, index, len(chosen), results[-1])
        version, trained_as, digest, used = "", recipe or "", None, 0
        with suppress(CheckFailed):
            version, trained_as = subject.spec.version, subject.chosen_recipe
        with suppress(CheckFailed):
            used = len(subject.sample)
        with suppress(CheckFailed):
            digest = subject.manifest.digest
        return Report(
            model=name,
            origin=origin,
            plugin_version=version,
            platform_version=trellis.__version__,
            recipe=trained_as,
            seed=seed,
            rows=used,
            artifact=digest,
            checks=tuple(results),
            cost=dict(subject.cost),
            seconds=round(time.perf_counter() - begin, 3),
        )
    finally:
        subject.close()


def _run_one(name: str, subject: Subject) -> Result:
    function = SUITE[name]
    reset_peak()
    begin = time.perf_counter()
    try:
        outcome, detail = "passed", function(subject)
    except CheckSkipped as skipped:
        outcome, detail = "skipped", str(skipped)
    except CheckFailed as failed:
        outcome, detail = "failed", str(failed)
    except (UnknownModelError, DuplicateModelError):
        raise
    except (Exception, SystemExit) as error:
        outcome, detail = "failed", cause_of(error)
    seconds = round(time.perf_counter() - begin, 4)
    return Result(name, proves(function), outcome, detail, seconds, peak_memory_mb())  # type: ignore[arg-type]


@dataclass(frozen=True)
class BoundCheck:
    """One check of one model, ready to be called by a test; its text is the test's id."""

    name: str
    subject: Subject

    def __str__(self) -> str:
        return f"{self.subject.name}:{self.name}"

    def __call__(self) -> None:
        """Run the check.

        Raises:
            CheckFailed: The plug-in does not do what the check proves.
            CheckSkipped: The check does not apply; pytest and unittest show it as a skip.
        """
        result = _run_one(self.name, self.subject)
        if result.outcome == "skipped":
            raise CheckSkipped(result.detail)
        if result.outcome == "failed":
            raise CheckFailed(f"{self}: {result.detail}")


def checks_for(
    name: str,
    *,
    folders: Sequence[Path | str] = (),
    entry_points: bool = True,
    recipe: str | None = None,
    seed: int = 20130101,
    rows: int = 3_000,
) -> list[BoundCheck]:
    """Return every check of one model, to parametrise a test; nothing is imported or trained before the first call.

    Arguments are those of ``run_checks``. The checks share one training; its files go when the process ends.
    """
    subject = Subject(name, folders, entry_points, recipe, seed, rows)
    return [BoundCheck(check, subject) for check in _ORDER]
