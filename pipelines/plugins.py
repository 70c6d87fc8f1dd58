"""Finding a plug-in and what lies beside its code."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path

from trellis.catalog import Catalogue
from trellis.contract import ModelPlugin
from trellis.settings import settings


@cache
def catalogue() -> Catalogue:
    """Return the process's catalogue: the folders of the settings and the installed packages."""
    return Catalogue([settings().models])


def plugin_named(model: str) -> ModelPlugin:
    """Return a plug-in by name."""
    return catalogue().plugin(model)


def folder_of(plugin: ModelPlugin) -> Path:
    """Return the directory of a plug-in's code."""
    return Path(inspect.getfile(type(plugin))).resolve().parent


def suites_of(plugin: ModelPlugin) -> dict[str, Path]:
    """Return the Great Expectations suites a plug-in brings, table name to file; a table without one is not checked."""
    return {path.stem: path for path in sorted((folder_of(plugin) / "expectations").glob("*.json"))}
