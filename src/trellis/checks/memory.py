"""Highest resident memory of this process, since the start or since the mark was reset."""

from __future__ import annotations

import contextlib
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Start a new high-water mark where the system can (Linux); elsewhere the mark stays since the start."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")  # proc(5): reset the peak resident set size to the current one


def peak_memory_mb() -> float:
    """Return the high-water mark in MB (10^6 bytes); 0 where the system does not tell."""
    # Not getrusage: its figure survives exec, so a child would report its parent's memory.
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) * 1024 / 1e6, 1)
    return 0.0
