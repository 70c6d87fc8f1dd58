"""Feast's own form of keys and values in an online store, read without its Python objects, which take most of a read.

Sources: *Online Store Format* in Feast's documentation, and ``feast.infra.key_encoding_utils`` of 0.67 (entity keys,
serialization version 3); the wire format of Protocol Buffers for values and event times. A test compares every type
with ``get_online_features``, so that a change in a later Feast is noticed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

_STRING = 2
# Feast's value types that may be a key: code and form of the value.
_KEY_FORMS: dict[str, tuple[int, Callable[[Any], bytes]]] = {
    "STRING": (_STRING, lambda v: ("" if v is None else str(v)).encode()),
    "INT32": (3, lambda v: struct.pack("<i", int(v))),
    "INT64": (4, lambda v: struct.pack("<q", int(v))),
}
_DOUBLE, _FLOAT = struct.Struct("<d"), struct.Struct("<f")
# First byte of a value: field number and wire type (https://protobuf.dev/programming-guides/encoding).
_TAG_STRING, _TAG_INT32, _TAG_INT64, _TAG_DOUBLE, _TAG_FLOAT, _TAG_BOOL = 0x12, 0x18, 0x20, 0x29, 0x35, 0x38


class KeyEncoder:
    """Encodes the keys of one set of join keys.

    Args:
        names: The join keys.
        kinds: Feast's value type of each, by name; ``STRING``, ``INT32`` or ``INT64``.

    Raises:
        KeyError: A type has no form here.
    """

    def __init__(self, names: Sequence[str], kinds: Sequence[str]) -> None:
        self._order = sorted(range(len(names)), key=lambda i: names[i])
        self._forms = [_KEY_FORMS[kinds[i]] for i in self._order]
        encoded = (name.encode() for name in sorted(names))
        self._head = struct.pack("<I", len(names)) + b"".join(struct.pack("<II", _STRING, len(n)) + n for n in encoded)

    def __call__(self, values: Sequence[Any]) -> bytes:
        """Return the key of one entity, values in the order of the names given."""
        parts = [self._head]
        for i, (code, form) in zip(self._order, self._forms, strict=True):
            value = form(values[i])
            parts.append(struct.pack("<II", code, len(value)) + value)
        return b"".join(parts)


def hash_field(view: str, feature: str) -> bytes:
    """Return a feature's field in Redis: MurmurHash3 of ``view:feature``, 32 bits, little endian."""
    import mmh3

    return struct.pack("<I", mmh3.hash(f"{view}:{feature}", signed=False))


def decode_value(data: bytes | None) -> Any:
    """Return a stored value, None where there is none: plain types at once, others through Feast."""
    if not data:
        return None
    tag = data[0]
    if tag == _TAG_FLOAT and len(data) == 5:
        return _FLOAT.unpack_from(data, 1)[0]
    if tag == _TAG_DOUBLE and len(data) == 9:
        return _DOUBLE.unpack_from(data, 1)[0]
    if tag in (_TAG_INT32, _TAG_INT64, _TAG_BOOL):
        number, end = _varint(data, 1)
        if end == len(data):
            return bool(number) if tag == _TAG_BOOL else _signed(number)
    elif tag == _TAG_STRING:
        length, start = _varint(data, 1)
        if start + length == len(data):
            return data[start:].decode()
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.type_map import feast_value_type_to_python_type

    return feast_value_type_to_python_type(Value.FromString(data))


def decode_time(data: bytes | None) -> np.datetime64 | None:
    """Return a stored event time in UTC (``google.protobuf.Timestamp``), None where there is none."""
    micros = decode_micros(data)
    return None if micros is None else np.datetime64(micros, "us")


@lru_cache(4096)  # the same few moments are read all the time
def decode_micros(data: bytes | None) -> int | None:
    """Return a stored event time in microseconds since 1970 in UTC, None where there is none."""
    if not data:
        return None
    seconds = nanos = position = 0
    while position < len(data):
        tag = data[position]
        number, position = _varint(data, position + 1)
        if tag == 0x08:
            seconds = _signed(number)
        elif tag == 0x10:
            nanos = _signed(number)
    return seconds * 1_000_000 + nanos // 1_000


def _varint(data: bytes, start: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[start]
        number |= (byte & 0x7F) << shift
        start += 1
        if byte < 0x80:
            return number, start
        shift += 7


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number
