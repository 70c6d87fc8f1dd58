"""The watching job of a stack: looks at every served model whenever its logs have grown, until it is stopped.

Looks are paced: one judges as often as the model's drift policy declares, of event time; those in between tell the
figures anew, and a certain upstream fault, and spend nothing of the false-alarm budget. Each is a process of its own,
so that what it takes (a model's whole log, a report's libraries) is given back.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from trellis.errors import TrellisError

logger = logging.getLogger(__name__)
_FAILED = 1


def follow(
    models: Callable[[], Iterable[str]], home: Path, every: float, stop: threading.Event, *, report: bool = True
) -> None:
    """Look at what is served, again and again.

    Args:
        models: Names the served models; may raise a TrellisError, then this round is left out.
        home: Trellis's home.
        every: Seconds between two rounds.
        stop: Ends it.
        report: Whether looks that judge write Evidently reports.
    """
    seen: dict[str, tuple[int, int]] = {}
    while not stop.is_set():
        try:
            names = sorted(models())
        except TrellisError as error:
            logger.error("%s", error)
            names = []
        for name in names:
            grown = _extent(home, name)
            if grown[0] and grown != seen.get(name) and not stop.is_set() and _look(name, report):
                seen[name] = grown
        stop.wait(every)


def _look(model: str, report: bool) -> bool:
    command = [sys.executable, "-m", "monitoring", "watch", model, "--until", "latest", "--paced", "--skew"]
    done = subprocess.run(command + ([] if report else ["--no-report"]), capture_output=True, text=True)
    if done.returncode in (_FAILED, 2) or done.returncode < 0:
        logger.error("The look at %s failed: %s", model, (done.stderr.strip().splitlines() or ["no message"])[-1])
        return False
    logger.info("%s: %s", model, (done.stdout.splitlines() or ["no message"])[0])
    return True


def _extent(home: Path, model: str) -> tuple[int, int]:
    """Return how much of a model's requests, answered or not, and of its labels there is, in bytes."""
    folders = (home / kind / model for kind in ("predictions", "failures", "labels"))
    sizes = [sum(path.stat().st_size for path in folder.glob("*") if path.is_file()) for folder in folders]
    return sizes[0] + sizes[1], sizes[2]
