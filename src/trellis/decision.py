"""The common form of a decision: an outcome with its arithmetic, and the evidence from which it can be taken again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One line of a decision's arithmetic.

    Attributes:
        name: What was looked at, for example ``non_inferiority``.
        passed: Whether it holds; None where the data cannot tell yet.
        value: What was measured.
        bound: What it was compared with.
        text: The comparison as a sentence with its numbers.
    """

    name: str
    passed: bool | None
    text: str
    value: float | None = None
    bound: float | None = None

    def __post_init__(self) -> None:
        """Make numbers floats, so that a check read back from JSON is the one that was written."""
        for name in ("value", "bound"):
            number = getattr(self, name)
            object.__setattr__(self, name, None if number is None else float(number))


@dataclass(frozen=True)
class Verdict:
    """What a pure decision returns.

    Attributes:
        outcome: In capitals, for example ``PROMOTE``.
        reason: One sentence with the numbers that decided.
        checks: All the arithmetic, deciding lines first.
        needs: What is still missing before the decision can be final, for example ``{"rows": 1200}``.
    """

    outcome: str
    reason: str
    checks: tuple[Check, ...] = ()
    needs: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make numbers floats, as in a check."""
        object.__setattr__(self, "needs", {name: float(value) for name, value in self.needs.items()})


@dataclass(frozen=True)
class Decision:
    """A verdict with everything needed to take it again.

    Attributes:
        id: Unique id, made from the content: the same decision on the same evidence has the same id.
        kind: Which pure function decided, for example ``gate``; the key by which it is replayed.
        model: Whose decision it is.
        subject: What it is about, for example a version or a window.
        at: When, RFC 3339 in UTC; the event time the data speak of.
        who: ``platform`` or an operator's name.
        inputs: The function's two arguments as JSON values: ``{"inputs": …, "policy": …}``.
        verdict: What it returned.
    """

    id: str
    kind: str
    model: str
    subject: str
    at: str
    who: str
    inputs: Mapping[str, Any]
    verdict: Verdict


def to_json_value(value: Any) -> Any:
    """Turn dataclasses, mappings, sequences and numpy scalars into plain JSON values; floats keep every bit."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_json_value(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): to_json_value(v) for k, v in value.items()}
    if isinstance(value, str | bytes):
        return value
    if hasattr(value, "tolist"):
        return to_json_value(value.tolist())
    if isinstance(value, Sequence | set | frozenset):
        return [to_json_value(v) for v in value]
    return value


def dumps(value: Any) -> str:
    """Serialise to canonical JSON: sorted keys, no spaces, NaN refused."""
    return json.dumps(to_json_value(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def decision_of(
    kind: str, *, model: str, subject: str, at: str, inputs: Any, policy: Any, verdict: Verdict, who: str = "platform"
) -> Decision:
    """Bind a verdict to the evidence it was taken on.

    Args:
        kind: Which pure function decided.
        model: Whose decision it is.
        subject: What it is about.
        at: Event time it speaks of, RFC 3339.
        inputs: The function's evidence, a dataclass or mapping.
        policy: The function's policy, likewise.
        verdict: What it returned.
        who: ``platform`` or an operator's name.
    """
    evidence = {"inputs": to_json_value(inputs), "policy": to_json_value(policy)}
    content = dumps([kind, model, subject, at, who, evidence, verdict])
    identity = f"{kind}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    return Decision(identity, kind, model, subject, at, who, evidence, verdict)
