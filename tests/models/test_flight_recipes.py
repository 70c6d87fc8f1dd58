"""The flight model's recipes: calibration, codes, graphs, files, and what a fresh process has to import."""

import hashlib
import importlib
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis.adapters.onnx_predictor import OnnxPredictor
from trellis.contract import Explains, ExportsOnnx, TrainingData, TrainingRun, take
from trellis.errors import ArtifactError, ContractError, PluginError

RECIPES = ("xgboost", "tabnet")
SMALL = {"xgboost": {"rounds": 60, "learning_rate": 0.1}, "tabnet": {"epochs": 4, "width": 32, "batch_size": 128}}
MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="module")
def plugin(catalogue):
    return catalogue.plugin("flight_delay")


def module(name):
    return importlib.import_module(f"_trellis_models.flight_delay.{name}")


@pytest.fixture(scope="module")
def parts(plugin):
    """Real flights: two thirds to train on, a sixth to validate, a sixth that nobody has seen."""
    rows = plugin.sample(1_500)
    return rows.take(slice(0, 1_000)), rows.take(slice(1_000, 1_250)), rows.take(slice(1_250, None))


def fit(plugin, parts, recipe, scratch, seed=3, **params):
    data = TrainingData(parts[0], parts[1])
    return plugin.train(data, TrainingRun(seed, recipe, scratch, params={**SMALL[recipe], **params}))


@pytest.fixture(scope="module", params=RECIPES)
def predictor(request, plugin, parts, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    trained = fit(plugin, parts, request.param, scratch)
    assert not list(scratch.iterdir())
    return trained


@pytest.fixture
def artifact(predictor, tmp_path):
    predictor.save(tmp_path)
    predictor.export_onnx(tmp_path / "model.onnx")
    return tmp_path


def awkward(rows):
    """Make real rows harder: strings nobody has seen, no strings, no numbers, extremes; no tail number."""
    rng = np.random.default_rng(8)
    batch = {name: column.copy() for name, column in rows.columns.items()}
    for name, column in batch.items():
        if column.dtype.kind == "U":
            column = column.astype(object)
            column[rng.random(len(column)) < 0.1] = "Zürich"
            column[rng.random(len(column)) < 0.1] = None
            column[rng.random(len(column)) < 0.1] = ""
            batch[name] = column
        elif column.dtype.kind == "f":
            column[rng.random(len(column)) < 0.1] = np.nan
            column[rng.random(len(column)) < 0.02] = 1e6
            column[rng.random(len(column)) < 0.02] = -1e6
            column[rng.random(len(column)) < 0.02] = np.inf
            column[rng.random(len(column)) < 0.02] = -np.inf
    return batch


def test_the_graph_is_the_model_also_on_awkward_rows(predictor, artifact, parts):
    batch = awkward(parts[2])
    expected = predictor.predict(batch)["probability"]
    found = OnnxPredictor(artifact / "model.onnx").predict(batch)["probability"]
    assert found.shape == expected.shape == (len(parts[2]),)
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert expected.min() >= 0
    assert expected.max() <= 1
    assert expected.std() > 0.01


def test_a_value_on_a_threshold_takes_the_same_branch_in_the_graph(plugin, parts, tmp_path):
    predictor = fit(plugin, parts, "xgboost", tmp_path)
    encoding = module("encoding")
    trees = json.loads(bytes(predictor.booster.save_raw("json")))["learner"]["gradient_booster"]["model"]["trees"]
    thresholds = {}
    for tree in trees:
        for left, column, threshold in zip(
            tree["left_children"], tree["split_indices"], tree["split_conditions"], strict=True
        ):
            if left != -1 and column >= len(encoding.CATEGORIES):
                thresholds.setdefault(encoding.NUMBERS[column - len(encoding.CATEGORIES)], set()).add(threshold)
    assert len(thresholds) > 10
    rng = np.random.default_rng(2)
    batch = {name: column[rng.integers(0, 250, 3_000)] for name, column in parts[2].columns.items()}
    for name, values in thresholds.items():
        batch[name] = rng.choice(np.array(sorted(values), dtype=np.float32), 3_000)
    predictor.export_onnx(tmp_path / "model.onnx")
    found = OnnxPredictor(tmp_path / "model.onnx").predict(batch)["probability"]
    np.testing.assert_allclose(found, predictor.predict(batch)["probability"], atol=1e-6)


def test_it_ranks_and_is_calibrated_on_flights_it_has_not_seen(predictor, parts):
    from sklearn.metrics import brier_score_loss, roc_auc_score

    unseen = parts[2]
    probability = predictor.predict(unseen.columns)["probability"]
    assert roc_auc_score(unseen.target, probability) > 0.6
    base = np.full(len(unseen), parts[0].target.mean())
    assert brier_score_loss(unseen.target, probability) < brier_score_loss(unseen.target, base)


def test_calibration_takes_back_the_confidence_of_overfitted_trees(plugin, parts, tmp_path):
    harsh = {"rounds": 150, "patience": 150, "learning_rate": 0.5, "max_depth": 9, "min_child_weight": 0.0}
    predictor = fit(plugin, parts, "xgboost", tmp_path, **harsh, reg_lambda=0.0)
    raw = module("xgb").XgbPredictor(predictor.booster, predictor.encoding, module("calibration").Platt())
    target, unseen = parts[2].target, parts[2].columns

    def brier(model):
        return float(((model.predict(unseen)["probability"] - target) ** 2).mean())

    assert predictor.platt.slope < 0.9
    assert brier(predictor) < brier(raw) - 0.002


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.4, -0.7), (2.0, 0.5)])
def test_platt_finds_what_made_the_labels(slope, offset):
    rng = np.random.default_rng(4)
    margin = rng.normal(-1, 1.5, 40_000)
    target = rng.random(40_000) < 1 / (1 + np.exp(-(slope * margin + offset)))
    found = module("calibration").Platt.fit(margin, target.astype(int))
    # Four standard errors at this many rows, by Fisher's information, are below 0.1 here.
    assert found.slope == pytest.approx(slope, abs=0.1)
    assert found.offset == pytest.approx(offset, abs=0.1)


