"""The Grafana dashboards' content; ``python -m monitoring boards`` writes them as JSON.

A panel is a title, a sentence, a unit and its queries; place, ids, data source and the rest follow. The files are what
Grafana provisions (see ``grafana/provisioning``); tests keep them in step with this module, and run every query against
a real Prometheus.
"""

from __future__ import annotations

from monitoring.grafana_json import Board, Panel
from monitoring.slo import OBJECTIVES

_M = 'model=~"$model"'
_R = "[$__rate_interval]"


def boards() -> list[Board]:
    """Return every dashboard."""
    return [_service(), _rollout(), _performance(), _drift(), _features(), _pipelines()]


def _service() -> Board:
    budget = [
        Panel(
            f"Budget left: {o.alert.lower()}",
            f"Share of the 30 days' error budget of {100 * o.objective:g} % that is left; below zero it is spent.",
            [(f"trellis:{o.name}:budget_left{{{_M}}}", "{{model}}")],
            "percentunit", "stat", 8, (0.0, 0.25), worse=False,
        )
        for o in OBJECTIVES
    ]  # fmt: skip
    burn = [
        Panel(
            f"Burn rate: {o.alert.lower()}",
            "How many times faster than allowed the budget goes; 1 lasts the month, 14.4 for an hour pages.",
            [
                (f"trellis:{o.name}:ratio_rate{window}{{{_M}}} / {o.budget:g}", f"{{{{model}}}} {window}")
                for window in ("5m", "1h", "6h")
            ],
            "short", width=8, bounds=(1, 14.4),
        )
        for o in OBJECTIVES
    ]  # fmt: skip
    return Board(
        "trellis-service",
        "Trellis: service health and objectives",
        "Whether callers get what is promised: answers, in time, from fresh features.",
        [
            *budget,
            *burn,
            Panel("Requests", "Answered requests by status; anything but 200 deserves a look.",
                  [(f"sum by (model, code) (rate(trellis_requests_total{{{_M}}}{_R}))", "{{model}} {{code}}")],
                  "reqps"),
            Panel("Latency", "Time to answer; the 95th percentile is promised below 100 ms.",
                  [(f"histogram_quantile({q}, sum by (le) (rate(trellis_request_seconds_bucket{{{_M}}}{_R})))", f"p{p}")
                   for q, p in ((0.5, 50), (0.95, 95), (0.99, 99))], "s", bounds=(0.1,)),
            Panel("Scoring", "Median time of a predictor's call by version: is it the model, or what is around it?",
                  [("histogram_quantile(0.5, sum by (model, version, le) "
                    f"(rate(trellis_score_seconds_bucket{{{_M}}}{_R})))", "{{model}} v{{version}}")], "s"),
            Panel("What failed inside", "Versions that raised, stores that did not answer, requests refused because "
                  "they could not be logged, versions that could not be loaded. All should be zero.",
                  [(f"sum by (model, version) (rate(trellis_variant_errors_total{{{_M}}}{_R}))",
                    "raised {{model}} v{{version}}"),
                   (f"sum by (store) (rate(trellis_store_failures_total{_R}))", "store {{store}}"),
                   (f"sum by (model) (rate(trellis_log_failures_total{{{_M}}}{_R}))", "not logged {{model}}"),
                   (f"sum by (model) (rate(trellis_load_failures_total{{{_M}}}{_R}))", "not loaded {{model}}")], "ops"),
            Panel("Not yet on the disk", "Answered predictions that wait for the log; a rise means a slow disk.",
                  [("trellis_log_pending", "waiting")], width=8),
            Panel("Refused for their key", "Requests without a good key, by reason.",
                  [(f"sum by (reason) (rate(trellis_refused_total{_R}))", "{{reason}}")], "reqps", width=8),
            Panel("Processes", "1 for every process that answers its scrape.",
                  [("up", "{{job}} {{instance}}")], kind="stat", width=8, bounds=(0.5, 1), worse=False),
        ],
        span="now-6h",
    )  # fmt: skip


