"""Units in the logs: hashed with a secret, the same everywhere, and nowhere as they were sent."""

import hashlib
import hmac
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from pydantic import SecretStr

from services.prediction.app import PredictionService
from services.prediction.identity import KEY_FILE, UnitHash, without_unit
from trellis.contract import Field
from trellis.errors import ConfigError, StorageError

USER = "erika.mustermann@example.org"


def written(home):
    """Return every byte below a home."""
    return b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())


def test_no_log_ever_sees_a_unit_and_the_split_goes_by_it(world, row):
    world.deploy(world.artifact("1"), world.artifact("2", c=1.0, raises=True), share=0.5, unit="note")
    users = [f"{USER}/{i}" for i in range(40)]
    rows = [row(note=user) for user in users]
    answers = [world.predict(*rows[i : i + 20], id=f"r{i}").json()["predictions"] for i in (0, 20)]
    bad = world.predict(row(note=USER, x=9.5))
    assert bad.status_code == 200
    for log in list(world.service._logs._open.values()):
        log.flush()
    frame = world.logged()
    assert len(frame) == 41
    assert set(frame["unit"].str.len()) == {32}
    assert frame["unit"].nunique() == 41
    assert (frame["request.note"] == frame["unit"]).all()
    assert b"mustermann" not in written(world.home)
    plan = world.plans.current("toy_linear")
    flat = [p["version"] for part in answers for p in part]
    assert flat == [plan.assign(user).version for user in users], "the split goes by the unit itself"
    assert set(flat) == {"1", "2"}


def test_a_unit_that_the_model_scores_on_is_data(world, row):
    world.deploy(world.artifact("1"), unit="x")
    world.predict(row(x=0.25))
    [record] = world.logged().to_dict("records")
    assert record["request.x"] == 0.25
    assert len(record["unit"]) == 32


def test_a_unit_that_is_no_string_is_left_out_of_the_request(world):
    spec = world.plugins.plugin("toy_linear").spec
    spec = replace(spec, request=(*spec.request, Field("user", "int", "Who.")))
    request = {"x": 1.0, "user": 77}
    without_unit(spec, "user")(request, "abc")
    assert request == {"x": 1.0}


def test_without_a_unit_nothing_is_hashed_and_no_key_is_made(world, row):
    world.deploy(world.artifact("1"))
    world.predict(row(), id="r")
    assert world.logged()["unit"].tolist() == ["r#0"]
    assert not (world.home / KEY_FILE).exists()


def test_the_hash_is_keyed_blake2b_of_the_secret_and_stays(tmp_path):
    secret = "correct horse battery staple"
    mine = UnitHash(tmp_path, secret)(USER)
    key = hashlib.sha256(secret.encode()).digest()
    assert mine == hashlib.blake2b(USER.encode(), key=key, digest_size=16, person=b"trellis-unit").hexdigest()
    assert mine == UnitHash(tmp_path / "elsewhere", secret)(USER)
    assert mine != UnitHash(tmp_path, secret + "r")(USER)
    assert mine != UnitHash(tmp_path)(USER)
    assert not hmac.compare_digest(mine, hashlib.blake2b(USER.encode(), digest_size=16).hexdigest())


def test_the_key_of_a_home_is_made_once_for_its_owner_alone_whoever_comes_first(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: UnitHash(tmp_path)(USER), range(32)))
    assert len(found) == 1
    code = "import sys, pathlib, services.prediction.identity as i; a, b = sys.argv[1:]; "
    code += "print(i.UnitHash(pathlib.Path(a))(b))"
    other = subprocess.run([sys.executable, "-c", code, tmp_path, USER], capture_output=True, text=True, check=True)
    assert other.stdout.strip() in found
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == [KEY_FILE]


def test_a_short_secret_or_a_home_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ConfigError, match="fewer than 16") as raised:
        UnitHash(tmp_path, "hunter2")
    assert "hunter2" not in str(raised.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="TRELLIS_UNIT_SECRET"):
        UnitHash(tmp_path / "file")(USER)


def test_the_service_takes_the_secret_of_its_settings(world, row):
    world.limits.unit_secret = SecretStr("correct horse battery staple")
    world.service = PredictionService(
        world.home, world.limits, world.plans, world.plugins, world.shops, world.service.metrics
    )
    world.app = world.service.app()
    world.deploy(world.artifact("1"), unit="note")
    world.predict(row(note=USER))
    assert world.logged()["unit"].tolist() == [UnitHash(world.home, "correct horse battery staple")(USER)]
    assert not (world.home / KEY_FILE).exists()
