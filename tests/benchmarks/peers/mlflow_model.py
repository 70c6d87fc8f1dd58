"""Turn a file of XGBoost's into MLflow models, in MLflow's own environment: ``mlflow_model.py FILE DIRECTORY BARE``.

The first has a signature, as MLflow's documentation asks for ("Model Signatures and Input Examples Guide"), so that
what callers send is checked. ``BARE`` has none, and serves whatever comes.
"""

import sys

import mlflow.xgboost
import numpy as np
import pandas as pd
import xgboost
from mlflow.models import infer_signature

booster = xgboost.Booster()
booster.load_model(sys.argv[1])
rows = np.zeros((1, booster.num_features()))
sent = pd.DataFrame(rows, columns=[f"f{i:02d}" for i in range(rows.shape[1])])
signature = infer_signature(sent, booster.predict(xgboost.DMatrix(rows)))
for directory, promised in ((sys.argv[2], signature), (sys.argv[3], None)):
    mlflow.xgboost.save_model(booster, directory, model_format="ubj", pip_requirements=[], signature=promised)
