"""The thread that keeps a serving process's models current."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from services.prediction.runtime import Models

logger = logging.getLogger(__name__)


class PlanWatcher:
    """Polls in its own thread, from ``start`` to ``stop``; ``looked`` is set after the first look.

    Args:
        models: What to keep current.
        seconds: Between two looks.
        after: Called after every look, for gauges.
    """

    def __init__(self, models: Models, seconds: float, after: Callable[[], None] = lambda: None) -> None:
        self._models = models
        self._seconds = seconds
        self._after = after
        self.looked = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="plan-watcher", daemon=True)

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def stop(self) -> None:
        """End polling; returns once a look under way is over."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._models.poll()
                self._after()
            except Exception:
                logger.exception("the plan watcher met an error it does not know and goes on")
            self.looked.set()
            self._stop.wait(self._seconds)
