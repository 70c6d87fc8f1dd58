"""The process in which shadows score: ``python -m services.prediction.shadow_host``, started by ``shadows``.

It reads one JSON message per line and answers each with one line. Whatever a shadow does here (hang, crash, eat memory)
happens to nobody else; a shadow that hangs ends this process by a watchdog that needs no help from Python.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from pydantic_core import from_json, to_json

from services.prediction.columns import batch, rfc3339
from services.prediction.runtime import ModelRuntime
from services.prediction.versions import LoadedVersion, load, score
from trellis.adapters.prediction_log import ShadowLog
from trellis.catalog import Catalogue
from trellis.contract import ModelSpec
from trellis.errors import ContractError
from trellis.rollout.plan import Variant
from trellis.settings import silence_telemetry

_MOST_HELD = 4


class Host:
    """Loads versions and scores records with them.

    Args:
        home: Trellis's home; the answers go to ``<home>/shadows/<model>/``.
        models: Directory of plug-in folders.
        verify_key: The public key that every version must be signed for; None takes unsigned ones.
    """

    def __init__(self, home: Path, models: Path, verify_key: Path | None = None) -> None:
        self._home = home
        self._verify_key = verify_key
        self._plugins = Catalogue([models])
        self._models: dict[str, ModelRuntime] = {}
        self._held: dict[tuple[str, str, str], LoadedVersion] = {}
        self._megabytes: dict[tuple[str, str, str], float] = {}  # that loading took
        self._logs: dict[str, ShadowLog] = {}

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Load the version that a message names, or score its records; nothing is raised."""
        try:
            model, version = self._version(message)
            if "records" not in message:
                return {"ok": True}
            took = self._megabytes[_key(message)]
            made = [pair | {"memory_mb": took} for pair in _scored(model.spec, version, message["records"])]
            self._log(model.name).extend(made)
            return {"ok": True, "failed": sum("error" in record for record in made)}
        except Exception as error:  # an author's code may raise anything
            return {"ok": False, "why": f"{type(error).__name__}: {error}"}

    def close(self) -> None:
        """Write what is still to be logged."""
        for log in self._logs.values():
            log.close()

    def _version(self, message: Mapping[str, Any]) -> tuple[ModelRuntime, LoadedVersion]:
        name = message["model"]
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = ModelRuntime.of(name, self._plugins.plugin(name))
        key = _key(message)
        held = self._held.pop(key, None)
        if held is None:
            variant = Variant(message["version"], "canary", 0.0, message["location"], message["digest"])
            before = psutil.Process().memory_info().rss
            held = load(model.plugin, model.sample, variant, self._home, self._verify_key)
            self._megabytes[key] = round((psutil.Process().memory_info().rss - before) / 1e6, 1)
        self._held[key] = held  # the last used is the last to go
        while len(self._held) > _MOST_HELD:
            del self._held[next(iter(self._held))]
        return model, held

    def _log(self, model: str) -> ShadowLog:
        if model not in self._logs:
            self._logs[model] = ShadowLog(self._home, model)
        return self._logs[model]


def _key(message: Mapping[str, Any]) -> tuple[str, str, str]:
    return message["model"], message["version"], message["digest"]


def _scored(spec: ModelSpec, version: LoadedVersion, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Score logged predictions again and return the pairs.

    The first is scored alone, which is timed as what one row takes; the others together, for what this process does not
    need is left to the primary. Where one of these cannot be scored, each is tried alone.
    """
    rows = [_cells(spec, record) for record in records]
    started = time.perf_counter()
    made = [_answer(spec, version, rows[0])]
    if "error" not in made[0]:
        made[0]["score_ms"] = round((time.perf_counter() - started) * 1000, 3)
    try:
        outputs = score(spec, version, batch(spec.fields, spec.inputs, rows[1:])) if rows[1:] else {}
        made += [{"outputs": {name: v[i].tolist() for name, v in outputs.items()}} for i in range(len(rows) - 1)]
    except ContractError:
        made += [_answer(spec, version, row) for row in rows[1:]]
    received = rfc3339(datetime.now(UTC))
    return [
        {
            "id": record["id"],
            "model": spec.name,
            "version": version.version,
            "primary_version": record["version"],
            "revision": record["revision"],
            "time": record["time"],
            "received_at": received,
            "unit": record["unit"],
            "primary": record["outputs"],
            "primary_latency_ms": record["latency_ms"],
            **answer,
        }
        for record, answer in zip(records, made, strict=True)
    ]


def _cells(spec: ModelSpec, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row that a logged prediction was made of."""
    cells = {**record["request"], **record["features"]}
    for name, field in spec.fields.items():
        if field.kind == "timestamp" and isinstance(cells.get(name), str):
            cells[name] = datetime.fromisoformat(cells[name])
    return cells


def _answer(spec: ModelSpec, version: LoadedVersion, row: Mapping[str, Any]) -> dict[str, Any]:
    """Score one row alone."""
    try:
        outputs = score(spec, version, batch(spec.fields, spec.inputs, [row]))
    except ContractError as error:
        return {"outputs": {}, "error": error.what[:300]}
    return {"outputs": {name: v[0].tolist() for name, v in outputs.items()}}


def main() -> None:
    """Answer messages until the other end is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="After which a message counts as hung.")
    parser.add_argument("--verify-key", type=Path, help="Public key that every version must be signed for.")
    given = parser.parse_args()
    silence_telemetry()
    logging.basicConfig(level=logging.WARNING)
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever a plug-in prints must not mix with the answers
    host = Host(given.home, given.models, given.verify_key)
    for line in sys.stdin.buffer:
        faulthandler.dump_traceback_later(2 * given.seconds, exit=True)
        answer = host.answer(from_json(line))
        faulthandler.cancel_dump_traceback_later()
        try:
            os.write(answers, to_json(answer) + b"\n")
        except BrokenPipeError:
            break
    host.close()


if __name__ == "__main__":
    main()
