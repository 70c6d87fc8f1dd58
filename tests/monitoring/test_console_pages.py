"""The console over real stores, filled by the real code: what its pages say, escape, refuse and survive."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta
from html.parser import HTMLParser
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.console.app import Console
from services.prediction.auth import Guard
from services.prediction.metrics import Metrics
from trellis.adapters.api_keys import KeyStore
from trellis.adapters.prediction_log import read_labels, read_predictions

VOID = {"meta", "link", "br", "wbr", "hr", "img", "input"}


class Page(HTMLParser):
    """Elements, their attributes, and the text of a page; refuses one whose tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in ("p", "li"):  # which browsers close themselves
            while self._open and self._open[-1] != tag:
                raise AssertionError(f"</{tag}> closes <{self._open[-1]}>")
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += " ".join(data.split()) + " "


def client(reading, keys=None, hosts=None):
    app = Console(reading, Guard(keys, Metrics(CollectorRegistry())), hosts).app()
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


def get(reading, path, *, keys=None, hosts=None, **options):
    async def ask():
        async with client(reading, keys, hosts) as asking:
            return await asking.get(path, **options)

    return asyncio.run(ask())


def test_the_model_page_says_how_it_stands_why_and_what_is_next(console_world) -> None:
    world = console_world
    answer = get(world.reading(), f"/ui/models/{world.model}")
    assert answer.status_code == 200
    page = Page(answer.text)
    text = " ".join(page.text.split())
    # Traffic as the plan has it, the rollout's way, and the arithmetic of the verdict with its link.
    assert "v1 champion 90 %" in text
    assert "v2 canary 10 %" in text
    assert [(a["class"]) for tag, a in page.tags if tag == "li" and a.get("class") in ("done", "here", "ahead")] == [
        "done", "here", "ahead", "ahead",
    ]  # fmt: skip
    assert world.canary.verdict.reason in text
    assert f"/ui/decisions/{world.canary.id}" in [a.get("href") for _, a in page.tags]
    # The fault that was noticed: the column, and a person to act.
    assert "UPSTREAM FAULT" in text
    assert "Fix the feed upstream; do not retrain on these rows" in text
    # Labels counted by hand from the log.
    labels, made = read_labels(world.home, world.model), read_predictions(world.home, world.model)
    known = labels.loc[labels["observed_at"] <= world.now, "id"]
    outstanding = len(made) - made["id"].isin(known).sum()
    assert 0 < outstanding < 100
    assert f"labels outstanding {outstanding:,} 0 overdue" in text
    # The next look follows from the policy: eight looks in thirty days.
    due = world.now + timedelta(days=30 / 8)
    assert f"Next look at drift and performance by {due.strftime('%-d %b %Y %H:%M')}" in text
    # The deadline of the trial.
    over = world.now + timedelta(days=30)
    assert f"version 2 is rolled back by {over.strftime('%-d %b %Y %H:%M')}" in text


def test_the_figures_are_the_ledgers_with_their_intervals(console_world) -> None:
    world = console_world
    look = world.reading().state(world.model).look
    points = [p for p in world.second.series if p.end == look.end]
    for point in points:
        mine = {f.quantity: f for f in look.performance if not f.segment and f.end == point.end}
        assert (mine["loss"].stage, mine["loss"].point) == (point.stage, point.best.value)
        assert mine["auc"].point == pytest.approx(point.metrics["auc"])
        assert mine["auc"].low < point.metrics["auc"] < mine["auc"].high
    # A mean loss over seven days, as the textbook has it: a ratio over days, Student's t with six degrees of freedom.
    cell = next(c for c in world.second.cells if c.window == 0 and not c.segment)
    shown = next(f for f in look.performance if f.quantity == "loss" and not f.segment and f.end == look.start)
    assert shown.stage == "realised"
    assert shown.high - shown.point == pytest.approx(2.4469 * cell.loss.standard_error, rel=1e-3)
    text = Page(get(world.reading(), f"/ui/models/{world.model}").text).text
    assert f"{shown.point:.4f}" in text
    assert {f.value for f in look.performance if f.segment} == {"north", "south", "island"}


def test_a_decision_is_taken_again_and_tampering_shows(console_world) -> None:
    world = console_world
    good = get(world.reading(), f"/ui/decisions/{world.canary.id}")
    assert "the same verdict, to the last digit" in good.text
    assert all(check.text.split(":")[0] in Page(good.text).text for check in world.canary.verdict.checks)
    changed = replace(world.canary, id="canary-000", verdict=replace(world.canary.verdict, outcome="PROMOTE"))
    world.decisions.record(changed)
    told = get(world.reading(), "/ui/decisions/canary-000").text
    assert "DISAGREES" in told
    assert "changed after it was recorded" in told
    # Not by the start of an id, and not at all.
    assert get(world.reading(), "/ui/decisions/canary-").status_code == 404
    assert get(world.reading(), "/ui/decisions/none").status_code == 404


