"""The rules of the house, read off the source: what may import what, what nobody may call, what no file may say."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = [ROOT / name for name in ("src", "pipelines", "services", "monitoring", "models", "feature_repo")]
# SDKs of services and trainers; data libraries (numpy, pandas, pyarrow, pydantic) are common ground.
VENDORS = {
    "bentoml",
    "duckdb",
    "evidently",
    "feast",
    "great_expectations",
    "jinja2",
    "mlflow",
    "model_signing",
    "onnxruntime",
    "prefect",
    "prometheus_client",
    "pytorch_lightning",
    "redis",
    "river",
    "sklearn",
    "skops",
    "sqlalchemy",
    "starlette",
    "torch",
    "uvicorn",
    "xgboost",
}
# Calls that can run what a file says, or a shell.
FORBIDDEN = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "pickle.dump",
    "pickle.dumps",
    "cloudpickle.load",
    "cloudpickle.loads",
    "cloudpickle.dump",
    "cloudpickle.dumps",
    "joblib.load",
    "joblib.dump",
    "torch.load",
    "torch.save",
    "yaml.load",
    "yaml.unsafe_load",
    "marshal.loads",
    "pd.read_pickle",
    "pandas.read_pickle",
}
# Imported though another one brings it.
COME_ALONG = {
    "kantoku": "BentoML's; it has to be asked twice to quit",
    "mmh3": "Feast's, whose keys are read",
    "pydantic-core": "pydantic's other half",
    "score-fields": "the other half of the exported runner, beside which it lies there",
    "typeguard": "Feast's; it is switched off before it costs seconds",
}
# Longer than a module should be, each with the reason.
LONG: dict[str, str] = {}


def _python() -> Iterator[tuple[Path, ast.Module]]:
    for folder in CODE:
        for path in sorted(folder.rglob("*.py")):
            yield path, ast.parse(path.read_text(), filename=str(path))


def _imports(tree: ast.AST) -> set[str]:
    """Absolute imports anywhere in a module, also those inside functions and under TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
    return found


def test_layers_hold_as_pyproject_states_them():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_no_contract_makes_an_exception():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert len(contracts) >= 5
    assert not [contract["name"] for contract in contracts if contract.get("ignore_imports")]


@pytest.mark.parametrize("folder", ["models", "tests/plugins", "tests/pipelines/toys", "tests/services/toys"])
def test_plugins_see_the_contract_and_the_errors_and_nothing_else(folder: str):
    rooms = {"pipelines", "services", "monitoring", "models", "feature_repo"}
    looked = 0
    for path in sorted((ROOT / folder).rglob("*.py")):
        if path.name.startswith(("test_", "conftest")):
            continue
        looked += 1
        for name in _imports(ast.parse(path.read_text())):
            top = name.partition(".")[0]
            assert top not in rooms, f"{path} imports {name}"
            if top == "trellis":
                assert name in ("trellis.contract", "trellis.errors"), f"{path} imports {name}"
    assert looked


def test_every_adapter_has_at_most_one_vendor():
    for path in sorted((ROOT / "src/trellis/adapters").glob("*.py")):
        used = {name.partition(".")[0] for name in _imports(ast.parse(path.read_text()))} & VENDORS
        assert len(used) <= 1, f"{path.name} imports {sorted(used)}"


def test_in_the_core_only_adapters_know_vendors():
    used = {}
    for path in sorted((ROOT / "src/trellis").rglob("*.py")):
        vendors = {name.partition(".")[0] for name in _imports(ast.parse(path.read_text()))} & VENDORS
        if vendors and "adapters" not in path.parts:
            used[path.relative_to(ROOT / "src/trellis").as_posix()] = vendors
    # ONNX Runtime is the core's own: a plug-in's graph is run by the kit too, which lies below the adapters.
    assert {vendor for vendors in used.values() for vendor in vendors} <= {"onnxruntime"}, used


def test_no_code_runs_what_a_file_or_a_shell_says():
    calls = 0
    for path, tree in _python():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                calls += 1
                name = ast.unparse(node.func)
                assert name not in FORBIDDEN, f"{path.relative_to(ROOT)}:{node.lineno} calls {name}"
                for keyword in node.keywords:
                    shell = keyword.arg == "shell" and not (
                        isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                    )
                    assert not shell, f"{path.relative_to(ROOT)}:{node.lineno} starts a shell"
        assert not _imports(tree) & {"pickle", "cloudpickle", "joblib", "dill", "marshal", "shelve"}, path
    assert calls > 3_000  # it did look


def _tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a clone")
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_no_tracked_file_names_a_place_of_one_machine_or_a_package_registry():
    hosts = ["pypi" + ".org", "pythonhosted" + ".org", "pypi" + ".python.org", "download.pytorch" + ".org"]
    hosts += ["anaconda" + ".org", "files.python" + "hosted"]
    machine = "|".join(
        ["/ho" + r"me/[a-z]\w*/", "/ro" + "ot/", "/Us" + r"ers/\w+/", "/wo" + r"rk/", r"[A-Z]:\\Us" + "ers"]
    )
    wrong = re.compile("(?<![\\w.])(?:" + machine + ")|" + "|".join(map(re.escape, hosts)))
    found = []
    for path in _tracked():
        if not path.exists():
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # a picture or a table
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in wrong.finditer(text)]
    assert not found


def test_long_modules_are_known_with_their_reason():
    long = {
        path.relative_to(ROOT).as_posix()
        for folder in CODE
        for path in folder.rglob("*.py")
        if len(path.read_text().splitlines()) > 400
    }
    assert long <= set(LONG)


def test_the_contract_is_exactly_what_it_says():
    contract = importlib.import_module("trellis.contract")
    assert sorted(contract.__all__) == list(contract.__all__)
    modules = {"batch", "plugin", "policies", "spec"}
    public = {name for name in vars(contract) if not name.startswith("_")} - modules
    assert public == set(contract.__all__)
    for name in contract.__all__:
        value = getattr(contract, name)
        assert getattr(value, "__module__", "trellis.contract").startswith(
            ("trellis.contract", "typing", "collections")
        )
    # And it stays light: no vendor comes along.
    code = f"import sys, trellis.contract; print(sorted(set(sys.modules) & set({sorted(VENDORS)!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _name(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0].lower().replace("_", "-").replace(".", "-")


def test_the_lock_pins_everything_that_pyproject_asks_for():
    pinned: dict[str, str] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==([^\s;+]+)(?:\s*;.*)?", line)
        assert match, f"{line!r} is no exact version of a public release"
        pinned[_name(match[1])] = match[2]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    asked += [text for extra in project["project"]["optional-dependencies"].values() for text in extra]
    wanted = {_name(text) for text in asked} - {_name(project["project"]["name"])}
    assert wanted <= set(pinned)
    assert pinned["torch"] == "2.13.0"


def test_nothing_in_the_tree_is_imported_that_nobody_asks_for():
    """Every third-party import has a distribution in pyproject; what merely comes along may leave again."""
    from importlib.metadata import packages_distributions

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {_name(text) for text in project["dependencies"]}
    asked |= {_name(text) for extra in project["optional-dependencies"].values() for text in extra}
    asked |= set(COME_ALONG)
    owners = packages_distributions()
    ours = {"trellis", "pipelines", "services", "monitoring", "models", "feature_repo"}
    unasked = set()
    for path, tree in _python():
        for top in {name.partition(".")[0] for name in _imports(tree)} - set(sys.stdlib_module_names) - ours:
            if not {_name(owner) for owner in owners.get(top, [top])} & asked:
                unasked.add(f"{path.relative_to(ROOT)}: {top}")
    assert not unasked
