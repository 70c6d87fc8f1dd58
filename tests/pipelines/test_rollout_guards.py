"""What the guards of a rollout count, from rows as the log has them."""

import numpy as np
import pandas as pd

from pipelines.evidence import guard_counts, unit_counts

SHARE, CANARY = np.full(6, 0.5), np.array([True, True, False, False, True, False])


def rows(**columns):
    """Two requests of caller a, one of two rows; two of caller b, and one each of c and d without an answer."""
    base = {
        "id": ["r1#0", "r1#1", "r2", "r3", "r4", "r5"],
        "unit": ["a", "a", "b", "b", "c", "d"],
        "revision": 1,
        "failed": [False, True, False, False, False, False],
        "answered": [True, True, True, True, False, False],
        "latency_ms": [1.0, 1.0, 1e6, 1.0, 1.0, 1.0],
    }
    return pd.DataFrame(base | columns)


def spec():
    from pipelines.plugins import plugin_named

    return plugin_named("toy_binary").spec


def test_requests_are_counted_once_with_their_callers_as_clusters(home):
    found = unit_counts(spec(), rows(), SHARE, CANARY)
    assert (found.canary, found.champion) == (2, 2)
    assert (found.failures.rows, found.failures.canary_loss, found.failures.champion_loss) == (5, 2.0, 1.0)
    assert (found.slowness.canary_loss, found.slowness.champion_loss) == (0.0, 1.0)
    assert unit_counts(spec(), rows().iloc[:0], SHARE[:0], CANARY[:0]) is None


def test_slow_answers_are_not_counted_where_some_came_from_the_cache(home):
    cached = rows(cached=[None, None, "shared", None, None, None])
    for by_unit in (False, True):
        exposures, _ = guard_counts(spec(), cached, SHARE, CANARY, by_unit=by_unit)
        assert None in {e.canary_slow for e in exposures}
        counted, _ = guard_counts(spec(), rows(), SHARE, CANARY, by_unit=by_unit)
        assert sum(e.champion_slow for e in counted) == 1
    assert unit_counts(spec(), cached, SHARE, CANARY).slowness is None
