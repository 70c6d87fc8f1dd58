"""The weight files: bytes as the safetensors format says, and a named error for anything else."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trellis.contract.tensors import read_tensors, write_tensors
from trellis.errors import ArtifactError

# Written out by hand from the format's description: length, header, bytes.
HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"I64","shape":[],"data_offsets":[8,16]}}'
HEADER += b" " * (-len(HEADER) % 8)
BODY = bytes.fromhex("0000803f000000c0") + (7).to_bytes(8, "little")
FILE = len(HEADER).to_bytes(8, "little") + HEADER + BODY


def test_bytes_are_those_of_the_format(tmp_path):
    write_tensors(tmp_path / "w.safetensors", {"b": np.int64(7), "a": np.array([1, -2], np.float32)})
    assert (tmp_path / "w.safetensors").read_bytes() == FILE


def test_reads_a_file_of_another_writer_with_metadata(tmp_path):
    header = json.dumps(
        {"__metadata__": {"format": "pt"}, "x": {"dtype": "F16", "shape": [1, 2], "data_offsets": [0, 4]}}
    ).encode()
    (tmp_path / "w").write_bytes(len(header).to_bytes(8, "little") + header + np.array([0.5, 2], "<f2").tobytes())
    found = read_tensors(tmp_path / "w")
    assert found["x"].tolist() == [[0.5, 2.0]]


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda name: name != "__metadata__"),
        st.sampled_from(["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?"]).flatmap(
            lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
        ),
        max_size=4,
    )
)
def test_what_is_written_is_read(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("t") / "w.safetensors"
    write_tensors(path, tensors)
    found = read_tensors(path)
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        FILE[:5],
        FILE[:40],
        FILE[:-1],
        FILE + b"\0",
        (2**60).to_bytes(8, "little") + HEADER,
        (4).to_bytes(8, "little") + b"nope",
        (2).to_bytes(8, "little") + b"[]",
        FILE.replace(b"[2]", b"[3]"),
        FILE.replace(b"F32", b"XYZ"),
        FILE.replace(b"[8,16]", b"[0,8] "),
        FILE.replace(b'"shape":[2]', b'"shape":"2"'),
    ],
)
def test_a_broken_file_is_named(tmp_path, data):
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="cannot be read") as caught:
        read_tensors(path)
    assert caught.value.where == str(path)


def test_a_dtype_outside_the_format_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="dtype"):
        write_tensors(tmp_path / "w.safetensors", {"names": np.array(["a"], dtype=object)})
    assert not (tmp_path / "w.safetensors").exists()
