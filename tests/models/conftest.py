"""The plug-in folders as the catalogue finds them."""

from pathlib import Path

import pytest

from trellis.catalog import Catalogue


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return Catalogue([Path(__file__).parents[2] / "models"], entry_points=False)
