"""What a turn of the loop does for rollouts that no retraining of the loop follows."""

from __future__ import annotations

from pipelines.moments import moment
from pipelines.plugins import plugin_named
from pipelines.rollout import advance_rollout, controller
from pipelines.steps import nothing_to_do
from pipelines.stores import loops
from trellis.decision import Decision
from trellis.errors import LeaseHeldError, StaleRevisionError
from trellis.loop import FOLLOWING


def follow_rollout(model: str, now: str, paced: bool) -> Decision | None:
    """Look once at a rollout that the loop's own retraining does not follow: a person's, or one of a flow of its own.

    It takes no lease of the loop's, so that a training, which holds that for hours, leaves no canary without guards.

    Args:
        model: Whose.
        now: Event time of the turn, RFC 3339.
        paced: Whether the turn is a schedule's. It is taken no earlier than the rollout's last move, as people say
            theirs by the clock; and a rollout on which somebody else acts is left to them until the next turn.

    Returns:
        The decision; None where no such rollout is open, or it waits for time alone.

    Raises:
        LeaseHeldError, StaleRevisionError: Somebody else acts on it, and the turn is not paced.
        ClockError: ``now`` cannot be.
    """
    if loops().current(model).stage in FOLLOWING:
        return None
    try:
        state = controller().current(model, plugin_named(model).spec.rollout)
        if state is None or state.final:
            return None
        said = [t for t in (state.started_at, state.entered_at, state.moved_at) if t and paced]
        return advance_rollout(model, max([now, *said], key=moment))
    except (LeaseHeldError, StaleRevisionError):
        if not paced:
            raise
        return None


def leave_to_holder(model: str, now: str) -> None:
    """Follow the rollout that no retraining does: what is left to a paced turn that found the loop held."""
    if follow_rollout(model, now, paced=True) is None:
        nothing_to_do()
