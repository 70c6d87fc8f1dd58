"""An artifact is sealed once, and nothing that was changed, added or smuggled in is ever loaded."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest

from trellis.artifact import MANIFEST, seal, verify
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
