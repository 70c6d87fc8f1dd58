"""An artifact is sealed once, and nothing that was changed, added or smuggled in is ever loaded."""

import bz2
import gzip
import json
import lzma
import pickle
import zipfile
import zlib
from pathlib import Path

import pytest

from trellis.artifact import MANIFEST, SAFE_FORMATS, seal, verify
from trellis.errors import ArtifactError, DigestMismatchError, UnsafeFormatError

HOW = {"model": "toy", "plugin_version": "1", "recipe": "default", "seed": 7, "inputs": ("x",), "outputs": ("y",)}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "weights.json").write_text("[1, 2]")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "card.md").write_text("hello")
    return tmp_path


def test_a_sealed_artifact_verifies_and_its_digest_depends_on_content_only(directory: Path, tmp_path_factory):
    manifest = seal(directory, **HOW)
    assert verify(directory, manifest.digest) == manifest
    assert set(manifest.files) == {"weights.json", "notes/card.md"}
    other = tmp_path_factory.mktemp("other")
    (other / "notes").mkdir()
    (other / "notes" / "card.md").write_text("hello")
    (other / "weights.json").write_text("[1, 2]")
    assert seal(other, **HOW).digest == manifest.digest
    assert seal(other, **{**HOW, "seed": 8}).digest != manifest.digest


@pytest.mark.parametrize("change", ["edit", "add", "remove", "manifest", "promise"])
def test_any_change_after_sealing_is_found(directory: Path, change: str):
    digest = seal(directory, **HOW).digest
    if change == "edit":
        (directory / "weights.json").write_text("[1, 3]")
    elif change == "add":
        (directory / "extra.json").write_text("{}")
    elif change == "remove":
        (directory / "notes" / "card.md").unlink()
    elif change == "manifest":
        data = json.loads((directory / MANIFEST).read_text())
        (directory / MANIFEST).write_text(json.dumps({**data, "recipe": "other"}))
    else:
        digest = "0" * 64
    with pytest.raises(DigestMismatchError):
        verify(directory, digest)


def test_formats_that_could_run_code_are_refused_by_suffix_and_by_content(directory: Path):
    (directory / "model.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UnsafeFormatError, match=r"model\.pkl"):
        seal(directory, **HOW)
    (directory / "model.pkl").rename(directory / "model.onnx")
    with pytest.raises(UnsafeFormatError, match="pickle under another name"):
        seal(directory, **HOW)
    with zipfile.ZipFile(directory / "model.onnx", "w") as archive:
        archive.writestr("data.pkl", "x")
    with pytest.raises(UnsafeFormatError, match="archive under another name"):
        seal(directory, **HOW)


class _Runs:
    def __reduce__(self):
        return print, ("it ran",)


@pytest.mark.parametrize("suffix", sorted(SAFE_FORMATS))
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_by_any_name_in_any_protocol(directory: Path, suffix: str, protocol: int, capsys):
    bomb = pickle.dumps(_Runs(), protocol)
    packed = {"": bomb, "gzip": gzip.compress(bomb), "bz2": bz2.compress(bomb), "xz": lzma.compress(bomb)}
    packed |= {f"zlib {level}": zlib.compress(bomb, level) for level in (1, 6, 9)}
    for how, content in packed.items():
        (directory / f"model{suffix}").write_bytes(content)
        with pytest.raises(UnsafeFormatError):
            seal(directory, **HOW)
        assert not (directory / MANIFEST).exists(), how
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("suffix", sorted(set(SAFE_FORMATS) - {".txt", ".md", ".csv"}))
@pytest.mark.parametrize("content", [b"", b"\x00" * 32, b"#!/bin/sh\n", b"\x7fELF", b"MZ", b"<html>"])
def test_content_that_is_not_what_the_suffix_says_is_refused(directory: Path, suffix: str, content: bytes):
    (directory / f"model{suffix}").write_bytes(content)
    with pytest.raises(UnsafeFormatError):
        seal(directory, **HOW)


def test_harmless_text_is_no_pickle(directory: Path):
    for i, text in enumerate(("carrier,origin\nUA,EWR\n", "cos\nsystem\nand then some words", "", "2.", "naïve\n")):
        (directory / f"table{i}.csv").write_text(text)
    assert len(seal(directory, **HOW).files) == 7


def test_a_link_out_of_the_directory_is_refused(directory: Path):
    (directory / "link.json").symlink_to("/etc/hostname")
    with pytest.raises(UnsafeFormatError, match="is a link"):
        seal(directory, **HOW)


def _skops(path: Path, *types: tuple[str, str]) -> None:
    content = [{"__module__": module, "__class__": name} for module, name in types]
    with zipfile.ZipFile(path, "w") as archive:
        # The trusted list inside the file is the attacker's; only the platform's counts.
        archive.writestr("schema.json", json.dumps({"content": content, "trusted": ["os.system"]}))


def test_a_skops_file_cannot_bring_its_own_trusted_types(directory: Path):
    _skops(directory / "model.skops", ("sklearn.linear_model._base", "LinearRegression"), ("numpy", "ndarray"))
    seal(directory, **HOW)
    _skops(directory / "model.skops", ("os", "system"))
    with pytest.raises(UnsafeFormatError, match=r"os\.system"):
        seal(directory, **HOW)
    _skops(directory / "model.skops", ("builtins", "eval"))
    with pytest.raises(UnsafeFormatError, match=r"builtins\.eval"):
        seal(directory, **HOW)


def test_a_missing_or_broken_manifest_is_named(tmp_path: Path):
    with pytest.raises(ArtifactError, match="no manifest"):
        verify(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        verify(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match="empty"):
        seal(tmp_path, **HOW)