def _rollout() -> Board:
    return Board(
        "trellis-rollout",
        "Trellis: rollout",
        "Which version answers how much, where its trial stands, and what was decided.",
        [
            Panel("Share by the plan", "Traffic by version as the plan has it.",
                  [(f"trellis_plan_share{{{_M}}}", "{{model}} v{{version}} {{role}}")], "percentunit"),
            Panel("Share as answered", "The same as counted by the service; the two must agree.",
                  [(f"sum by (model, version) (rate(trellis_predictions_total{{{_M}}}{_R})) / on (model) group_left "
                    f"sum by (model) (rate(trellis_predictions_total{{{_M}}}{_R}))", "{{model}} v{{version}}")],
                  "percentunit"),
            Panel("Stage", "Stage of the newest rollout.",
                  [(f"trellis_rollout_stage{{{_M}}} == 1", "{{model}} {{strategy}}: {{stage}}")], kind="stat", width=8),
            Panel("Under way and paused", "A paused rollout waits for a person.",
                  [(f"trellis_rollout_open{{{_M}}}", "{{model}} open"),
                   (f"trellis_rollout_paused{{{_M}}}", "{{model}} paused")], kind="stat", width=8),
            Panel("Plan's age", "Time since the plan was changed last.",
                  [(f"time() - trellis_plan_changed_timestamp_seconds{{{_M}}}", "{{model}}")], "s", "stat", 8),
            Panel("Revision executed", "Every process must follow the newest revision within a second; 0: a model is "
                  "not answered yet.",
                  [(f"trellis_plan_revision{{{_M}}}", "{{model}} {{instance}}")]),
            Panel("Decisions", "Decisions by kind and outcome, all time.",
                  [(f"sum by (model, kind, outcome) (trellis_decisions_total{{{_M}}})",
                    "{{model}} {{kind}} {{outcome}}")],
                  kind="bargauge"),
            Panel("Loss of each version", "Mean loss of the newest labelled window: is the newcomer worse?",
                  [(f"trellis_model_loss{{{_M}}}", "{{model}} v{{version}}")]),
            Panel("Shadows", "Rows scored, failed, lost or dropped in the shadow; none of it delays an answer.",
                  [(f"sum by (model, version, outcome) (rate(trellis_shadows_total{{{_M}}}{_R}))",
                    "{{model}} v{{version}} {{outcome}}")], "ops"),
        ],
        span="now-7d",
    )  # fmt: skip


