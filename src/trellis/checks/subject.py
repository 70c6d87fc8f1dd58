"""The plug-in under check: trained once, on demand; every check looks at the same one."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from trellis.artifact import ONNX_MODEL, Manifest, seal, verify
from trellis.catalog import Catalogue
from trellis.checks.compare import answer_problem
from trellis.checks.exchange import read_batch, write_batch, write_dataset
from trellis.checks.odd import OddBatch, odd_batches
from trellis.checks.suite import CheckFailed, cause_of
from trellis.contract import (
    Batch,
    Dataset,
    ExportsOnnx,
    ModelPlugin,
    ModelSpec,
    Predictor,
    TrainingData,
    TrainingRun,
    select,
    take,
)
from trellis.ensemble import load_artifact
from trellis.errors import DuplicateModelError, UnknownModelError

T = TypeVar("T")

PROBE_ROWS = 200
CHILD_SECONDS = 240.0


@dataclass(frozen=True)
class Child:
    """What the fresh interpreter found; see ``trellis.checks.child``."""

    load_error: str | None
    train_error: str | None
    network: list[str]
    leftovers: list[str]
    load_peak_memory_mb: float
    isolated: bool
    directory: Path
    load_seconds: float = 0.0
    trained: bool = False
    crash: str | None = None
    asked: tuple[str, ...] = ()
    survived: tuple[str, ...] = ()

    @property
    def answer(self) -> dict[str, NDArray[Any]]:
        """The loaded model's answer to the probe rows."""
        return read_batch(self.directory / "answer")


