"""A model's pace: when its next look is due, what is on record until then, and one look at a time."""

from __future__ import annotations

import fcntl
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from trellis.contract import DriftPolicy
from trellis.decision import Decision
from trellis.drift import Diagnosis, DriftInputs, diagnose, pace_days

logger = logging.getLogger(__name__)
# A look between two due ones spends nothing: under another name it is not counted among those that do.
CERTAIN = ".faults"
_STAMP = "%Y%m%dT%H%M%SZ"
COVERED = 0.75  # of a window's length, that a paced look needs
_DECISION, _INPUTS, _POLICY = TypeAdapter(Decision), TypeAdapter(DriftInputs), TypeAdapter(DriftPolicy)


@dataclass(frozen=True)
class Recorded:
    """A look on record.

    Attributes:
        decision: What it decided.
        found: The same, structured.
        version: The version it judged.
        end: End of the window judged.
        path: Its file.
    """

    decision: Decision
    found: Diagnosis
    version: str
    end: datetime
    path: Path

    def covers(self, found: Diagnosis) -> bool:
        """Whether this look told of all columns that are at fault in another."""
        return {f.column for f in found.faults} <= {f.column for f in self.found.faults}


def newest(directory: Path, policy: DriftPolicy, until: datetime, mark: str = "") -> Recorded | None:
    """Return the newest look on record that had rows enough for its question, of the declared pace's last days.

    Args:
        directory: The model's evidence.
        policy: Declares how often a look is due.
        until: End of the look now taken, event time.
        mark: ``CERTAIN`` for looks between two due ones, which asked for certain faults alone.

    Returns:
        The look; None where there is none within ``30 / looks_per_month`` days, so that the next one is due.
    """
    since = until - timedelta(days=pace_days(policy))
    for end, path in _looks(directory, mark):
        if end <= since:
            break
        if end <= until and (kept := _read(path)) is not None:
            decision, inputs, then = kept
            found = diagnose(inputs, then)
            if not found.missing_rows:
                return Recorded(decision, found, inputs.version, end, path)
    return None


def looks_taken(directory: Path, until: datetime) -> int:
    """Return how many others that end within 30 days of a look, before it or after, were on record when it was taken.

    Looks are not always taken in the order of their ends, hence both sides. One taken again is the same look and keeps
    its number, whatever was taken since, so that its share of the budget and its decision stay what they were.

    Args:
        directory: The model's evidence.
        until: End of the look, event time, a whole second.
    """
    others = dict(_looks(directory))
    own = others.pop(until, None)
    if own is not None and (kept := _read(own)) is not None:
        return kept[1].looks
    return sum(abs(end - until) < timedelta(days=30) for end in others)


def looked_after(directory: Path, until: datetime) -> bool:
    """Return whether a look is on record that ends after a moment and had rows."""
    for end, path in sorted((*_looks(directory), *_looks(directory, CERTAIN)), reverse=True):
        if end <= until:
            break
        if (kept := _read(path)) is not None and kept[1].windows[-1].rows:
            return True
    return False


def _looks(directory: Path, mark: str = "") -> list[tuple[datetime, Path]]:
    """Return end and file of all evidence of a kind, newest first."""
    found = []
    for path in directory.glob(f"*Z{mark}.json"):
        with suppress(ValueError):  # somebody's notes
            found.append((datetime.strptime(path.name.removesuffix(f"{mark}.json"), _STAMP).replace(tzinfo=UTC), path))
    return sorted(found, reverse=True)


def _read(path: Path) -> tuple[Decision, DriftInputs, DriftPolicy] | None:
    """Read evidence; None where it is damaged."""
    try:
        decision = _DECISION.validate_json(path.read_bytes())
        inputs = _INPUTS.validate_python(decision.inputs["inputs"])
        return decision, inputs, _POLICY.validate_python(decision.inputs["policy"])
    except (OSError, KeyError, ValueError) as error:
        logger.warning("evidence %s cannot be read (%s); left alone", path, type(error).__name__)
        return None


def beside(last: Recorded | None, found: Diagnosis, version: str) -> Diagnosis:
    """Return a certain fault beside what the last look that judged the version measured: shifts, and the harm."""
    if not found.faults or last is None or last.version != version:
        return found
    return replace(found, shifts=last.found.shifts, harm=last.found.harm)


def asked_of(
    policy: DriftPolicy, rows: int, times: NDArray[np.datetime64], start: np.datetime64, end: np.datetime64
) -> DriftPolicy:
    """Return the policy, with as many rows asked as the window would hold had it been served for three quarters.

    A reference is of whole periods. The first hours or days of a service are some time of the day or of the week, and
    differ from it for that alone; their verdict would stand until the next due look.

    Args:
        policy: The model's drift policy.
        rows: Rows of the window.
        times: Event times of all rows that were served.
        start: Start of the window.
        end: Its end.
    """
    served = float((end - max(times.min(), start)) / (end - start)) if rows else 1.0
    if served >= COVERED:
        return policy
    return replace(policy, min_rows=max(policy.min_rows, math.ceil(rows * COVERED / max(served, 1e-6))))


def on_record(
    directory: Path, policy: DriftPolicy, until: datetime, last: Recorded | None, found: Diagnosis, version: str
) -> tuple[Recorded | None, bool]:
    """Return what stands after a look between two due ones, if anything does, and whether what it found is news.

    News is a certain fault that was not told yet, and that one which only a look between two due ones told is over.

    Args:
        directory: The model's evidence.
        policy: Declares how often a look is due.
        until: End of the look.
        last: The newest look that judged.
        found: What the look between found.
        version: The version that is watched; what another one's look said of its own training data says nothing here.
    """
    between = newest(directory, policy, until, CERTAIN)
    if between is not None and last is not None and between.end <= last.end:
        between = None  # the look that judged has told what became of it
    if found.faults:
        told = between or last
        stands = told if told is not None and told.covers(found) else None
        return stands, stands is None
    if found.missing_rows:
        return None, False
    stands = last if last is not None and last.version == version else None
    return stands, between is not None and bool(between.found.faults)


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Wait until no other process looks: two at once would take one share of the budget twice, or lose metrics."""
    directory = home / "drift"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
