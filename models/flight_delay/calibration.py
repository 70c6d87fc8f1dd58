"""Platt scaling: two numbers that turn a score into a probability, the same in numpy and in a graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Platt:
    """``p = 1 / (1 + exp(-(slope * margin + offset)))``.

    Attributes:
        slope: Factor of the margin.
        offset: Added to it.
    """

    slope: float = 1.0
    offset: float = 0.0

    def logit(self, margin: np.ndarray) -> np.ndarray:
        """Return the calibrated log-odds, float32."""
        return margin.astype(np.float32) * np.float32(self.slope) + np.float32(self.offset)

    def probability(self, margin: np.ndarray) -> np.ndarray:
        """Return the calibrated probability, float32 in [0, 1]."""
        logit = np.clip(self.logit(margin), -80.0, 80.0)  # exp stays finite in float32
        return (1.0 / (1.0 + np.exp(-logit))).astype(np.float32)

    @classmethod
    def fit(cls, margin: np.ndarray, target: np.ndarray, *, iterations: int = 50) -> Platt:
        """Fit by Newton's method on the log loss.

        Targets are pulled in as Platt proposes ((n+ + 1)/(n+ + 2) and 1/(n- + 2)), which keeps the fit finite on few or
        one-sided rows. Source: Platt 1999, *Probabilistic Outputs for Support Vector Machines*, section 2.2; damped as
        in Lin, Lin & Weng 2007, *A Note on Platt's Probabilistic Outputs*.

        Args:
            margin: Log-odds before calibration, shape (n,).
            target: 0/1, shape (n,); rows the scores were not fitted on.
            iterations: Most Newton steps.
        """
        x = np.stack([margin.astype(np.float64), np.ones(len(margin))], axis=1)
        positives = float(target.sum())
        t = np.where(target > 0, (positives + 1) / (positives + 2), 1 / (len(target) - positives + 2))

        def loss(w: np.ndarray) -> float:
            z = x @ w
            return float(np.sum(np.logaddexp(0, z) - t * z))

        w = np.array([1.0, 0.0])
        now = loss(w)
        for _ in range(iterations):
            p = 1 / (1 + np.exp(-np.clip(x @ w, -500, 500)))
            gradient = x.T @ (p - t)
            hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-6 * np.eye(2)
            step, scale = np.linalg.solve(hessian, gradient), 1.0
            while (new := loss(w - scale * step)) > now and scale > 1e-8:
                scale /= 2
            if not now - new > 1e-12 * len(t):
                break
            w, now = w - scale * step, new
        # A slope of zero or below would turn the ranking round; then only the base rate can be learnt from these rows.
        if w[0] <= 0:
            rate = float(t.mean()) if len(t) else 0.5
            w = np.array([1e-3, np.log(rate / (1 - rate))])
        return cls(float(np.float32(w[0])), float(np.float32(w[1])))
