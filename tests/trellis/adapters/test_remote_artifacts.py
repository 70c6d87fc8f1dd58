"""Artifacts of an object store: fetched whole or not at all. The store is a directory behind the adapter of S3; the
real thing is in tests/stack, where the service loads what MLflow has put into S3.
"""

import os
import threading
import time

import pytest

from trellis.adapters import remote_artifacts
from trellis.adapters.object_files import ObjectFiles
from trellis.adapters.remote_artifacts import local_artifact, read_document
from trellis.artifact import seal, verify
from trellis.errors import ArtifactError, StorageError


@pytest.fixture
def artifact(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_artifacts, "_SCHEME", "file://")
    made = tmp_path / "bucket" / "run" / "model"
    (made / "deeper").mkdir(parents=True)
    (made / "model.json").write_text("{}")
    (made / "deeper" / "more.csv").write_text("a,b\n1,2\n")
    sealed = seal(made, model="toy", plugin_version="1", recipe="r", seed=1, inputs=("x",), outputs=("y",))
    (made.parent / "card.md").write_text("# toy\n")
    return f"file://{made}", sealed.digest


def test_a_path_is_itself(tmp_path):
    assert local_artifact(str(tmp_path), "0" * 64, tmp_path / "home") == tmp_path
    assert not (tmp_path / "home").exists()


def test_it_is_fetched_whole_and_once(artifact, tmp_path, monkeypatch):
    location, digest = artifact
    found = local_artifact(location, digest, tmp_path / "home")
    assert verify(found, digest).files.keys() == {"model.json", "deeper/more.csv"}
    monkeypatch.setattr(ObjectFiles, "listing", lambda _: pytest.fail("it is here already"))
    assert local_artifact(location, digest, tmp_path / "home") == found


def test_what_broke_off_leaves_nothing_and_is_tried_again(artifact, tmp_path, monkeypatch):
    location, digest = artifact
    fetch, seen = ObjectFiles.fetch, []

    def breaks(self, key, path):
        seen.append(key)
        if len(seen) == 2:
            raise StorageError("The object store refuses.")
        fetch(self, key, path)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectFiles, "fetch", breaks)
        with pytest.raises(StorageError):
            local_artifact(location, digest, tmp_path / "home")
    assert not list((tmp_path / "home" / "artifacts").iterdir())
    verify(local_artifact(location, digest, tmp_path / "home"), digest)


def test_what_killed_fetches_left_is_cleared_and_what_is_being_fetched_is_not(artifact, tmp_path):
    location, digest = artifact
    place = tmp_path / "home" / "artifacts"
    long_ago = time.time() - 2 * 3600
    for name, moment in (("killed", long_ago), ("slow", time.time())):
        directory = place / f".partial-{name}" / "deeper"
        directory.mkdir(parents=True)
        (directory / "big").write_text("...")
        os.utime(directory / "big", (moment, moment))
        for path in (directory, directory.parent):  # which a growing file leaves as old as they are
            os.utime(path, (long_ago, long_ago))
    local_artifact(location, digest, tmp_path / "home")
    assert {path.name for path in place.iterdir()} == {digest, ".partial-slow"}


def test_two_at_once_both_get_it(artifact, tmp_path):
    location, digest = artifact
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(local_artifact(location, digest, tmp_path / "home")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert [path.name for path in (tmp_path / "home" / "artifacts").iterdir()] == [digest]


def test_what_the_store_has_not_is_named(artifact, tmp_path):
    location, digest = artifact
    with pytest.raises(ArtifactError, match="no such artifact"):
        local_artifact(location + "-of-another", digest, tmp_path / "home")


def test_a_document_beside_it_is_read(artifact):
    location, _ = artifact
    place = location.rpartition("/")[0]
    assert read_document(f"{place}/card.md") == "# toy\n"
    with pytest.raises(FileNotFoundError):
        read_document(f"{place}/absent.md")
