"""Where a version comes from: Git commit and dirtiness, the lock of dependencies, the plug-in's own code."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from pathlib import Path

import trellis


def git_state(root: Path) -> dict[str, str]:
    """Return the commit and whether the tree differs from it; ``unknown`` outside a repository and an image.

    An image names the commit it was built from in ``GIT_COMMIT``, with ``-dirty`` behind it where the tree differed.
    """
    if built := os.environ.get("GIT_COMMIT"):
        of_image, _, dirty = built.partition("-")
        return {"git_commit": of_image, "git_dirty": "unknown" if of_image == "unknown" else str(bool(dirty)).lower()}
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {
        "git_commit": commit or "unknown",
        "git_dirty": "unknown" if status is None else str(bool(status)).lower(),
    }


def environment(root: Path) -> dict[str, str]:
    """Return the lock's digest and the versions of Python and of the platform."""
    lock = root / "requirements.lock"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else "none"
    return {"lock_digest": digest, "python": platform.python_version(), "platform_version": trellis.__version__}


def code_digest(directory: Path) -> str:
    """Return SHA-256 over a folder's code and data; names and contents count, times, caches and prose do not."""
    total = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in {".pyc", ".md"}:
            total.update(path.relative_to(directory).as_posix().encode() + b"\0")
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
