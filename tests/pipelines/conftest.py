"""A home of its own, and the toy plug-in as the only model."""

from pathlib import Path

import pytest

TOYS = Path(__file__).parent / "toys"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Point the settings at an empty home; whatever a process keeps open for its settings is opened anew."""
    from pipelines import plugins, stores
    from trellis import settings

    monkeypatch.setenv("TRELLIS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRELLIS_MODELS", str(TOYS))
    kept = (settings.settings, plugins.catalogue, stores.registry, stores.plans, stores.decisions, stores.loops)
    for cached in kept:
        cached.cache_clear()
    yield tmp_path / "home"
    for cached in kept:
        cached.cache_clear()
