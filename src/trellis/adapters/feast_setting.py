"""Feast in this process: imported without its slow checks, configured for one home, its definitions read."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def declared(path: Path) -> list[Any]:
    """Run the definitions and return the Feast objects they declare."""
    from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView

    spec = importlib.util.spec_from_file_location("_trellis_feature_repo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kinds = (Entity, FeatureService, FeatureView, OnDemandFeatureView)
    return [value for value in vars(module).values() if isinstance(value, kinds)]


def import_feast() -> Any:
    """Import Feast without its run-time type checks, which take most of the import and of a push."""
    if "feast" not in sys.modules:
        import typeguard

        original = typeguard.typechecked
        typeguard.typechecked = lambda target=None, **_: target or (lambda inner: inner)
        try:
            with warnings.catch_warnings():  # Feast changes the process's filters when it is imported
                warnings.simplefilter("ignore")
                import feast
                import feast.infra.offline_stores.offline_store
        finally:
            typeguard.typechecked = original
        # What Feast and its vendors have made lives as long as the process; every full collection would go through it
        # again, and takes half as long as a year's training set.
        gc.collect()
        gc.freeze()
    import feast

    return feast


@contextmanager
def surroundings(home: Path, online_store: str) -> Iterator[None]:
    """Give Feast's files the variables they name, and keep quiet about on-demand views being experimental."""
    import_feast()
    named = {"TRELLIS_HOME": str(home), "FEAST_ONLINE_STORE": online_store}
    before = {name: os.environ.get(name) for name in named}
    os.environ.update(named)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"feast\.")
            warnings.filterwarnings("ignore", message=".*experimental", category=RuntimeWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def online_store_config(home: Path, chosen: str) -> str:
    """Return an online store as Feast's file wants it: YAML in one line, which JSON is.

    Raises:
        ConfigError: It is neither ``sqlite`` nor a Redis URL.
    """
    if chosen == "sqlite":
        return json.dumps({"type": "sqlite", "path": str(home / "feast" / "online.db")})
    from trellis.adapters.online_redis import connection_string

    return json.dumps({"type": "redis", "connection_string": connection_string(chosen)})
