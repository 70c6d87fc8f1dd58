"""The catalogue: found by folder and by package, listed without importing, never two of one name."""

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from trellis.catalog import PRIVATE_PACKAGE, Catalogue
from trellis.contract import ModelPlugin
from trellis.errors import BrokenPluginError, ContractError, DuplicateModelError, UnknownModelError

PLUGIN = """
from trellis.contract import Field, Metric, ModelPlugin, ModelSpec, Target
from .part import WORD

class Toy(ModelPlugin):
    word = WORD
    spec = ModelSpec(
        name="{declared}", version="1.0", task="regression", owner="o", description="d",
        request=(Field("x", "float"),), inputs=("x",), outputs=(Field("value", "float"),),
        target=Target("y", "y"), metric=Metric("mae", 1.0),
    )
    def train(self, data, run): ...
    def load(self, directory): ...
    def sample(self, rows): ...
    def late(self):
        from .part import WORD
        return WORD

plugin = Toy()
"""


def folder(root: Path, name: str, code: str = PLUGIN, *, word: str = "hello", declared: str | None = None) -> Path:
    place = root / name
    place.mkdir(parents=True)
    (place / "__init__.py").write_text(code.format(declared=declared or name))
    (place / "part.py").write_text(f"WORD = {word!r}\n")
    return place


def package(site: Path, dist: str, module: str, name: str) -> None:
    """Lay out what an installer leaves behind: a module and its metadata with an entry point."""
    folder(site, module, declared=name)
    info = site / f"{dist.replace('-', '_')}-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text(f"[trellis.models]\n{name} = {module}:plugin\n")


def only_folders(*folders: Path) -> Catalogue:
    return Catalogue(folders, entry_points=False)


def test_a_folder_plugin_loads_with_its_relative_imports(tmp_path: Path) -> None:
    folder(tmp_path, "toy_one")
    plugin = only_folders(tmp_path).plugin("toy_one")
    assert isinstance(plugin, ModelPlugin)
    assert plugin.word == plugin.late() == "hello"
    assert type(plugin).__module__ == f"{PRIVATE_PACKAGE}.toy_one"


def test_the_same_plugin_asked_twice_is_the_same_object(tmp_path: Path) -> None:
    folder(tmp_path, "toy_same")
    assert only_folders(tmp_path).plugin("toy_same") is only_folders(tmp_path).plugin("toy_same")


def test_a_plugin_that_hangs_while_imported_holds_up_only_who_asks_for_it(tmp_path: Path) -> None:
    waits = "import time, pathlib\nwhile not pathlib.Path({go!r}).exists():\n    time.sleep(0.01)\n"
    folder(tmp_path, "toy_hung", code=waits.format(go=str(tmp_path / "go")) + PLUGIN.format(declared="toy_hung"))
    folder(tmp_path, "toy_free")
    catalogue, found = only_folders(tmp_path), {}

    def ask(key: str, name: str) -> threading.Thread:
        thread = threading.Thread(target=lambda: found.update({key: catalogue.plugin(name)}), daemon=True)
        thread.start()
        return thread

    hung = [ask("first", "toy_hung"), ask("second", "toy_hung")]
    free = ask("free", "toy_free")
    free.join(20)
    try:
        assert found.keys() == {"free"}
    finally:
        (tmp_path / "go").touch()
    for thread in (*hung, free):
        thread.join(20)
    assert found["first"] is found["second"], "nobody gets half of it, and nobody imports it again"


def test_a_broken_plugin_is_cleared_away_while_others_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path, "toy_breaks", code="1 / 0")
    for i in range(20_000):  # so that it takes long enough to be interrupted
        monkeypatch.setitem(sys.modules, f"toy_filler_{i}", sys)
    stop = threading.Event()

    def imports() -> None:
        while not stop.is_set():
            for i in range(50):
                sys.modules[f"toy_elsewhere_{i}"] = sys
            for i in range(50):
                del sys.modules[f"toy_elsewhere_{i}"]

    elsewhere, interval = threading.Thread(target=imports), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    elsewhere.start()
    try:
        for _ in range(5):
            with pytest.raises(BrokenPluginError, match="ZeroDivisionError"):
                only_folders(tmp_path).plugin("toy_breaks")
    finally:
        stop.set()
        elsewhere.join()
        sys.setswitchinterval(interval)


def test_models_never_becomes_a_global_module(tmp_path: Path) -> None:
    models = tmp_path / "models"
    folder(models, "toy_private")
    code = """
        import sys
        from pathlib import Path
        from trellis.catalog import Catalogue
        Catalogue([Path(sys.argv[1])], entry_points=False).plugin("toy_private")
        bad = [n for n in sys.modules if n.split(".")[0] in ("models", "toy_private")]
        assert not bad, bad
        assert "_trellis_models.toy_private.part" in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), models], check=True, cwd=tmp_path)


def test_listing_imports_nothing(tmp_path: Path) -> None:
    folder(tmp_path / "models", "bomb", code="raise SystemExit('imported')")
    package(tmp_path / "site", "trellis-bomb", "bomb_pkg", "bomb_two")
    (tmp_path / "site" / "bomb_pkg" / "__init__.py").write_text("raise SystemExit('imported')")
    sys_path = str(tmp_path / "site")
    code = """
        import sys
        sys.path.insert(0, sys.argv[2])
        from trellis.catalog import Catalogue
        catalogue = Catalogue([sys.argv[1]])
        opened = []
        sys.addaudithook(lambda event, args: opened.append(args[0]) if event in ("import", "exec") else None)
        assert {"bomb", "bomb_two"} <= set(catalogue.names()), catalogue.names()
        assert catalogue.origin("bomb").endswith("bomb")
        assert "trellis-bomb 2.1" in catalogue.origin("bomb_two"), catalogue.origin("bomb_two")
        touched = [o for o in opened if "bomb" in str(o)]
        assert not touched, touched
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path / "models", sys_path], check=True)


