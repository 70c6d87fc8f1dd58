"""Starting a new plug-in: a small complete one, written from templates, that passes the conformance kit as it is."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import get_args

from trellis.catalog import Catalogue
from trellis.contract import Task
from trellis.errors import ConfigError, StorageError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_COMMON = {"__init__.py": "init.py.txt", "plugin.py": "plugin.py.txt", "README.md": "readme.md.txt"}
_BY_TASK = {"spec.py": "spec_{task}.py.txt", "data.py": "data_{task}.py.txt", "model.py": "model_{task}.py.txt"}


def scaffold(name: str, task: Task, into: Path, taken: Catalogue) -> Path:
    """Write a new plug-in folder; it appears complete or not at all.

    Args:
        name: The model's name, lower snake case.
        task: ``binary``, ``multiclass`` or ``regression``.
        into: Directory of plug-in folders; made if it is not there.
        taken: Plug-ins whose names are no longer free.

    Returns:
        The new folder.

    Raises:
        ConfigError: The name is no lower snake case name or is taken, or there is no such task.
        StorageError: The folder cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name for a model.",
            remedy="Use lower case letters, digits and underscores, a letter first, at most 63 characters.",
        )
    if task not in get_args(Task):
        raise ConfigError(f"{task!r} is no task.", remedy=f"Use one of {', '.join(get_args(Task))}.")
    folder = into / name
    if folder.exists():
        raise ConfigError("The folder is there already.", where=folder, remedy="Nothing was changed; use another name.")
    if name in taken.names():
        raise ConfigError(f"The name {name!r} is taken.", where=taken.origin(name), remedy="Use another name.")
    values = {"name": name, "task": task, "title": name.replace("_", " ")}
    templates = files(__name__)
    try:
        into.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=into))
        try:
            for file, template in {**_COMMON, **_BY_TASK}.items():
                text = templates.joinpath(template.format(task=task)).read_text("utf-8")
                (partial / file).write_text(Template(text).substitute(values), "utf-8")
            partial.chmod(0o755)  # mkdtemp makes it for its owner only
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise StorageError(
            f"The plug-in cannot be written: {error}.", where=folder, remedy="Free the place."
        ) from error
    return folder
