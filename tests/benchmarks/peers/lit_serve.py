"""A LitServe server as its documentation writes one, with one process that scores."""

from __future__ import annotations

import os
import sys

import litserve
import numpy as np
import xgboost


class Scores(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = xgboost.XGBClassifier(n_jobs=1)
        self.model.load_model(os.environ["PEER_MODEL"])

    def decode_request(self, request: dict) -> np.ndarray:
        return np.array([list(request["row"].values())], np.float32)

    def predict(self, x: np.ndarray) -> float:
        return float(self.model.predict_proba(x)[0, 1])

    def encode_response(self, output: float) -> dict:
        return {"probability": output}


if __name__ == "__main__":
    server = litserve.LitServer(Scores(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False, log_level="warning"
    )
