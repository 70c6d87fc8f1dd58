"""Every check catches the fault it is there for, and a sound plug-in passes them all.

The toys are real folder plug-ins. Each broken one is the sound one with a single fault put in by replacing text.
"""

import inspect
import json
import sys
from pathlib import Path

import pytest

from trellis.checks import CheckFailed, CheckSkipped, Report, check_names, checks_for, run_checks
from trellis.checks.suite import SUITE
from trellis.errors import ConfigError, UnknownModelError

# A logistic regression by Newton's method, numpy only, with a number that may be missing, an open category and a time.
SOUND = """
import json, os, socket, sys, tempfile
from pathlib import Path
import numpy as np
from trellis.contract import *
from trellis.errors import RequestError

class Fitted(Predictor):
    def __init__(self, state):
        self.state = state

    def design(self, batch):
        x = np.asarray(batch["x"], dtype=np.float64)
        if np.isnan(x).any():
            raise RequestError("x", "is missing")
        maybe = np.nan_to_num(np.asarray(batch["maybe"], dtype=np.float64))
        colour = np.array([self.state["colours"].get(c, 0.0) for c in batch["colour"].tolist()], dtype=np.float64)
        hour = batch["when"].astype("datetime64[h]").astype(np.int64) % 24
        night = np.where(np.isnat(batch["when"]), 0.0, (hour < 6).astype(np.float64))
        return np.column_stack([np.ones_like(x), x, maybe, colour.reshape(-1), night])

    def predict(self, batch):
        z = self.design(batch) @ np.array(self.state["w"])
        return {"probability": (1 / (1 + np.exp(-z))).astype(np.float32)}

    def save(self, directory):
        (directory / "model.json").write_text(json.dumps(self.state))

class Toy(ModelPlugin):
    spec = ModelSpec(
        name="NAME", version="1.0", task="binary", owner="tests", description="A toy.",
        request=(
            Field("x", "float", "A number.", minimum=-10, maximum=10),
            Field("maybe", "float", "A number that may be missing.", nullable=True),
            Field("colour", "category", "An open category."),
            Field("when", "timestamp", "The time."),
        ),
        inputs=("x", "maybe", "colour", "when"),
        outputs=(Field("probability", "float", "Chance of a yes.", minimum=0, maximum=1),),
        target=Target("yes", "Whether it is a yes.", ("no", "yes")),
        metric=Metric("auc", 0.5), time_field="when",
    )

    def train(self, data, run):
        rng = np.random.default_rng(run.seed)
        rows = data.train
        fitted = Fitted({"colours": {"blue": 1.0, "red": -1.0}, "w": (rng.normal(size=5) * 1e-3).tolist()})
        design = fitted.design(rows.columns)
        w = np.array(fitted.state["w"])
        for _ in range(5):
            p = 1 / (1 + np.exp(-design @ w))
            h = design.T @ (design * (p * (1 - p))[:, None]) + 1e-3 * np.eye(5)
            w = w + np.linalg.solve(h, design.T @ (rows.target - p) - 1e-3 * w)
        (run.scratch / "notes.txt").write_text("goes away")
        fitted.state["w"] = w.tolist()
        return fitted

    def load(self, directory):
        return Fitted(json.loads((directory / "model.json").read_text()))

    def sample(self, rows):
        rng = np.random.default_rng(5)
        n = min(rows, 400)
        x, maybe = rng.normal(size=n).clip(-9, 9), rng.normal(size=n)
        maybe[::7] = np.nan
        colour = np.array(rng.choice(["blue", "red"], size=n), dtype=object)
        when = np.datetime64("2024-01-01", "us") + np.arange(n).astype("timedelta64[h]")
        target = (x + (colour == "blue") + rng.normal(size=n) > 0.5).astype(np.int64)
        return Dataset({"x": x, "maybe": maybe, "colour": colour, "when": when}, target, np.arange(n).astype(str), when)

plugin = Toy()
"""

