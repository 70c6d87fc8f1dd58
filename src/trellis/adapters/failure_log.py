"""The failure log: rows that a version could not answer, and, with the prediction log, every row that a split drew."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trellis.adapters.append_log import AppendLog
from trellis.adapters.log_frames import read_frame
from trellis.adapters.prediction_log import read_predictions
from trellis.quality import newest_time

# The row was lost because another version failed on the same request.
LOST = "lost"


class FailureLog(AppendLog):
    """The log of one model's failures, under ``<home>/failures/<model>/``; arguments as for ``AppendLog``.

    A record is ``{"id", "model", "version" (that failed), "variant", "assigned" (the version that the split drew),
    "revision", "time", "received_at", "unit", "cause"}``, and nothing of what the request said. The cause is
    ``raised`` (or an output is missing), ``malformed`` (of a wrong shape), ``out_of_range`` (or not finite),
    ``not_loaded``, ``timeout`` or ``lost``. A row that another version answered in its place is in the prediction log
    as well, with ``instead_of``.
    """

    def __init__(self, home: Path, model: str, **options: Any) -> None:
        super().__init__(home / "failures" / model, **options)


def read_failures(home: Path, model: str) -> pd.DataFrame:
    """Read a model's failures in the order in which they were received.

    Returns:
        One row per record; ``attrs`` has ``torn``. Empty, with the fixed columns, where nothing failed.

    Raises:
        DataError: A line other than a segment's last is damaged.
    """
    fixed = ("id", "model", "version", "variant", "assigned", "revision", "time", "received_at", "unit", "cause")
    frame = read_frame(home / "failures" / model, fixed)
    attrs = frame.attrs
    frame = frame.sort_values("received_at", kind="stable", ignore_index=True)
    frame.attrs = attrs
    return frame


def newest_request(home: Path, model: str) -> pd.Timestamp | None:
    """Return the event time of the newest row that a model was asked for, answered or not; None where there is none.

    A champion that answers nothing goes on being asked: by its answers alone, time would stand still for whoever is to
    take it back. A row ahead of the log's clock does not count, or one of 2099 would leave all time until then empty.

    Args:
        home: Trellis's home.
        model: The model.

    Raises:
        DataError: A line other than a segment's last is damaged.
    """
    asked = [frame[["time", "received_at"]] for frame in (read_predictions(home, model), read_failures(home, model))]
    return newest_time(pd.concat(asked, ignore_index=True))


def read_assigned(home: Path, model: str, until: datetime | None = None) -> pd.DataFrame:
    """Read every row that a rollout's split drew, answered or not, in the order of event time.

    What an experiment compares is what the split *drew*: rows that a version failed on and another answered in its
    place stay the first one's, or the split would no longer be the planned one just where a version fails. Rows for
    which the caller named the version are left out: no split drew them.

    Args:
        home: Trellis's home.
        model: The model.
        until: Latest event time, exclusive.

    Returns:
        The columns of ``read_predictions``, with ``version`` the one that answered (missing where none did), and
        ``assigned`` (the version drawn), ``answered`` and ``failed`` (whether the drawn version failed on the row).

    Raises:
        DataError: A line other than a segment's last is damaged.
    """
    answers, failures = read_predictions(home, model, until=until), read_failures(home, model)
    if "pinned" in answers:
        answers = answers[answers["pinned"].isna()]
    instead = answers["instead_of"] if "instead_of" in answers else pd.Series(None, index=answers.index, dtype=object)
    answers = answers.assign(assigned=instead.where(instead.notna(), answers["version"]), answered=True)
    own = failures[(failures["version"] == failures["assigned"]) & (failures["cause"] != LOST)]
    unanswered = failures[~failures["id"].isin(answers["id"])].drop_duplicates("id")
    if until is not None:
        unanswered = unanswered[unanswered["time"] < pd.Timestamp(until)]
    columns = ["id", "model", "revision", "time", "received_at", "unit", "assigned"]
    if len(unanswered):
        rows = pd.concat([answers, unanswered[columns].assign(answered=False)], ignore_index=True)
        rows = rows.sort_values(["time", "id"], kind="stable", ignore_index=True)
    else:
        rows = answers.reset_index(drop=True)
    failed = rows["id"].isin(own["id"]).to_numpy(dtype=bool)
    return rows.assign(failed=failed, answered=rows["answered"].to_numpy(dtype=bool), assigned=_texts(rows["assigned"]))


def _texts(column: pd.Series[Any]) -> np.ndarray[Any, Any]:
    return column.to_numpy(dtype=object)
