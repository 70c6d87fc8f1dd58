"""The thread that keeps a serving process's models current."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from services.prediction.runtime import Models

logger = logging.getLogger(__name__)

_FIRST_SECONDS = 20.0  # that the first look waits for the plans and what is being loaded


class PlanWatcher:
    """Polls in its own thread, from ``start`` to ``stop``, and at once when something was loaded.

    Args:
        models: What to keep current.
        seconds: Between two looks.
        before: Called before every look, for what may not wait for a plan, like the API keys.
        after: Called after every look, for gauges.

    Attributes:
        looked: Set when the plans were read and what they name is loaded, or it has taken too long to wait for.
    """

    def __init__(
        self,
        models: Models,
        seconds: float,
        before: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self._models = models
        self._seconds = seconds
        self._steps = (before, lambda: models.poll(patience=0.0), after)
        self.looked = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="plan-watcher", daemon=True)

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def stop(self) -> None:
        """End polling; returns once a look under way is over."""
        self._stop.set()
        self._models.wake()
        self._thread.join()

    def _run(self) -> None:
        left = time.monotonic() + _FIRST_SECONDS
        while not self._stop.is_set():
            for step in self._steps:
                try:
                    step()
                except Exception:
                    logger.exception("the plan watcher met an error it does not know and goes on")
            seconds = self._seconds
            if not self.looked.is_set():
                rest = left - time.monotonic()
                if not self._models.loading or rest <= 0:
                    self._models.hurry()
                    self.looked.set()
                else:
                    seconds = min(seconds, rest)
            if not self._stop.is_set():
                self._models.wait(seconds)
