"""The reference models pass the same kit that third parties run, check by check."""

from pathlib import Path

import pytest

from trellis.checks import BoundCheck, checks_for

MODELS = Path(__file__).parents[3] / "models"


@pytest.mark.parametrize("check", checks_for("flight_delay", folders=[MODELS], entry_points=False), ids=str)
def test_flight_delay(check: BoundCheck) -> None:
    check()


# A third of the images, because the network is trained twice.
@pytest.mark.parametrize("check", checks_for("digits", folders=[MODELS], entry_points=False, rows=600), ids=str)
def test_digits(check: BoundCheck) -> None:
    check()
