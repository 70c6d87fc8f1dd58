"""Event times beside the log's clock: a caller says when a row happened, the log knows when it arrived.

Event time behind the clock is how batches and replayed history come. Event time ahead of it is a wrong clock or a slip
of the pen, unless all rows are ahead: then time is simulated. A few rows that are ahead must not say what is now.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

# Clocks of well-kept machines differ by less.
CLOCK_TOLERANCE = np.timedelta64(300, "s")


def ahead_of_clock(frame: pd.DataFrame) -> NDArray[np.bool_]:
    """Return the rows whose event time is more than five minutes after they were received; none where all are.

    Args:
        frame: Predictions as ``read_predictions`` returns them.
    """
    ahead = _ahead(frame)
    return np.zeros(len(frame), dtype=np.bool_) if ahead.all() else ahead


def newest_time(frame: pd.DataFrame) -> pd.Timestamp | None:
    """Return the newest event time that is not ahead of the clock, the newest of all where all are; None for no row."""
    return frame["time"][~ahead_of_clock(frame)].max() if len(frame) else None


def received_with(window: pd.DataFrame, later: pd.DataFrame) -> pd.DataFrame:
    """Return the later rows that are ahead of the clock and were received with a window's.

    From when the window's first row was received until the first row after it was that is where it belongs, so that a
    look at the window that is taken again finds the same.

    Args:
        window: Predictions of a window.
        later: Predictions whose event time is after it.
    """
    arrived, ahead = later["received_at"], _ahead(later)
    found: pd.DataFrame = later[ahead & (arrived >= window["received_at"].min()) & ~(arrived >= arrived[~ahead].min())]
    return found


def _ahead(frame: pd.DataFrame) -> NDArray[np.bool_]:
    return (frame["time"] > frame["received_at"] + pd.Timedelta(CLOCK_TOLERANCE)).to_numpy(dtype=np.bool_)
