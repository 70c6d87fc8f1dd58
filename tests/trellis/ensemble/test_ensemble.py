"""The time-decayed ensemble: weights against naive accounts, what is kept, and one graph of several members."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from scipy.optimize import minimize_scalar

from trellis.adapters.onnx_ensemble import ExportableEnsemble, exportable
from trellis.adapters.onnx_predictor import OnnxPredictor
from trellis.contract import Dataset, Field, Metric, ModelSpec, Predictor, Target
from trellis.ensemble import EnsemblePredictor, Member, Weight, guessing_loss, member_weights, weigh
from trellis.errors import ContractError
from trellis.metrics import row_loss

SPEC = ModelSpec(
    name="toy",
    version="1",
    task="binary",
    owner="tests",
    description="A toy.",
    request=(Field("x", "float", example=1.0), Field("kind", "category", example="a")),
    inputs=("x", "kind"),
    outputs=(Field("probability", "float", minimum=0, maximum=1),),
    target=Target("y", "Truth.", classes=("no", "yes")),
    metric=Metric("auc", 0.5),
)


class Slope(Predictor):
    """P = clip(x · slope + base), in numpy and as a graph."""

    def __init__(self, slope: float, base: float = 0.5, opset: int = 21) -> None:
        self.slope, self.base, self.opset = slope, base, opset

    def predict(self, batch):
        return {"probability": np.clip(batch["x"].astype(float) * self.slope + self.base, 0, 1)}

    def save(self, directory: Path) -> None:
        (directory / "slope.json").write_text(f"[{self.slope}, {self.base}]")

    def export_onnx(self, path: Path) -> None:
        floats, text = TensorProto.FLOAT, TensorProto.STRING
        numbers = {"slope": self.slope, "base": self.base, "zero": 0.0, "one": 1.0}
        nodes = [
            helper.make_node("Mul", ["x", "slope"], ["scaled"]),
            helper.make_node("Add", ["scaled", "base"], ["raised"]),
            helper.make_node("Clip", ["raised", "zero", "one"], ["probability"]),
        ]
        graph = helper.make_graph(
            nodes,
            "slope",
            [helper.make_tensor_value_info("x", floats, ["n"]), helper.make_tensor_value_info("kind", text, ["n"])],
            [helper.make_tensor_value_info("probability", floats, ["n"])],
            [helper.make_tensor(name, floats, [], [value]) for name, value in numbers.items()],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10), path)


def rows(count: int, slope: float, seed: int = 0) -> Dataset:
    """An hour apart; y follows the law of ``Slope(slope)``."""
    random = np.random.default_rng(seed)
    x = random.uniform(-1, 1, count)
    y = (random.random(count) < np.clip(x * slope + 0.5, 0, 1)).astype(np.int64)
    time = np.datetime64("2024-01-01", "us") + np.arange(count) * np.timedelta64(1, "h")
    return Dataset({"x": x, "kind": np.full(count, "a")}, y, np.arange(count).astype(str), time)


def members(*slopes: float) -> list[Member]:
    return [Member(f"v{i}", "", Slope(slope)) for i, slope in enumerate(slopes)]


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0.01, 1)), min_size=3, max_size=30))
@settings(max_examples=60, deadline=None)
def test_guessing_is_the_best_constant_answer(pairs):
    target, weights = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    binary = (target % 2).astype(np.int64)
    found = minimize_scalar(lambda p: np.average((binary - p) ** 2, weights=weights), bounds=(0, 1), method="bounded")
    assert guessing_loss("binary", binary, weights) == pytest.approx(found.fun, abs=1e-6)
    values = target.astype(float)
    naive = min(np.average(np.abs(values - v), weights=weights) for v in values)
    assert guessing_loss("regression", values, weights) == pytest.approx(naive, abs=1e-9)
    shares = np.array([weights[target == k].sum() for k in range(4)]) / weights.sum()
    constant = np.tile(shares, (len(target), 1))
    naive = np.average(row_loss("multiclass", target.astype(np.int64), constant), weights=weights)
    assert guessing_loss("multiclass", target, weights) == pytest.approx(naive, abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1))
def test_shares_sum_to_one_and_rank_as_the_losses_do(losses, guessing):
    shares = member_weights(losses, guessing)
    assert sum(shares) == pytest.approx(1)
    assert min(shares) >= 0
    if any(loss < guessing for loss in losses):
        assert all(share == 0 for share, loss in zip(shares, losses, strict=True) if loss >= guessing)
        order = sorted(range(len(losses)), key=lambda i: losses[i])
        ranked = [shares[i] for i in order]
        assert ranked == sorted(ranked, reverse=True)
    else:
        assert shares[0] == 1


def test_a_member_counts_for_what_it_is_worth_now():
    # The world turned round half way: an old member knows the old law, the new one the new.
    old, new = rows(600, 0.5, 1), rows(600, -0.5, 2)
    both = Dataset(
        {n: np.concatenate([old.columns[n], new.columns[n]]) for n in old.columns},
        np.concatenate([old.target, new.target]),
        np.arange(1200).astype(str),
        np.concatenate([old.time, new.time + np.timedelta64(600, "h")]),
    )
    short = weigh(SPEC, members(-0.5, 0.5), both, decay_days=3, most=5)
    assert [w.weight for _, w in short.members] == [1.0, 0.0]  # half a month back counts for a thirtieth
    naive = np.average(
        row_loss("binary", both.target, Slope(-0.5).predict(both.columns)["probability"]),
        weights=0.5 ** (np.arange(1199, -1, -1) / 24 / 3),
    )
    assert short.members[0][1].loss == pytest.approx(naive, rel=1e-12)
    # The one that is of no use now stays, and is heard again where its law comes back.
    back = weigh(SPEC, [Member("newest", "", Slope(0.0)), *(m for m, _ in short.members)], old, decay_days=3, most=5)
    assert [(m.name, w.weight) for m, w in back.members if w.weight > 0] == [("v1", 1.0)]
    assert len(back.members) == 3


def test_the_number_of_members_is_bounded_and_the_newest_is_always_there():
    found = members(0.0, 0.5, 0.4, 0.3, 0.2, 0.1)
    kept = weigh(SPEC, found, rows(500, 0.5), decay_days=14, most=3)
    assert {m.name for m, _ in kept.members} == {"v0", "v1", "v2"}
    weights = [w.weight for _, w in kept.members]
    assert weights == sorted(weights, reverse=True)
    alone = weigh(SPEC, found, rows(500, 0.5), decay_days=14, most=1)
    assert [(m.name, w.weight) for m, w in alone.members] == [("v0", 1.0)]


def test_one_graph_answers_as_its_members_do(tmp_path):
    weights = (0.5, 0.3, 0.2, 0.0)
    pairs = [
        (member, Weight(member.name, "", 0.1, 0.2, share))
        for member, share in zip(members(0.9, -0.4, 0.2, 5.0), weights, strict=True)
    ]
    ensemble = exportable(EnsemblePredictor(SPEC, pairs))
    assert isinstance(ensemble, ExportableEnsemble)
    ensemble.export_onnx(tmp_path / "model.onnx")
    batch = rows(200, 0.5).columns
    answer = OnnxPredictor(tmp_path / "model.onnx").predict(batch)
    assert list(answer) == ["probability"]
    x = batch["x"]
    naive = sum(w * np.clip(x * s + 0.5, 0, 1) for w, s in zip(weights, (0.9, -0.4, 0.2, 5.0), strict=True))
    np.testing.assert_allclose(answer["probability"], naive, atol=1e-6)
    np.testing.assert_allclose(ensemble.predict(batch)["probability"], naive, atol=1e-12)
    assert "m3/" not in str(onnx.load(tmp_path / "model.onnx"))  # who is not heard costs nothing
    first = (tmp_path / "model.onnx").read_bytes()
    ensemble.export_onnx(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == first


def test_members_that_do_not_fit_together_are_refused(tmp_path):
    pairs = [
        (Member("a", "", Slope(0.5)), Weight("a", "", 0.1, 0.2, 0.5)),
        (Member("b", "", Slope(0.5, opset=20)), Weight("b", "", 0.1, 0.2, 0.5)),
    ]
    with pytest.raises(ContractError, match="differ in the version of the operators"):
        ExportableEnsemble(SPEC, pairs).export_onnx(tmp_path / "model.onnx")
    from dataclasses import replace

    named = replace(SPEC, outputs=(*SPEC.outputs, Field("label", "category")))
    with pytest.raises(ContractError, match=r"The outputs \['label'\] of 'toy' have no mean"):
        EnsemblePredictor(named, pairs)
