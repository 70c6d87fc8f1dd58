"""The stack as a user has it: brought up once from nothing, removed after."""

import os
import shutil
import subprocess

import pytest

from tests.stack.driver import Stack

# Minutes of work with containers: only where it is asked for (make test-stack), never as a part of `make test`.
collect_ignore_glob = [] if os.environ.get("STACK_TEST") else ["test_*.py"]


@pytest.fixture(scope="session")
def engine():
    """Skip, loudly, where there is no container engine."""
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("NO CONTAINER ENGINE: the stack was not tested. Install Docker with Compose v2 and start it.")


@pytest.fixture(scope="session")
def figures():
    """What was measured, printed at the end."""
    found: dict[str, object] = {}
    yield found
    print("\n\nMeasured on this machine:")
    for name, value in found.items():
        print(f"  {name}: {value}")


@pytest.fixture(scope="session")
def stack(engine, figures):
    made = Stack(STACK_LOAD_PER_SECOND="200")
    try:
        yield made
    finally:
        if not os.environ.get("STACK_KEEP"):
            made.verb("down", "--volumes", check=False)
