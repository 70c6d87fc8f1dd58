"""Alerts on their way: to a real HTTP server, a real mail server and the real Alertmanager; down, killed, silenced."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import sqlalchemy as sa

from monitoring import __main__ as cli
from monitoring.alerts import DIAGNOSED, NOTED
from monitoring.channel_config import LOG, read_channels
from monitoring.notify import tell, tell_after_look
from monitoring.performance import MEANING
from trellis.adapters.alert_files import close_alerts, raise_alert
from trellis.adapters.alert_outbox import AlertOutbox
from trellis.adapters.database import engine
from trellis.adapters.loop_alerts import LOOP_OUTCOMES
from trellis.alerts import KINDS
from trellis.drift import Diagnosis, Fault
from trellis.errors import ConfigError
from trellis.quality import QualityFinding
from trellis.settings import Settings

MAIL = "host = 'h'\nfrom = 'a'\nto = 'b'\n"


class Receiver:
    """An HTTP server that keeps what it is sent, or refuses everything while ``status`` says so."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if outer.status == 200:
                    outer.bodies.append(json.loads(body) | {"_token": self.headers.get("Authorization")})
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *_args) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/secret-path"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def outbox(tmp_path: Path) -> AlertOutbox:
    return AlertOutbox(f"sqlite:///{tmp_path}/trellis.db")


def channels(tmp_path: Path, text: str) -> list:
    path = tmp_path / "alerts.toml"
    path.write_text(text)
    found, wrong = read_channels(path)
    if wrong:
        raise wrong[0]
    return found


def fault(home: Path, key: str = "1", severity: str = "critical", model: str = "m") -> Path:
    return raise_alert(
        home / "alerts", model=model, outcome="UPSTREAM_FAULT", key=key, severity=severity, reason=f"Celsius {key}",
        action="fix upstream", at="2013-07-08T00:00:00Z", decision="drift-abc",
    )  # fmt: skip


def test_a_webhook_is_told_once_in_a_group_and_again_when_it_is_over(tmp_path, receiver, outbox, monkeypatch):
    monkeypatch.setenv("HOOK", receiver.url)
    monkeypatch.setenv("TOKEN", "t0k3n")
    told = channels(tmp_path, '[channels.ops]\nkind = "webhook"\nurl_env = "HOOK"\ntoken_env = "TOKEN"\n')
    fault(tmp_path, "1")
    assert fault(tmp_path, "1") == fault(tmp_path, "1")  # the same episode
    fault(tmp_path, "2", "warning")
    assert [tell(tmp_path, outbox, told).sent for _ in range(2)] == [2, 0]
    (body,) = receiver.bodies
    assert (body["status"], body["model"], body["_token"]) == ("open", "m", "Bearer t0k3n")
    worst = body["alerts"][0]
    assert (worst["reason"], worst["since"], worst["explained_by"], worst["runbook"]) == (
        "Celsius 1", "2013-07-08T00:00:00Z", "trellis explain drift-abc", "docs/runbooks.md#upstream-fault",
    )  # fmt: skip
    close_alerts(tmp_path / "alerts", model="m", outcomes={"UPSTREAM_FAULT"}, at="2013-07-15T00:00:00Z")
    tell(tmp_path, outbox, told)
    assert [b["status"] for b in receiver.bodies] == ["open", "closed"]