# A straight line with an ONNX graph written by hand.
LINE = """
import json
import numpy as np
from trellis.contract import *

class Line(Predictor):
    def __init__(self, slope):
        self.slope = slope

    def predict(self, batch):
        return {"value": (np.asarray(batch["x"], dtype=np.float32) * np.float32(self.slope))}

    def save(self, directory):
        (directory / "line.json").write_text(json.dumps(self.slope))

    def export_onnx(self, path):
        import onnx
        from onnx import TensorProto, helper
        graph = helper.make_graph(
            [helper.make_node("Mul", ["x", "slope"], ["value"])], "line",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
            [helper.make_tensor_value_info("value", TensorProto.FLOAT, ["n"])],
            [helper.make_tensor("slope", TensorProto.FLOAT, [], [self.slope])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.save(model, str(path))

class Toy(ModelPlugin):
    spec = ModelSpec(
        name="NAME", version="1.0", task="regression", owner="tests", description="A toy.",
        request=(Field("x", "float", "A number.", nullable=True),), inputs=("x",),
        outputs=(Field("value", "float", "The answer.", nullable=True),), target=Target("y", "Twice x."),
        metric=Metric("mae", 1.0),
    )
    def train(self, data, run):
        x = data.train.columns["x"]
        return Line(float(x @ data.train.target / (x @ x)))
    def load(self, directory):
        return Line(json.loads((directory / "line.json").read_text()))
    def sample(self, rows):
        x = np.linspace(-1, 1, 100)
        return Dataset({"x": x}, 2 * x, np.arange(100).astype(str))

plugin = Toy()
"""

PREDICT = "        z = self.design(batch)"
TRAIN = "        rows = data.train\n"
LOAD = "    def load(self, directory):\n"

