"""The error tree: every error names the thing, where it came from and the remedy.

TrellisError
├── ConfigError                 a setting is unknown, missing or out of range
├── PluginError                 something a plug-in's author must mend
│   ├── UnknownModelError       no plug-in of that name
│   ├── DuplicateModelError     one name from two origins
│   ├── BrokenPluginError       the plug-in's code raises when loaded, trained or called
│   └── ContractError           the plug-in answers, but not as the contract says
├── DataError                   something wrong with data at rest
│   ├── CorruptSnapshotError    a snapshot's content is not what its digest says
│   ├── ValidationFailedError   more rows quarantined than the stated rate allows
│   └── MissingFeatureError     a feature, a view or an entity is not there
├── RequestError                something wrong with what a caller sent (a 4xx)
├── ArtifactError               something wrong with a model's files
│   ├── DigestMismatchError     a file is not the one that was sealed
│   ├── SignatureError          it is not signed by the key that is trusted
│   └── UnsafeFormatError       a format that could run code, or is not on the allow-list
├── RegistryError               a version, alias or decision is not there, or cannot be written
├── RolloutError
│   ├── InvalidPlanError        weights, versions or steps that make no sense
│   ├── StaleRevisionError      somebody else changed the plan first
│   ├── RolloutBusyError        another rollout of the model is going on
│   ├── LeaseHeldError          another controller is acting on the model
│   ├── ExpiredRolloutError     the rollout is over, or past its deadline
│   ├── FeatureVersionError     the features that a version learned from are no longer served
│   └── ClockError              the time given cannot follow what was recorded
├── LoopError                   the loop cannot do what was asked
├── StorageError                the disk or a store refused a write
├── BackupError                 a backup is unfinished or damaged, or would be written over something
└── UnavailableError            a service does not answer just now (seen from a client)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrellisError(Exception):
    """Base of every error that Trellis raises on purpose.

    Args:
        what: The thing and what is wrong with it, one sentence.
        where: Its origin: a path, a setting, a package, a table.
        remedy: What the reader can do about it, an imperative sentence.
    """

    def __init__(self, what: str, *, where: object = None, remedy: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.remedy = remedy
        super().__init__(what)

    def __str__(self) -> str:
        text = self.what
        if self.where is not None:
            text += f" [{self.where}]"
        if self.remedy is not None:
            text += f" {self.remedy}"
        return text


class ConfigError(TrellisError):
    """A setting is unknown, missing or out of range."""


class PluginError(TrellisError):
    """Something a plug-in's author must mend."""


class UnknownModelError(PluginError):
    """No plug-in of that name."""


class DuplicateModelError(PluginError):
    """One name from two origins."""


class BrokenPluginError(PluginError):
    """The plug-in's code raises when it is loaded, trained or called."""


class ContractError(PluginError):
    """The plug-in answers, but not as the contract says."""


class DataError(TrellisError):
    """Something wrong with data at rest."""


class CorruptSnapshotError(DataError):
    """A snapshot's content is not what its digest says."""


class ValidationFailedError(DataError):
    """More rows were quarantined than the stated rate allows."""


class MissingFeatureError(DataError):
    """A feature, a view or an entity is not there."""


class RequestError(TrellisError):
    """Something wrong with what a caller sent.

    Args:
        field: Dotted path of the offending field, for example ``rows.0.carrier``; empty for the body as a whole.
        reason: What is wrong with it.
        status: HTTP status, 400–499.
        remedy: What the caller can send instead.
    """

    def __init__(self, field: str, reason: str, *, status: int = 422, remedy: str | None = None) -> None:
        self.field = field
        self.reason = reason
        self.status = status
        super().__init__(f"{field}: {reason}" if field else reason, remedy=remedy)


class ArtifactError(TrellisError):
    """Something wrong with a model's files."""


class DigestMismatchError(ArtifactError):
    """A file is not the one that was sealed."""


class SignatureError(ArtifactError):
    """An artifact is not signed, or not by the key that is trusted, or not as it is now."""


class UnsafeFormatError(ArtifactError):
    """A format that could run code, or is not on the allow-list."""


class RegistryError(TrellisError):
    """A version, alias or decision is not there, or cannot be written."""


class RolloutError(TrellisError):
    """A rollout cannot do what was asked."""


class InvalidPlanError(RolloutError):
    """Weights, versions or steps that make no sense."""


class StaleRevisionError(RolloutError):
    """Somebody else changed the plan first."""


class RolloutBusyError(RolloutError):
    """Another rollout of the model is going on."""


class LeaseHeldError(RolloutError):
    """Another controller is acting on the model, or took over while this one was away."""


class ExpiredRolloutError(RolloutError):
    """The rollout is over, or past its deadline."""


class FeatureVersionError(RolloutError):
    """The features that a version learned from are no longer served, or not by that definition."""


class ClockError(RolloutError):
    """The time given cannot follow what was recorded."""


class LoopError(TrellisError):
    """The loop cannot do what was asked."""


class StorageError(TrellisError):
    """The disk or a store refused a write; nothing was half written."""


class BackupError(TrellisError):
    """A backup is unfinished or damaged, or it would be written over something."""


class UnavailableError(TrellisError):
    """A service does not answer just now; the same call may succeed later."""


def close_matches(name: str, known: Iterable[str]) -> str:
    """Return ``Did you mean …?`` for a misspelt name, or the list of known ones."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3)
    if close:
        return f"Did you mean {' or '.join(repr(n) for n in close)}?"
    return f"Known: {', '.join(names)}." if names else "None is known."