def test_whatever_has_a_name_is_escaped(console_world, evil) -> None:
    decision = console_world.evil()
    reading = console_world.reading()
    names = ("/ui", f"/ui/models/{evil}", f"/ui/decisions/{decision.id}")
    for path in (*names, f"/ui/models/{evil}x", f"/ui/decisions/{evil}", f"/ui/{evil}"):
        answer = get(reading, quote(path))
        page = Page(answer.text)
        assert not {tag for tag, _ in page.tags} & {"img", "script", "iframe", "form", "object"}, path
        assert not [n for _, attributes in page.tags for n in attributes if n.startswith("on")], path
        assert path not in names or evil in page.text, path


def test_nothing_comes_from_elsewhere_and_nothing_runs(console_world) -> None:
    world = console_world
    for path in ("/ui", f"/ui/models/{world.model}", f"/ui/decisions/{world.canary.id}", "/ui/none"):
        answer = get(world.reading(), path)
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy == {
            "default-src": "'none'", "style-src": "'self'", "img-src": "data:", "base-uri": "'none'",
            "form-action": "'none'", "frame-ancestors": "'none'",
        }  # fmt: skip
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        page = Page(answer.text)
        assert not [tag for tag, attributes in page.tags if "style" in attributes or tag in ("script", "style")]
        places = [a[name] for _, a in page.tags for name in ("href", "src") if a.get(name)]
        assert places
        assert all(place.startswith(("/ui", "#", "data:")) for place in places)