# name of the fault -> (check that catches it, text replaced, replacement, words of the cause)
FAULTS = {
    "score_misnamed": ("names_agree", '"probability"', '"chance"', "'probability'"),
    "other_columns": ("names_agree", 'return {"probability"', 'return {"surplus": z, "probability"', "surplus"),
    "no_description": ("spec_complete", '"An open category."', '""', "no description: colour"),
    "unknown_metric": ("spec_complete", 'Metric("auc"', 'Metric("mae"', "'mae' is no binary metric"),
    "sample_differs": ("sample_as_declared", "default_rng(5)", "default_rng()", "differs when asked again"),
    "sample_backwards": ("sample_as_declared", "+ np.arange(n)", "- np.arange(n)", "time runs backwards"),
    "sample_out_of_range": ("sample_as_declared", "minimum=-10", "minimum=-0.5", "declared is -0.5"),
    "sample_lacks_field": ("sample_as_declared", '"x": x, "maybe": maybe,', '"x": x,', "lacks the declared fields"),
    "sample_not_nullable": ("sample_as_declared", '"A number that may be missing.", nullable=True', '"A."', "nullable"),
    "sample_id_twice": ("sample_as_declared", "np.arange(n).astype(str)", 'np.array(["a"] * n)', "used twice"),
    "unseeded": ("training_repeats", "default_rng(run.seed)", "default_rng()", "model.json"),
    "set_order": ("training_repeats", '{"blue": 1.0, "red": -1.0}', "{c: 1.0 for c in set('abcdefgh')}", "model.json"),
    "litters_cwd": ("training_leaves_nothing", TRAIN, TRAIN + '        Path("log.txt").write_text("x")\n', "log.txt"),
    "litters_temp": ("training_leaves_nothing", TRAIN, TRAIN + "        tempfile.mkstemp()\n", "in temp"),
    "litters_source": (
        "training_leaves_nothing",
        TRAIN,
        TRAIN + '        (Path(__file__).parent / "x.bin").write_text("x")\n',
        "x.bin",
    ),
    "writes_input": ("inputs_untouched", PREDICT, '        batch["x"] += 1\n' + PREDICT, "values of x were changed"),
    "replaces_input": ("inputs_untouched", PREDICT, '        batch["x"] = batch["x"] + 0\n' + PREDICT, "was replaced"),
    "moody": (
        "answers_repeat",
        "np.exp(-z)",
        "np.exp(-z + np.random.normal(size=z.shape))",
        "differs between two calls",
    ),
    "batch_norm": ("one_row_as_in_batch", "np.exp(-z)", "np.exp(-z + z.mean())", "row 0 alone"),
    "by_position": (
        "column_order_free",
        'np.asarray(batch["x"], dtype',
        "np.asarray(list(batch.values())[0], dtype",
        "columns in another order",
    ),
    "sorts_rows": (
        "row_order_kept",
        'return {"probability": (1',
        'z = z[np.argsort(batch["x"])]\n        return {"probability": (1',
        "rows in another order",
    ),
    "dies_of_nan": ("missing_values_handled", 'raise RequestError("x", "is missing")', "1 / 0", "ZeroDivisionError"),
    "nan_out": (
        "missing_values_handled",
        'np.nan_to_num(np.asarray(batch["maybe"], dtype=np.float64))',
        "np.where(np.isnan(batch['maybe']), 0 if len(batch['x']) != 8 else np.nan, batch['maybe'])",
        "not finite",
    ),
    "kills_process_on_empty": (
        "empty_batch_answered",
        PREDICT,
        "        len(batch['x']) or os.abort()\n" + PREDICT,
        "code -6",
    ),
    "kills_process_on_missing": (
        "missing_values_handled",
        PREDICT,
        "        None not in batch['colour'].tolist() or os.abort()\n" + PREDICT,
        "colour = None",
    ),
    "dies_of_unknown": ("unknown_values_handled", '["colours"].get(c, 0.0)', '["colours"][c]', "KeyError"),
    "dies_of_empty": (
        "empty_batch_answered",
        PREDICT,
        "        batch['x'][0]\n" + PREDICT,
        "on 0 rows raises IndexError",
    ),
    "out_of_range": ("output_as_declared", "(1 / (1 + np.exp(-z)))", "(1.5 / (1 + np.exp(-z)))", "above the declared"),
    "wrong_dtype": ("output_as_declared", ".astype(np.float32)}", ".astype(str)}", "dtype <U"),
    "wrong_shape": ("output_as_declared", ".astype(np.float32)}", ".astype(np.float32)[:, None]}", "shape (80, 1)"),
    "not_an_array": ("output_as_declared", ".astype(np.float32)}", ".tolist()}", "a list instead of"),
    "forgets": (
        "fresh_interpreter_agrees",
        "json.dumps(self.state)",
        'json.dumps({**self.state, "w": [0] * 5})',
        "differs by",
    ),
    "needs_memory": ("fresh_interpreter_agrees", LOAD, LOAD + "        self.trained_here\n", "AttributeError"),
    "pickles": (
        "safe_formats_only",
        "json.dumps(self.state))",
        'json.dumps(self.state))\n        import pickle\n        (directory / "m.pkl").write_bytes(pickle.dumps(1))',
        "UnsafeFormat",
    ),
    "saves_nothing": (
        "safe_formats_only",
        '(directory / "model.json").write_text(json.dumps(self.state))',
        "pass",
        "ArtifactError",
    ),
    "phones_home": (
        "no_network_on_load",
        LOAD,
        LOAD + '        try:\n            socket.create_connection(("192.0.2.1", 80), 0.1)\n        except OSError:\n'
        "            pass\n",
        "192.0.2.1",
    ),
    "resolves_names": (
        "no_network_on_load",
        LOAD,
        LOAD
        + '        try:\n            socket.gethostbyname("host.invalid")\n        except OSError:\n            pass\n',
        "host.invalid",
    ),
    "too_large": ("cost_measured", "time_field=", "gates=GatePolicy(max_bytes=10), time_field=", "the gate allows 10"),
    "cannot_train": (
        "output_as_declared",
        TRAIN,
        TRAIN + '        raise ValueError("no data")\n',
        "ValueError: no data",
    ),
    "leaves": ("output_as_declared", TRAIN, TRAIN + "        sys.exit(3)\n", "SystemExit: 3"),
    "kills_child": (
        "training_repeats",
        TRAIN,
        TRAIN + '        if "fresh" in str(run.scratch): os._exit(9)\n',
        "code 9",
    ),
}


def plant(root: Path, name: str, code: str = SOUND, old: str = "", new: str = "") -> Path:
    assert not old or old in code, f"nothing to replace in {name}"
    (root / name).mkdir(parents=True)
    (root / name / "__init__.py").write_text((code.replace(old, new) if old else code).replace("NAME", name))
    return root


def outcome(report: Report, check: str) -> tuple[str, str]:
    [result] = [result for result in report.checks if result.name == check]
    return result.outcome, result.detail


