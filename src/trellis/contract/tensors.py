"""Weights on disk without code in them: the safetensors format, written and read with numpy alone.

A file is eight bytes with the length of the header (little endian), a JSON header that gives each tensor's dtype, shape
and byte range, and the bytes themselves without gaps. Source: the "Format" section of the safetensors project's README.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.errors import ArtifactError

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}
_LARGEST_HEADER = 10_000_000


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays, sorted by name, so that the same weights give the same bytes.

    Args:
        path: File to write, usually ``NAME.safetensors``.
        tensors: Arrays of any shape; floats of 16 to 64 bits, integers, or booleans.

    Raises:
        ArtifactError: A dtype has no place in the format.
    """
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    start = 0
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        code = _CODES.get(array.dtype.newbyteorder("<"))
        if code is None:
            raise ArtifactError(
                f"Tensor {name!r} has dtype {array.dtype}.", where=path, remedy=f"Use one of {sorted(_DTYPES)}."
            )
        part = array.astype(_DTYPES[code], copy=False).tobytes(order="C")
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [start, start + len(part)]}
        start += len(part)
        parts.append(part)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data start on a multiple of eight, as readers that map the file expect
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Read the named arrays of a safetensors file; each is a writable copy.

    Raises:
        ArtifactError: The file is cut short, or its header does not describe exactly its bytes.
    """
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _LARGEST_HEADER):
        raise _broken(path, f"its header should have {length} bytes, the file has {len(data)}")
    try:
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        entries = sorted(
            (*map(index, e["data_offsets"]), name, _DTYPES[e["dtype"]], tuple(map(index, e["shape"])))
            for name, e in header.items()
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path, f"its header cannot be read ({type(error).__name__}: {error})") from error
    body = memoryview(data)[8 + length :]
    tensors: dict[str, NDArray[Any]] = {}
    end = 0
    for start, stop, name, dtype, shape in entries:
        if (
            min(shape, default=0) < 0
            or start != end
            or stop - start != math.prod(shape) * np.dtype(dtype).itemsize
            or stop > len(body)
        ):
            raise _broken(path, f"the bytes {start}–{stop} of tensor {name!r} do not fit its shape {shape} or the file")
        tensors[name] = np.frombuffer(body[start:stop], dtype=dtype).reshape(shape).copy()
        end = stop
    if end != len(body):
        raise _broken(path, f"{len(body) - end} bytes at its end belong to no tensor")
    return tensors


def _broken(path: Path, why: str) -> ArtifactError:
    return ArtifactError(
        f"The weights cannot be read: {why}.", where=path, remedy="Fetch the artifact again from the registry."
    )
