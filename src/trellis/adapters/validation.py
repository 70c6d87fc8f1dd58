"""Data validation by Great Expectations: suites are JSON files, bad rows are quarantined with the reason.

An expectation about rows (ranges, sets, nulls, uniqueness) sends the rows that break it to quarantine; one about the
table (its columns, its row count) fails the run, as does a share of quarantined rows above the suite's
``max_quarantine_rate``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from trellis.errors import ConfigError, ValidationFailedError

DEFAULT_RATE = 0.01


@dataclass(frozen=True)
class TableReport:
    """What validation found in one table.

    Attributes:
        table: Its name.
        rows: Rows looked at.
        quarantined: Rows set aside.
        limit: Share of quarantined rows from which the run fails.
        reasons: Reason to the number of rows it set aside; a row may have several.
        failures: Expectations about the table as a whole that do not hold, as sentences.
    """

    table: str
    rows: int
    quarantined: int
    limit: float
    reasons: Mapping[str, int]
    failures: tuple[str, ...]

    @property
    def rate(self) -> float:
        """Share of rows set aside, in [0, 1]."""
        return self.quarantined / self.rows if self.rows else 0.0

    def require_passed(self, where: Path) -> None:
        """Fail the run if the table as a whole is wrong, or too many of its rows are.

        Raises:
            ValidationFailedError: With the reasons and their counts.
        """
        if self.failures:
            raise ValidationFailedError(
                f"Table {self.table!r}: {'; '.join(self.failures)}.",
                where=where,
                remedy="Mend the source and ingest again.",
            )
        if self.rate > self.limit:
            top = ", ".join(f"{reason} ({count})" for reason, count in list(self.reasons.items())[:3])
            raise ValidationFailedError(
                f"Table {self.table!r}: {self.quarantined} of {self.rows} rows ({self.rate:.2%}) are quarantined, "
                f"more than the {self.limit:.2%} allowed: {top}.",
                where=where,
                remedy="Look at the quarantined rows; mend the source, or the suite if it is too strict.",
            )


def validate_table(frame: pd.DataFrame, suite_file: Path) -> tuple[pd.Series[Any], TableReport]:
    """Hold one table against its suite.

    Args:
        frame: The table, any index.
        suite_file: A Great Expectations suite as JSON; its ``meta.max_quarantine_rate`` is the stated rate.

    Returns:
        A reason per row (empty string where the row is good), aligned with ``frame`` by position, and the report.

    Raises:
        ConfigError: The suite cannot be read.
    """
    import great_expectations as gx
    from great_expectations.core import ExpectationSuite
    from great_expectations.expectations.registry import list_registered_expectation_implementations

    try:
        data = json.loads(suite_file.read_text())
        suite = ExpectationSuite(name=data["name"], expectations=data["expectations"], meta=data.get("meta", {}))
    except (OSError, ValueError, KeyError, gx.exceptions.GreatExpectationsError) as error:
        raise ConfigError(f"A suite cannot be read: {error}.", where=suite_file, remedy="Mend its JSON.") from error
    unknown = sorted({e["type"] for e in data["expectations"]} - set(list_registered_expectation_implementations()))
    if unknown:  # Great Expectations would only warn, and the rows would pass unchecked
        raise ConfigError(f"A suite cannot be read: no expectation is called {unknown[0]!r}.", where=suite_file)
    limit = float(data.get("meta", {}).get("max_quarantine_rate", DEFAULT_RATE))

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("frame").add_dataframe_asset("table")
    numbered = frame.reset_index(drop=True)  # its index is how Great Expectations names the rows that fail
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": numbered})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas' notices inside Great Expectations are not the reader's
        outcome = batch.validate(suite, result_format="COMPLETE")

    reasons = pd.Series([""] * len(frame), dtype=object)
    counts: dict[str, int] = {}
    failures: list[str] = []
    for result in sorted(outcome.results, key=lambda r: str(r.expectation_config.to_json_dict())):
        if result.success and not result.result.get("unexpected_count"):
            continue
        reason = _sentence(result.expectation_config.type, result.expectation_config.kwargs)
        rows = list(result.result.get("unexpected_index_list") or [])
        if not rows:
            raised = next((e["exception_message"] for e in _exceptions(result.exception_info)), None)
            failures.append(f"{reason} does not hold" + (f" ({raised})" if raised else ""))
            continue
        counts[reason] = len(rows)
        reasons.iloc[rows] = reasons.iloc[rows].map(lambda old, new=reason: f"{old}; {new}" if old else new)
    ordered = dict(sorted(counts.items(), key=lambda item: -item[1]))
    bad = int((reasons != "").sum())
    return reasons, TableReport(suite_file.stem, len(frame), bad, limit, ordered, tuple(failures))


def _exceptions(info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    entries = [info] if "raised_exception" in info else list(info.values())
    return [entry for entry in entries if isinstance(entry, dict) and entry.get("raised_exception")]


def _sentence(kind: str, kwargs: Mapping[str, Any]) -> str:
    """Return an expectation as a short reason, for example ``distance values_to_be_between min_value=0``."""
    hidden = {"batch_id", "column", "column_list", "mostly"}
    shown = {k: v for k, v in kwargs.items() if k not in hidden and v is not None}
    subject = kwargs.get("column") or "+".join(kwargs.get("column_list") or ["table"])
    name = kind.removeprefix("expect_").removeprefix("column_").removeprefix("table_").removeprefix("compound_columns_")
    detail = " ".join(f"{k}={_short(v)}" for k, v in shown.items())
    return f"{subject} {name} {detail}".strip()


def _short(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