def test_two_folders_of_one_name_are_an_error_naming_both(tmp_path: Path) -> None:
    places = [folder(tmp_path / side, "toy_twice") for side in ("left", "right")]
    catalogue = only_folders(tmp_path / "left", tmp_path / "right")
    with pytest.raises(DuplicateModelError) as caught:
        catalogue.plugin("toy_twice")
    assert all(str(place) in caught.value.what for place in places)
    with pytest.raises(DuplicateModelError):
        catalogue.origin("toy_twice")
    [line] = catalogue.survey()
    assert line.problem is not None
    assert all(str(place) in line.problem for place in places)


def test_the_same_folder_given_twice_is_one_place(tmp_path: Path) -> None:
    folder(tmp_path, "toy_once")
    assert only_folders(tmp_path, tmp_path / "." / "").plugin("toy_once").spec.name == "toy_once"


def test_folder_against_entry_point_is_an_error_naming_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder(tmp_path / "models", "toy_both")
    package(tmp_path / "site", "trellis-toy-both", "toy_both_pkg", "toy_both")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(DuplicateModelError) as caught:
        Catalogue([tmp_path / "models"]).plugin("toy_both")
    assert str(place) in caught.value.what
    assert "package trellis-toy-both 2.1 (toy_both_pkg:plugin)" in caught.value.what


def test_an_installed_package_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "trellis-toy-dist", "toy_dist_pkg", "toy_dist")
    monkeypatch.syspath_prepend(tmp_path)
    catalogue = Catalogue()
    assert "toy_dist" in catalogue.names()
    assert catalogue.plugin("toy_dist").spec.name == "toy_dist"
    assert "toy_dist" not in Catalogue(entry_points=False).names()


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import no_such_library_xyz", "no_such_library_xyz"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("def broken(:\n  pass", "SyntaxError"),
        (PLUGIN.replace('"x", "float"', '"X", "float"'), "lower snake case"),
        ("x = 1", "exports no 'plugin'"),
    ],
)
def test_a_broken_plugin_stays_listed_with_its_cause(tmp_path: Path, code: str, cause: str) -> None:
    folder(tmp_path, "toy_broken", code=code)
    folder(tmp_path, "toy_fine")
    catalogue = only_folders(tmp_path)
    broken, fine = catalogue.survey()
    assert (broken.name, broken.spec) == ("toy_broken", None)
    assert broken.problem is not None
    assert cause in broken.problem
    assert fine.problem is None
    assert fine.spec is not None
    with pytest.raises(BrokenPluginError) as caught:
        catalogue.plugin("toy_broken")
    assert caught.value.__cause__ is not None
    assert caught.value.where == str(tmp_path / "toy_broken")
    assert not [name for name in sys.modules if "toy_broken" in name]  # nothing half imported stays


def test_a_mended_plugin_loads_after_it_was_broken(tmp_path: Path) -> None:
    place = folder(tmp_path, "toy_mended", code="from .part import NOT_THERE")
    with pytest.raises(BrokenPluginError):
        only_folders(tmp_path).plugin("toy_mended")
    (place / "__init__.py").write_text(PLUGIN.format(declared="toy_mended") + "# now of another length\n")
    assert only_folders(tmp_path).plugin("toy_mended").word == "hello"


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (PLUGIN.replace("plugin = Toy()", "plugin = Toy"), "exports the class Toy"),
        (PLUGIN.replace("plugin = Toy()", "plugin = 7"), "exports a int"),
        (PLUGIN.replace("spec = ModelSpec(", "other = ModelSpec("), "no ModelSpec"),
        (PLUGIN.replace("{declared}", "somebody_else"), "declares the name 'somebody_else'"),
    ],
)
def test_what_is_exported_must_keep_the_contract(tmp_path: Path, code: str, problem: str) -> None:
    folder(tmp_path, "toy_contract", code=code)
    with pytest.raises(ContractError, match=problem):
        only_folders(tmp_path).plugin("toy_contract")
    sys.modules.pop(f"{PRIVATE_PACKAGE}.toy_contract")


def test_a_misspelt_name_gets_close_matches(tmp_path: Path) -> None:
    folder(tmp_path, "flight_delay")
    with pytest.raises(UnknownModelError, match="Did you mean 'flight_delay'") as caught:
        only_folders(tmp_path).plugin("flight_dleay")
    assert caught.value.where == str(tmp_path)


def test_a_folder_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    catalogue = only_folders(tmp_path / "nowhere")
    assert catalogue.names() == []
    with pytest.raises(UnknownModelError, match="not there"):
        catalogue.plugin("x")


def test_two_folders_plugins_of_one_name_do_not_mix_in_one_process(tmp_path: Path) -> None:
    folder(tmp_path / "left", "toy_mixed", word="left")
    folder(tmp_path / "right", "toy_mixed", word="right")
    left = only_folders(tmp_path / "left").plugin("toy_mixed")
    right = only_folders(tmp_path / "right").plugin("toy_mixed")
    assert (left.late(), right.late()) == ("left", "right")


def test_private_and_hidden_folders_are_no_plugins(tmp_path: Path) -> None:
    for name in ("_shared", "toy_seen"):
        folder(tmp_path, name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").write_text("x")
    assert only_folders(tmp_path).names() == ["toy_seen"]
