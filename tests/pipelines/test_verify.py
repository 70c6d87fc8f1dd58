"""The evidence of the check after a promotion, from logs whose labels come sooner for one outcome than another."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from pipelines.verify import verify_inputs
from tests.pipelines.toys.toy_binary import SPEC
from trellis.adapters.plan_store import Change
from trellis.adapters.prediction_log import LabelLog, PredictionLog
from trellis.contract import RetrainPolicy
from trellis.loop import Cycle, decide_verify
from trellis.rollout import RolloutPlan, Variant

DECIDED = datetime(2013, 5, 1, tzinfo=UTC)
TAKEN = DECIDED + timedelta(days=3)
PER_DAY = 400


def stamp(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A log of ten days of version 1 and four of version 2, equally good: y is 1 as often as they say, one in five.

    A 1 is known at once, a 0 sixty hours later.
    """
    from trellis.settings import settings

    monkeypatch.setenv("TRELLIS_HOME", str(tmp_path))
    settings.cache_clear()
    random = np.random.default_rng(3)
    predictions, labels = (log(tmp_path, SPEC.name, flush_seconds=1) for log in (PredictionLog, LabelLog))
    for i in range(14 * PER_DAY):
        moment = DECIDED + timedelta(days=i / PER_DAY - 7)
        version, truth = ("1" if moment < TAKEN else "2"), int(random.random() < 0.2)
        seen = stamp(moment + timedelta(hours=0 if truth else 60))
        predictions.append(
            {"id": str(i), "model": SPEC.name, "version": version, "variant": "champion", "revision": int(version)}
            | {"time": stamp(moment), "received_at": stamp(moment), "unit": str(i), "request": {}, "features": {}}
            | {"feature_times": {}, "overrides": [], "outputs": {"probability": 0.2}, "latency_ms": 1.0}
        )
        labels.append({"id": str(i), "value": truth, "observed_at": seen, "received_at": seen})
    predictions.close()
    labels.close()
    yield tmp_path
    settings.cache_clear()


def test_a_new_champion_is_not_called_worse_for_the_labels_that_come_first(home: Path) -> None:
    def plan(version: str) -> RolloutPlan:
        return RolloutPlan(SPEC.name, int(version), "salt", (Variant(version, "champion", 1.0, version, "0" * 64),))

    history = [Change(plan(version), "", "platform", "") for version in ("1", "2")]
    cycle = Cycle("c", "d", "drift", stamp(DECIDED), "1", version="2")

    def look(days: float, declared: float):
        spec = replace(SPEC, target=replace(SPEC.target, delay_hours=declared))
        inputs = verify_inputs(spec, cycle, stamp(TAKEN + timedelta(days=days)), stamp(TAKEN), history)
        return inputs, decide_verify(inputs, RetrainPolicy(verify_labels=100))

    # With no delay declared the ones of two days are taken for all that was answered, and a one costs most.
    fooled, found = look(2, declared=0)
    assert found.outcome == "REGRESSED"
    assert fooled.new.mean == pytest.approx((1 - 0.2) ** 2)
    inputs, found = look(2, declared=72)
    assert (found.outcome, inputs.new.rows) == ("HOLD", 0)
    late, found = look(20, declared=20 * 24)  # what is waited for is waited for from when it can be due
    assert (found.outcome, late.days) == ("HOLD", 0.0)
    inputs, found = look(4, declared=72)
    assert found.outcome == "CONFIRMED", found.reason
    # Ten days of the old version, and of the new one the day that is due and the row at its end.
    assert (inputs.old.rows, inputs.new.rows) == (10 * PER_DAY, PER_DAY + 1)
    assert inputs.new.mean == pytest.approx(0.2 * 0.8**2 + 0.8 * 0.2**2, abs=0.03)
