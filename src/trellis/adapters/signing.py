"""Signatures of artifacts, by OpenSSF model signing with an elliptic-curve key: offline, no service and no log.

A digest says that an artifact is the one that a plan names; a signature says that somebody with the private key made
it, also against those who can write plans, registry and files. ``model.sig`` beside the manifest is a Sigstore bundle
over every file, the manifest included (https://github.com/sigstore/model-transparency, format 1.0), so that project's
own tools verify it as well. A private key comes from a file, and serving processes need none.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from trellis.artifact import SIGNATURE, Manifest, verify
from trellis.errors import ConfigError, SignatureError, StorageError

_PARTIAL = f".{SIGNATURE}.partial"


def sign_artifact(directory: Path, key: Path, password: str | None = None) -> None:
    """Sign a sealed artifact; an earlier signature is replaced at once, or stays.

    Args:
        directory: The artifact.
        key: PEM file of a private key on P-256, P-384 or P-521.
        password: Its password, if it is encrypted.

    Raises:
        ArtifactError: The artifact is not what was sealed.
        ConfigError: The key cannot be used, or the package is not installed.
        StorageError: The signature cannot be written.
    """
    verify(directory)
    signing = _package("signing", key)
    secret = password.encode() if password else None
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=key, password=secret)
    except Exception as error:  # whatever the parser of keys raises; its text may hold no part of the key
        raise _bad_key(key, "private", error) from None
    partial = directory / _PARTIAL
    try:
        config.set_hashing_config(_everything(key)).sign(directory, partial)
        os.replace(partial, directory / SIGNATURE)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(
            f"The signature could not be written: {error.strerror or error}.",
            where=directory,
            remedy="Free disk space, or check the directory's rights.",
        ) from error


def verify_artifact(directory: Path, digest: str | None = None, key: Path | None = None) -> Manifest:
    """Check an artifact's digests (see ``trellis.artifact.verify``) and, where a key is given, its signature.

    Args:
        directory: The artifact.
        digest: The digest that the caller was promised.
        key: PEM file of the public key that is trusted; None takes unsigned artifacts.

    Raises:
        ArtifactError: It is not what was sealed.
        SignatureError: It is not signed, or not by that key, or not as it is now.
        ConfigError: The key cannot be used, or the package is not installed.
    """
    manifest = verify(directory, digest)
    if key is None:
        return manifest
    path = directory / SIGNATURE
    if not path.is_file() or path.is_symlink():
        raise SignatureError(
            f"The artifact of {manifest.model!r} is not signed.",
            where=directory,
            remedy="Sign it with: trellis models sign MODEL VERSION, or train it again with TRELLIS_SIGNING_KEY.",
        )
    verifying = _package("verifying", key)
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except Exception as error:
        raise _bad_key(key, "public", error) from None
    try:
        config.set_hashing_config(_everything(key)).verify(directory, path)
    except Exception as error:  # a bundle is a stranger's file: it may break the parser anywhere
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise SignatureError(
            f"The signature of {manifest.model!r} does not hold: {why}",
            where=path,
            remedy="Do not serve it. Find out who wrote it; train it again, or sign it again if you know the files.",
        ) from error
    return manifest


def _everything(key: Path) -> Any:
    """Hash every file but the signature itself."""
    hashing = _package("hashing", key)
    return hashing.Config().set_ignored_paths(paths=[SIGNATURE, _PARTIAL], ignore_git_paths=False)


def _package(name: str, where: Path) -> Any:
    try:
        import model_signing.hashing
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        raise ConfigError(
            f"Signatures need the package model-signing: {error}.",
            where=where,
            remedy="Install it with: pip install 'trellis-mlops[signing]'",
        ) from error
    return getattr(model_signing, name)


def _bad_key(key: Path, kind: str, error: Exception) -> ConfigError:
    why = "there is no such file" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}"
    return ConfigError(
        f"The {kind} key for model signatures cannot be used: {why}.",
        where=key,
        remedy="Give a PEM file with an elliptic-curve key on P-256, P-384 or P-521, and its password if it has one.",
    )
