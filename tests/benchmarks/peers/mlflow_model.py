"""Turn a file of XGBoost's into an MLflow model, in MLflow's own environment: ``mlflow_model.py FILE DIRECTORY``."""

import sys

import mlflow.xgboost
import xgboost

booster = xgboost.Booster()
booster.load_model(sys.argv[1])
mlflow.xgboost.save_model(booster, sys.argv[2], model_format="ubj", pip_requirements=[])
