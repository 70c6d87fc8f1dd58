"""Workers that die before they serve: whoever comes after them waits before it starts, the longer the more there were.

Circus, which runs the workers, replaces a dead one within half a second and for ever; one that cannot start would be
tried again without a pause, and take a core from whatever else is here. The worker itself waits, because Circus takes a
service without any process for one that is to end. A worker that was killed after it had served is replaced at once.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_FIRST_SECONDS = 1.0
_MOST_SECONDS = 30.0
_LOOK_SECONDS = 0.5


class Starts:
    """The starts of a service's workers: a file for each that does not serve yet.

    Args:
        place: Directory that the service's processes share and no other's.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._mine = place / f"start-{os.getpid()}"

    def begin(self) -> tuple[int, float]:
        """Note that this worker starts; return how many have died since one served, and how many seconds to wait."""
        died = len(self._dead())
        self._mine.touch()
        return died, min(_MOST_SECONDS, _FIRST_SECONDS * 2 ** min(died - 1, 10)) if died else 0.0

    def serves(self) -> None:
        """Note that this worker serves: whatever the others died of is over."""
        for path in (self._mine, *self._dead()):
            path.unlink(missing_ok=True)

    def _dead(self) -> list[Path]:
        return [path for path in self._place.glob("start-*") if not _runs(int(path.name.partition("-")[2]))]


def rest(seconds: float, parent: int) -> None:
    """Wait so long, or until the process that started this one is gone."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and os.getppid() == parent:
        time.sleep(min(left, _LOOK_SECONDS))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the number is somebody else's by now
        return False
    return True