def _performance() -> Board:
    band = f'trellis_model_metric_{{}}{{{{{_M}, metric="$metric"}}}}'
    return Board(
        "trellis-performance",
        "Trellis: model performance",
        "How well models do on what has been labelled, with intervals; and which labels are missing.",
        [
            Panel("Metric with its interval", "Newest labelled window by version, with its 95 % interval.",
                  [(band.format("low"), "{{model}} v{{version}} low"),
                   (band.format("high"), "{{model}} v{{version}} high"),
                   (f'trellis_model_metric{{{_M}, metric="$metric"}}', "{{model}} v{{version}}")], spread=True),
            Panel("Loss against training's", "Mean loss by version, and the one that training promised.",
                  [(f"trellis_model_loss{{{_M}}}", "{{model}} v{{version}}"),
                   (f"trellis_model_loss_expected{{{_M}}}", "{{model}} expected")]),
            Panel("Increase of the loss", "Loss less the expected one, with the lower end of its 95 % interval: an "
                  "alert where that is above what the model's policy allows.",
                  [(f"trellis_model_loss_increase{{{_M}}}", "{{model}} v{{version}}"),
                   (f"trellis_model_loss_increase_low{{{_M}}}", "{{model}} v{{version}} low"),
                   (f"trellis_model_loss_increase_allowed{{{_M}}}", "{{model}} v{{version}} allowed")]),
            Panel("Loss as it is known", "Mean loss of the newest window: estimated without labels, corrected by "
                  "a few, realised; each with its 95 % interval, dashed.",
                  [(f"trellis_performance_loss_low{{{_M}}}", "{{model}} v{{version}} {{stage}} low"),
                   (f"trellis_performance_loss_high{{{_M}}}", "{{model}} v{{version}} {{stage}} high"),
                   (f"trellis_performance_loss{{{_M}}}", "{{model}} v{{version}} {{stage}}")], spread=True),
            Panel("Harm", "Change of the mean loss against the reference, with the lower end of its interval.",
                  [(f"trellis_performance_harm{{{_M}}}", "{{model}} v{{version}} {{stage}}"),
                   (f"trellis_performance_harm_low{{{_M}}}", "{{model}} v{{version}} {{stage}} low")],
                  bounds=(0.02,)),
            Panel("Estimates that held", "Share of windows whose first interval held the truth; 95 % is due.",
                  [(f"trellis_estimates_held{{{_M}}} / (trellis_estimates_scored{{{_M}}} > 0)",
                    "{{model}} v{{version}}")], "percentunit", "stat", bounds=(0.8, 0.9), worse=False),
            Panel("Assumptions that fail", "What the estimates rest on and the newest window breaks; none is best.",
                  [(f"trellis_performance_flag{{{_M}}}", "{{model}} v{{version}}: {{flag}}")], kind="table"),
            Panel("Worst segments", "The five segments with the highest mean loss.",
                  [(f"topk(5, trellis_segment_loss{{{_M}}})", "{{segment}} {{value}} v{{version}} {{stage}}")],
                  kind="bargauge"),
            Panel("Labels outstanding", "Predictions without a label: not due yet, or overdue by the declared delay "
                  "(of the newest window with 30 due).",
                  [(f"trellis_labels_pending{{{_M}}}", "{{model}} pending"),
                   (f"trellis_labels_overdue{{{_M}}}", "{{model}} overdue")]),
            Panel("Label coverage", "Share of due predictions with a label in the newest window with 30 due.",
                  [(f"trellis_label_coverage{{{_M}}}", "{{model}}")], "percentunit", bounds=(0.5, 0.9),
                  worse=False),
            Panel("Labels taken in", "Labels per second over HTTP.",
                  [(f"sum by (model) (rate(trellis_labels_total{{{_M}}}{_R}))", "{{model}}")], "ops", width=8),
            Panel("Labels left out", "Labels that the ledger could not use, by reason.",
                  [(f"trellis_label_findings{{{_M}}}", "{{model}} {{kind}}")], kind="bargauge", width=8),
            Panel("Last look", "Time since the model was looked at.",
                  [(f"time() - trellis_watch_run_seconds{{{_M}}}", "{{model}}")], "s", "stat", 8,
                  (4 * 86400, 8 * 86400)),
        ],
        span="now-30d",
    )  # fmt: skip


def _drift() -> Board:
    return Board(
        "trellis-drift",
        "Trellis: drift",
        "What has moved away from training, how far, and whether it is the world or the feed.",
        [
            Panel("Verdict", "Outcome of the last look.",
                  [(f"trellis_drift_outcome{{{_M}}} == 1", "{{model}}: {{outcome}}")], kind="stat", width=8),
            Panel("Kind and action", "What kind it is, and what the verdict recommends.",
                  [(f"trellis_drift_info{{{_M}}}", "{{model}}: {{kind}}, {{action}}")], kind="stat", width=8),
            Panel("Columns shifted", "Columns whose shift is both large and sure.",
                  [(f"count by (model) (trellis_drift_level{{{_M}}} > 0) or 0 * count by (model) "
                    f"(trellis_drift_level{{{_M}}})", "{{model}}")], kind="stat", width=8, bounds=(1, 5)),
            Panel("Faults upstream", "Columns with a sign of an upstream fault; retraining would teach it.",
                  [(f"trellis_drift_fault{{{_M}}}", "{{model}} {{column}} of {{view}}: {{kind}}")], kind="table",
                  width=24),
            Panel("Shift by column", "Population stability index of the ten columns that moved most; 0.1 and 0.25 are "
                  "the familiar bands, but only a level above zero is a verdict.",
                  [(f"topk(10, trellis_drift_psi{{{_M}}})", "{{model}} {{column}}")], bounds=(0.1, 0.25)),
            Panel("Level by column", "0 calm, 1 shifted, 2 strongly shifted: large enough and sure enough.",
                  [(f"topk(10, trellis_drift_level{{{_M}}})", "{{model}} {{column}}")], bounds=(1, 2)),
            Panel("Empty values", "Share of rows without a value, the ten worst columns.",
                  [(f"topk(10, trellis_drift_null_ratio{{{_M}}})", "{{model}} {{column}}")], "percentunit"),
            Panel("Rows looked at", "Predictions in the window judged.",
                  [(f"trellis_watch_rows{{{_M}}}", "{{model}}")]),
            Panel("Data quality", "Share of the window's rows with a fault, by kind and column; none is best.",
                  [(f"topk(10, trellis_data_quality{{{_M}}})", "{{model}} {{column}}: {{kind}}")], "percentunit"),
            Panel("Training/serving skew", "Share of rows whose features differ from their recomputation, and what is "
                  "acceptable.",
                  [(f"trellis_skew_rate{{{_M}}}", "{{model}}"), (f"trellis_skew_slo{{{_M}}}", "{{model}} acceptable")],
                  "percentunit"),
            Panel("Causes of skew", "Rows that each cause concerns.",
                  [(f"trellis_skew_finding{{{_M}}}", "{{model}} {{view}}: {{cause}}")], kind="bargauge", width=24),
        ],
        span="now-30d",
    )  # fmt: skip


