"""What a version was released with: the thresholds it is judged by, the features it reads, the baseline it is held to.

A plan's variant carries its release, so the plan is the one document that says all of it: whoever makes another version
the champion, a verdict or an operator, changes model, feature-view version, thresholds and drift baseline in the same
compare-and-set, and going back to an older version brings back what it was released with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from trellis.contract import DriftPolicy, ModelSpec, QualityPolicy
from trellis.decision import dumps
from trellis.errors import FeatureVersionError

# Tells by which definition a feature service is served now; None where it is not served at all.
Served = Callable[[str], str | None]


@dataclass(frozen=True)
class Release:
    """What goes with a version wherever a plan puts it.

    The policies of gates, rollout and retraining are not in it: they are about the next version, and the declaration of
    the day holds for that one.

    Attributes:
        feature_service: Feature service it was trained on; empty where it joins no features.
        features: Digest of that service's definition then; empty without one.
        baseline: SHA-256 of the drift baseline sealed in its artifact, hexadecimal; empty if unknown.
        drift, quality: The thresholds it is watched by while it is the champion.
    """

    feature_service: str = ""
    features: str = ""
    baseline: str = ""
    drift: DriftPolicy = field(default_factory=DriftPolicy)
    quality: QualityPolicy = field(default_factory=QualityPolicy)

    @property
    def thresholds(self) -> str:
        """Return the digest of both policies: equal where, and only where, they are."""
        return hashlib.sha256(dumps([self.drift, self.quality]).encode()).hexdigest()


def release_of(spec: ModelSpec, *, features: str = "", baseline: str = "") -> Release:
    """Return what a version made by a declaration is released with.

    Args:
        spec: The declaration.
        features: Digest of its feature service's definition.
        baseline: SHA-256 of the drift baseline.
    """
    return Release(spec.feature_service or "", features, baseline, spec.drift, spec.quality)


def bound(spec: ModelSpec, release: Release | None) -> ModelSpec:
    """Return a declaration with the thresholds and the feature service of a release in the place of its own.

    A version without a release, of a plan older than releases, goes by the declaration.
    """
    if release is None:
        return spec
    service = release.feature_service or spec.feature_service
    return replace(spec, feature_service=service, drift=release.drift, quality=release.quality)


def require_served(version: str, release: Release | None, served: Served) -> None:
    """Refuse a version whose features are no longer served as it learned them.

    Args:
        version: Which, for the message.
        release: What it was released with; one that names no definition is not held to any.
        served: Tells the definition that is served now.

    Raises:
        FeatureVersionError: The feature service is gone, or is defined otherwise by now.
    """
    if release is None or not release.features:
        return
    now = served(release.feature_service)
    if now == release.features:
        return
    state = "is not served any more" if now is None else f"is defined otherwise by now ({now[:19]})"
    raise FeatureVersionError(
        f"Version {version} was released with the feature service {release.feature_service!r} as "
        f"{release.features[:19]}, which {state}: the version would answer from features it never learned.",
        where=release.feature_service,
        remedy="Restore that definition in the feature repository under its name and apply it, then go back again.",
    )