def test_a_key_with_the_scope_read_opens_the_pages(console_world) -> None:
    world = console_world
    keys = KeyStore(world.url)
    reader, _ = keys.create("oncall", ["read"], who="test", why="test")
    caller, _ = keys.create("shop", ["predict"], who="test", why="test")
    path = f"/ui/models/{world.model}"

    def ask(**options):
        return get(world.reading(), path, keys=keys, **options)

    bare = ask()
    assert bare.status_code == 401
    assert world.model not in bare.text
    assert "Basic realm=" in bare.headers["www-authenticate"]
    assert "content-security-policy" in bare.headers
    assert ask(auth=("anyone", reader)).status_code == 200
    assert ask(headers={"authorization": f"Bearer {reader}"}).status_code == 200
    assert ask(auth=("anyone", caller)).status_code == 403
    assert ask(auth=("anyone", reader[:-1] + "x")).status_code == 401
    for odd in ("Basic", "Basic %%%", "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode(), "Digest x"):
        assert ask(headers={"authorization": odd}).status_code == 401
    assert get(world.reading(), "/ui/style.css", keys=keys).status_code == 200
    assert get(world.reading(), "/healthz", keys=keys).status_code == 200


def test_on_loopback_it_answers_to_its_own_names_only(console_world) -> None:
    hosts = ["localhost", "127.0.0.1"]
    assert get(console_world.reading(), "/ui", hosts=hosts).status_code == 200
    foreign = get(console_world.reading(), "/ui", hosts=hosts, headers={"host": "attacker.example"})
    assert foreign.status_code == 400
    assert console_world.model not in foreign.text


def test_a_store_that_is_away_or_damaged_is_told_in_words(console_world) -> None:
    world = console_world
    reading = world.reading()
    (world.home / "alerts" / f"{world.model}-broken.json").write_text("{")
    newest = max((world.home / "looks" / world.model).iterdir())
    newest.write_text(json.dumps({"model": world.model}))
    page = get(reading, f"/ui/models/{world.model}")
    assert page.status_code == 200  # by the look before
    assert world.first.decision.id != world.second.decision.id
    assert reading.state(world.model).look.decision == world.first.decision.id
    world.plans.close()
    for path in world.home.glob("trellis.db*"):
        path.unlink()
    (world.home / "trellis.db").write_bytes(b"no database" * 1000)
    away = get(reading, f"/ui/models/{world.model}")
    assert away.status_code == 503
    assert "does not answer" in away.text
    assert "Traceback" not in away.text


def test_a_slow_store_does_not_hold_up_others(console_world) -> None:
    """Pages are made on threads: while one waits for its store, the loop answers."""
    reading = console_world.reading()
    entered, go_on = threading.Event(), threading.Event()
    models = reading.models

    def slow():
        entered.set()
        assert go_on.wait(20)
        return models()

    reading.models = slow

    async def both():
        async with client(reading) as asking:
            page = asyncio.create_task(asking.get("/ui"))
            while not entered.is_set():
                await asyncio.sleep(0.01)
            health = await asking.get("/healthz")
            waiting = not page.done()
            go_on.set()
            return health, waiting, await page

    health, waiting, page = asyncio.run(both())
    assert health.status_code == 200
    assert waiting
    assert page.status_code == 200


def test_a_model_with_a_plan_and_nothing_else_has_a_page(console_world, evil) -> None:
    from trellis.rollout.plan import Variant, first_plan

    variant = Variant("1", "champion", 1.0, "/artifacts/1", "0" * 64)
    console_world.plans.save(first_plan("young", variant, salt="s"), expected_revision=0, who="test", why="test")
    answer = get(console_world.reading(), "/ui/models/young")
    assert answer.status_code == 200
    assert "First look at its traffic" in answer.text
    assert get(console_world.reading(), "/ui/models/unknown").status_code == 404
    assert "Trellis" in get(console_world.reading(), "/", follow_redirects=True).text


def test_a_page_is_made_from_memory_the_second_time(console_world) -> None:
    """What was read once is not parsed again: neither looks nor decisions."""
    reading = console_world.reading()
    first = reading.state(console_world.model)
    second = reading.state(console_world.model)
    assert first.look is second.look
    assert first.latest["drift"] is second.latest["drift"]
    path = max((console_world.home / "looks" / console_world.model).iterdir())
    body = json.loads(path.read_text())
    time.sleep(0.01)
    path.write_text(json.dumps(body | {"rows": 12_345}))
    assert reading.state(console_world.model).look.rows == 12_345


def test_the_loop_tells_what_it_does_and_what_it_needs_a_person_for(console_world) -> None:
    from services.console.upcoming import upcoming
    from trellis.loop.state import Cycle, Loop

    state = console_world.reading().state(console_world.model)
    assert state.loop == Loop(console_world.model)  # watching
    assert not [item for item in upcoming(state) if "etraining" in item.what]
    cycle = Cycle("c-1", "retrain-1", "drift", "2013-07-16T00:00:00Z", "1", why="Drift asks for it.")
    training = upcoming(replace(state, loop=Loop(state.model, "training", cycle, 3)))
    assert ("Retraining 3 goes on: training", "Drift asks for it.") in [(i.what, i.because) for i in training]
    ill = upcoming(replace(state, loop=Loop(state.model, failures=3, broken_since="2013-07-01T00:00:00Z", paused=True)))
    mine = [item.what for item in ill if item.who == "you"]
    assert [item.who for item in ill[: len(mine)]] == ["you"] * len(mine)  # a person's part comes first
    assert "Find out why retraining does not help; its circuit breaker is open" in mine
    assert "Let the paused loop go on" in mine


def test_a_rollback_window_says_when_it_ends(console_world) -> None:
    from dataclasses import asdict

    from services.console.upcoming import upcoming
    from trellis.contract import RolloutPolicy
    from trellis.rollout.window import WindowInputs, decide_window

    state = console_world.reading().state(console_world.model)
    policy = RolloutPolicy(strategy="blue_green", rollback_days=2.0)
    at = state.rollout.started_at
    verdict = decide_window(WindowInputs("2", 10, 0, 0.0), policy)
    told = replace(state.latest["canary"], kind="window", at=at, verdict=verdict, policy=asdict(policy))
    rollout = replace(state.rollout, strategy="blue_green", stage="window", entered_at=at, winner="2")
    ends = [i for i in upcoming(replace(state, rollout=rollout, latest={"window": told})) if "is final" in i.what]
    assert [datetime.fromisoformat(item.at) for item in ends] == [datetime.fromisoformat(at) + timedelta(days=2)]


def test_scales_enclose_what_they_show() -> None:
    from services.console.plots import _nice

    rng = np.random.default_rng(0)
    for low, spread in zip(rng.normal(0, 10, 500), 10 ** rng.uniform(-6, 6, 500), strict=True):
        ticks = _nice(low, low + spread)
        assert ticks[0] <= low + 1e-9 * spread
        assert ticks[-1] >= low + spread - 1e-9 * abs(spread)
        assert 2 <= len(ticks) <= 7
        assert np.allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-6, atol=1e-12)
    assert len(_nice(0.0, 0.0)) >= 2
