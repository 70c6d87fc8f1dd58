"""The Grafana files: as their module makes them, readable by Grafana's own types, and laid out for people.

There is no Grafana here to open them in. Its types (the Foundation SDK of the stack's version) read every file and
write it again, and nothing may be lost; what types do not know is checked by hand: ids, places, units, words.
"""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.boards import boards
from monitoring.grafana_json import dumps

GRAFANA = Path(__file__).parents[2] / "monitoring" / "grafana"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
# Of Grafana's list of units, those in use: https://grafana.com/docs/grafana/latest/panels-visualizations/, "Units".
UNITS = {"short", "percentunit", "s", "reqps", "ops"}


def board(path: Path) -> dict:
    return json.loads(path.read_text())


def test_the_files_are_those_of_the_module() -> None:
    made = {f"{b.uid.removeprefix('trellis-')}.json": dumps(b) for b in boards()}
    assert {p.name: p.read_text() for p in FILES} == made, "run: python -m monitoring boards"
    assert {b.title.split(": ")[1] for b in boards()} == {
        "service health and objectives", "rollout", "model performance", "drift", "features and freshness",
        "pipeline runs",
    }  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_grafanas_own_types_read_all_of_it(path: Path) -> None:
    register_default_plugins()
    given = board(path)
    back = json.loads(json.dumps(Dashboard.from_json(given), cls=JSONEncoder))
    assert lost(given, back) == []


def lost(given, back, where: str = "") -> list[str]:
    """Return what ``back`` lacks or has otherwise; more than was given (defaults) is fine."""
    if isinstance(given, dict) and isinstance(back, dict):
        parts = [lost(v, back[k], f"{where}/{k}") if k in back else [f"{where}/{k}"] for k, v in given.items()]
        return [message for part in parts for message in part]
    if isinstance(given, list) and isinstance(back, list) and len(given) == len(back):
        return [m for i, (a, b) in enumerate(zip(given, back, strict=True)) for m in lost(a, b, f"{where}[{i}]")]
    return [] if given == back else [f"{where}: {given!r} != {back!r}"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_panels_have_places_words_and_queries(path: Path) -> None:
    panels = board(path)["panels"]
    assert len({p["id"] for p in panels}) == len(panels) >= 6
    assert len({p["title"] for p in panels}) == len(panels)
    for panel in panels:
        assert panel["title"], panel["id"]
        assert panel["description"].endswith((".", "?")), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["targets"], panel["title"]
        assert len({t["refId"] for t in panel["targets"]}) == len(panel["targets"])
        assert all(t["expr"] and t["legendFormat"] for t in panel["targets"]), panel["title"]
        steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
        values = [s["value"] for s in steps[1:]]
        assert values == sorted(values), panel["title"]
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        assert place["h"] > 0 <= place["y"]
    for one, other in combinations((p["gridPos"] for p in panels), 2):
        apart = (
            one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        )  # fmt: skip
        assert apart, (path.stem, one, other)


def test_what_provisioning_names_is_there() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/trellis.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    uids = [board(path)["uid"] for path in FILES]
    assert len(set(uids)) == len(uids) == 6
    for path in FILES:
        given = board(path)
        named = [part["datasource"] for p in given["panels"] for part in (p, *p["targets"])]
        named += [v["datasource"] for v in given["templating"]["list"]]
        assert {(d["type"], d["uid"]) for d in named} == {(source["type"], source["uid"])}
    compose = yaml.safe_load((GRAFANA.parents[1] / "docker-compose.yml").read_text())["services"]["grafana"]["volumes"]
    assert "./monitoring/grafana/provisioning:/etc/grafana/provisioning:ro" in compose
    assert f"./monitoring/grafana/dashboards:{provider['options']['path']}:ro" in compose
