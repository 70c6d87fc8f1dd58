"""The fresh interpreter: ``python -m trellis.checks.child DIRECTORY``.

It loads the artifact, answers the rows it was given, trains once more, and tries the odd batches, all under an audit
hook that refuses the network and notes every file opened for writing. Its working directory, home and temporary
directory are empty ones, so whatever a training leaves there is seen. What it finds is in ``result.json``, written
after each step.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from trellis.catalog import Catalogue
from trellis.checks.exchange import read_batch, read_dataset, write_batch
from trellis.checks.memory import peak_memory_mb
from trellis.checks.suite import cause_of
from trellis.contract import ExportsOnnx, TrainingData, TrainingRun
from trellis.ensemble import load_artifact

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CALLS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto", "socket.connect"}


class Watch:
    """Refuses network calls and remembers them, even where the caller swallows the refusal; notes written paths."""

    def __init__(self) -> None:
        self.network: list[str] = []
        self.written: set[str] = set()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _CALLS:
            target = args[-1] if event in ("socket.connect", "socket.sendto") else args[0]
            if event in ("socket.connect", "socket.sendto") and args[0].family == socket.AF_UNIX:
                return  # between processes of this machine
            self.network.append(f"{event.removeprefix('socket.')}({target!r})")
            raise PermissionError(f"The conformance kit allows no network: {self.network[-1]}")
        if event == "open" and isinstance(args[2], int) and args[2] & _WRITES and isinstance(args[0], str | bytes):
            self.written.add(os.path.abspath(os.fsdecode(args[0])))
        elif event == "os.mkdir" and isinstance(args[0], str | os.PathLike):
            self.written.add(os.path.abspath(os.fspath(args[0])))


def main(directory: Path) -> None:
    """Do one task and write ``result.json``; a plug-in's error is a finding, not a crash."""
    warnings.simplefilter("ignore")
    task = json.loads((directory / "task.json").read_text())
    result: dict[str, Any] = {"load_error": None, "train_error": None, "leftovers": [], "asked": [], "survived": []}
    watch = Watch()
    begin = time.perf_counter()
    try:
        plugin = Catalogue(task["folders"], task["entry_points"]).plugin(task["name"])
        predictor = load_artifact(plugin, Path(task["artifact"]))
        write_batch(directory / "answer", predictor.predict(read_batch(directory / "rows")))
        result["load_seconds"] = time.perf_counter() - begin
    except (Exception, SystemExit) as error:
        result["load_error"] = cause_of(error)
    result["network"] = list(watch.network)
    result["load_peak_memory_mb"] = peak_memory_mb()
    _write(directory, result)  # what is known stays known if the training kills the process
    before = _seen(directory, watch)
    try:
        _train_again(directory, task)
    except (Exception, SystemExit) as error:
        result["train_error"] = cause_of(error)
    result["leftovers"] = sorted(_seen(directory, watch) - before)
    result["trained"] = True
    _write(directory, result)
    if result["load_error"] is None:
        for index, label in enumerate(task["odd"]):
            result["asked"].append(label)
            _write(directory, result)
            with contextlib.suppress(
                Exception, SystemExit
            ):  # the asking process judges the answer; here only death counts
                predictor.predict(read_batch(directory / f"odd-{index:03d}"))
            result["survived"].append(label)
        _write(directory, result)


def _train_again(directory: Path, task: dict[str, Any]) -> None:
    plugin = Catalogue(task["folders"], task["entry_points"]).plugin(task["name"])
    data = TrainingData(read_dataset(directory / "train"), read_dataset(directory / "validation"))
    scratch, again = directory / "scratch", directory / "again"
    scratch.mkdir()
    again.mkdir()
    predictor = plugin.train(data, TrainingRun(seed=task["seed"], recipe=task["recipe"], scratch=scratch))
    predictor.save(again)
    if isinstance(predictor, ExportsOnnx) and not (again / "model.onnx").exists():
        predictor.export_onnx(again / "model.onnx")


def _seen(directory: Path, watch: Watch) -> set[str]:
    """Return files in the empty places, and files written anywhere else that are still there."""
    places = [directory / place for place in ("cwd", "home", "tmp")]
    # What libraries cache under the user's home by the usual convention is no leftover of a training.
    caches = [directory / "home" / cache for cache in (".cache", ".config", ".local")]
    inside = {path for place in places for path in place.rglob("*")}
    outside = {Path(p) for p in watch.written if not p.startswith(("/dev/", "/proc/", f"{directory}{os.sep}"))}
    found = (path for path in inside | outside if path.exists() and not path.is_dir())
    return {str(path) for path in found if not any(path.is_relative_to(cache) for cache in caches)}


def _write(directory: Path, result: dict[str, Any]) -> None:
    partial = directory / "result.json.partial"
    partial.write_text(json.dumps(result))
    os.replace(partial, directory / "result.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