@pytest.fixture(autouse=True)
def _litter_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toys that leave files behind train in this process too."""
    for place in ("cwd", "temp"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = plant(tmp_path_factory.mktemp("models"), "sound")
    return run_checks("sound", folders=[folder], entry_points=False)


def test_a_sound_plugin_passes_every_check(sound: Report) -> None:
    found = {result.name: (result.outcome, result.detail) for result in sound.checks}
    assert [n for n, (o, _) in found.items() if o == "skipped"] == ["onnx_agrees"]
    assert sound.passed, sound.failures
    assert list(found) == check_names()


def test_the_report_carries_what_a_version_needs(sound: Report) -> None:
    assert (sound.model, sound.plugin_version, sound.recipe, sound.rows) == ("sound", "1.0", "default", 400)
    assert sound.origin.endswith("sound")
    assert len(sound.artifact or "") == 64
    for name in ("train_seconds", "predict_one_row_p50_us", "predict_1000_rows_ms", "artifact_bytes",
                 "fresh_load_seconds", "fresh_load_peak_memory_mb"):  # fmt: skip
        assert sound.cost[name] > 0, name
    assert all(result.seconds >= 0 and result.proves.endswith(".") for result in sound.checks)
    assert sound.seconds >= max(result.seconds for result in sound.checks)
    if Path("/proc/self/status").exists():
        assert all(result.peak_memory_mb > 10 for result in sound.checks)


def test_the_report_round_trips_through_json(sound: Report) -> None:
    assert Report.from_json(sound.to_json()) == sound
    assert json.loads(sound.to_json())["passed"] is True


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught_by_its_check(fault: str, tmp_path: Path) -> None:
    check, old, new, cause = FAULTS[fault]
    folder = plant(tmp_path, f"toy_{fault}", SOUND, old, new)
    report = run_checks(f"toy_{fault}", folders=[folder], entry_points=False, only=[check], rows=400)
    found, detail = outcome(report, check)
    assert found == "failed", detail
    assert cause in detail


def test_a_nullable_field_may_not_be_refused(tmp_path: Path) -> None:
    refuse = (
        '        if np.isnan(batch["maybe"])[3:4].any() and len(batch["x"]) == 8:\n'
        '            raise RequestError("maybe", "is missing")\n'
    )
    folder = plant(tmp_path, "toy_refuses", SOUND, PREDICT, refuse + PREDICT)
    report = run_checks("toy_refuses", folders=[folder], entry_points=False, only=["missing_values_handled"])
    assert "must be answered and is refused" in outcome(report, "missing_values_handled")[1]


def test_every_check_has_a_fault_that_it_catches() -> None:
    caught = {check for check, *_ in FAULTS.values()}
    assert set(SUITE) - caught == {"onnx_agrees"}  # caught below, by a plug-in that exports


def test_every_check_says_what_it_proves() -> None:
    for name, function in SUITE.items():
        assert inspect.getdoc(function), name
        assert name == function.__name__


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        ("", "", None),
        ("[], [self.slope]", "[], [self.slope + 0.01]", "differs by"),
        ('[helper.make_node("Mul", ["x"', '[helper.make_node("Mul", ["other"', "which is no input"),
        ("[], [self.slope]", "[1, 1], [self.slope]", "shape (1, 20) against (20,)"),
        (
            "np.float32(self.slope))}",
            "np.float32(self.slope)) if len(batch['x']) != 8 else np.nan_to_num(batch['x'])}",
            "NaN",
        ),
        ("import onnx\n", "raise NotADirectoryError('no exporter')\n", "no exporter"),
    ],
)
def test_onnx_parity(old: str, new: str, cause: str | None, tmp_path: Path) -> None:
    code = LINE.replace('make_tensor_value_info("x"', 'make_tensor_value_info("other"') if "other" in new else LINE
    name = f"line_{abs(hash((old, new))) % 10**6}"
    folder = plant(tmp_path, name, code, old, new)
    report = run_checks(name, folders=[folder], entry_points=False, only=["onnx_agrees", "answers_repeat"])
    found, detail = outcome(report, "onnx_agrees")
    assert found == ("passed" if cause is None else "failed"), detail
    assert cause is None or cause in detail
    assert outcome(report, "answers_repeat")[0] == "passed"  # a broken export breaks nothing else


def test_a_plugin_that_cannot_be_imported_fails_with_its_cause(tmp_path: Path) -> None:
    folder = plant(tmp_path, "toy_torn", "import not_there_xyz")
    report = run_checks("toy_torn", folders=[folder], entry_points=False)
    assert {result.outcome for result in report.checks} == {"failed"}
    assert all("not_there_xyz" in result.detail for result in report.checks)
    assert (report.artifact, report.plugin_version) == (None, "")
    assert Report.from_json(report.to_json()) == report


def test_a_given_artifact_is_what_is_checked(tmp_path: Path, sound: Report) -> None:
    from trellis.artifact import seal
    from trellis.catalog import Catalogue

    folder = plant(tmp_path / "models", "given")
    plugin = Catalogue([folder], entry_points=False).plugin("given")
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "model.json").write_text(json.dumps({"colours": {}, "w": [0.25, 0, 0, 0, 0]}))
    spec = plugin.spec
    manifest = seal(artifact, model="given", plugin_version="1.0", recipe="default", seed=7, inputs=spec.inputs,
                    outputs=("probability",))  # fmt: skip
    report = run_checks("given", folders=[folder], entry_points=False, artifact=artifact)
    assert report.passed, report.failures
    assert report.artifact == manifest.digest
    assert "from 0.5622 to 0.5622" in outcome(report, "output_as_declared")[1]  # 1 / (1 + exp(-0.25))
    (artifact / "model.json").write_text("{}")
    report = run_checks("given", folders=[folder], entry_points=False, artifact=artifact, only=["safe_formats_only"])
    assert "DigestMismatchError" in outcome(report, "safe_formats_only")[1]


def test_from_a_test_file_ids_name_model_and_check(tmp_path: Path) -> None:
    folder = plant(tmp_path, "toy_ids", SOUND, '"An open category."', '""')
    checks = {check.name: check for check in checks_for("toy_ids", folders=[folder], entry_points=False)}
    assert "_trellis_models.toy_ids" not in sys.modules  # collecting tests imports nothing
    assert str(checks["answers_repeat"]) == "toy_ids:answers_repeat"
    checks["answers_repeat"]()
    with pytest.raises(CheckFailed, match="toy_ids:spec_complete: no description: colour"):
        checks["spec_complete"]()
    with pytest.raises(CheckSkipped, match="exports no ONNX"):
        checks["onnx_agrees"]()


def test_scratch_files_go_with_the_run(tmp_path: Path) -> None:
    folder = plant(tmp_path / "models", "toy_tidy")
    assert run_checks("toy_tidy", folders=[folder], entry_points=False).passed
    assert list((tmp_path / "temp").iterdir()) == []


def test_unknown_names_are_refused_with_close_matches(tmp_path: Path) -> None:
    plant(tmp_path / "models", "toy_names")
    with pytest.raises(UnknownModelError, match="toy_names"):
        run_checks("toy_nams", folders=[tmp_path / "models"], entry_points=False)
    with pytest.raises(ConfigError, match="row_order_kept"):
        run_checks("toy_names", folders=[tmp_path / "models"], entry_points=False, only=["row_order"])


@pytest.mark.parametrize("fault", ["phones_home", "resolves_names"])
def test_the_network_is_refused_also_where_no_namespace_is_to_be_had(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trellis.checks.subject._unshare", lambda: ())
    check, old, new, cause = FAULTS[fault]
    folder = plant(tmp_path, f"bare_{fault}", SOUND, old, new)
    report = run_checks(f"bare_{fault}", folders=[folder], entry_points=False, only=[check])
    assert outcome(report, check)[0] == "failed"
    assert cause in outcome(report, check)[1]


def test_a_training_that_hangs_in_the_fresh_interpreter_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trellis.checks.subject.CHILD_SECONDS", 3.0)
    hang = TRAIN + '        if "fresh" in str(run.scratch):\n            import time; time.sleep(600)\n'
    folder = plant(tmp_path, "toy_hangs", SOUND, TRAIN, hang)
    report = run_checks("toy_hangs", folders=[folder], entry_points=False, only=["training_repeats"])
    assert "did not end in 3 s" in outcome(report, "training_repeats")[1]


def test_what_was_found_before_the_fresh_interpreter_died_counts(tmp_path: Path) -> None:
    _, old, new, _ = FAULTS["kills_child"]
    folder = plant(tmp_path, "toy_dies", SOUND, old, new)
    report = run_checks("toy_dies", folders=[folder], entry_points=False)
    failed = {result.name for result in report.failures}
    assert failed == {"training_repeats", "training_leaves_nothing", "empty_batch_answered", "missing_values_handled",
                      "unknown_values_handled"}  # fmt: skip
    assert outcome(report, "fresh_interpreter_agrees")[0] == "passed"
