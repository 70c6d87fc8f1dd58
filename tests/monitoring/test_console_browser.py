"""The pages in a real browser, served by the real command: they load, fit, keep still, and load nothing from elsewhere.

Chromium is driven over its DevTools protocol; what it says of the page (errors, requests, sizes) is the evidence.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from websockets.sync.client import connect

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="no chromium here, so the pages were NOT tested in a browser; apt-get install chromium brings it",
    ),
]


class Tab:
    """One page of the browser, spoken to over the DevTools protocol; keeps every event."""

    def __init__(self, socket) -> None:
        self._socket, self._number = socket, 0
        self.events: list[dict] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params):
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def open(self, url: str, width: int, height: int, dark: bool = False) -> None:
        self.events.clear()
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=url)
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(json.loads(self._socket.recv(timeout=60)))

    def value(self, expression: str):
        return self.send("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def of(self, method: str) -> list[dict]:
        return [e["params"] for e in self.events if e.get("method") == method]


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Tab]:
    profile = tmp_path_factory.mktemp("chromium")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]
    process = subprocess.Popen(
        [CHROMIUM, *options, f"--user-data-dir={profile}", "about:blank"],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        port = _eventually(lambda: int((profile / "DevToolsActivePort").read_text().split()[0]))
        targets = _eventually(lambda: json.load(urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10)))
        page = next(t for t in targets if t["type"] == "page")
        with connect(page["webSocketDebuggerUrl"], max_size=50_000_000) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        process.wait(20)


def _eventually(look, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while True:
        try:
            return look()
        except (OSError, ValueError, IndexError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@contextmanager
def served(home: Path, **settings: str) -> Iterator[str]:
    """Run ``python -m services.console`` as an operator does; give its address."""
    environment = {**os.environ, "TRELLIS_HOME": str(home), "TRELLIS_STORE_URL": f"sqlite:///{home}/trellis.db"}
    process = subprocess.Popen(
        [sys.executable, "-m", "services.console", "--port", "0"],
        cwd=ROOT,
        env={**environment, **settings},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        yield re.search(r"http://\S+?(?=/ui)", line).group()
    finally:
        process.terminate()
        assert process.wait(20) in (0, -15)
        process.stdout.close()


@pytest.fixture(scope="module")
def address(filled_console, tmp_path_factory, evil) -> Iterator[str]:
    from copy import copy

    world = copy(filled_console)
    world.open(Path(shutil.copytree(filled_console.home, tmp_path_factory.mktemp("browsed") / "home")))
    world.evil()
    with served(world.home) as url:
        yield url


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_the_pages_fit_desk_and_phone_without_a_complaint(browser, address, width) -> None:
    decision = None
    for path in ("/ui", "/ui/models/ferry_delay", decision):
        if path is None:
            path = browser.value("document.querySelector('a.why').getAttribute('href')")
        browser.open(address + path, width, 900)
        assert browser.value("document.documentElement.scrollWidth") <= width, f"{path} is wider than {width}"
        # Everything may be opened, and it still fits.
        browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert browser.value("document.documentElement.scrollWidth") <= width, f"{path}, opened, is wider than {width}"
        assert not browser.of("Log.entryAdded"), path  # failed loads and violations of the policy
        assert not browser.of("Runtime.exceptionThrown")
        asked = [e["request"]["url"] for e in browser.of("Network.requestWillBeSent")]
        assert asked[0] == address + path
        assert all(url.startswith((address, "data:")) for url in asked)
        statuses = {e["response"]["status"] for e in browser.of("Network.responseReceived")}
        assert statuses == {200}
        # The style has arrived: were it refused, text would stand in the browser's own serif face.
        assert "system-ui" in browser.value("getComputedStyle(document.body).fontFamily")


def test_plots_are_drawn_inside_their_frame_and_text_can_be_read(browser, address) -> None:
    for dark in (False, True):
        browser.open(f"{address}/ui/models/ferry_delay", 390, 900, dark=dark)
        drawn = browser.value(
            """[...document.querySelectorAll('svg.plot')].map(svg => {
              const frame = svg.viewBox.baseVal;
              const dots = [...svg.querySelectorAll('circle')].map(c => [+c.getAttribute('cx'), +c.getAttribute('cy')]);
              return {n: dots.length, inside: dots.every(([x, y]) => x >= 0 && x <= frame.width && y >= 0
                && y <= frame.height), seen: svg.getBoundingClientRect().width};
            })"""
        )
        assert len(drawn) == 2
        assert all(plot["n"] == 2 and plot["inside"] and plot["seen"] > 300 for plot in drawn)
        ratios = browser.value(CONTRASTS)
        assert len(ratios) > 100
        worst = min(ratios, key=lambda r: r["ratio"])
        assert worst["ratio"] >= 4.5, f"{'dark' if dark else 'light'}: {worst}"
        background = browser.value("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) < 200) is dark


# WCAG 2.2, success criterion 1.4.3: contrast of every element's own text against the first opaque background behind.
CONTRASTS = """(() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92
    : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
  return [...document.querySelectorAll('body *')].filter(e => !e.closest('svg') && [...e.childNodes].some(n =>
    n.nodeType === 3 && n.textContent.trim())).map(e => {
      const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
      return {ratio: (a + 0.05) / (b + 0.05), text: e.textContent.trim().slice(0, 40)}; });
})()"""


def test_names_made_of_html_stay_names(browser, address, evil) -> None:
    for path in ("/ui", f"/ui/models/{quote(evil)}"):
        browser.open(address + path, 1280, 900)
        assert browser.value("document.title").endswith(" · Trellis")
        assert browser.value("document.images.length") == 0
        assert browser.value("document.scripts.length") == 0
        assert evil in browser.value("document.body.textContent")
        assert not browser.of("Log.entryAdded")


def test_the_policy_would_stop_what_escaping_let_through(browser, address) -> None:
    """The second line of defence works by itself: a script put into the page does not run."""
    browser.open(f"{address}/ui/models/ferry_delay", 1280, 900)
    browser.value("const s = document.createElement('script'); s.textContent = 'document.title = 1'; "
                  "document.body.append(s); const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; "
                  "document.body.append(i);")  # fmt: skip
    deadline = time.monotonic() + 20
    while len(browser.of("Log.entryAdded")) < 2 and time.monotonic() < deadline:
        browser.value("1")
        time.sleep(0.05)
    told = " ".join(e["entry"]["text"] for e in browser.of("Log.entryAdded"))
    assert told.count("Content Security Policy") >= 2
    assert browser.value("document.title") == "ferry_delay · Trellis"


def test_a_browser_can_give_the_key(browser, filled_console, tmp_path) -> None:
    from trellis.adapters.api_keys import KeyStore

    home = Path(shutil.copytree(filled_console.home, tmp_path / "home"))
    key, _ = KeyStore(f"sqlite:///{home}/trellis.db").create("oncall", ["read"], who="test", why="test")
    with served(home, TRELLIS_AUTH="on") as address:
        browser.open(address.replace("//", f"//oncall:{key}@") + "/ui/models/ferry_delay", 1280, 900)
        assert "What comes next" in browser.value("document.body.textContent")