def test_a_channel_that_is_down_is_tried_again_kept_and_reported_and_holds_no_other_up(
    tmp_path, receiver, outbox, caplog, monkeypatch, capsys
):
    configured = f'[channels.ops]\nkind = "slack"\nurl_file = "{tmp_path}/hook"\n'
    (tmp_path / "hook").write_text(receiver.url + "\n")
    told = channels(tmp_path, configured)
    receiver.status = 503
    fault(tmp_path)
    with caplog.at_level(logging.WARNING):
        first = tell(tmp_path, outbox, told, now=1_000.0)
    assert (first.sent, set(first.errors)) == (1, {"ops"})  # the log took it
    assert "ALERT open" in caplog.text
    assert "'ops' does not take alerts: it answered 503" in caplog.text
    assert "secret-path" not in caplog.text + str(first)
    assert tell(tmp_path, outbox, told, now=1_010.0).errors == {}  # not yet
    receiver.server.shutdown()
    receiver.server.server_close()
    assert "ConnectionRefusedError" in tell(tmp_path, outbox, told, now=1_031.0).errors["ops"]
    (row,) = [d for d in outbox.deliveries() if d.channel == "ops"]
    assert (row.attempts, row.told, row.next_at) == (2, "", 1_031.0 + 60)
    from trellis import settings as module

    module.settings.cache_clear()
    monkeypatch.setenv("TRELLIS_HOME", str(tmp_path))
    monkeypatch.setenv("TRELLIS_STORE_URL", f"sqlite:///{tmp_path}/trellis.db")
    monkeypatch.setenv("TRELLIS_ALERTS", str(tmp_path / "alerts.toml"))
    monkeypatch.setenv("COLUMNS", "400")
    assert cli.main(["alerts", "list"]) == 0
    assert "ops: DOWN, 2 attempts" in capsys.readouterr().out
    assert cli.main(["alerts", "test"]) == 1
    assert "log: taken" in capsys.readouterr().out
    assert cli.main(["alerts", "silence", "--model", "m", "--why", "known", "--hours", "1"]) == 0
    assert cli.main(["alerts", "deliver"]) == 0  # silenced
    assert json.loads((cli.main(["alerts", "list", "--json"]), capsys.readouterr().out.split("\n", 2)[2])[1])[
        "silences"
    ]
    module.settings.cache_clear()
    back = Receiver()
    (tmp_path / "hook").write_text(back.url)
    assert tell(tmp_path, outbox, told, now=time.time() + 7_200).sent >= 1
    assert "Celsius 1" in back.bodies[0]["text"]
    back.server.shutdown()
    back.server.server_close()


def test_nothing_is_lost_over_kills_and_a_message_told_twice_has_the_same_key(tmp_path, receiver):
    """Processes that send are killed at every SQL statement in turn; every episode arrives, opened and closed."""
    url = f"sqlite:///{tmp_path}/trellis.db"
    told = channels(tmp_path, f'[channels.ops]\nkind = "webhook"\nurl = "{receiver.url}"\n')
    AlertOutbox(url)
    wanted, kills = set(), 0
    for episode in range(3):
        fault(tmp_path, str(episode), model=f"m{episode}")
        for status in ("open", "closed"):
            if status == "closed":
                close_alerts(tmp_path / "alerts", model=f"m{episode}", outcomes={"UPSTREAM_FAULT"}, at="2013-08-01")
            wanted.add((f"m{episode}", status))
            for left in range(3 + episode, 200, 5):
                child = os.fork()
                if child == 0:
                    ended = 1
                    try:
                        count = [left]

                        def maybe(*_args, count=count):
                            count[0] -= 1
                            if count[0] < 0:
                                os._exit(9)

                        for moment in ("before_cursor_execute", "after_cursor_execute", "commit"):
                            sa.event.listen(engine(url), moment, maybe)
                        tell(tmp_path, AlertOutbox(url), told)
                        ended = 0
                    finally:
                        os._exit(ended)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                kills += code == 9
                if code == 0:
                    break
                assert code == 9
    assert kills > 20
    keys = {}
    for body in receiver.bodies:
        keys.setdefault(body["key"], set()).add((body["model"], body["status"]))
    assert {one for told_of in keys.values() for one in told_of} == wanted
    assert len(keys) == len(wanted)
    assert all(len(told_of) == 1 for told_of in keys.values())