def test_platt_is_the_unpenalised_logistic_regression_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(9)
    margin = rng.normal(0, 2, 20_000)
    target = (rng.random(20_000) < 1 / (1 + np.exp(-(0.7 * margin - 0.4)))).astype(int)
    found = module("calibration").Platt.fit(margin, target)
    reference = LogisticRegression(C=1e9, tol=1e-8).fit(margin[:, None], target)
    # Platt's pulled-in targets move the fit by the order of one row in twenty thousand.
    assert found.slope == pytest.approx(float(reference.coef_[0, 0]), abs=2e-3)
    assert found.offset == pytest.approx(float(reference.intercept_[0]), abs=2e-3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-30, 30), st.integers(0, 1)), max_size=40))
def test_platt_stays_finite_and_keeps_the_order_on_any_rows(catalogue, rows):
    catalogue.plugin("flight_delay")
    margin, target = np.array([r[0] for r in rows]), np.array([r[1] for r in rows], dtype=int)
    platt = module("calibration").Platt.fit(margin, target)
    assert math.isfinite(platt.slope)
    assert math.isfinite(platt.offset)
    assert platt.slope > 0
    p = platt.probability(np.linspace(-50, 50, 101))
    assert np.isfinite(p).all()
    assert (np.diff(p) >= 0).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["UA", "AA", "B6", "", "DL"]), st.integers(0, 1)), min_size=1, max_size=60))
def test_codes_follow_the_smoothed_rate(catalogue, rows):
    catalogue.plugin("flight_delay")
    encoding = module("encoding")
    column, target = np.array([r[0] for r in rows], dtype=np.str_), np.array([r[1] for r in rows])
    fitted = encoding.Encoding.fit(dict.fromkeys(encoding.CATEGORIES, column), target)
    overall = sum(target) / len(rows)
    rate = {}
    for value in set(column.tolist()) - {""}:
        own = [t for v, t in rows if v == value]
        rate[value] = (sum(own) + 50 * overall) / (len(own) + 50)
    codes = fitted.codes["carrier"]
    assert sorted(codes) == sorted(rate)
    assert 0 not in codes.values()
    ordered = sorted(codes, key=codes.__getitem__)
    assert all(rate[a] <= rate[b] + 1e-12 for a, b in itertools.pairwise(ordered))
    again = encoding.Encoding.from_json(json.loads(json.dumps(fitted.to_json())))
    assert again == fitted


