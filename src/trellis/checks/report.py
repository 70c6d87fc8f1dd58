"""What a run of the kit found, as plain values that live as JSON beside a model version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["passed", "failed", "skipped"]
FORMAT = 1


@dataclass(frozen=True)
class Result:
    """One check's outcome.

    Attributes:
        name: The check's name.
        proves: What it proves, one sentence.
        outcome: ``passed``, ``failed`` or ``skipped``.
        detail: The numbers that were compared, the cause of a failure, or the reason for skipping.
        seconds: Wall time, in seconds; work shared by several checks counts for the first that needs it.
        peak_memory_mb: Highest resident memory of the checking process meanwhile, in MB (10^6 bytes); 0 where the
            system does not tell.
    """

    name: str
    proves: str
    outcome: Outcome
    detail: str
    seconds: float
    peak_memory_mb: float


@dataclass(frozen=True)
class Report:
    """A run of the kit over one plug-in.

    Attributes:
        model: The model's name.
        origin: Where the plug-in was found.
        plugin_version: Its declared version; empty where it cannot be loaded.
        platform_version: Version of Trellis.
        recipe, seed, rows: How it was trained: recipe, seed and size of the sample.
        artifact: Digest of the artifact that was checked; None where none could be sealed.
        checks: The outcomes, in the order of the suite.
        cost: Times, sizes and memory by name, with the unit at the name's end.
        seconds: Wall time of the whole run, in seconds.
    """

    model: str
    origin: str
    plugin_version: str
    platform_version: str
    recipe: str
    seed: int
    rows: int
    artifact: str | None
    checks: tuple[Result, ...]
    cost: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    format: int = FORMAT

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Result, ...]:
        """The checks that failed."""
        return tuple(result for result in self.checks if result.outcome == "failed")

    @property
    def summary(self) -> str:
        """One sentence with the counts."""
        counts = {
            outcome: sum(r.outcome == outcome for r in self.checks) for outcome in ("passed", "failed", "skipped")
        }
        text = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
        return f"{self.model}: {text} in {self.seconds:.1f} s"

    def to_json(self) -> str:
        """Return the report as JSON, with ``passed`` beside the fields."""
        return json.dumps({**asdict(self), "passed": self.passed}, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read back what ``to_json`` wrote."""
        data: dict[str, Any] = json.loads(text)
        data.pop("passed", None)
        return cls(**{**data, "checks": tuple(Result(**result) for result in data["checks"])})