def _features() -> Board:
    return Board(
        "trellis-features",
        "Trellis: features and freshness",
        "Whether features are there, and young enough, when they are used.",
        [
            Panel("Age when used", "Median age of a view's features in the last window.",
                  [(f"trellis_feature_age_seconds{{{_M}}}", "{{model}} {{view}}")], "s"),
            Panel("Online store behind", "Time since the end of what a view's last materialisation covered.",
                  [("time() - trellis_feature_materialized_timestamp_seconds", "{{view}}")], "s"),
            Panel("Rows past the SLA", "Rows for which a view was older than it promises, by what was done about it.",
                  [(f"sum by (model, view, action) (rate(trellis_stale_total{{{_M}}}{_R}))",
                    "{{model}} {{view}} {{action}}")], "ops"),
            Panel("Share of rows past the SLA", "By the worst view; 1 % is allowed.",
                  [(f"trellis:rows_stale:ratio_rate1h{{{_M}}}", "{{model}}")], "percentunit", bounds=(0.01,)),
            Panel("Rows without a view", "Rows answered without a view's data, by reason.",
                  [(f"sum by (model, view, reason) (rate(trellis_degraded_total{{{_M}}}{_R}))",
                    "{{model}} {{view}} {{reason}}")], "ops"),
            Panel("Feature store failures", "Reads that the online store did not answer.",
                  [(f'sum(rate(trellis_store_failures_total{{store="features"}}{_R}))', "features")], "ops"),
        ],
    )  # fmt: skip


def _pipelines() -> Board:
    return Board(
        "trellis-pipelines",
        "Trellis: pipeline runs",
        "Whether flows run, end well, and take as long as they used to.",
        [
            Panel("Runs", "Runs of flows by outcome, all time.",
                  [("sum by (flow, outcome) (trellis_flow_runs_total)", "{{flow}} {{outcome}}")], kind="bargauge"),
            Panel("Failures", "Runs that failed within the hour.",
                  [('sum by (flow, model) (increase(trellis_flow_runs_total{outcome="failed"}[1h]))',
                    "{{flow}} {{model}}")],
                  bounds=(1,)),
            Panel("Since the last success", "Time since a model's flow last ended well.",
                  [("time() - trellis_flow_last_success_timestamp_seconds", "{{flow}} {{model}}")], "s"),
            Panel("Duration", "How long the last good run took.",
                  [("trellis_flow_last_success_seconds", "{{flow}} {{model}}")], "s"),
            Panel("Where the time goes", "Time that steps have worked, the ten largest.",
                  [("topk(10, trellis_flow_step_seconds_total)", "{{flow}} {{step}}")], "s", "bargauge"),
            Panel("Decisions to retrain", "What the loop decided, all time.",
                  [('sum by (model, outcome) (trellis_decisions_total{kind="retrain"})', "{{model}} {{outcome}}")],
                  kind="bargauge"),
        ],
        per_model=False,
        span="now-7d",
    )  # fmt: skip
