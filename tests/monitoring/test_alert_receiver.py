"""The exporter takes Alertmanager's webhook into its log, and goes on serving metrics."""

import http.client
import json
import logging

import pytest
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from monitoring.receiver import lines, with_alerts

# As Alertmanager 0.28 posts it (notify/webhook, version 4), shortened.
BODY = {
    "version": "4",
    "status": "firing",
    "alerts": [
        {
            "status": "firing",
            "labels": {"alertname": "TrellisDrift", "model": "flight_delay", "severity": "page"},
            "annotations": {
                "summary": "moved\nby 0.3",
                "action": "Look at the report.",
                "explained_by": "trellis decisions --kind drift",
                "runbook": "docs/runbooks.md#drift",
            },
        },
        {"status": "resolved", "labels": {"alertname": "TrellisProcessDown", "severity": "ticket"}, "annotations": {}},
    ],
}


@pytest.fixture
def port():
    registry = CollectorRegistry()
    Gauge("answer", "", registry=registry).set(42)
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    server.set_app(with_alerts(server.get_app()))
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def ask(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_each_alert_is_one_line_of_the_log(port: int, caplog):
    with caplog.at_level(logging.INFO, logger="monitoring.receiver"):
        assert ask(port, "POST", "/alerts", json.dumps(BODY).encode()) == (200, "2 taken\n")
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (
            logging.ERROR,
            "alert firing: TrellisDrift (severity=page model=flight_delay) moved by 0.3 -- Look at the report. "
            "(trellis decisions --kind drift; docs/runbooks.md#drift)",
        ),
        (logging.INFO, "alert resolved: TrellisProcessDown (severity=ticket)"),
    ]


def test_metrics_are_served_beside_it(port: int):
    status, text = ask(port, "GET", "/metrics")
    assert status == 200
    assert "answer 42.0" in text
    assert ask(port, "GET", "/alerts")[1] == text  # only what is posted there is an alert


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 413), (b"no json", 400), (b"[]", 400), (b'{"alerts": [{}]}', 400), (b" " * 1_000_001, 413)],
)
def test_what_is_no_webhook_is_refused_and_leaves_no_line(port: int, body: bytes, status: int, caplog):
    with caplog.at_level(logging.INFO, logger="monitoring.receiver"):
        try:
            found = ask(port, "POST", "/alerts", body)[0]
        except (BrokenPipeError, ConnectionResetError):  # refused before the body was through
            found = 413
    assert found == status
    assert not caplog.records


def test_an_alert_that_is_no_page_is_a_warning():
    ticket = {"status": "firing", "labels": {"alertname": "A", "severity": "ticket"}}
    assert list(lines({"alerts": [ticket]})) == [(logging.WARNING, "alert firing: A (severity=ticket)")]
