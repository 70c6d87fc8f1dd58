"""The loop's alerts, level against level: which are open follows from where the loop stands, however it came there."""

from __future__ import annotations

from pathlib import Path

from trellis.adapters.alert_files import alert_path, close_alerts, raise_alert
from trellis.loop import Loop

LOOP_OUTCOMES = frozenset({"BREAKER_OPEN", "RETRAINING_FAILED", "RETRAINING_REGRESSED"})


def keep_loop_alerts(directory: Path, state: Loop, at: str = "") -> bool:
    """Open the alerts that a loop's state asks for, and close its others; saying it again changes nothing.

    The circuit breaker's lasts while it is open; a retraining's that failed or regressed until the next begins, or a
    person says with ``trellis loop reset`` that the cause is mended.

    Args:
        directory: Where alerts are.
        state: Where the loop stands.
        at: Event time, RFC 3339; that of the loop's last move if not given.

    Returns:
        Whether an alert was opened or closed.

    Raises:
        StorageError: The disk refused.
    """
    moment, wanted = at or state.moved_at, _wanted(state)
    paths = {alert_path(directory, state.model, outcome, told["key"]): outcome for outcome, told in wanted.items()}
    opened = [path for path in paths if not path.exists()]
    for outcome, told in wanted.items():
        raise_alert(directory, model=state.model, outcome=outcome, at=moment, **told)
    closed = close_alerts(directory, model=state.model, outcomes=LOOP_OUTCOMES, at=moment, but=paths)
    return bool(opened or closed)


def _wanted(state: Loop) -> dict[str, dict[str, str]]:
    """Return what is to be open, by outcome."""
    cycle, wanted = state.cycle, {}
    if cycle is None:
        return {}
    if state.broken_since:
        wanted["BREAKER_OPEN"] = {
            "key": state.broken_since,
            "severity": "critical",
            "reason": f"{state.failures} retrainings in a row led to no better version; the last: {cycle.why}",
            "action": "find the cause, then: trellis loop reset",
            "decision": cycle.decision,
        }
    if state.open is None and state.failures and cycle.outcome in ("failed", "regressed"):
        wanted[f"RETRAINING_{cycle.outcome.upper()}"] = {
            "key": cycle.id,
            "severity": "warning",
            "reason": f"{cycle.id}: {cycle.why}",
            "action": "see trellis loop explain",
            "decision": cycle.decision,
        }
    return wanted
