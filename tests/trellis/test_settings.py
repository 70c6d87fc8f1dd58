"""Settings are frozen, documented, and an unknown variable is an error, not a silence."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trellis.errors import ConfigError, StorageError
from trellis.settings import PREFIX, TELEMETRY_OFF, Settings, load_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(PREFIX)]:
        monkeypatch.delenv(name)


def test_env_example_lists_every_setting_with_its_default_and_nothing_else():
    text = (ROOT / ".env.example").read_text()
    listed = dict(re.findall(rf"^#?\s*({PREFIX}[A-Z_]+)=(.*)$", text, re.M))
    expected = {
        PREFIX + name.upper(): "" if field.default is None else str(field.default)
        for name, field in Settings.model_fields.items()
    }
    assert listed == expected
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description in text, name


def test_an_unknown_variable_is_refused_with_a_close_match(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRELLIS_PROT", "3001")
    with pytest.raises(ConfigError, match="TRELLIS_PORT"):
        load_settings()


@pytest.mark.parametrize(("name", "value"), [("PORT", "99999"), ("PLAN_POLL_SECONDS", "0"), ("ORCHESTRATOR", "cron")])
def test_a_value_out_of_range_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(ConfigError, match=PREFIX + name):
        load_settings()


def test_settings_are_read_from_the_environment_and_frozen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TRELLIS_HOME", str(tmp_path / "home"))
    settings = load_settings()
    assert settings.directory("a", "b") == tmp_path / "home" / "a" / "b"
    assert settings.database_url.startswith(f"sqlite:///{tmp_path}")
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


def test_a_secret_is_read_from_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    secret = tmp_path / "url"
    secret.write_text("redis://:pass@redis:6379/0\n")
    monkeypatch.setenv("TRELLIS_ONLINE_STORE_FILE", str(secret))
    assert load_settings().online_store == "redis://:pass@redis:6379/0"
    monkeypatch.setenv("TRELLIS_ONLINE_STORE", "sqlite")
    with pytest.raises(ConfigError, match="both"):
        load_settings()


@pytest.mark.parametrize("content", [None, "", b"\xff\xfe"])
def test_a_secret_that_cannot_be_read_names_its_variable_and_not_its_content(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | bytes | None
):
    secret = tmp_path / "url"
    if content is not None:
        secret.write_bytes(content.encode() if isinstance(content, str) else content)
    monkeypatch.setenv("TRELLIS_STORE_URL_FILE", str(secret))
    with pytest.raises(ConfigError, match="TRELLIS_STORE_URL_FILE"):
        load_settings()


def test_a_wrong_value_in_a_file_is_not_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    secret = tmp_path / "url"
    secret.write_text("rediss-with-a-typo://:hunter2@redis")
    monkeypatch.setenv("TRELLIS_ONLINE_STORE_FILE", str(secret))
    with pytest.raises(ConfigError, match="TRELLIS_ONLINE_STORE") as raised:
        load_settings()
    assert "hunter2" not in str(raised.value)


def test_a_home_that_cannot_be_written_is_named_with_its_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRELLIS_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(StorageError, match="TRELLIS_HOME"):
        load_settings().directory("snapshots")


def test_the_command_line_turns_telemetry_off_before_a_vendor_is_imported():
    code = "import os, sys; sys.argv = ['trellis', '--help']\nfrom trellis.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += f"print(all(os.environ.get(k) == v for k, v in {TELEMETRY_OFF!r}.items()))"
    environment = {k: v for k, v in os.environ.items() if k not in TELEMETRY_OFF}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip().endswith("True")
