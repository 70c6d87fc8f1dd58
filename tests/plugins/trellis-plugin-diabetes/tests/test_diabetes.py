"""The platform's conformance kit, and what this model owes beside it."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.impute import SimpleImputer
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from trellis_plugin_diabetes import plugin

from trellis.checks import checks_for
from trellis.contract import TrainingData, TrainingRun, take


@pytest.mark.parametrize("check", checks_for("diabetes_progression"), ids=str)
def test_conformance(check):
    check()


def test_it_is_the_regression_that_scikit_learn_fits(tmp_path):
    rows = plugin.sample(1_000)
    data = TrainingData(rows.take(slice(0, 300)), rows.take(slice(300, 350)))
    predictor = plugin.train(data, TrainingRun(seed=0, recipe="ridge", scratch=tmp_path))
    x, y = load_diabetes(return_X_y=True, scaled=False)
    truth = make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), RidgeCV(alphas=np.logspace(-2, 3, 26)))
    truth.fit(x[:300], y[:300])
    answer = predictor.predict(take(rows.columns, slice(350, 442)))["value"]
    np.testing.assert_allclose(answer, truth.predict(x[350:]), rtol=1e-3)
    assert np.mean(np.abs(answer - y[350:])) < plugin.spec.metric.floor