def test_a_mail_carries_what_since_when_why_and_what_to_do(tmp_path, outbox):
    aiosmtpd = pytest.importorskip("aiosmtpd.controller")
    got = []

    class Keep:
        async def handle_DATA(self, _server, _session, envelope):
            got.append(envelope)
            return "250 OK"

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = channels(
        tmp_path,
        f'[channels.mail]\nkind = "email"\nhost = "127.0.0.1"\nport = {port}\ntls = false\n'
        'from = "trellis@example.org"\n'
        'to = ["ops@example.org", "lead@example.org"]\n',
    )
    fault(tmp_path)
    down = tell(tmp_path, outbox, told, now=0.0)
    assert "'mail' does not take alerts" in down.errors["mail"]
    server = aiosmtpd.Controller(Keep(), hostname="127.0.0.1", port=port)
    server.start()
    try:
        assert tell(tmp_path, outbox, told, now=60.0).errors == {}
    finally:
        server.stop()
    (mail,) = got
    text = mail.content.decode()
    assert mail.rcpt_tos == ["ops@example.org", "lead@example.org"]
    for part in ("[critical] m", "Celsius 1", "Since: 2013-07-08", "trellis explain drift-abc", "runbooks.md#upstream"):
        assert part in text


@pytest.fixture
def alertmanager(tmp_path) -> Iterator[str]:
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if program is None:
        pytest.skip("NO ALERTMANAGER HERE: install prometheus-alertmanager (Debian) to run this test")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "alertmanager.yml"
    config.write_text("route:\n  receiver: none\nreceivers:\n  - name: none\n")
    command = [
        program, f"--config.file={config}", f"--storage.path={tmp_path}/am", f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(150):
            try:
                urllib.request.urlopen(f"{url}/-/ready", timeout=1).read()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def test_the_real_alertmanager_holds_an_alert_until_it_is_over(tmp_path, outbox, alertmanager):
    def held() -> list[dict]:
        with urllib.request.urlopen(f"{alertmanager}/api/v2/alerts?active=true", timeout=5) as answer:
            return json.load(answer)

    told = channels(tmp_path, f'[channels.am]\nkind = "alertmanager"\nurl = "{alertmanager}"\n')
    fault(tmp_path)
    assert tell(tmp_path, outbox, told).errors == {}
    (alert,) = held()
    assert alert["labels"]["alertname"] == "TrellisUpstreamFault"
    assert (alert["labels"]["model"], alert["labels"]["severity"]) == ("m", "critical")
    assert alert["annotations"]["explained_by"] == "trellis explain drift-abc"
    close_alerts(tmp_path / "alerts", model="m", outcomes={"UPSTREAM_FAULT"}, at="2013-07-15T00:00:00Z")
    assert tell(tmp_path, outbox, told).errors == {}
    end = time.monotonic() + 10
    while held() and time.monotonic() < end:
        time.sleep(0.1)
    assert held() == []


def test_the_real_alertmanager_holds_one_alert_of_an_episode_whose_kind_and_severity_change(
    tmp_path, outbox, alertmanager
):
    """Labels are its identity: what was told under others would stay until it runs out, after 48 hours."""

    def held() -> list[tuple[str, str]]:
        end = time.monotonic() + 10
        while True:
            with urllib.request.urlopen(f"{alertmanager}/api/v2/alerts?active=true", timeout=5) as answer:
                found = sorted((a["labels"]["severity"], a["annotations"]["kind"]) for a in json.load(answer))
            if len(found) <= 1 or time.monotonic() > end:
                return found
            time.sleep(0.1)

    def becomes(**changes: str) -> list[tuple[str, str]]:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        assert tell(tmp_path, outbox, told).errors == {}
        return held()

    told = channels(tmp_path, f'[channels.am]\nkind = "alertmanager"\nurl = "{alertmanager}"\n')
    path = fault(tmp_path, severity="warning")
    assert becomes(kind="unit") == [("warning", "unit")]
    assert becomes(severity="critical", kind="nulls") == [("critical", "nulls")]
    # It changes once more and is over before that was told.
    becomes(severity="warning", status="closed", closed_at="2013-07-15T00:00:00Z")
    end = time.monotonic() + 10
    while held() and time.monotonic() < end:
        time.sleep(0.1)
    assert held() == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[channels.x]\nkind = 'pager'\n", "no known kind: 'pager'"),
        ("[channels.x]\nkind = 'webhook'\n", "needs a url"),
        ("[channels.x]\nkind = 'email'\nhost = 'h'\nto = 'a'\n", "needs 'from'"),
        ("[channels.x]\nkind = 'slack'\nurl_env = 'X'\npassword = 'p'\n", "no setting 'password'"),
        ("[channels.x]\nkind = 'slack'\nurl = 'https://hooks'\n", "no setting 'url'"),  # it is a secret
        ("[channels.x]\nkind = 'log'\nseverities = ['loud']\n", "'loud' is no severity"),
        ("[channels", "cannot be read"),
        ("channels = 5\n", r"no tables of channels.*\[channels.NAME\]"),
        ("[channel.x]\nkind = 'log'\n", r"no tables of channels.*\[channels.NAME\]"),
        ("[channels.x]\nkind = 'log'\nrepeat_hours = '24'\n", "'repeat_hours' of channel 'x' is '24'.*number of hours"),
        ("[channels.x]\nkind = 'log'\nrepeat_hours = nan\n", "'repeat_hours' of channel 'x' is nan"),
        ("[channels.x]\nkind = 'log'\nrepeat_hours = -1\n", "'repeat_hours' of channel 'x' is -1"),
        ("[channels.x]\nkind = 'log'\nrepeat_hours = true\n", "'repeat_hours' of channel 'x' is True"),
        ("[channels.x]\nkind = 'log'\nmodels = 'flight'\n", "'models' of channel 'x' is 'flight'.*list of names"),
        ("[channels.x]\nkind = 'log'\nseverities = 'critical'\n", "'severities' of channel 'x'.*list such as"),
        (f"[channels.x]\nkind = 'email'\n{MAIL}port = 'abc'\n", "'port' of channel 'x' is 'abc'.*1 to 65535"),
        (f"[channels.x]\nkind = 'email'\n{MAIL}port = 99999\n", "'port' of channel 'x' is 99999"),
        (f"[channels.x]\nkind = 'email'\n{MAIL}tls = 'no'\n", "'tls' of channel 'x' is 'no'.*true or false"),
        ("[channels.x]\nkind = 'email'\nhost = 'h'\nfrom = 'a'\nto = []\n", r"'to' of channel 'x' is \[\]"),
        ("[channels.x]\nkind = 'webhook'\nurl = 5\n", "'url' of channel 'x' is 5.*text in quotes"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path, text, problem):
    with pytest.raises(ConfigError, match=problem):
        channels(tmp_path, text)
    assert read_channels(None) == ([LOG], [])


def test_a_channel_whose_address_is_malformed_keeps_no_other_untold_and_shows_no_secret(
    tmp_path, receiver, outbox, monkeypatch
):
    """A port that is none raises in one vendor, a control character in another, a bracket in a third."""
    monkeypatch.setenv("A", "https://h:secretport/x")
    monkeypatch.setenv("B", "https://h/secret path\x7f")
    monkeypatch.setenv("C", "https://[secret")
    bad = "".join(f'[channels.{name}]\nkind = "slack"\nurl_env = "{name.upper()}"\n' for name in "abc")
    told = channels(tmp_path, f'{bad}[channels.ops]\nkind = "webhook"\nurl = "{receiver.url}"\n')
    fault(tmp_path)
    found = tell(tmp_path, outbox, told)
    assert (found.sent, set(found.errors)) == (2, {"a", "b", "c"})
    assert all("does not take alerts" in error for error in found.errors.values())
    assert "secret" not in str(found)
    assert len(receiver.bodies) == 1


def test_a_setting_that_is_wrong_is_told_and_fails_the_verb_and_the_other_channels_are_told(alerts, tmp_path, receiver):
    good = f'[channels.ops]\nkind = "webhook"\nurl = "{receiver.url}"\n'
    (tmp_path / "alerts.toml").write_text(f'[channels.bad]\nkind = "log"\nmodels = "m"\n{good}')
    code, told = alerts("deliver")
    assert (code, [body["model"] for body in receiver.bodies]) == (3, ["flight"])
    assert "The 'models' of channel 'bad' is 'm'" in told
    code, told = alerts("test")
    assert (code, "ops: taken" in told) == (1, True)
    assert alerts("silence", "--why", "known")[0] == 0
    assert alerts("list")[0] == 0


def test_a_look_tells_the_channels_that_can_be_read_and_is_broken_by_none(tmp_path, receiver, caplog):
    path = tmp_path / "alerts.toml"
    path.write_text(
        f'[channels.bad]\nkind = "log"\nmodels = "m"\n[channels.ops]\nkind = "webhook"\nurl = "{receiver.url}"\n'
    )
    fault(tmp_path)
    tell_after_look(Settings(home=tmp_path, alerts=path))
    assert [body["model"] for body in receiver.bodies] == ["m"]
    assert "The 'models' of channel 'bad' is 'm'" in caplog.text
    (tmp_path / "alerts.toml").unlink()
    tell_after_look(Settings(home=tmp_path, alerts=path))
    assert "cannot be read" in caplog.text


@pytest.fixture
def alerts(tmp_path, monkeypatch, capsys):
    """Run ``trellis alerts`` in a home with one open alert of the model ``flight``; give its exit code and output."""
    from trellis import settings as module

    fault(tmp_path, model="flight")
    monkeypatch.setenv("TRELLIS_HOME", str(tmp_path))
    monkeypatch.setenv("TRELLIS_STORE_URL", f"sqlite:///{tmp_path}/trellis.db")
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "alerts.toml").write_text("")
    monkeypatch.setenv("TRELLIS_ALERTS", str(tmp_path / "alerts.toml"))
    module.settings.cache_clear()

    def run(*words: str) -> tuple[int, str]:
        code = cli.main(["alerts", *words])
        told = capsys.readouterr()
        return code, told.out + told.err

    yield run
    module.settings.cache_clear()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--hours", "nan"), "hours above zero, at most 8,760"),
        (("--hours", "inf"), "hours above zero"),
        (("--hours", "-1"), "hours above zero"),
        (("--hours", "8761"), "hours above zero"),
        (("--model", "fligth"), "no model 'fligth' of alerts. Did you mean 'flight'?"),
        (("--kind", "upstream_fualt"), "no kind 'upstream_fualt' of alerts. Did you mean"),
        (("--kind", "out_of_rang"), "Did you mean 'out_of_range'"),
        (("--why", " "), "needs a reason"),
    ],
)
def test_a_silence_that_would_hold_nothing_back_is_refused(alerts, outbox, words, problem):
    code, told = alerts("silence", "--why", "known", *words)
    assert (code, problem in " ".join(told.split())) == (1, True), told
    assert outbox.silences() == []
    assert "1 messages taken" in alerts("deliver")[1]


