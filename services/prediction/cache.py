"""Answers given a short while ago, by what was asked of which version."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Outputs = dict[str, NDArray[Any]]


class AnswerCache:
    """Outputs of single rows. The key is the model, the digest of the version's files and every input's exact value.

    So another version, or a feature that has moved by a bit, is another key: nothing ever has to be thrown away but for
    its age. A cached answer is logged as a prediction like any other, with ``cached``.

    Args:
        seconds: How long an answer is kept; 0 keeps none.
        most: Most answers; the least recently used go first.
    """

    def __init__(self, seconds: float, most: int = 10_000) -> None:
        self.is_on = seconds > 0
        self._seconds = seconds
        self._most = most
        self._held: OrderedDict[bytes, tuple[float, Outputs]] = OrderedDict()
        self._lock = threading.Lock()

    def key(self, model: str, digest: str, inputs: Mapping[str, NDArray[Any]]) -> bytes:
        """Return the key of a row, ``inputs`` of one row each."""
        total = hashlib.blake2b(f"{model}\0{digest}".encode(), digest_size=16)
        for name, column in inputs.items():
            text = column.dtype.kind in "OU"
            value = "\0".join(map(repr, column.ravel().tolist())).encode() if text else column.tobytes()
            total.update(f"\0{name}\0{column.dtype.kind}{column.shape}{len(value)}\0".encode() + value)
        return total.digest()

    def get(self, key: bytes) -> Outputs | None:
        """Return the outputs kept under a key, if they are young enough."""
        with self._lock:
            found = self._held.get(key)
            if found is None:
                return None
            if time.monotonic() - found[0] > self._seconds:
                del self._held[key]
                return None
            self._held.move_to_end(key)
            return found[1]

    def put(self, key: bytes, outputs: Outputs) -> None:
        """Keep outputs; arrays are copied, so that nobody else can change them."""
        kept = {name: np.array(values) for name, values in outputs.items()}
        with self._lock:
            self._held[key] = (time.monotonic(), kept)
            self._held.move_to_end(key)
            while len(self._held) > self._most:
                self._held.popitem(last=False)
