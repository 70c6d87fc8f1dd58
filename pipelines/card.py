"""The model card that comes with every version (after Mitchell et al. 2019, "Model Cards for Model Reporting")."""

from __future__ import annotations

from collections.abc import Mapping

from trellis.contract import Field, ModelSpec
from trellis.decision import Decision

_MARK = {True: "yes", False: "no", None: "cannot tell yet"}


def model_card(
    spec: ModelSpec,
    lineage: Mapping[str, str],
    metrics: Mapping[str, tuple[float, float, float]],
    decision: Decision,
) -> str:
    """Return the card as Markdown.

    Args:
        spec: The model's declaration.
        lineage: Where the version comes from, name to value.
        metrics: On unseen rows: name to lower bound, value, upper bound (95 %).
        decision: The gate's.
    """
    parts = [
        f"# {spec.name}",
        f"{spec.description}\n\nOwner: {spec.owner}. Task: {spec.task}. Plug-in version {spec.version}.",
        f"## What it predicts\n\n`{spec.target.name}`: {spec.target.description} "
        f"The truth is usually known {spec.target.delay_hours:g} hours later.",
        "## On unseen rows\n\n" + _table(("metric", "value", "95 % interval"), _metric_rows(metrics)),
        f"## Gate: {decision.verdict.outcome}\n\n{decision.verdict.reason}\n\n"
        + _table(
            ("check", "holds", "arithmetic"), [(c.name, _MARK[c.passed], c.text) for c in decision.verdict.checks]
        ),
        "## What it needs\n\n"
        + _table(("field", "kind", "range", "meaning"), [_field(f) for f in spec.fields.values()]),
        "## Where it comes from\n\n" + _table(("", ""), sorted(lineage.items())),
        f"Judged by segment: {', '.join(spec.segments) or 'none'}. Declared settings: {dict(spec.settings) or 'none'}.",
    ]
    return "\n\n".join(parts) + "\n"


def _metric_rows(metrics: Mapping[str, tuple[float, float, float]]) -> list[tuple[str, str, str]]:
    return [(name, f"{value:.4f}", f"{low:.4f} to {high:.4f}") for name, (low, value, high) in metrics.items()]


def _field(field: Field) -> tuple[str, str, str, str]:
    limits = "" if field.minimum is None and field.maximum is None else f"{field.minimum} to {field.maximum}"
    return field.name, field.kind + (", may be missing" if field.nullable else ""), limits, field.description


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
