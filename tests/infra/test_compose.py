"""What can be said of the stack without an engine: its secrets, its file, and that nothing in it is out of step."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()


@pytest.fixture
def maker(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("make_secrets", ROOT / "infra/compose/make_secrets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PLACE", tmp_path / "secrets")
    return module


def test_secrets_are_made_once_and_fit_each_other(maker, capsys):
    assert maker.main() == 0
    first = {path.name: path.read_text() for path in maker.PLACE.iterdir()}
    assert maker.main() == 0
    assert {path.name: path.read_text() for path in maker.PLACE.iterdir()} == first
    password = first["trellis_db_password"].strip()
    assert f":{password}@" in first["store_url"]
    assert not any(value.strip() in capsys.readouterr().out for value in first.values())
    identity = json.loads(first["object_store_identities"])["identities"][0]["credentials"][0]
    assert identity["secretKey"] in first["object_store_credentials"]
    assert maker.PLACE.stat().st_mode & 0o777 == 0o700


def test_every_secret_of_the_compose_file_is_made(maker):
    maker.main()
    named = set(re.findall(r"infra/compose/secrets/(\w+)", COMPOSE))
    assert named
    assert named <= {path.name for path in maker.PLACE.iterdir()}


@pytest.mark.parametrize("content", ["", "changed\n"])
def test_a_secret_that_was_spoilt_stops_everything_and_is_named(maker, capsys, content):
    maker.main()
    (maker.PLACE / "trellis_db_password").write_text(content)
    assert maker.main() == 1
    told = capsys.readouterr().out
    assert "trellis_db_password" in told if not content else "store_url" in told


def test_a_made_key_is_adopted_as_it_is(maker, tmp_path):
    from trellis.adapters.api_keys import SCOPES, KeyStore
    from trellis.errors import ConfigError

    maker.main()
    key = (maker.PLACE / "api_key").read_text().strip()
    store = KeyStore(f"sqlite:///{tmp_path}/keys.db")
    adopted = store.adopt(key, "first", SCOPES, who="test", why="it is there")
    assert store.adopt(key, "first", SCOPES, who="test", why="again") == adopted
    assert [one.id for one in store.known()] == [adopted.id]
    assert len(store.history()) == 1
    with pytest.raises(ConfigError, match="another secret"):
        store.adopt(key[:-1] + ("a" if key[-1] != "a" else "b"), "first", SCOPES, who="test", why="forged")
    for wrong in ("", "trellis_short_secret", "password"):
        with pytest.raises(ConfigError, match="no key"):
            store.adopt(wrong, "first", SCOPES, who="test", why="wrong")


def test_images_are_pinned_ports_are_on_loopback_and_variables_are_documented():
    images = re.findall(r"^\s+image: (\S+)$", COMPOSE, re.M)
    assert images
    assert not [image for image in images if ":latest" in image or not re.search(r":-?[\w./-]+(:[\w.-]+)?\}?", image)]
    published = re.findall(r'ports: \["([^"]+)"\]', COMPOSE)
    assert len(published) >= 7
    assert all(port.startswith("127.0.0.1:") for port in published)
    example = (ROOT / ".env.example").read_text()
    used = set(re.findall(r"\$\{([A-Z][A-Z0-9_]*)", COMPOSE))
    assert not sorted(name for name in used if f"{name}=" not in example)


def test_image_locks_are_parts_of_the_lock():
    whole = set((ROOT / "requirements.lock").read_text().split())
    for name in ("serving", "tools", "worker"):
        assert set((ROOT / f"infra/docker/{name}.lock").read_text().split()) <= whole
    serving = (ROOT / "infra/docker/serving.lock").read_text()
    assert not [name for name in ("torch", "xgboost", "scikit-learn", "mlflow", "prefect") if f"\n{name}==" in serving]


def test_a_missing_secret_stops_a_container_and_names_its_variable(tmp_path):
    command = ["sh", str(ROOT / "infra/docker/with-secrets"), sys.executable, "-c", "import os; print(os.environ['A'])"]
    done = subprocess.run(
        command, env={"SECRET_VARIABLES": "A", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 78
    assert "A_FILE" in done.stderr
    (tmp_path / "a").write_text("value\n")
    given = {"SECRET_VARIABLES": "A", "A_FILE": str(tmp_path / "a"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=given, capture_output=True, text=True)
    assert done.stdout == "value\n"
