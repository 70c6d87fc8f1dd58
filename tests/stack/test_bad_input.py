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
    made = Stack(STACK_FIRST_MODEL="")  # nothing is to be trained
    yield made
    made.verb("down", "--volumes")
    assert made.leftovers() == []


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


def test_a_schema_from_another_version_stops_the_start_and_down_cleans_up(other: Stack):
    """MLflow's database was brought up by a release that this image does not know."""
    other.compose("up", "--detach", "--wait", "postgres")
    other.compose("run", "--rm", "--no-deps", "databases")
    unknown = "set role mlflow; create table alembic_version (version_num varchar(32) primary key); "
    unknown += "insert into alembic_version values ('ffffffffffff')"
    other.compose("exec", "-T", "postgres", "psql", "-U", "postgres", "-d", "mlflow", "-c", unknown)
    done = other.verb("up", "--no-build", check=False)
    assert done.returncode == 1
    told = done.stdout + done.stderr
    assert "ffffffffffff" in told
    assert "schema of mlflow could not be brought up to date" in told
    assert "mlflow-schema failed" in done.stderr
    assert "make down" in done.stderr
    states = {row["Service"]: row["State"] for row in other.containers()}
    assert states["postgres"] == "running"
    assert states.get("mlflow") in (None, "created")
    other.verb("down", "--volumes")
    assert other.leftovers() == []


def test_a_full_volume_of_the_database_is_named(other: Stack, tmp_path):
    small = tmp_path / "small.yaml"
    options = "{type: tmpfs, device: tmpfs, o: 'size=16m'}"
    small.write_text(f"volumes: {{postgres: {{driver: local, driver_opts: {options}}}}}\n")
    other.environment["COMPOSE_FILE"] += f":{small}"
    done = other.verb("up", "--no-build", check=False)
    assert done.returncode == 1
    assert "volume of postgres is full" in done.stderr
    assert "make down" in done.stderr
    other.verb("down", "--volumes")
    assert other.leftovers() == []


def test_an_image_for_another_machine_is_named(other: Stack, tmp_path):
    here = other.run("docker", "version", "-f", "{{.Server.Arch}}").stdout.strip()
    foreign = "arm64" if here == "amd64" else "amd64"
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    image = f"{other.name}/serving:dev"
    other.run("docker", "build", "--quiet", "--platform", f"linux/{foreign}", "-t", image, str(tmp_path))
    other.environment["STACK_IMAGES"] = other.name
    try:
        done = other.verb("up", "--no-build", check=False)
    finally:
        other.run("docker", "rmi", image)
        del other.environment["STACK_IMAGES"]
    assert done.returncode == 1
    assert image in done.stderr
    assert f"is for {foreign}, this machine is {here}" in done.stderr
    assert "DOCKER_DEFAULT_PLATFORM" in done.stderr
    assert not other.containers()


def test_two_stacks_on_one_machine_have_nothing_in_common(other: Stack):
    second = Stack(STACK_FIRST_MODEL="")
    try:
        for one in (other, second):
            one.compose("up", "--detach", "--wait", "postgres", "object-store")
        table = "create table of_one_stack ()"
        other.compose("exec", "-T", "postgres", "psql", "-U", "postgres", "-c", table)
        asked = second.compose(
            "exec", "-T", "postgres", "psql", "-U", "postgres", "-XAtc", "select to_regclass('of_one_stack')"
        )
        assert asked.strip() == ""
        ports = [
            row["Publishers"][0]["PublishedPort"]
            for one in (other, second)
            for row in one.containers()
            if row["Service"] == "object-store"
        ]
        assert ports == [other.ports["OBJECT_STORE"], second.ports["OBJECT_STORE"]]
    finally:
        second.verb("down", "--volumes")
    assert second.leftovers() == []
    assert {row["Service"] for row in other.containers()} == {"postgres", "object-store"}


def test_a_volume_that_cannot_be_written_names_the_home(other: Stack):
    full = ("--mount", "type=tmpfs,destination=/var/lib/trellis,tmpfs-mode=0555")
    done = other.run(*HARDENED, *full, "trellis/serving:dev", check=False)
    assert done.returncode == 2
    assert "TRELLIS_HOME" in done.stderr
