"""What versions were released with, kept beside them in the registry; and what the feature store serves now."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter

from trellis.adapters.registry import ModelRegistry
from trellis.errors import MissingFeatureError, RegistryError
from trellis.rollout import Release

FILE = "release.json"
_adapter = TypeAdapter(Release)


def registered_release(registry: ModelRegistry, model: str, version: str) -> Release | None:
    """Return what a version was released with; None where it is older than releases.

    Raises:
        RegistryError: There is no such version.
    """
    found = registry.version(model, version)
    try:
        return _adapter.validate_json(registry.document(found, FILE))
    except RegistryError:
        return None


def served_definition(repo: Path, home: Path, online_store: str, service: str) -> str | None:
    """Return the digest of a feature service's definition as it is served now; None where there is none.

    Args:
        repo: Directory of the feature definitions.
        home: Directory of everything Trellis writes.
        online_store: ``sqlite`` or a Redis URL.
        service: Name of the feature service.

    Raises:
        ConfigError: The feature repository is not one.
    """
    # Feast takes seconds to import: only where a version with other features than now is to answer.
    from trellis.adapters.feature_store import FeatureStore

    store = FeatureStore(repo, home, online_store)
    try:
        digest: str = store.describe(service)["digest"]
    except MissingFeatureError:
        return None
    return digest
