"""A BentoML service as its documentation writes one: a typed endpoint, XGBoost's own predict_proba."""

from __future__ import annotations

import os

import bentoml
import numpy as np
from pydantic import create_model

Row = create_model("Row", **{f"f{i:02d}": (float, ...) for i in range(15)})


@bentoml.service(name="plain")
class Plain:
    def __init__(self) -> None:
        import xgboost

        self.model = xgboost.XGBClassifier(n_jobs=1)
        self.model.load_model(os.environ["PEER_MODEL"])

    @bentoml.api
    async def predict(self, row: Row) -> dict:  # type: ignore[valid-type]
        x = np.array([list(row.model_dump().values())], np.float32)
        return {"probability": float(self.model.predict_proba(x)[0, 1])}
