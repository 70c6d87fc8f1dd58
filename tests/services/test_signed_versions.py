"""Where a key is configured, the service serves signed versions only; what it holds goes on answering."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.prediction.shadow_host import Host
from tests.trellis.adapters.test_signing import write_keys
from trellis.adapters.signing import sign_artifact

TOYS = Path(__file__).parent / "toys"


@pytest.fixture
def trusting(world, tmp_path):
    """A service that asks for signatures, and its private key."""
    private, public = write_keys(tmp_path)
    world.limits.verify_key = public
    world.service = world.make(CollectorRegistry())
    world.app = world.service.app()
    return world, private


def test_unsigned_versions_are_not_loaded_and_what_is_held_goes_on(trusting, row):
    world, private = trusting
    first, second = world.artifact("1"), world.artifact("2", c=1.0)
    world.deploy(first)
    assert world.predict(row()).status_code == 503
    assert "SignatureError" in str(world.service.models.status())
    sign_artifact(Path(first.location), private)
    world.deploy(first, salt="again")
    assert world.predict(row()).json()["version"] == "1"
    world.deploy(second)
    assert world.predict(row()).json()["version"] == "1", "the new champion is not signed"
    assert "is not signed" in world.service.models.status()["models"]["toy_linear"]["faults"]["2"]


def test_a_shadow_has_to_be_signed_too(trusting, tmp_path):
    world, private = trusting
    variant = world.artifact("1")
    message = {"model": "toy_linear", "version": "1", "location": variant.location, "digest": variant.digest}
    host = Host(world.home, TOYS, world.limits.verify_key)
    refused = host.answer(message)
    assert (refused["ok"], "SignatureError" in refused["why"]) == (False, True)
    sign_artifact(Path(variant.location), private)
    assert host.answer(message) == {"ok": True}
    host.close()
