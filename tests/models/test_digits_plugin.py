"""The digits: what the network learns, and that calibration, shifts and graph are what they claim to be."""

import importlib
import json

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar

from trellis.contract import TrainingData, TrainingRun
from trellis.errors import ArtifactError, ContractError


@pytest.fixture(scope="module")
def plugin(catalogue):
    return catalogue.plugin("digits")


@pytest.fixture(scope="module")
def split(plugin):
    every = plugin.sample(10_000)
    rows = np.random.default_rng(5).permutation(len(every))
    return every.take(rows[:1100]), every.take(rows[1100:1400]), every.take(rows[1400:])


@pytest.fixture(scope="module")
def trained(plugin, split, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    seen = []
    run = TrainingRun(11, "cnn", scratch, params={"epochs": 20}, progress=lambda text, done: seen.append(done))
    predictor = plugin.train(TrainingData(split[0], split[1]), run)
    assert not list(scratch.iterdir())
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    return predictor


def test_it_reads_digits_it_has_not_seen(trained, split):
    answer = trained.predict(split[2].columns)
    assert (answer["label"] == split[2].target).mean() > 0.97
    np.testing.assert_allclose(answer["probabilities"].sum(axis=1), 1, atol=1e-5)


def test_calibration_does_not_raise_the_log_loss_of_unseen_rows(trained, split):
    network = importlib.import_module("_trellis_models.digits.network")
    rows = np.arange(len(split[2]))

    def log_loss(predictor):
        return -np.log(predictor.predict(split[2].columns)["probabilities"][rows, split[2].target]).mean()

    assert trained.temperature != 1.0
    assert log_loss(trained) < log_loss(network.DigitsPredictor(trained.network, 1.0))


def test_the_temperature_is_the_minimum_that_scipy_finds(split):
    import torch

    training = importlib.import_module("_trellis_models.digits.training")
    rng = np.random.default_rng(0)
    target = rng.integers(0, 10, 400)
    logits = rng.normal(size=(400, 10))
    logits[np.arange(400), target] += 1.5
    logits *= 3

    def loss(log_t):
        z = logits / np.exp(log_t)
        return (np.log(np.exp(z).sum(axis=1)) - z[np.arange(400), target]).mean()

    expected = np.exp(minimize_scalar(loss, bounds=(-2, 2), method="bounded", options={"xatol": 1e-9}).x)
    assert training._temperature(torch.tensor(logits), torch.tensor(target)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (1, 0), (-1, 1), (0, -1), (2, 2)])
def test_a_shift_moves_ink_and_brings_in_paper(down, right):
    import torch

    training = importlib.import_module("_trellis_models.digits.training")
    image = np.arange(1, 65, dtype=np.float32).reshape(1, 1, 8, 8)
    expected = np.zeros_like(image)
    for row in range(8):
        for column in range(8):
            if 0 <= row + down < 8 and 0 <= column + right < 8:
                expected[0, 0, row + down, column + right] = image[0, 0, row, column]
    np.testing.assert_array_equal(training._moved(torch.tensor(image), down, right).numpy(), expected)


def test_the_graph_is_the_network(trained, split, tmp_path):
    import onnxruntime

    trained.export_onnx(tmp_path / "model.onnx")
    probabilities, label = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, dict(split[2].columns))
    answer = trained.predict(split[2].columns)
    np.testing.assert_allclose(probabilities, answer["probabilities"], atol=1e-5)
    np.testing.assert_array_equal(label, answer["label"])
    assert str(tmp_path).encode() not in (tmp_path / "model.onnx").read_bytes()
    assert b"site-packages" not in (tmp_path / "model.onnx").read_bytes()


def test_what_is_saved_is_what_is_loaded(plugin, trained, split, tmp_path):
    trained.save(tmp_path)
    again = plugin.load(tmp_path).predict(split[2].columns)
    np.testing.assert_array_equal(again["probabilities"], trained.predict(split[2].columns)["probabilities"])


def test_broken_files_are_named(plugin, trained, tmp_path):
    trained.save(tmp_path)
    (tmp_path / "digits.json").write_text(json.dumps({}))
    with pytest.raises(ArtifactError, match="temperature"):
        plugin.load(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes((tmp_path / "weights.safetensors").read_bytes()[:-4])
    with pytest.raises(ArtifactError, match=r"weights\.safetensors"):
        plugin.load(tmp_path)


@pytest.mark.parametrize(
    "batch",
    [
        {},
        {"image": np.zeros((2, 64), np.float32)},
        {"image": np.zeros((2, 1, 28, 28), np.float32)},
        {"image": np.full((1, 1, 8, 8), np.nan, np.float32)},
    ],
)
def test_what_is_no_image_is_refused(trained, batch):
    with pytest.raises(ContractError):
        trained.predict(batch)


def test_a_snapshot_holds_every_image_and_gives_the_sample_back(plugin, tmp_path):
    from sklearn.datasets import load_digits

    plugin.ingest(tmp_path / "raw")
    frame = pd.read_parquet(tmp_path / "raw" / "digits.parquet")
    examples = plugin.examples(tmp_path / "raw")
    truth = load_digits()
    assert frame.shape == (1797, 66)
    assert examples.columns["image"].dtype == np.float32
    np.testing.assert_array_equal(examples.columns["image"][:, 0], truth.images)
    np.testing.assert_array_equal(examples.target, truth.target)
    np.testing.assert_array_equal(plugin.sample(7).row_id, examples.row_id[:7])
