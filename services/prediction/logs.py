"""The durable logs of one serving process, opened at a model's first record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trellis.adapters.append_log import AppendLog
from trellis.adapters.failure_log import FailureLog
from trellis.adapters.prediction_log import LabelLog, PredictionLog


class Logs:
    """Prediction, label and failure logs by model; safe for several threads.

    Args:
        home: Trellis's home.
        flush_seconds: Of the prediction log, see ``AppendLog``. Labels are on the disk before they are acknowledged;
            failures are written behind the answers, whatever predictions are: a failure acknowledges nothing.
    """

    def __init__(self, home: Path, flush_seconds: float) -> None:
        self._home = home
        self._flush_seconds = flush_seconds
        self._open: dict[tuple[str, str], AppendLog] = {}

    def predictions(self, model: str) -> AppendLog:
        """Return a model's prediction log."""
        key = ("predictions", model)
        return self._open.get(key) or self._made(
            key, lambda: PredictionLog(self._home, model, flush_seconds=self._flush_seconds)
        )

    def labels(self, model: str) -> AppendLog:
        """Return a model's label log."""
        key = ("labels", model)
        return self._open.get(key) or self._made(key, lambda: LabelLog(self._home, model, flush_seconds=0))

    def failures(self, model: str) -> AppendLog:
        """Return a model's failure log."""
        key = ("failures", model)
        return self._open.get(key) or self._made(key, lambda: FailureLog(self._home, model))

    @property
    def pending(self) -> int:
        """Answered predictions not yet on the disk."""
        return sum(log.pending for (kind, _), log in list(self._open.items()) if kind == "predictions")

    def close(self) -> None:
        """Write what is pending.

        Raises:
            StorageError: The disk refuses the last records.
        """
        for log in list(self._open.values()):
            log.close()

    def _made(self, key: tuple[str, str], make: Callable[[], AppendLog]) -> AppendLog:
        # setdefault is atomic: of two threads that both made one, both use the first; an unused one has no file.
        return self._open.setdefault(key, make())
