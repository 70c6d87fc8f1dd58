"""Steps and flows: the same functions run in this process or under Prefect, and never do a finished step's work twice.

A step's result is kept under the digest of its arguments, so a flow that was killed and is started again picks up where
it was. Prefect has no restart from a task, hence the journal is ours and lives outside the run; a step's arguments and
result are therefore JSON values or dataclasses of them, and its files are named by what they contain.

Embedded, a flow is a plain call: no server is started and nothing is lost to orchestration. With
``TRELLIS_ORCHESTRATOR=prefect`` every flow and step is a Prefect flow and task run on the server at
``PREFECT_API_URL``.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

import trellis
from trellis.decision import dumps
from trellis.errors import StorageError
from trellis.settings import settings

P = ParamSpec("P")
R = TypeVar("R")


class Reporter(Protocol):
    """Who is told how a flow gets on."""

    def started(self, step: str) -> None:
        """Tell that a step has begun."""

    def finished(self, step: str, seconds: float, reused: bool) -> None:
        """Tell that a step has ended, and whether an earlier result served."""

    def ended(self, run: FlowRun) -> None:
        """Tell that the whole flow has ended, well or not, and what it cost."""


@dataclass
class FlowRun:
    """One run of a flow: whose, the time each step worked, and the whole; the error's name if one ended it.

    One that found nothing to do is ``idle``: it tells neither how the flow gets on nor how long it takes.
    """

    name: str
    model: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)
    wall: float = 0.0
    error: str = ""
    idle: bool = False

    @property
    def work(self) -> float:
        """Wall time inside steps, in seconds."""
        return sum(self.seconds.values())

    @property
    def overhead(self) -> float:
        """Wall time that no step accounts for, in seconds."""
        return self.wall - self.work


_RUN: ContextVar[FlowRun | None] = ContextVar("flow_run", default=None)
_REPORTER: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


@contextmanager
def reporting(reporter: Reporter) -> Iterator[None]:
    """Tell ``reporter`` about every step inside."""
    token = _REPORTER.set(reporter)
    try:
        yield
    finally:
        _REPORTER.reset(token)


def nothing_to_do() -> None:
    """Say that the flow that is running had nothing to do, so that the list of runs leaves it out."""
    run = _RUN.get()
    if run is not None:
        run.idle = True


class Step(Generic[P, R]):
    """A named unit of work; see ``step``."""

    def __init__(self, function: Callable[P, R], *, keep: bool, intact: Callable[[R], bool] | None) -> None:
        self.function = function
        self.name = function.__name__
        self._keep = keep
        self._intact = intact
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the step, as a Prefect task inside a Prefect flow and as a plain call elsewhere."""
        if settings().orchestrator == "prefect" and _RUN.get() is not None:
            return self._task(*args, **kwargs)  # type: ignore[no-any-return]
        return self._run(*args, **kwargs)

    @functools.cached_property
    def _task(self) -> Any:
        from prefect import task
        from prefect.cache_policies import NO_CACHE

        # The journal below is the only memory: Prefect's own would pickle results and know nothing of their files.
        return task(_like(self.function, self._run), name=self.name, cache_policy=NO_CACHE, persist_result=False)

    def _run(self, *args: P.args, **kwargs: P.kwargs) -> R:
        reporter, run = _REPORTER.get(), _RUN.get()
        if reporter:
            reporter.started(self.name)
        begun = time.perf_counter()
        kept = self._read(args, kwargs) if self._keep else None
        result = kept[0] if kept else self.function(*args, **kwargs)
        if self._keep and not kept:
            self._write(args, kwargs, result)
        seconds = time.perf_counter() - begun
        if run is not None:
            run.seconds[self.name] = run.seconds.get(self.name, 0.0) + seconds
            run.reused += [self.name] if kept else []
        if reporter:
            reporter.finished(self.name, seconds, bool(kept))
        return result

    def _path(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Path:
        bound = inspect.signature(self.function).bind(*args, **kwargs)
        bound.apply_defaults()
        values = {name: _plain(value) for name, value in bound.arguments.items()}
        return settings().directory("flows", "steps") / f"{self.name}-{run_key(trellis.__version__, values)}.json"

    @functools.cached_property
    def _result(self) -> TypeAdapter[R]:
        return TypeAdapter(get_type_hints(self.function)["return"])

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[R] | None:
        path = self._path(args, kwargs)
        if not path.exists():
            return None
        try:
            result = self._result.validate_json(path.read_bytes())
        except ValidationError:  # of another version of the platform, or damaged
            return None
        return (result,) if self._intact is None or self._intact(result) else None

    def _write(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: R) -> None:
        path = self._path(args, kwargs)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            partial.write_bytes(self._result.dump_json(result))
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise StorageError(
                f"The result of step {self.name!r} could not be kept: {error.strerror}.",
                where=path,
                remedy="Free disk space and run the flow again; finished steps are not repeated.",
            ) from error


def run_key(*parts: Any) -> str:
    """Return a short digest of JSON values: the name of a piece of work by what goes into it."""
    return hashlib.sha256(dumps([_plain(part) for part in parts]).encode()).hexdigest()[:20]


def _plain(value: Any) -> Any:
    """Turn an argument into JSON values, paths included."""
    return json.loads(TypeAdapter(Any).dump_json(value))


def step(*, keep: bool = True, intact: Callable[[Any], bool] | None = None) -> Callable[[Callable[P, R]], Step[P, R]]:
    """Make a function a step of a flow.

    Args:
        keep: Keep the result under the digest of the arguments and use it again. Only for steps that are functions of
            their arguments; one that reads the world outside (an ingest) or acts on it (a plan) is not.
        intact: Says whether a kept result still stands, for example whether its files are there.
    """

    def wrap(function: Callable[P, R]) -> Step[P, R]:
        return Step(function, keep=keep, intact=intact)

    return wrap


class Flow(Generic[P, R]):
    """A flow: a function that reads as a list of steps; see ``flow``."""

    def __init__(self, function: Callable[P, R]) -> None:
        self.function = function
        self.name = function.__name__.replace("_", "-")
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the flow here, or as a Prefect flow run; a flow inside a flow counts its steps for the outer one."""
        if settings().orchestrator == "embedded":
            return self._run(*args, **kwargs)
        from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

        # A heartbeat lets the server tell that a process died, and costs a flow up to a second: one is enough.
        inner = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None} if _RUN.get() is not None else {}
        with temporary_settings(inner), _accounted(self.name, self._model(args, kwargs)):
            return self.prefect(*args, **kwargs)  # type: ignore[no-any-return]

    @functools.cached_property
    def prefect(self) -> Any:
        """The Prefect flow, for runs and deployments."""
        from prefect import flow as prefect_flow

        return prefect_flow(
            _like(self.function, self._run),
            name=self.name,
            log_prints=True,
            persist_result=False,
            result_serializer="json",
        )

    def _run(self, *args: P.args, **kwargs: P.kwargs) -> R:
        with _accounted(self.name, self._model(args, kwargs)):
            return self.function(*args, **kwargs)

    def _model(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Return whose run it is; empty where the flow is no model's."""
        return str(inspect.signature(self.function).bind(*args, **kwargs).arguments.get("model", ""))


def flow(function: Callable[P, R]) -> Flow[P, R]:
    """Make a function a flow."""
    return Flow(function)


@contextmanager
def _accounted(name: str, model: str) -> Iterator[None]:
    """Account for the time of the outermost flow inside."""
    if _RUN.get() is not None:
        yield
        return
    run = FlowRun(name, model)
    token = _RUN.set(run)
    begun = time.perf_counter()
    try:
        yield
    except BaseException as error:
        run.error = type(error).__name__
        raise
    finally:
        run.wall = time.perf_counter() - begun
        _RUN.reset(token)
        if run.error or not run.idle:
            _log(run)
        if (reporter := _REPORTER.get()) is not None:
            reporter.ended(run)


def _like(function: Callable[P, R], body: Callable[P, R]) -> Callable[P, R]:
    """Return ``body`` as a function that looks like ``function``, whose name and types Prefect reads."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return body(*args, **kwargs)

    # Types, not their names: Prefect would look names up in this module.
    call.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
    call.__annotations__ = get_type_hints(function)
    return call


def _log(run: FlowRun) -> None:
    """Append what a run cost to the list of runs; a full disk must not hide the run's own error."""
    line = dumps(
        {
            "flow": run.name,
            "model": run.model,
            "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "error": run.error,
            "wall_seconds": round(run.wall, 3),
            "overhead_seconds": round(run.overhead, 3),
            "steps": {name: round(seconds, 3) for name, seconds in run.seconds.items()},
            "reused": run.reused,
        }
    )
    try:
        with (settings().directory("flows") / "runs.jsonl").open("a") as file:
            file.write(line + "\n")
    except OSError:
        return
