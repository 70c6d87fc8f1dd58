"""What is wrong with a stack stops it with a message that names the setting and the remedy."""

import shutil
import socket

import pytest

from tests.stack.driver import ROOT, Stack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]
HARDENED = ("docker", "run", "--rm", "--read-only", "--tmpfs", "/tmp")


@pytest.fixture
def other(engine):
    """A second stack on this machine; whatever of it was started is removed by its own `down`."""
    made = Stack()
    yield made
    made.verb("down", "--volumes")
    assert not made.containers()


def test_a_port_that_is_taken_names_its_setting(other: Stack):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", other.ports["MLFLOW"]))
        taken.listen()
        done = other.verb("up", "--no-build", check=False)
    assert done.returncode == 1
    assert "STACK_MLFLOW_PORT" in done.stderr
    assert "COMPOSE_PROJECT_NAME" in done.stderr


def test_a_missing_secret_or_one_for_another_database_stops_the_job_that_needs_it(other: Stack, tmp_path):
    secrets = tmp_path / "secrets"
    shutil.copytree(ROOT / "infra/compose/secrets", secrets)
    other.compose("up", "--detach", "--wait", "postgres")
    tmp_path.chmod(0o755)
    secrets.chmod(0o755)
    script = ROOT / "infra/config/postgres/databases.sh"

    def job(name: str) -> str:
        mounts = ("-v", f"{secrets}:/run/secrets:ro", "-v", f"{script}:/job.sh:ro")
        network = ("--network", f"{other.name}_default", "-e", "PGHOST=postgres")
        done = other.run(*HARDENED, *network, *mounts, "--entrypoint", "/job.sh", "postgres:17", name, check=False)
        assert done.returncode == 1
        return done.stderr

    (secrets / "mlflow_db_password").unlink()
    assert "mlflow_db_password" in job("mlflow")
    (secrets / "postgres_password").write_text("another")
    told = job("trellis")
    assert "postgres_password" in told
    assert "ALTER ROLE" in told


def test_a_database_that_is_away_is_named_without_its_password(other: Stack):
    script = ROOT / "infra/config/migrate.sh"
    url = "TRELLIS_STORE_URL=postgresql+psycopg://trellis:hunter2@nowhere:5432/trellis"
    command = (
        "-e",
        url,
        "-e",
        "OBJECTS=s3://x",
        "-v",
        f"{script}:/job.sh:ro",
        "trellis/tools:dev",
        "/job.sh",
        "trellis",
    )
    done = other.run(*HARDENED, *command, check=False)
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout


def test_a_migration_that_fails_says_that_nothing_was_started(other: Stack):
    script = ROOT / "infra/config/migrate.sh"
    url = "MLFLOW_BACKEND_STORE_URI=sqlite:////nowhere/mlflow.db"
    command = ("-e", url, "-v", f"{script}:/job.sh:ro", "trellis/tools:dev", "/job.sh", "mlflow")
    done = other.run(*HARDENED, *command, check=False)
    assert done.returncode == 1
    assert "schema of mlflow could not be brought up to date" in done.stderr


def test_a_volume_that_cannot_be_written_names_the_home(other: Stack):
    full = ("--mount", "type=tmpfs,destination=/var/lib/trellis,tmpfs-mode=0555")
    done = other.run(*HARDENED, *full, "trellis/serving:dev", check=False)
    assert done.returncode == 2
    assert "TRELLIS_HOME" in done.stderr
