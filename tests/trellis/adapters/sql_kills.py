"""Processes that die at random SQL statements, for the scripts ``rollout_kills.py`` and ``loop_kills.py``.

Each is forked off one that has imported everything, and ends by ``os._exit``: nothing is flushed, no transaction ended,
no lease given back.
"""

import os
import sys
import traceback
from collections import Counter

import sqlalchemy as sa

from trellis.adapters.database import engine

KILLED = 9
NEVER = 10**9


def played(url, play, left, place, *, synced=True):
    """Call ``play(url)`` in a process that is killed after ``left`` SQL events, and return how it ended.

    Where it was killed is written to the descriptor ``place``. Without ``synced`` SQLite does not wait for the disk: a
    kill that takes the machine's power with it is not what is tried.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def maybe(moment):
        def event(*args):
            nonlocal left
            left -= 1
            if left < 0:
                text = " ".join(str(args[2]).split()[:3]) if len(args) > 2 else ""
                os.write(place, f"{moment} {text}\n".encode())
                os._exit(KILLED)

        return event

    status = 1
    try:
        made = engine(url)
        if not synced:
            sa.event.listen(made, "connect", lambda connection, _record: connection.execute("PRAGMA synchronous=OFF"))
        for moment in ("before_cursor_execute", "after_cursor_execute", "commit"):
            sa.event.listen(made, moment, maybe(moment))
        play(url)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class Kills:
    """Kills, counted, with the places where they struck."""

    def __init__(self):
        self.count, self.places = 0, Counter()
        self._reading, self._writing = os.pipe()

    def through(self, url, play, draw, *, synced=True):
        """Play again and again, killed after ``draw()`` events each time, until one gets through."""
        while (status := played(url, play, draw(), self._writing, synced=synced)) == KILLED:
            self.count += 1
            self.places[os.read(self._reading, 1_000).decode().strip()] += 1
        if status:
            sys.exit(f"a process failed with status {status}")

    def undisturbed(self, url, play, *, synced=True):
        """Play once, to its end."""
        if played(url, play, NEVER, self._writing, synced=synced):
            sys.exit("the undisturbed process failed")