@pytest.mark.parametrize("kind", ["UPSTREAM_FAULT", "upstream_fault", ""])
def test_a_silence_holds_back_until_it_is_lifted(alerts, outbox, kind):
    code, told = alerts("silence", "--model", "flight", "--kind", kind, "--why", "known")
    (silence,) = outbox.silences()
    assert (code, f"trellis alerts lift {silence.id}" in told) == (0, True)
    assert "0 messages taken" in alerts("deliver")[1]
    assert silence.id in alerts("list")[1]
    code, told = alerts("lift", silence.id[:-1] + "x")
    assert (code, f"Did you mean '{silence.id}'" in told) == (1, True)
    assert alerts("lift", silence.id)[0] == 0
    assert "1 messages taken" in alerts("deliver")[1]
    assert alerts("lift", silence.id)[0] == 1  # it is over already


def test_the_kinds_that_can_be_silenced_are_those_that_there_are():
    def told(of: type, name: str) -> set[str]:
        text = re.search(rf"^ +{name}: (.*?)(?:^ {{8}}\w+: |\Z)", of.__doc__, re.MULTILINE | re.DOTALL)[1]
        return set(re.findall(r"``(\w+)``", text))

    assert told(Fault, "kind") == set(KINDS["UPSTREAM_FAULT"])
    assert told(Diagnosis, "kind") - {"none"} == set(KINDS["DRIFT"])
    assert told(QualityFinding, "kind") == set(KINDS["DATA_QUALITY"])
    assert set(MEANING) - {"no_reference"} == set(KINDS["PERFORMANCE_ASSUMPTION"])
    assert set(KINDS) == DIAGNOSED | NOTED | LOOP_OUTCOMES
