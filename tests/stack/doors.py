"""The stack's doors, as its users come to them: the API, the pages, Prefect, Prometheus, the command line."""

import json
import urllib.parse
import urllib.request
from pathlib import Path

from tests.stack.driver import ROOT, Stack, until
from tests.stack.load import MODEL, Post

AT = "2013-05-02T00:00:00Z"
FLIGHTS = "flight_delay"
FLIGHT = {
    **{"carrier": "UA", "flight": 1545, "origin": "EWR", "dest": "IAH", "tailnum": "N14228", "distance": 1400},
    **{"sched_dep": "2013-07-02T13:15:00Z", "sched_minutes": 244},
}


def get(url: str, key: str = "", timeout: float = 10) -> str:
    # As a browser asks: Prefect serves its pages to nobody else.
    headers = {"accept": "text/html,application/json;q=0.9,*/*;q=0.8"}
    request = urllib.request.Request(url, headers=headers | ({"authorization": f"Bearer {key}"} if key else {}))
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return answer.read().decode()


def page(stack: Stack, name: str, path: str = "/", key: str = "") -> str:
    return get(f"http://127.0.0.1:{stack.ports[name]}{path}", key)


def ask(stack: Stack, x: float, name: str = "", at: str = AT) -> dict | None:
    body = {"rows": [{"x": x, "z": "a", "at": at}]} | ({"id": name} if name else {})
    with Post(stack.ports["API"], stack.key) as post:
        status, answer = post(f"/v1/models/{MODEL}/predict", body)
    return answer["predictions"][0] if status == "200" else None


def send(stack: Stack, rows: list[dict], labels: list[int], seen: str, name: str) -> None:
    """Let rows be predicted, 200 at a time, and tell the truth about them."""
    with Post(stack.ports["API"], stack.key) as post:
        for start in range(0, len(rows), 200):
            body = {"id": f"{name}-{start}", "rows": rows[start : start + 200]}
            status, answer = post(f"/v1/models/{MODEL}/predict", body)
            assert status == "200", answer
            truths = zip(answer["predictions"], labels[start : start + 200], strict=True)
            told = [{"id": p["id"], "value": y, "observed_at": seen} for p, y in truths]
            status, answer = post(f"/v1/models/{MODEL}/labels", {"labels": told})
            assert (status, answer) == ("200", {"accepted": len(told)})


def fly(stack: Stack) -> dict | None:
    with Post(stack.ports["API"], stack.key) as post:
        status, answer = post(f"/v1/models/{FLIGHTS}/predict", {"rows": [FLIGHT]})
    return answer["predictions"][0] if status == "200" else None


def query(stack: Stack, expression: str) -> list[dict]:
    text = page(stack, "PROMETHEUS", f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
    return json.loads(text)["data"]["result"]


def total(stack: Stack, expression: str) -> float:
    return sum(float(series["value"][1]) for series in query(stack, expression))


def panels() -> list[tuple[str, str]]:
    """Return the title and the query of every panel of every board, with what Grafana would fill in."""
    found = []
    for path in sorted((ROOT / "monitoring/grafana/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                concrete = target["expr"].replace("$__rate_interval", "1h").replace("$model", ".+")
                found.append((f"{path.stem}: {panel['title']}", concrete.replace("$metric", "auc")))
    return found


def area_under_the_curve(scores: list[float], truths: list[int]) -> float:
    """The chance that a late flight is scored above a punctual one, by counting every pair."""
    late = [s for s, y in zip(scores, truths, strict=True) if y]
    punctual = [s for s, y in zip(scores, truths, strict=True) if not y]
    return sum((a > b) + (a == b) / 2 for a in late for b in punctual) / (len(late) * len(punctual))


def flow(stack: Stack, name: str, **parameters) -> str:
    """Run a deployment through Prefect's API, on the worker; return the flow run's final state."""
    api = f"http://127.0.0.1:{stack.ports['PREFECT']}/api"

    def post(path: str, body: dict) -> dict:
        request = urllib.request.Request(
            api + path, json.dumps(body).encode(), {"content-type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    found = json.loads(get(f"{api}/deployments/name/{name.replace('_', '-')}/trellis"))
    run = post(f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})
    final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

    def ended() -> str | None:
        state = json.loads(get(f"{api}/flow_runs/{run['id']}"))["state"]
        return f"{state['type']} {state['message'] or ''}" if state["type"] in final else None

    return until(ended, 600, f"the flow {name} ends")


def plan(stack: Stack) -> dict:
    return json.loads(page(stack, "API", f"/v1/models/{MODEL}", stack.key))


def decisions(stack: Stack, kind: str = "") -> list[dict]:
    found = json.loads(stack.trellis("decisions", "--model", MODEL, "--json"))
    return [one for one in found if not kind or one["kind"] == kind]


def cpu_seconds(stack: Stack) -> float:
    """What the containers that are here have used; on a busy machine the clock says little."""
    used = 0.0
    for group in (
        "/sys/fs/cgroup/cpuacct/docker/{}/cpuacct.usage",
        "/sys/fs/cgroup/system.slice/docker-{}.scope/cpu.stat",
    ):
        for container in stack.compose("ps", "--all", "--quiet", "--no-trunc").split():
            path = Path("/sys/fs/cgroup", group.format(container))
            if path.is_file():
                text = path.read_text().split()
                used += int(text[0]) / 1e9 if len(text) == 1 else int(text[1]) / 1e6
    return used