def test_validation_days_stop_or_calibrate_but_never_both(plugin, parts):
    encoding = module("encoding")
    time = parts[1].time
    stop, calibrate = encoding.halves(time, len(time))
    assert sorted([*stop, *calibrate]) == list(range(len(time)))
    assert not set(time[stop].astype("datetime64[D]")) & set(time[calibrate].astype("datetime64[D]"))
    for rows, when in ((7, None), (7, np.full(7, np.datetime64("2013-05-01", "us")))):
        stop, calibrate = encoding.halves(when, rows)
        assert sorted([*stop, *calibrate]) == list(range(rows))
        assert len(calibrate)


def test_contributions_add_up_to_the_log_odds(plugin, parts, tmp_path):
    predictor = fit(plugin, parts, "xgboost", tmp_path)
    assert isinstance(predictor, Explains)
    batch = awkward(parts[2])
    answer = predictor.explain(batch)
    assert set(answer) == {*plugin.spec.inputs, "baseline"}
    logit = np.sum([answer[name] for name in answer], axis=0)
    np.testing.assert_allclose(1 / (1 + np.exp(-logit)), predictor.predict(batch)["probability"], atol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_seed_gives_the_same_bytes_in_another_process(plugin, parts, recipe, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for directory in (here, there, tmp_path / "scratch"):
        directory.mkdir()
    predictor = fit(plugin, parts, recipe, tmp_path / "scratch")
    predictor.save(here)
    predictor.export_onnx(here / "model.onnx")
    code = f"""
from pathlib import Path
from trellis.catalog import Catalogue
from trellis.contract import TrainingData, TrainingRun
plugin = Catalogue([Path({str(MODELS)!r})], entry_points=False).plugin("flight_delay")
rows = plugin.sample(1_500)
data = TrainingData(rows.take(slice(0, 1_000)), rows.take(slice(1_000, 1_250)))
run = TrainingRun(3, {recipe!r}, Path({str(tmp_path / "scratch")!r}), params={SMALL[recipe]!r})
predictor = plugin.train(data, run)
predictor.save(Path({str(there)!r}))
predictor.export_onnx(Path({str(there)!r}) / "model.onnx")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == done.stderr == ""  # no library's chatter either
    assert digests(here) == digests(there)
    assert {path.suffix for path in here.iterdir()} <= {".ubj", ".json", ".safetensors", ".onnx"}


def test_another_seed_gives_another_model(plugin, parts, predictor, tmp_path):
    recipe = "xgboost" if hasattr(predictor, "booster") else "tabnet"
    other = fit(plugin, parts, recipe, tmp_path, seed=4).predict(parts[2].columns)["probability"]
    assert np.abs(other - predictor.predict(parts[2].columns)["probability"]).max() > 1e-4


def digests(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def test_a_fresh_process_imports_only_what_the_recipe_needs(predictor, artifact):
    def modules(action):
        code = f"""
import sys
from pathlib import Path
from trellis.catalog import Catalogue
plugin = Catalogue([Path({str(MODELS)!r})], entry_points=False).plugin("flight_delay")
directory = Path({str(artifact)!r})
{action}
heavy = ("torch", "pytorch_lightning", "xgboost", "sklearn", "onnx", "onnxruntime", "duckdb")
print(*[name for name in heavy if name in sys.modules])
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    own = "xgboost" if hasattr(predictor, "booster") else "torch"
    assert modules("") == set()
    # XGBoost imports scikit-learn by itself where that is installed.
    assert modules("plugin.load(directory).predict(plugin.sample(3).columns)") - {"sklearn"} == {own}
    serve = "from trellis.adapters.onnx_predictor import OnnxPredictor\n"
    serve += "OnnxPredictor(directory / 'model.onnx').predict(plugin.sample(3).columns)"
    assert modules(serve) == {"onnxruntime"}


def test_what_is_saved_is_what_is_loaded(plugin, predictor, artifact, parts):
    batch = awkward(parts[2])
    expected = predictor.predict(batch)["probability"]
    loaded = plugin.load(artifact)
    assert isinstance(loaded, ExportsOnnx)
    np.testing.assert_array_equal(loaded.predict(batch)["probability"], expected)
    one = np.concatenate([loaded.predict(take(batch, slice(i, i + 1)))["probability"] for i in range(20)])
    np.testing.assert_allclose(one, expected[:20], atol=1e-6)


def test_broken_files_are_named(plugin, artifact):
    weights = next(path for path in artifact.iterdir() if path.suffix in (".ubj", ".safetensors"))
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(ArtifactError, match=weights.name):
        plugin.load(artifact)
    card = artifact / "flight_delay.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "recipe": "lightgbm"}))
    with pytest.raises(ArtifactError, match="lightgbm"):
        plugin.load(artifact)
    card.write_text("{")
    with pytest.raises(ArtifactError, match=r"flight_delay\.json"):
        plugin.load(artifact)


def test_few_and_one_sided_rows_train_all_the_same(plugin, parts, tmp_path):
    on_time = np.flatnonzero(parts[0].target == 0)[:40]
    data = TrainingData(parts[0].take(on_time[:30]), parts[0].take(on_time[30:]))
    for recipe in RECIPES:
        predictor = plugin.train(data, TrainingRun(1, recipe, tmp_path, params=SMALL[recipe]))
        probability = predictor.predict(parts[2].columns)["probability"]
        assert np.isfinite(probability).all()
        assert probability.mean() < 0.3


def test_what_cannot_be_scored_is_refused_by_name(predictor, parts):
    good = take(parts[2].columns, slice(0, 2))
    for name, value in (("carrier", None), ("distance", np.array(["far", "near"])), ("distance", np.zeros((2, 2)))):
        batch = {k: v for k, v in good.items() if k != name} | ({} if value is None else {name: value})
        with pytest.raises(ContractError, match=name):
            predictor.predict(batch)


def test_misspelt_recipes_and_parameters_are_refused(plugin, parts, tmp_path):
    with pytest.raises(PluginError, match="xgboost"):
        plugin.train(TrainingData(parts[0], parts[1]), TrainingRun(1, "xgbost", tmp_path))
    with pytest.raises(PluginError, match="learning_rate"):
        fit(plugin, parts, "xgboost", tmp_path, learning_rat=0.1)


def test_the_sample_is_real_declared_and_repeatable(plugin):
    rows = plugin.sample(400)
    assert len(rows) == 400
    assert {*rows.columns} == {*plugin.spec.fields}
    assert (np.diff(rows.time.astype(np.int64)) >= 0).all()
    assert (rows.known > rows.time).all()
    assert len(set(rows.row_id.tolist())) == 400
    assert 0.1 < rows.target.mean() < 0.4
    np.testing.assert_array_equal(rows.row_id, plugin.sample(400).row_id)


def test_trees_learn_further_rows_and_the_network_says_that_it_does_not(plugin, parts, tmp_path):
    half = len(parts[0]) // 2
    older, newer = parts[0].take(slice(0, half)), parts[0].take(slice(half, None))
    start = fit(plugin, (older, *parts[1:]), "xgboost", tmp_path)
    trees = start.booster.num_boosted_rounds()
    run = TrainingRun(3, "xgboost", tmp_path, params={"learn_rounds": 7, "min_child_weight": 1.0})
    learned = plugin.learn(start, TrainingData(newer, parts[1]), run)
    assert learned.booster.num_boosted_rounds() == trees + 7
    again = plugin.learn(fit(plugin, (older, *parts[1:]), "xgboost", tmp_path), TrainingData(newer, parts[1]), run)
    batch = parts[2].columns
    np.testing.assert_array_equal(learned.predict(batch)["probability"], again.predict(batch)["probability"])
    assert not np.allclose(learned.predict(batch)["probability"], start.predict(batch)["probability"])
    network = fit(plugin, parts, "tabnet", tmp_path)
    with pytest.raises(PluginError, match="learns further rows"):
        plugin.learn(network, TrainingData(newer, parts[1]), run)