@dataclass(eq=False)
class Subject:
    """Everything a check may look at, each part made when it is first asked for.

    A part that cannot be made fails every check that needs it, with one and the same cause.

    Attributes:
        name: The model's name in the catalogue.
        folders, entry_points: Where to look for it.
        recipe: How to train it; None takes the spec's first recipe.
        seed: Seed of the training.
        rows: Size of the sample asked for: 60 % train, 20 % validation, the last 20 % (at most 200) are the probe.
        artifact: A sealed artifact to look at instead of one trained on the sample.
        cost: Filled by the check that measures.
    """

    name: str
    folders: Sequence[Path | str] = ()
    entry_points: bool = True
    recipe: str | None = None
    seed: int = 20130101
    rows: int = 3_000
    artifact: Path | None = None
    cost: dict[str, float] = field(default_factory=dict)
    _parts: dict[str, tuple[Any, BaseException | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.catalogue = Catalogue(self.folders, self.entry_points)
        self.scratch = Path(tempfile.mkdtemp(prefix="trellis-check-"))
        self.close = weakref.finalize(self, shutil.rmtree, self.scratch, ignore_errors=True)

    def _part(self, key: str, doing: str, make: Callable[[], T]) -> T:
        if key not in self._parts:
            try:
                with warnings.catch_warnings():
                    # A third party's pytest may turn warnings into errors; a vendor's warning is not what is checked.
                    warnings.simplefilter("ignore")
                    self._parts[key] = (make(), None)
            except (CheckFailed, UnknownModelError, DuplicateModelError) as error:
                self._parts[key] = (None, error)
            except (Exception, SystemExit) as error:
                failure = CheckFailed(f"{doing} raises {cause_of(error)}")
                failure.__cause__ = error
                self._parts[key] = (None, failure)
        value, failed = self._parts[key]
        if failed is not None:
            raise failed.with_traceback(None)
        return value  # type: ignore[no-any-return]

    @property
    def plugin(self) -> ModelPlugin:
        """The plug-in."""
        return self._part("plugin", "loading the plug-in", lambda: self.catalogue.plugin(self.name))

    @property
    def spec(self) -> ModelSpec:
        """Its declaration."""
        return self.plugin.spec

    @property
    def chosen_recipe(self) -> str:
        """The recipe that is trained."""
        return self.recipe or self.spec.recipes[0]

    @property
    def sample(self) -> Dataset:
        """The plug-in's sample."""
        return self._part("sample", f"sample({self.rows})", self._sample)

    def _sample(self) -> Dataset:
        sample = self.plugin.sample(self.rows)
        if not isinstance(sample, Dataset):
            raise CheckFailed(f"sample({self.rows}) returns a {type(sample).__name__}, not a Dataset")
        if len(sample) < 50:
            raise CheckFailed(f"sample({self.rows}) has {len(sample)} rows; the kit needs 50")
        return sample

    @property
    def data(self) -> TrainingData:
        """The first 60 % of the sample to fit on, the next 20 % as validation; order kept, so time runs forward."""
        rows = len(self.sample)
        return TrainingData(
            train=self.sample.take(slice(0, rows * 6 // 10)),
            validation=self.sample.take(slice(rows * 6 // 10, rows * 8 // 10)),
        )

    @property
    def probe(self) -> dict[str, NDArray[Any]]:
        """Rows to predict, from the part of the sample that was not trained on; a fresh copy each time."""
        rows = len(self.sample)
        last = self.sample.take(slice(max(rows * 8 // 10, rows - PROBE_ROWS), rows))
        return {name: column.copy() for name, column in select(last.columns, self.spec.inputs).items()}

    @property
    def trained(self) -> Predictor:
        """The predictor trained on the sample."""
        return self._part("trained", "training", self._train)

    def _train(self) -> Predictor:
        scratch = self.scratch / "training"
        scratch.mkdir()
        run = TrainingRun(seed=self.seed, recipe=self.chosen_recipe, scratch=scratch)
        data = self.data
        begin = time.perf_counter()
        predictor = self.plugin.train(data, run)
        self.cost["train_seconds"] = round(time.perf_counter() - begin, 6)
        if not isinstance(predictor, Predictor):
            raise CheckFailed(f"train returns a {type(predictor).__name__}, not a Predictor")
        shutil.rmtree(scratch, ignore_errors=True)  # the contract says that it goes away
        return predictor

    @property
    def saved(self) -> Path:
        """The directory the trained predictor was saved to, with its ONNX graph where it exports one."""
        return self._part("saved", "saving", self._save)

    def _save(self) -> Path:
        directory = self.scratch / "artifact"
        directory.mkdir()
        self.trained.save(directory)
        if isinstance(self.trained, ExportsOnnx) and not (directory / ONNX_MODEL).exists():
            try:
                self.trained.export_onnx(directory / ONNX_MODEL)
            except Exception as error:
                self._parts["onnx"] = (None, CheckFailed(f"export_onnx raises {cause_of(error)}"))
                (directory / ONNX_MODEL).unlink(missing_ok=True)
        return directory

    @property
    def directory(self) -> Path:
        """The artifact that is looked at: the given one, or the one saved here."""
        return self.saved if self.artifact is None else self.artifact

    @property
    def onnx(self) -> Path | None:
        """The artifact's ONNX graph, or None where there is none; fails where the export failed."""
        directory = self.directory
        return self._part("onnx", "exporting", lambda: p if (p := directory / ONNX_MODEL).exists() else None)

    @property
    def manifest(self) -> Manifest:
        """The sealed artifact's manifest."""
        return self._part("manifest", "sealing the artifact", self._seal)

    def _seal(self) -> Manifest:
        if self.artifact is not None:
            return verify(self.artifact)
        spec = self.spec
        seal(
            self.saved,
            model=self.name,
            plugin_version=spec.version,
            recipe=self.chosen_recipe,
            seed=self.seed,
            inputs=spec.inputs,
            outputs=tuple(output.name for output in spec.outputs),
        )
        return verify(self.saved)

    @property
    def predictor(self) -> Predictor:
        """The predictor that is looked at: trained here, or loaded from the given artifact."""
        if self.artifact is None:
            return self.trained
        given = self.artifact
        return self._part("loaded", "loading the artifact", lambda: load_artifact(self.plugin, given))

    def answer(self, batch: Batch, doing: str = "predict") -> dict[str, NDArray[Any]]:
        """Predict, and refuse an answer that is not as declared.

        Raises:
            CheckFailed: The call raises, or the answer is not as declared.
        """
        rows = len(next(iter(batch.values())))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answer = self.predictor.predict(batch)
        except CheckFailed:
            raise
        except (Exception, SystemExit) as error:
            raise CheckFailed(f"{doing} on {rows} rows raises {cause_of(error)}") from error
        problem = answer_problem(self.spec, answer, rows)
        if problem:
            raise CheckFailed(f"{doing} on {rows} rows: {problem}")
        return dict(answer)

    @property
    def baseline(self) -> dict[str, NDArray[Any]]:
        """The answer to the probe rows."""
        return self._part("baseline", "predict", lambda: self.answer(self.probe))

    @property
    def odd(self) -> list[OddBatch]:
        """Batches that a predictor must survive."""
        return self._part("odd", "making odd batches", lambda: odd_batches(self.spec, self.probe))

    @property
    def child(self) -> Child:
        """What a fresh interpreter finds when it loads the artifact, answers the probe, and trains again."""
        return self._part("child", "starting a fresh interpreter", self._run_child)

    def _run_child(self) -> Child:
        place = (self.scratch / "fresh").resolve()
        for part in ("cwd", "home", "tmp"):
            (place / part).mkdir(parents=True)
        write_batch(place / "rows", self.probe)
        for index, odd in enumerate(self.odd):
            write_batch(place / f"odd-{index:03d}", odd.batch)
        write_dataset(place / "train", self.data.train)
        write_dataset(place / "validation", self.data.validation)
        task = {
            "name": self.name,
            "folders": [str(folder) for folder in self.catalogue.folders],
            "entry_points": self.entry_points,
            "artifact": str(self.directory.resolve()),
            "seed": self.seed,
            "recipe": self.chosen_recipe,
            "odd": [odd.label for odd in self.odd],
        }
        (place / "task.json").write_text(json.dumps(task))
        isolate = _unshare()
        command = [*isolate, sys.executable, "-m", "trellis.checks.child", str(place)]
        try:
            done = subprocess.run(
                command, cwd=place / "cwd", env=_environment(place), capture_output=True, timeout=CHILD_SECONDS
            )
            tail = b" ".join((done.stderr or b"").split(b"\n")[-4:]).decode(errors="replace")
            crash = None if done.returncode == 0 else f"it ended with code {done.returncode}: {tail[-400:].strip()}"
        except subprocess.TimeoutExpired:
            crash = f"it did not end in {CHILD_SECONDS:g} s"
        path = place / "result.json"
        if not path.exists():
            raise CheckFailed(f"A fresh interpreter cannot load the model: {crash}")
        found = json.loads(path.read_text())
        found["asked"], found["survived"] = tuple(found["asked"]), tuple(found["survived"])
        return Child(**found, isolated=bool(isolate), directory=place, crash=crash)


def repeated(batch: Batch, rows: int) -> dict[str, NDArray[Any]]:
    """Return ``rows`` rows by repeating those of ``batch``."""
    have = len(next(iter(batch.values())))
    return take(batch, np.arange(rows) % have)


@functools.cache
def _unshare() -> tuple[str, ...]:
    """Return a command prefix that gives a process no network at all, or nothing where the system allows none."""
    tool = shutil.which("unshare")
    for prefix in ((tool, "--net"), (tool, "--map-root-user", "--net")) if tool else ():
        command = [str(part) for part in prefix]
        if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return tuple(command)
    return ()


def _environment(place: Path) -> dict[str, str]:
    environment = dict(os.environ)
    environment.update(
        PYTHONPATH=os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry),
        PYTHONDONTWRITEBYTECODE="1",
        PYTHONHASHSEED="271828",  # another order of sets than this process has
        HOME=str(place / "home"),
        TMPDIR=str(place / "tmp"),
        ORT_DISABLE_TELEMETRY="1",
    )
    for name in ("PYTHONWARNINGS", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        environment.pop(name, None)
    if "TRELLIS_HOME" in environment:
        environment["TRELLIS_HOME"] = str(Path(environment["TRELLIS_HOME"]).resolve())
    return environment
